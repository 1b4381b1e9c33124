"""The loss of equivariance: what is drawn, nothing for a coder that is equivariant, and less of it after training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kandinsky.train.autoencoder import AutoencoderLosses, AutoencoderObjective, Fragments, decoded, encoded
from kandinsky.train.equivariance import Change, drawn
from kandinsky.train.objective import Portion, Rng


class Coder(nn.Module):
    """Frames one by one: means of squares, then squares again; ``apart`` makes places of a square differ."""

    def __init__(self, side: int, *, apart: bool = False) -> None:
        super().__init__()
        self.side = side
        self.gain = nn.Parameter(torch.ones(side, side, 1))
        if apart:
            self.gain.data[0] = 0.5

    def encode_piece(self, video_BTHWC: Tensor, memory: Any = None) -> tuple[Tensor, Tensor, Any]:
        mean = video_BTHWC.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side)).mean((3, 5))
        return mean, torch.full_like(mean, -30.0), memory

    def decode_piece(self, latents_BTHWC: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        squares = latents_BTHWC[:, :, :, None, :, None] * self.gain[:, None]
        return squares.flatten(4, 5).flatten(2, 3), memory


class Clips:
    """Batches of one clip."""

    def __init__(self, video: Tensor) -> None:
        self.video = video

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Fragments:
        return Fragments(self.video, [0])


def squares(side: int = 4) -> Tensor:
    """A clip whose squares have one colour each."""
    colours = torch.rand(1, 5, 3, 5, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return colours.repeat_interleave(side, 2).repeat_interleave(side, 3)


def objective(network: nn.Module, video: Tensor, **more: Any) -> AutoencoderObjective:
    losses = AutoencoderLosses(
        **{"perceptual": 0.0, "kl": 0.0, "adversarial": 0.0, "equivariance": 1.0, "equivariance_share": 1.0} | more
    )
    return AutoencoderObjective(network, 1, Clips(video), losses, 4)


def figures(made: AutoencoderObjective, steps: int = 8) -> list[float]:
    found = []
    for step in range(steps):
        loss = made.loss("autoencoder", made.batch(step, Rng(0, step), Portion()), Rng(0, step))
        found += [loss.figures["equivariance"]] if "equivariance" in loss.figures else []
    return found


def test_changes_are_drawn_in_whole_places() -> None:
    def many(**more: Any) -> list[Change | None]:
        given = {"least_scale": 0.25, "is_turned": True, "share": 1.0} | more
        return [drawn(8, 12, torch.Generator().manual_seed(n), **given) for n in range(400)]

    found = [one for one in many() if one is not None]
    assert {one.turns for one in found} == {0, 1, 2, 3} and {one.rows for one in found} == set(range(2, 9))
    assert {one.columns for one in found} == set(range(3, 13))
    assert all(abs(one.columns / 12 - one.rows / 8) <= 0.1 for one in found)
    assert sum(one is None for one in many(share=0.25)) == pytest.approx(300, abs=30)
    assert {one.turns for one in many(is_turned=False) if one} == {0}
    turns = [one for one in many(least_scale=1.0) if one]
    assert {(one.rows, one.columns, one.turns) for one in turns} == {(8, 12, 1), (8, 12, 2), (8, 12, 3)}
    assert 60 < sum(one is None for one in many(least_scale=1.0)) < 140  # those that are not turned


def test_pixels_and_latents_are_changed_alike() -> None:
    x = torch.arange(2 * 3 * 4 * 6 * 1.0).reshape(2, 3, 4, 6, 1)
    turned = Change(4, 6, 1)(x)
    assert turned.shape == (2, 3, 6, 4, 1) and turned[0, 0, 0, 0] == x[0, 0, 0, 5]
    assert torch.equal(Change(4, 6, 1)(turned.rot90(-1, (2, 3))), turned)
    assert Change(2, 3, 3)(squares(4)[:, :, :8, :12], 2).shape == (1, 5, 6, 4, 3)
    flat = torch.full((1, 2, 8, 8, 3), 0.3)
    torch.testing.assert_close(Change(3, 2)(flat), torch.full((1, 2, 3, 2, 3), 0.3))


def test_it_is_nothing_for_coders_that_are_equivariant() -> None:
    """Squares of one place each commute with turns and scales alike; squares of four, with turns."""
    noise = torch.rand(1, 5, 12, 16, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1
    found = figures(objective(Coder(1), noise))
    assert len(found) > 5 and max(found) < 1e-6
    found = figures(objective(Coder(4), squares(), equivariance_scale=1.0), steps=16)
    assert len(found) > 5 and max(found) < 1e-6
    assert min(figures(objective(Coder(4, apart=True), squares(), equivariance_scale=1.0), steps=16)) > 0.05


def test_a_weight_and_a_share_are_what_they_say() -> None:
    network = Coder(4, apart=True)
    once = figures(objective(network, squares()), 32)
    assert figures(objective(network, squares(), equivariance=3.0), 32) == pytest.approx([3 * one for one in once])
    assert 8 <= len(figures(objective(network, squares(), equivariance_share=0.5), 32)) <= 24 < len(once)
    assert not figures(objective(network, squares(), equivariance=0.0), 4)
    assert min(figures(objective(network, squares(), perceptual=0.5))) > 0


class Linear(nn.Module):
    """Squares as vectors, into latents by a matrix, and back by one of each place and its eight neighbours."""

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.side, many = side, side * side * 3
        self.inwards = nn.Parameter(torch.randn(many, channels, generator=generator) / many**0.5)
        self.outwards = nn.Conv2d(channels, many, 3, padding=1, padding_mode="replicate", bias=False)
        self.outwards.weight.data = torch.randn(self.outwards.weight.shape, generator=generator) / (9 * channels) ** 0.5

    def encode_piece(self, video_BTHWC: Tensor, memory: Any = None) -> tuple[Tensor, Tensor, Any]:
        parts = video_BTHWC.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side)).movedim(3, 4)
        mean = parts.flatten(4) @ self.inwards
        return mean, torch.full_like(mean, -30.0), memory

    def decode_piece(self, latents_BTHWC: Tensor, memory: Any = None) -> tuple[Tensor, Any]:
        many = self.outwards(latents_BTHWC.flatten(0, 1).movedim(-1, 1)).movedim(1, -1)
        parts = many.unflatten(0, latents_BTHWC.shape[:2]).unflatten(4, (self.side, self.side, 3)).movedim(4, 3)
        return parts.flatten(4, 5).flatten(2, 3), memory


def test_it_falls_where_it_is_trained() -> None:
    """A clip that varies in space is coded as well as before, and its latents may be turned and made smaller."""
    rows, columns = torch.linspace(-1, 1, 16)[:, None], torch.linspace(-1, 1, 24)[None]
    video = torch.stack([torch.stack((rows + 0 * columns, columns + 0 * rows, rows * columns), -1)] * 2)[None]

    def trained(weight: float) -> tuple[float, float]:
        made = objective(Linear(2, 12), video, equivariance=weight)
        optimiser = torch.optim.Adam(made.network.parameters(), 1e-2)
        for step in range(200):
            optimiser.zero_grad()
            made.loss("autoencoder", Fragments(video, [0]), Rng(0, step)).value.backward()
            optimiser.step()
        judge = objective(made.network, video)
        with torch.no_grad():
            error = float((decoded(made.network, encoded(made.network, video, 4)[0], 4) - video).abs().mean())  # type: ignore[arg-type]
            turned = figures(judge, 30)
        return error, sum(turned) / len(turned)

    (plain, without), (exact, with_it) = trained(0.0), trained(1.0)
    assert plain < 0.03 and exact < 0.06, (plain, exact)
    assert with_it < 0.5 * without, (with_it, without)
