"""Denoisers that train in milliseconds, on clips that are made here, for tests of how a training is spread.

Their tokens, 45 or 135 of a clip and 15 or 45 of a frame, divide by neither 2 nor 4.
"""

from __future__ import annotations

from collections.abc import Callable, Container
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
from kandinsky.train import adapter
from kandinsky.train.objective import Loss, Objective, Portion, Rng, Update
from kandinsky.train.scale import Divisible

CLIPS = 4  # of a step
SPARSE = AttentionSpec(type="nabla", P=0.5, wT=1, wH=1, wW=1)
NETWORKS = ("kandinsky5 dense", "kandinsky5 nabla", "kandinsky4")
Size = tuple[int, int, int]
SMALL, LARGE = (3, 6, 10), (3, 18, 10)  # frames, rows, columns of a latent; the larger one has more than one block


@dataclass(frozen=True)
class Clips:
    clean: Tensor
    noise: Tensor
    time: Tensor
    text: TextEmbeddings


class Velocity(Objective):
    """Flow matching on clips of noise; the texts have masks, and frames may have times of their own."""

    def __init__(
        self,
        network: nn.Module,
        call: Callable[[nn.Module, Tensor, Tensor, TextEmbeddings], Tensor],
        size: Size = SMALL,
        *,
        by_frame: bool = False,
    ) -> None:
        self.network, self.call, self.size, self.by_frame = network, call, size, by_frame
        self.visit: Callable[[int, Tensor], Tensor] = lambda step, loss: loss

    @property
    def updates(self) -> tuple[Update, ...]:
        return (Update("network", self.network),)

    def batch(self, step: int, rng: Rng, portion: Portion) -> Clips:
        numbers = portion.of(range(CLIPS))
        shape = (*self.size, 4)

        def drawn(stream: str, *size: int) -> Tensor:
            return torch.stack([torch.randn(size, generator=rng.example(n, stream)) for n in numbers])

        lengths = torch.tensor([2 + n for n in numbers])
        mask = torch.arange(5) < lengths[:, None]
        text = TextEmbeddings(drawn("tokens", 5, 12), drawn("pooled", 10), mask_BL=mask)
        time = drawn("time", *self.size[: int(self.by_frame)]).sigmoid()
        return Clips(
            0.3 * drawn("clean", *shape),
            drawn("noise", *shape),
            time,
            text,
        )

    def loss(self, update: str, batch: Clips, rng: Rng) -> Loss:
        t = batch.time.view(*batch.time.shape, *(1,) * (5 - batch.time.ndim))
        noisy = (1 - t) * batch.clean + t * batch.noise
        error = self.call(self.network, noisy, batch.time * 1000, batch.text) - (batch.noise - batch.clean)
        loss = self.visit(rng.step, error.pow(2).mean())
        return Loss(loss, len(batch.time), {"time": float(batch.time.mean())})


def filled(net: nn.Module, names: Container[str] | None = None) -> nn.Module:
    """Every parameter, or those of these names, from one seed: layers that start as zero would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for name, p in net.named_parameters():
        if names is not None and name not in names:
            continue
        noise = torch.randn(p.shape, generator=generator)
        is_scale = p.dim() == 1 and name.endswith("weight")
        p.data = 1 + 0.1 * noise if is_scale else noise * max(0.05, p[0].numel() ** -0.5)
    return net


def objective(
    name: str,
    *,
    heads: int = 5,
    blocks: int = 2,
    width: int = 16,
    size: Size | None = None,
    by_frame: bool = False,
    adapted: dict[str, Any] | None = None,
) -> tuple[Velocity, Divisible]:
    """One of ``NETWORKS``; ``adapted`` are settings of an adapter that learns in its place."""
    size = size or (LARGE if "nabla" in name else SMALL)
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

    part = catalogue.part(f"{family}.dit")
    assert part.split is not None
    tokens = size[1] * size[2] // 4 * (1 if family == "kandinsky4" else size[0])
    demand = Demand(heads=heads, hidden=48, tokens=tokens, is_sparse="nabla" in name, clips=0)
    filled(network)
    if adapted is not None:
        adapter.add(network, adapter.AdapterSettings(**adapted), part.adapts, seed=1)
        learns = {name for name, p in network.named_parameters() if p.requires_grad}
        filled(network, learns)  # updates begin as none
    return Velocity(network, call, size, by_frame=by_frame), Divisible(type(network), part.split.rules(), demand)
