"""A model of a batch that can be told to fail, and leaves a trace of what it does; in any process."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.request import Job
from kandinsky.jobs.batch import Loading
from kandinsky.model.values import Video

STILL = {"seconds": 0.0, "steps": 1, "guidance": 1.0}


@dataclass(frozen=True, slots=True)
class Watched(Loading):
    """Nano; `fails` in a prompt is an error, `kills N` ends the process the first N times it is asked for.

    trace: a folder that gets a file for each time work on a prompt began.
    """

    trace: Path = Path()

    def load(self) -> GenerationPipeline:
        pipe = Loading.load(self)
        run = pipe.run

        def watched(resolved: Job, **options: Any) -> Video:
            slug = resolved.prompt.replace(" ", "-")
            before = len(list(self.trace.glob(f"{slug}.*")))
            (self.trace / f"{slug}.{before}").touch()
            if "kills" in resolved.prompt and before < int(resolved.prompt.split("kills ")[1]):
                os.kill(os.getpid(), signal.SIGKILL)
            if "fails" in resolved.prompt:
                raise ArithmeticError("this one fails")
            return run(resolved, **options)

        pipe.run = watched  # type: ignore[method-assign]
        return pipe

    def times(self, prompt: str) -> int:
        """How often work on a prompt began."""
        return len(list(self.trace.glob(f"{prompt.replace(' ', '-')}.*")))
