"""Tiny problems for the objectives: a network of Kandinsky 5's kind, or of another prediction, and made-up clips."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kandinsky.catalogue import find
from kandinsky.diffusion.samplers import sampler
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.model.denoiser import Known
from kandinsky.model.values import TextEmbeddings
from kandinsky.train.conditions import Conditions
from kandinsky.train.data.captions import Caption
from kandinsky.train.denoising import Denoising, Untold
from kandinsky.train.loop import LoopSettings, run, seeded
from kandinsky.train.model_recipe import Clip, ClipBatches, DataSettings, HeldClips
from kandinsky.train.objective import Objective

PARAMS = DiTParams(
    in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=32, model_dim=32, ff_dim=64,
    num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 6, 6), visual_cond=True,
)  # fmt: skip


def network(seed: int = 0) -> DiffusionTransformer3D:
    with seeded(seed):
        return DiffusionTransformer3D(PARAMS)


class TinyDenoising(Denoising):
    """The door of the tiny network under the rules of any sampler."""

    def __init__(self, name: str = "flow", shift: float = 1.0) -> None:
        from kandinsky.families.kandinsky5.denoiser import bind
        from kandinsky.model.card import Card

        card: Card = find("nano-t2v")
        self.track, self.rules, self.shift = "video", sampler(name), shift
        self.noising, self._bind, self.attention = self.rules.noising(shift), bind, None

        class Job:
            sampling = card.sampling

        class Model:
            def attention_of(self, job: object) -> None:
                return None

            part = staticmethod(card.part)

        self.job, self.context = Job(), Model()  # type: ignore[assignment]


def text(seed: int) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return TextEmbeddings(torch.randn(1, 3, 8, generator=generator), torch.randn(1, 8, generator=generator))


def clips(count: int, *, seed: int = 0, shift: float = 0.0, frames: int = 2) -> list[Clip]:
    """Latents around a mean of their own, smooth, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Clip(
            torch.randn(1, 1, 1, 1, 4, generator=generator).expand(1, frames, 4, 4, 4) * 0.8
            + 0.1 * torch.randn(1, frames, 4, 4, 4, generator=generator) + shift,
            (text(number),),
            (Caption(f"clip {number}"),),
        )
        for number in range(count)
    ]  # fmt: skip


def batches(given: list[Clip], batch: int = 8, drop: float = 0.0) -> ClipBatches:
    settings, empty = DataSettings("", batch=batch, drop_text=drop), Untold(text(99), text(99))
    return ClipBatches(HeldClips(given, empty), empty, settings, {"": Conditions()})


def settings(steps: int, **more: Any) -> LoopSettings:
    values = {"steps": steps, "lr": 3e-3, "warmup": 5, "bf16": False, "log_every": 1, "seed": 1, "ema": 0.9}
    return LoopSettings.from_dict({**values, **more})


def learned(objective: Objective, out: Path, steps: int, **more: Any) -> tuple[dict[str, dict[str, Tensor]], Any]:
    """What a run gives, and its log: a function from a figure's name to its values."""
    weights = run(objective, settings(steps, **more), out)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    look: Callable[[str], list[float]] = lambda name: [line[name] for line in lines if name in line]  # noqa: E731
    return weights, look


NOTHING = Known()
