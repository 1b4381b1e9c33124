"""File names of results, if no name or only a pattern is given. No torch here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kandinsky.engine.request import Job
from kandinsky.errors import RequestError
from kandinsky.files import output_path
from kandinsky.printing import escaped

NAME = "{name}"


def has_name(output: str) -> bool:
    """Whether a file name is a pattern, with ``NAME`` where the derived name goes.

    Raises:
        RequestError: It has another word in braces, such as a misspelt one.
    """
    if odd := [word for word in re.findall(r"\{\w*\}", output) if word != NAME]:
        raise RequestError(f"output `{escaped(output)}` has the placeholder `{odd[0]}`: the only one is `{NAME}`")
    return NAME in output


def folder_of(output: str | None) -> Path | None:
    """The folder that several results lie in, under their derived names: one that exists, or a name with a slash.

    Args:
        output: As it was typed.

    Returns:
        The folder; None where files are named, a pattern is, or nothing.

    Raises:
        RequestError: It ends in a slash as a folder does, and in letters as a file does.
    """
    if output is None or has_name(output):
        return None
    if Path(output).is_dir():
        return Path(output)
    return output_path(output) if output.endswith(("/", os.sep)) else None


def made_up_name(job: Job, *, seed: int | None) -> str:
    """The prompt as a file name, without ending; the seed in it tells results of one prompt apart."""
    named = job.prompt or (job.image and job.image.source.file and Path(job.image.source.file).stem) or ""
    slug = re.sub(r"[\W_]+", "-", named.lower()).strip("-")[:48].rstrip("-") or "video"
    return slug if seed is None else f"{slug}-{seed}"


def ending_of(job: Job, form: str | None = None) -> str:
    """The ending of a job's file; ``form`` is the format that was chosen, such as `webm`."""
    return f".{form}" if form else ".png" if job.shape.frames == 1 else ".mp4"


def numbered(target: str | Path, index: int, total: int) -> Path:
    """The ``index``-th of several files, from 0: `x-07.mp4`; the name itself if there is only one."""
    path = output_path(target)
    if total == 1:
        return path
    return path.with_name(f"{path.stem}-{index + 1:0{len(str(total))}d}{path.suffix}")
