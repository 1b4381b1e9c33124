"""Runs cases of Kandinsky 3 through the public networks and samplers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kandinsky.diffusion.cogvideox import LEVELS, Renoise
from kandinsky.diffusion.cosine import Ancestral
from kandinsky.diffusion.guidance import Denoising
from kandinsky.diffusion.samplers import sampler
from kandinsky.families.parts import keymaps
from kandinsky.families.parts.unet import conformance as unet
from kandinsky.families.parts.unet.denoiser import UNetDenoiser
from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.golden.cases import Case, Runner
from kandinsky.golden.tracking import CaseError
from kandinsky.model.card import Component
from kandinsky.model.values import TextEmbeddings


def run_unet(case: Case) -> Mapping[str, Tensor]:
    """One pass over images."""
    inputs, net = case.inputs, unet.network(case, keymaps.UNET)
    return {"sample": unet.rows(net(unet.clips(inputs["x"], 1), inputs["time"], unet.text(inputs, 1)))}


def run_sample(case: Case) -> Mapping[str, Tensor]:
    """Text to image and inpainting, or the distilled loop."""
    inputs, call, net = case.inputs, case.call, unet.network(case, keymaps.UNET)
    schedule = unet.schedule(call, "num_train_timesteps")
    channels = [unet.clips(inputs[name], 1) for name in ("mask", "masked_latent") if name in inputs]
    condition = torch.cat(channels, dim=-1) if channels else None
    unet.check_shape(call, "latent_shape", inputs["noise_init"])
    start, draws = unet.clips(inputs["noise_init"], 1), unet.noises(inputs["noise_steps"], 1)

    def bound(states: TextEmbeddings) -> Denoising[Tensor]:
        return UNetDenoiser(net, states, condition_BTHWC=condition)

    levels = call.integers("times", most=schedule.levels - 1)
    if not levels or sorted(set(levels), reverse=True) != levels or len(draws) != len(levels):
        raise CaseError("call.times", f"must fall, and be as many as there are draws of noise, {len(draws)}")
    guided = bound(unet.text(inputs, 1))
    if call.flag("flash"):
        if schedule.levels != LEVELS:
            raise CaseError("call.num_train_timesteps", f"is {schedule.levels}: the distilled loop has {LEVELS}")
        times = schedule.times([*levels, -1])
        start = sampler("kandinsky3-flash").start(torch.stack((start, draws[0])), times)
        return unet.run_recorded(guided, start, times, Renoise(schedule, times, draws[1:]))
    times = schedule.times([*levels, 0])
    if call.has("steps") and len(levels) not in (
        steps := call.integer("steps", least=1, most=LEVELS),
        len(range(LEVELS - 1, 0, -math.ceil(LEVELS / steps))),  # the official rule may give fewer than requested
    ):
        raise CaseError("call.steps", f"is {steps}, `call.times` has {len(levels)}")
    guided = unet.guidance(call).guide(guided, bound(unet.negative_text(inputs, 1)))
    eta = call.number("eta") if call.has("eta") else 1.0
    step = Ancestral(schedule, times, draws[:-1], unet.quantile(call), eta)
    return unet.run_recorded(guided, start, times, step)


CASES: Mapping[str, Runner] = {
    "kandinsky3.sample": run_sample,
    "kandinsky3.unet": run_unet,
}


def component_of(values: Mapping[str, Any]) -> Component | None:
    """The network that a manifest describes, by its hyper-parameters; None for one of another family."""
    config = dict(values.get("config") or {})
    if "model_channels" in config:
        return Component(UNetParams.from_dict(config).kind, (), config)
    return Component("movq", (), config) if "z_channels" in config else None
