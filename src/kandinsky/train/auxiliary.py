"""Losses beside the prediction's: on the clean latent that a prediction means.

| name | what it compares |
|---|---|
| `self_perceptual` | features within a frozen copy of the network, of estimate and latent, both noised anew |
| `adversarial` | a discriminator's judgement of both, nearly clean |

Sources: self-perceptual loss, arXiv 2401.00110; both sides noised again, mostly a little, Kandinsky 5.0 report
(arXiv 2511.14993).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kandinsky.train.adversary import PatchDiscriminator, figures, told_apart
from kandinsky.train.denoising import Denoising
from kandinsky.train.model_recipe import Batch
from kandinsky.train.objective import Loss, Rng
from kandinsky.train.preference import Reference
from kandinsky.train.times import Times

NEARLY_CLEAN = Times("logit-normal", mean=-4.0, std=1.0, shift=1.0)


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """Weights of the further losses; 0 leaves one out.

    Attributes:
        self_perceptual: See above.
        adversarial: See above.
        adversarial_from: First step whose loss it is part of; the discriminator learns from the beginning.
        width: Of the discriminator.
    """

    self_perceptual: float = field(default=0.0, metadata={"least": 0})
    adversarial: float = field(default=0.0, metadata={"least": 0})
    adversarial_from: int = field(default=0, metadata={"least": 0})
    width: int = field(default=64, metadata={"least": 1})


class SelfPerceptual:
    """The distance that the network itself sees between two latents.

    Args:
        denoising: The door of the network.
        reference: Gives the network as it was, for a block.
        times: Where both are looked at.
    """

    def __init__(self, denoising: Denoising, reference: Reference, times: Times) -> None:
        self.denoising, self.reference, self.times = denoising, reference, times

    def __call__(self, network: nn.Module, estimate: Tensor, batch: Batch, rng: Rng) -> Tensor:
        """Mean squared difference of the features, relative to their size."""
        shift = self.denoising.shift
        drawn = self.times.draw(rng, batch.numbers, batch.total, shift=shift, stream="perceptual time")
        t = self.denoising.times(drawn).to(estimate.device)
        noise = batch.noise(rng, "perceptual noise")

        def features(latent: Tensor, frozen: nn.Module) -> Tensor:
            noisy = self.denoising.noised(latent, noise, t)
            return features_of(frozen, lambda: self.denoising.predict(frozen, noisy, t, batch.given)).float()

        with self.reference(network) as frozen:
            seen = features(estimate, frozen)
            with torch.no_grad():
                wanted = features(batch.clean_BTHWC, frozen)
        return (seen - wanted).square().mean() / wanted.square().mean().clamp_min(1e-8)


class Adversary:
    """A discriminator of clean latents.

    Args:
        denoising: Noises what it is shown.
        channels: Of the latents.
        width: Of its first layer.
    """

    def __init__(self, denoising: Denoising, channels: int, width: int) -> None:
        self.denoising = denoising
        self.network = PatchDiscriminator(channels, width=width, layers=2)

    def _shown(self, latent: Tensor, batch: Batch, rng: Rng) -> Tensor:
        drawn = NEARLY_CLEAN.draw(rng, batch.numbers, batch.total, shift=1.0, stream="shown time")
        t = self.denoising.times(drawn).to(latent.device)
        logits: Tensor = self.network(self.denoising.noised(latent, batch.noise(rng, "shown noise"), t))
        return logits

    def fooled(self, estimate: Tensor, batch: Batch, rng: Rng, share_B: Tensor) -> Tensor:
        """The network's loss; ``share_B``: what each clip counts."""
        return -(self._shown(estimate, batch, rng).flatten(1).mean(1) * share_B).mean()

    def loss(self, estimate: Tensor, batch: Batch, rng: Rng) -> Loss:
        """The discriminator's loss."""
        real, made = self._shown(batch.clean_BTHWC, batch, rng), self._shown(estimate, batch, rng)
        return Loss(told_apart(real, made), len(batch.numbers), figures(real, made))


def features_of(network: nn.Module, run: Callable[[], object]) -> Tensor:
    """What the middle of a network gives while it runs; what comes behind it is not computed."""
    found: list[Tensor] = []

    def tap(layer: nn.Module, inputs: object, output: object) -> None:
        given = output if isinstance(output, tuple) else (output,)
        found.append(next(one for one in given if isinstance(one, Tensor)))
        raise _SeenError

    with _hooked(middle(network), tap):
        try:
            run()
        except _SeenError:
            return found[0]
    raise AssertionError("the middle of the network was not called")


def middle(network: nn.Module) -> nn.Module:
    """The block halfway through a network: of a U-Net the lowest, otherwise the middle one of its longest list."""
    named = getattr(network, "mid_block", None)
    if isinstance(named, nn.Module):
        return named
    lists = {name: one for name, one in network.named_children() if isinstance(one, nn.ModuleList)}
    down = next((one for name, one in lists.items() if name.startswith("down")), None)
    chosen: nn.Module = max(lists.values(), key=len) if down is None else down[-1]
    if down is None:
        assert isinstance(chosen, nn.ModuleList)
        chosen = chosen[(len(chosen) - 1) // 2]
    while isinstance(chosen, nn.ModuleList):  # of lists, as where local and global blocks take turns
        chosen = chosen[(len(chosen) - 1) // 2]
    return chosen


class _SeenError(Exception):
    """The middle was reached."""


@contextmanager
def _hooked(layer: nn.Module, tap: Callable[[nn.Module, object, object], None]) -> Iterator[None]:
    handle = layer.register_forward_hook(tap)
    try:
        yield
    finally:
        handle.remove()
