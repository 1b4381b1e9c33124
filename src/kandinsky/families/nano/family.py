"""Nano: the family in miniature, trained by this project. It borrows the networks of the large models. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kandinsky.families.kandinsky4_v2a.family import TASK, UNET
from kandinsky.families.kandinsky5.family import BRANCHES, TRANSFORMER
from kandinsky.model.family import Family, Part
from kandinsky.model.lazy import Lazy
from kandinsky.model.task import IMAGE_TO_VIDEO, TEXT_TO_VIDEO

_HERE = "kandinsky.families.nano"
_SMALL: Lazy[Any] = Lazy("kandinsky.families.parts.cost:small_encoder")
FAMILY = Family(
    "nano",
    parts={
        "kandinsky5.dit": TRANSFORMER,
        **BRANCHES,
        "kandinsky4.v2a-unet": UNET,
        "nano.text": Part(
            reader=Lazy(f"{_HERE}.networks:text_encoder"),
            tensors=("network",),
            tells_unused=True,
            steers=True,
            vocabulary=Lazy(f"{_HERE}.networks:vocabulary"),
            cost=_SMALL,
        ),
        "nano.vae": Part(
            network=Lazy(f"{_HERE}.networks:autoencoder"),
            decodes_together=True,
            carries=True,
            cost=Lazy(f"{_HERE}.cost:autoencoder"),
        ),
        "nano.scene-dit": replace(
            TRANSFORMER,
            network=Lazy(f"{_HERE}.networks:scene_transformer"),
            bind=Lazy(f"{_HERE}.scene_denoiser:bind"),
            cost=Lazy(f"{_HERE}.cost:scene_transformer"),
            flops=Lazy(f"{_HERE}.cost:scene_flops"),
            attention=("dense",),
            conditions=("scenes",),
            # the scene is drawn from words, and goes on from a first frame: it follows nothing else that is given
            heeds=("first frame",),
            frame_times=False,
            packs=False,
            rivals={},
            twins={},
            branches={},
        ),
        "nano.scenes": Part(
            reader=Lazy(f"{_HERE}.networks:scene_encoder"),
            tensors=("rows",),
            contrasting=True,
            tells_unused=True,
            settles=True,
            vocabulary=Lazy(f"{_HERE}.networks:scene_vocabulary"),
            checks=Lazy(f"{_HERE}.networks:check_scene"),
            mixes=False,  # a state says where everything stands, and a scene half way is none
            cost=_SMALL,
        ),
        "nano.patch-vae": Part(
            network=Lazy(f"{_HERE}.networks:patch_autoencoder"),
            carries=True,
            rounds=True,
            cost=Lazy(f"{_HERE}.cost:patch_autoencoder"),
        ),
        "nano.clip": Part(network=Lazy(f"{_HERE}.networks:clip_encoder"), cost=_SMALL),
    },
    tasks={
        "text-to-video": TEXT_TO_VIDEO,
        "image-to-video": replace(IMAGE_TO_VIDEO, text_sees_image=True),
        "video-to-audio": TASK,
    },
)
