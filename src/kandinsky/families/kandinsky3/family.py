"""Kandinsky 3.0 and 3.1: text to image, and inpainting. No torch."""

from __future__ import annotations

from dataclasses import replace

from kandinsky.families.parts.shared import MOVQ, T5_PROJECTED, UNET_ADAPTS
from kandinsky.model.family import DiffusersFormat, Family, FolderLayout, Part
from kandinsky.model.lazy import Lazy
from kandinsky.model.task import INPAINTING, TEXT_TO_IMAGE

_HERE = "kandinsky.families.kandinsky3"
FAMILY = Family(
    "kandinsky3",
    parts={
        "kandinsky3.unet": Part(
            network=Lazy("kandinsky.families.parts.networks:unet"),
            keymap=Lazy("kandinsky.families.parts.keymaps:UNET"),
            spellings=(Lazy(f"{_HERE}.folder:unet_of"),),
            bind=Lazy("kandinsky.families.parts.unet.denoiser:bind"),
            cost=Lazy(f"{_HERE}.cost:unet"),
            adapts=UNET_ADAPTS,
            rivals={"diffusers": Lazy(f"{_HERE}.rivals:unet")},
            heads=Lazy("kandinsky.families.parts.unet.heads:heads"),
        ),
        "t5-projected": T5_PROJECTED,
        "movq": MOVQ,
    },
    tasks={
        "text-to-image": TEXT_TO_IMAGE,
        "inpainting": replace(INPAINTING, lessons={"dit": Lazy(f"{_HERE}.lesson:INPAINTING")}),
    },
    diffusers=DiffusersFormat(
        {"Kandinsky3Pipeline": "kandinsky3.0"},
        FolderLayout(
            "unet",
            "movq",
            {"t5": "text_encoder", "tokenizer": "tokenizer", "projection": "unet"},
            # the projection of text embeddings is in their U-Net
            {"table": "encoder_hid_proj", "rule": "diffusers"},
        ),
        Lazy(f"{_HERE}.folder:read_diffusers"),
    ),
    convert=Lazy(f"{_HERE}.convert:convert"),
    cases=Lazy(f"{_HERE}.conformance:CASES"),
    manifest=Lazy(f"{_HERE}.conformance:component_of"),
)
