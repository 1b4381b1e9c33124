"""Command lines of processes that a server starts, from its settings."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kandinsky.engine.options import RunOptions
from kandinsky.serve.settings import ServeSettings


def flags_of(options: RunOptions | ServeSettings) -> list[str]:
    """The flags that stand for the options that are not the defaults."""
    words: list[str] = []
    for f in dataclasses.fields(options):
        value, flags = getattr(options, f.name), f.metadata.get("flags")
        if not flags or value == f.default:
            continue
        if value is True:
            words.append(flags[0])
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [flags[0], _text(one)]
    return words


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}={inner}" for key, inner in value.items())
    return str(value)


def worker_command(settings: ServeSettings, *, name: str, models: Sequence[str], device: str | None) -> list[str]:
    """The command of one worker.

    Args:
        settings: Of the server.
        name: The worker's name.
        models: The models it runs.
        device: Its device; None = its own choice.

    Returns:
        The words of the command line.
    """
    options = settings.options if device is None else settings.options.changed(device=device)
    words = [sys.executable, "-P", "-m", "kandinsky", "worker", *models]
    words += ["--name", name, "--parent", str(os.getpid()), "--batch", str(settings.batch)]
    words += ["--preview-every", f"{settings.preview_every:g}"]
    words += ["--keep-days", f"{settings.keep_days:g}"]
    if settings.store is not None:
        words += ["--store", settings.store]
    if settings.memory is not None:
        words += ["--memory", settings.memory]
    if settings.loras is not None:
        words += ["--loras", settings.loras]
    if settings.branches is not None:
        words += ["--branches", settings.branches]
    if settings.warm_up:
        words.append("--warm-up")
    return words + flags_of(options)
