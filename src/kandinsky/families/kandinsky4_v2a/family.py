"""Kandinsky 4.0 video to audio. No torch."""

from __future__ import annotations

from dataclasses import replace

from kandinsky.families.parts.shared import STABLE_DIFFUSION
from kandinsky.model.family import Family, Format, Part
from kandinsky.model.lazy import Lazy
from kandinsky.model.task import VIDEO_TO_AUDIO

_HERE = "kandinsky.families.kandinsky4_v2a"
UNET = Part(
    network=Lazy(f"{_HERE}.networks:unet"),
    bind=Lazy(f"{_HERE}.denoiser:bind"),
    cost=Lazy(f"{_HERE}.cost:unet"),
    adapts=(
        *(f"attn*.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"processor.video_{name}" for name in ("q", "k", "v", "out")),
        "ff.net.0.proj",
        "ff.net.2",
    ),
)
TASK = replace(
    VIDEO_TO_AUDIO,
    stages=Lazy(f"{_HERE}.stages:SOUND"),
    resolve=Lazy(f"{_HERE}.request:resolve_sound"),
    examples=Lazy(f"{_HERE}.examples:EXAMPLES"),
)
FAMILY = Family(
    "kandinsky4_v2a",
    parts={
        "kandinsky4.v2a-unet": UNET,
        "cogvlm2-video": Part(
            reader=Lazy(f"{_HERE}.networks:cogvlm2"),
            remote_code=True,
            stored_dtype=True,
            cost=Lazy(f"{_HERE}.cost:clip_encoder"),
            made_up=Lazy(f"{_HERE}.made_up:random_states"),
        ),
        "stable-diffusion": STABLE_DIFFUSION,
    },
    tasks={"video-to-audio": TASK},
    formats=(Format("official folders", Lazy(f"{_HERE}.folder:holds"), Lazy(f"{_HERE}.folder:read")),),
    cases=Lazy(f"{_HERE}.conformance:CASES"),
    manifest=Lazy(f"{_HERE}.conformance:component_of"),
)
