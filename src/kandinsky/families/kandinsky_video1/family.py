"""Kandinsky Video 1.0 and 1.1: keyframes, and the frames between them. No torch."""

from __future__ import annotations

from dataclasses import replace

from kandinsky.families.parts.shared import MOVQ, T5_PROJECTED, UNET_ADAPTS
from kandinsky.model.family import Family, Part
from kandinsky.model.lazy import Lazy
from kandinsky.model.task import TEXT_OR_IMAGE_TO_VIDEO, TEXT_TO_VIDEO, Task

_HERE = "kandinsky.families.kandinsky_video1"
_KEYMAPS = "kandinsky.families.parts.keymaps"
_IN_TIME = tuple(name.replace("self_", "temporal_") for name in UNET_ADAPTS if name.startswith("self_"))


def _unet(keymap: str, cost: str) -> Part:
    return Part(
        network=Lazy("kandinsky.families.parts.networks:unet"),
        keymap=Lazy(f"{_KEYMAPS}:{keymap}"),
        bind=Lazy("kandinsky.families.parts.unet.denoiser:bind"),
        cost=Lazy(f"{_HERE}.cost:{cost}"),
        adapts=(*UNET_ADAPTS, *_IN_TIME),
    )


def _in_stages(task: Task) -> Task:
    return replace(
        task,
        # key frames are made in a loop of their own, which replaces nothing
        knows={what: way for what, way in task.knows.items() if way == "native"},
        stages=Lazy(f"{_HERE}.keyframes:KEYFRAMES"),
        resolve=Lazy(f"{_HERE}.request:resolve_keyframes"),
        lessons={"dit": Lazy(f"{_HERE}.lessons:KEYFRAMES"), "interpolation": Lazy(f"{_HERE}.lessons:GAPS")},
    )


FAMILY = Family(
    "kandinsky_video1",
    parts={
        "kandinsky_video1.keyframes-1.0": _unet("UNET_FRAMES_1_0", "keyframes"),
        "kandinsky_video1.keyframes-1.1": _unet("UNET_FRAMES_1_1", "keyframes"),
        "kandinsky_video1.interpolation-1.0": _unet("UNET_GAPS_1_0", "interpolation"),
        "kandinsky_video1.interpolation-1.1": _unet("UNET_GAPS_1_1", "interpolation"),
        "t5-projected": T5_PROJECTED,
        "movq": MOVQ,
    },
    tasks={
        "text-to-video": _in_stages(TEXT_TO_VIDEO),
        "text-or-image-to-video": _in_stages(TEXT_OR_IMAGE_TO_VIDEO),
    },
    interpolate=Lazy(f"{_HERE}.interpolation:interpolate"),
    cases=Lazy(f"{_HERE}.conformance:CASES"),
)
