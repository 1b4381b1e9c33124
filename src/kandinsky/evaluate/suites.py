"""Suites: a reader of prompts, clips of each prompt, and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kandinsky.evaluate.prompts import Prompt, read_evalcrafter, read_moviegen, read_own, read_vbench


@dataclass(frozen=True, slots=True)
class Suite:
    """A benchmark.

    Attributes:
        name: Key, as on the command line.
        title: What it is called.
        read: Reads its prompt file; takes the column or None.
        file: What that file is, for help.
        without: Metrics that do not apply to it.
    """

    name: str
    title: str
    read: Callable[[Path, str | None], list[Prompt]]
    file: str
    without: tuple[str, ...] = ("appearance style", "temporal style")

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured."""
        from kandinsky.evaluate.metrics import METRICS, SETS  # NumPy, which the command's help does without

        return tuple(name for name in (*METRICS, *SETS) if name not in self.without)


SUITES: Mapping[str, Suite] = {
    one.name: one
    for one in (
        Suite("moviegen", "MovieGen Video Bench", read_moviegen, "MovieGen's list or table"),
        Suite("vbench", "VBench", read_vbench, "VBench_full_info.json", without=()),
        Suite("evalcrafter", "EvalCrafter", read_evalcrafter, "EvalCrafter's text or JSON"),
        Suite("own", "prompts of your own", read_own, "a text file, .csv, .jsonl or .json"),
    )
}
