"""Another library in a comparison: what the rivals of a part (``Part.rivals``) receive.

A rival does the same work on our weights and inputs, through that library's own code. Nothing is held twice: its
networks take our tensors as they are.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.request import Job
from kandinsky.errors import BackendError


class Unavailable(Exception):  # noqa: N818 - a verdict, not a failure
    """The other library has nothing to compare with here."""


class Side:
    """Another library, beside a pipeline of ours and a job.

    Attributes:
        library: The imported package.

    Raises:
        BackendError: The package is not installed.
    """

    def __init__(self, name: str, pipe: GenerationPipeline, job: Job) -> None:
        try:
            self.library: Any = importlib.import_module(name)
        except ImportError as error:
            raise BackendError(f"`against={name}` needs the package `{name}`: install it") from error
        self.pipe = pipe
        self.job = job

    def pipeline(self, name: str, **parts: Any) -> Any:
        """One of the library's pipelines with only the given parts."""
        made = getattr(self.library, name)
        names = [key for key in inspect.signature(made.__init__).parameters if key != "self"]
        pipe = made(**dict.fromkeys(names) | parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe
