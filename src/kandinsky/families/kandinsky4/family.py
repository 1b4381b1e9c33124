"""Kandinsky 4.0: text to video, and image to video. No torch."""

from __future__ import annotations

from kandinsky.families.parts.shared import COGVIDEOX, T5
from kandinsky.model.family import Depth, Family, Part, Split
from kandinsky.model.lazy import Lazy
from kandinsky.model.task import IMAGE_TO_VIDEO, TEXT_TO_VIDEO

_HERE = "kandinsky.families.kandinsky4"
FAMILY = Family(
    "kandinsky4",
    parts={
        "kandinsky4.dit": Part(
            network=Lazy(f"{_HERE}.networks:transformer"),
            bind=Lazy(f"{_HERE}.denoiser:bind"),
            conditions=("zeros", "coordinates"),
            split=Split(Lazy(f"{_HERE}.parallel:SPLIT"), Lazy(f"{_HERE}.cost:demand")),
            caches=True,
            packs=True,
            cost=Lazy(f"{_HERE}.cost:transformer"),
            flops=Lazy(f"{_HERE}.cost:flops"),
            depth=Depth("num_blocks", 1, Lazy(f"{_HERE}.cost:blocks")),
            adapts=(
                "self_attention.to_query_key_value",
                "self_attention.output_layer",
                "feed_forward.in_layer",
                "feed_forward.out_layer",
            ),
            heads=Lazy(f"{_HERE}.heads:heads"),
            branches={"control": "kandinsky4.control", "reference": "kandinsky4.reference"},
        ),
        "kandinsky4.control": Part(network=Lazy(f"{_HERE}.networks:control")),
        "kandinsky4.reference": Part(network=Lazy(f"{_HERE}.networks:reference")),
        "t5": T5,
        "cogvideox": COGVIDEOX,
    },
    tasks={"text-to-video": TEXT_TO_VIDEO, "image-to-video": IMAGE_TO_VIDEO},
    cases=Lazy(f"{_HERE}.conformance:CASES"),
    manifest=Lazy(f"{_HERE}.conformance:component_of"),
)
