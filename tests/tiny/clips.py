"""Denoisers that train in milliseconds, on clips that are made here, for tests of how a training is spread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky import catalogue
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D as Kandinsky4
from kandinsky.families.kandinsky4.dit import DiTParams as Params4
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D as Kandinsky5
from kandinsky.families.kandinsky5.dit import DiTParams as Params5
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.runtime.parallel.layout import Demand
from kandinsky.train import loop
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update
from kandinsky.train.scale import Divisible

CLIPS = 4  # of a step
SPARSE = AttentionSpec(type="nabla", P=0.5, wT=1, wH=1, wW=1)
NETWORKS = ("kandinsky5 dense", "kandinsky5 nabla", "kandinsky4")


@dataclass(frozen=True)
class Clips:
    clean: Tensor
    noise: Tensor
    time: Tensor
    text: TextEmbeddings


class Velocity(Objective):
    """Flow matching on clips of noise; 297 tokens divide by neither 2 nor 4, and the texts have masks."""

    def __init__(self, network: nn.Module, call: Callable[[nn.Module, Tensor, Tensor, TextEmbeddings], Tensor]) -> None:
        self.network, self.call = network, call
        self.visit: Callable[[int, Tensor], Tensor] = lambda step, loss: loss

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("network", self.network),)

    def batch(self, step: int, rng: Rng, portion: Portion) -> Clips:
        numbers = portion.of(range(CLIPS))
        shape = (3, 18, 22, 4)

        def drawn(stream: str, *size: int) -> Tensor:
            return torch.stack([torch.randn(size, generator=rng.example(n, stream)) for n in numbers])

        lengths = torch.tensor([2 + n for n in numbers])
        mask = torch.arange(5) < lengths[:, None]
        text = TextEmbeddings(drawn("tokens", 5, 12), drawn("pooled", 10), mask_BL=mask)
        return Clips(0.3 * drawn("clean", *shape), drawn("noise", *shape), drawn("time").sigmoid(), text)

    def loss(self, update: str, batch: Clips, rng: Rng) -> Loss:
        t = batch.time[:, None, None, None, None]
        noisy = (1 - t) * batch.clean + t * batch.noise
        error = self.call(self.network, noisy, batch.time * 1000, batch.text) - (batch.noise - batch.clean)
        loss = self.visit(rng.step, error.pow(2).mean())
        return Loss(loss, len(batch.time), {"time": float(batch.time.mean())})


def filled(net: nn.Module) -> nn.Module:
    """Every parameter from one seed: layers that start as zero would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for name, p in net.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        is_scale = p.dim() == 1 and name.endswith("weight")
        p.data = 1 + 0.1 * noise if is_scale else noise * max(0.05, p[0].numel() ** -0.5)
    return net


def objective(name: str, *, heads: int = 5, blocks: int = 2, width: int = 16) -> tuple[Velocity, Divisible]:
    """One of ``NETWORKS``."""
    family = name.split()[0]
    common: dict[str, Any] = {"time_dim": 16, "model_dim": width * heads, "ff_dim": 48, "axes_dims": (4, 6, 6)}
    if family == "kandinsky5":
        params5 = Params5(
            in_visual_dim=4, out_visual_dim=4, in_text_dim=12, in_text_dim2=10, num_text_blocks=1,
            num_visual_blocks=blocks, **common,
        )  # fmt: skip
        network: nn.Module = Kandinsky5(params5)
        spec = SPARSE if "nabla" in name else None

        def call(net: nn.Module, x: Tensor, t: Tensor, text: TextEmbeddings) -> Tensor:
            out: Tensor = net(x, t, text, attention=spec)
            return out
    else:
        network = Kandinsky4(Params4(in_visual_dim=4, out_visual_dim=4, in_text_dim=12, num_blocks=1, **common))

        def call(net: nn.Module, x: Tensor, t: Tensor, text: TextEmbeddings) -> Tensor:
            out: Tensor = net(x.flatten(0, 1), t, text, frames=[x.shape[1]] * len(x)).unflatten(0, x.shape[:2])
            return out

    rules = catalogue.part(f"{family}.dit").split
    assert rules is not None
    demand = Demand(heads=heads, hidden=48, tokens=99 if family == "kandinsky4" else 297, is_sparse="nabla" in name,
                    clips=0)  # fmt: skip
    with loop.seeded(0):
        return Velocity(filled(network), call), Divisible(type(network), rules.rules(), demand)
