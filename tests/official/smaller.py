"""The official calls with small sizes, short clips and two steps in the place of what was asked, which is written down.

What is asked is what the documents say; only the work is made small enough for a processor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from kandinsky.compat import official_files
from kandinsky.model.card import Card

ASKED = "OFFICIAL_TEST_ASKED"  # the file that the values are written to
SIZE = (256, 128)  # sparse attention needs multiples of 128
DOORS: dict[str, dict[str, Any]] = {
    "kandinsky5.Kandinsky5T2VPipeline": {"width": SIZE[0], "height": SIZE[1], "time_length": 0.2, "num_steps": 1},
    "kandinsky4.Kandinsky4T2VPipeline": {"width": 64, "height": 48, "time_length": 1},
    "kandinsky4_v2a.Video2AudioPipeline": {"num_inference_steps": 2},
    "kandinsky_video_1_0.VideoKandinsky3T2VPipeline": {"width": 128, "height": 64, "steps": 2},
}
LIGHT = ("kandinsky5.Kandinsky5T2VPipeline", "kandinsky4.Kandinsky4T2VPipeline")  # importing these loads no torch


def _smaller(call: Callable[..., Any], changes: dict[str, Any]) -> Callable[..., Any]:
    @functools.wraps(call)  # its signature too, which test.py asks for
    def asked(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(call).bind(*args, **kwargs)
        bound.apply_defaults()
        plain = {k: v for k, v in bound.arguments.items() if isinstance(v, str | int | float | None)}
        if os.environ.get("RANK", "0") == "0":
            Path(os.environ[ASKED]).write_text(json.dumps(plain), encoding="utf-8")
        bound.arguments.update(changes)
        return call(*bound.args, **bound.kwargs)

    return asked


def _with_small_size(read: Callable[..., tuple[Card, Path | None]]) -> Callable[..., tuple[Card, Path | None]]:
    @functools.wraps(read)
    def small(*args: Any, **kwargs: Any) -> tuple[Card, Path | None]:
        card, root = read(*args, **kwargs)
        sizes = (*card.clip.sizes, f"{SIZE[0]}x{SIZE[1]}")
        return dataclasses.replace(card, clip=dataclasses.replace(card.clip, sizes=sizes)), root

    return small


@contextlib.contextmanager
def made_small(doors: tuple[str, ...] = tuple(DOORS)) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(official_files, "read", _with_small_size(official_files.read)))
        for door in doors:
            module, _, name = door.partition(".")
            cls = getattr(importlib.import_module(f"kandinsky.compat.{module}"), name)
            call = _smaller(cls.__call__, DOORS[door])
            stack.enter_context(mock.patch.object(cls, "__call__", call))
        yield
