"""Kandinsky 5.0: text to video, image to video, text to image and image editing. No torch."""

from __future__ import annotations

from dataclasses import replace

from kandinsky.families.parts.shared import FLUX, HUNYUAN
from kandinsky.model.family import Depth, DiffusersFormat, Family, FolderLayout, Format, Part, Split
from kandinsky.model.lazy import Lazy
from kandinsky.model.task import IMAGE_EDITING, IMAGE_TO_VIDEO, TEXT_TO_IMAGE, TEXT_TO_VIDEO

_HERE = "kandinsky.families.kandinsky5"
_TO = ("to_query", "to_key", "to_value")
TRANSFORMER = Part(
    network=Lazy(f"{_HERE}.networks:transformer"),
    bind=Lazy(f"{_HERE}.denoiser:bind"),
    split=Split(Lazy(f"{_HERE}.parallel:SPLIT"), Lazy(f"{_HERE}.cost:demand")),
    attention=("dense", "nabla", "causal"),
    conditions=("zeros", "coordinates"),
    frame_times=True,
    packs=True,
    caches=True,
    cost=Lazy(f"{_HERE}.cost:transformer"),
    flops=Lazy(f"{_HERE}.cost:flops"),
    depth=Depth("num_visual_blocks", 2, Lazy(f"{_HERE}.cost:visual_blocks")),
    # those of the published LoRAs
    adapts=(
        *(f"{kind}_attention.{name}" for kind in ("self", "cross") for name in (*_TO, "out_layer")),
        "feed_forward.in_layer",
        "feed_forward.out_layer",
    ),
    rivals={"diffusers": Lazy(f"{_HERE}.rivals:transformer")},
    twins={"diffusers": Lazy(f"{_HERE}.rivals:twin")},
    heads=Lazy(f"{_HERE}.heads:heads"),
    branches={"control": "kandinsky5.control", "reference": "kandinsky5.reference"},
)
BRANCHES = {
    "kandinsky5.control": Part(network=Lazy(f"{_HERE}.networks:control")),
    "kandinsky5.reference": Part(network=Lazy(f"{_HERE}.networks:reference")),
}
FAMILY = Family(
    "kandinsky5",
    parts={
        "kandinsky5.dit": TRANSFORMER,
        **BRANCHES,
        "qwen-clip": Part(
            reader=Lazy(f"{_HERE}.networks:qwen_clip"),
            tensors=("qwen", "clip"),
            cost=Lazy(f"{_HERE}.cost:qwen_clip"),
            depth=Depth("qwen_layers", 2, Lazy(f"{_HERE}.cost:qwen_layers")),
            made_up=Lazy(f"{_HERE}.made_up:random_qwen_clip"),
            rivals={"diffusers": Lazy(f"{_HERE}.rivals:qwen_clip")},
            expands=("text-to-video", "text-to-image", "image-to-video", "image-editing"),
        ),
        "hunyuan": HUNYUAN,
        "flux": FLUX,
    },
    tasks={
        "text-to-video": TEXT_TO_VIDEO,
        "image-to-video": IMAGE_TO_VIDEO,
        "text-to-image": TEXT_TO_IMAGE,
        "image-editing": replace(IMAGE_EDITING, lessons={"dit": Lazy(f"{_HERE}.lesson:EDITING")}),
    },
    formats=(
        Format(
            "official YAML",
            Lazy(f"{_HERE}.folder:has_official_configuration"),
            Lazy(f"{_HERE}.folder:read_official_configuration"),
        ),
    ),
    diffusers=DiffusersFormat(
        {
            "Kandinsky5T2VPipeline": "kandinsky5-lite-t2v-sft-5s",
            "Kandinsky5I2VPipeline": "kandinsky5-lite-i2v-5s",
            "Kandinsky5T2IPipeline": "kandinsky5-lite-t2i",
            "Kandinsky5I2IPipeline": "kandinsky5-lite-i2i",
        },
        FolderLayout(
            "transformer",
            "vae",
            {
                "qwen": "text_encoder",
                "clip": "text_encoder_2",
                "qwen_tokenizer": "tokenizer",
                "clip_tokenizer": "tokenizer_2",
            },
        ),
        Lazy(f"{_HERE}.folder:read_diffusers"),
    ),
    convert=Lazy(f"{_HERE}.convert:convert"),
    cases=Lazy(f"{_HERE}.conformance:CASES"),
    manifest=Lazy(f"{_HERE}.conformance:component_of"),
)
