"""Losses beside the prediction's: self-perceptual and adversarial."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn

from kandinsky import catalogue
from kandinsky.engine.build import bare_network
from kandinsky.train.adversary import PatchDiscriminator, told_apart
from kandinsky.train.auxiliary import Adversary, Auxiliary, SelfPerceptual, features_of, middle
from kandinsky.train.denoiser import DenoiserObjective
from kandinsky.train.loop import run, seeded
from kandinsky.train.objective import Portion, Rng
from kandinsky.train.times import Times
from tiny.tune_tasks import TinyDenoising, batches, clips, learned, network, settings


def objective(batch: int = 8, **more: float) -> DenoiserObjective:
    denoising, net = TinyDenoising(), network()
    with torch.no_grad():  # an untrained network's blocks are the identity
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    before = copy.deepcopy(net).requires_grad_(False)

    @contextmanager
    def reference(current: nn.Module) -> Iterator[nn.Module]:
        yield before

    wanted = Auxiliary(**more)  # type: ignore[arg-type]
    with seeded(0):
        adversary = Adversary(denoising, 4, 8) if wanted.adversarial else None
    perceptual = SelfPerceptual(denoising, reference, Times()) if wanted.self_perceptual else None
    return DenoiserObjective(
        denoising, net, batches(clips(6), batch=batch), Times(), wanted, perceptual=perceptual, adversary=adversary,
        frozen={"reference": before},
    )  # fmt: skip


def test_both_losses_fall_and_the_error_too(tmp_path: Path) -> None:
    made = objective(batch=6, self_perceptual=0.5, adversarial=0.05, adversarial_from=5)
    weights, look = learned(made, tmp_path, 60)
    assert look("error")[-1] < 0.55 * look("error")[0], look("error")
    assert look("self-perceptual")[-1] < 0.8 * look("self-perceptual")[0], look("self-perceptual")
    accuracy, gap = look("discriminator accuracy"), look("logit gap")
    assert mean(accuracy[:25]) > 0.5 and mean(gap[:25]) > 0.03  # it tells both apart
    assert abs(mean(gap[-20:])) < 0.6 * mean(gap[:25]), gap  # until it is fooled
    assert set(weights) == {"network", "discriminator"}


def test_a_resumed_game_is_the_one_that_never_stopped(tmp_path: Path) -> None:
    constant = {"schedule": "constant"}  # so that the length of a run does not decide its rates
    whole = run(objective(adversarial=0.1, self_perceptual=0.1), settings(6, **constant), tmp_path / "whole")
    run(objective(adversarial=0.1, self_perceptual=0.1), settings(3, **constant), tmp_path / "parts")
    parts = run(objective(adversarial=0.1, self_perceptual=0.1), settings(6, **constant), tmp_path / "parts")
    assert whole.keys() == parts.keys() == {"network", "discriminator"}
    for update, state in whole.items():
        assert all(torch.equal(parts[update][name], tensor) for name, tensor in state.items())


def test_the_self_perceptual_loss_is_zero_for_the_latent_itself() -> None:
    made = objective(self_perceptual=1.0)
    rng = Rng(0, 0)
    batch = made.batch(0, rng, Portion())
    assert made.perceptual is not None
    assert float(made.perceptual(made.network, batch.clean_BTHWC, batch, rng)) == 0
    estimate = (batch.clean_BTHWC + 0.3).requires_grad_(True)
    made.perceptual(made.network, estimate, batch, rng).backward()
    assert estimate.grad is not None and estimate.grad.abs().max() > 0


def test_nothing_behind_the_middle_is_computed() -> None:
    net = network()
    ran: list[int] = []
    for number, block in enumerate(net.visual_transformer_blocks):
        block.register_forward_hook(lambda *_, n=number: ran.append(n))
    denoising = TinyDenoising()
    batch = batches(clips(2), batch=2)(0, Rng(0, 0), Portion())
    found = features_of(net, lambda: denoising.predict(net, batch.clean_BTHWC, torch.tensor([0.5, 0.5]), batch.given))
    assert ran == [0] and found.shape == (2, 2 * 2 * 2, 32)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("kandinsky5-lite-t2v-sft-5s", "visual_transformer_blocks.15"),
        ("kandinsky4-t2v-flash", "transformer_blocks.10"),
        ("kandinsky3.0", "down_samples.3"),
        ("kandinsky4-v2a", "mid_block"),
    ],
)
def test_every_network_has_a_middle(model: str, expected: str) -> None:
    card = catalogue.find(model)
    with torch.device("meta"):
        net = bare_network(card.part("dit"), card.dit, Path())
    found = middle(net)
    name = next(name for name, module in net.named_modules() if module is found)
    assert name.startswith(expected)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8, 3), (1, 9, 16, 24, 3), (2, 17, 32, 32, 3)])
def test_the_discriminator_takes_clips_of_any_length(shape: tuple[int, ...]) -> None:
    logits = PatchDiscriminator(3, width=8, layers=3)(torch.randn(shape))
    assert logits.shape[0] == shape[0] and logits.shape[2:] == tuple(side // 8 for side in shape[2:4])


def test_a_discriminator_learns_to_tell() -> None:
    with seeded(0):
        net = PatchDiscriminator(3, width=8, layers=2)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(25):
        real = torch.randn(4, 3, 8, 8, 3, generator=generator)
        loss = told_apart(net(real), net(real * 0.5))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.4
