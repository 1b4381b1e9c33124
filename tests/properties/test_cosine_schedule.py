"""The cosine schedule, its times and its steps, against the printed numbers of the official models."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from kandinsky.diffusion import cosine
from kandinsky.diffusion.cosine import Ancestral, CosineSchedule, threshold
from kandinsky.diffusion.gaps import around, fill
from kandinsky.diffusion.guidance import ImageGuidance
from kandinsky.diffusion.samplers import SAMPLERS, sampler
from kandinsky.errors import RequestError


@pytest.mark.parametrize(
    ("schedule", "level", "share"),
    [
        (CosineSchedule(), 0, 0.99995869),
        (CosineSchedule(), 479, 0.52500433),
        (CosineSchedule(), 979, 0.00097119284),
        (CosineSchedule(), 999, 2.428735e-09),
        (CosineSchedule(50), 0, 0.99825251),
        (CosineSchedule(50), 49, 9.7118073e-07),
        (CosineSchedule(zero_snr=True), 0, 0.99995887),
        (CosineSchedule(zero_snr=True), 500, 0.49226505),
        (CosineSchedule(zero_snr=True), 980, 0.00087370054),
        (CosineSchedule(zero_snr=True), 999, 0.0),
    ],
)
def test_official_tables(schedule: CosineSchedule, level: int, share: float) -> None:
    assert float(schedule.alphas_cumprod[level]) == pytest.approx(share, rel=2e-6, abs=1e-12)
    assert schedule.share(torch.tensor(schedule.time(level))) == float(schedule.alphas_cumprod[level])
    assert schedule.share(torch.tensor(0.0)) == 1.0


def test_levels_of_a_run() -> None:
    assert cosine.every_level(4) == [3, 2, 1, 0, -1]
    assert cosine.leading(50)[:2] == [980, 960]
    assert cosine.leading(50)[-2:] == [0, -1]
    assert cosine.trailing(10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]
    assert cosine.from_the_top(50) == [*range(999, 0, -20), 0]
    assert cosine.distilled(4) == [979, 729, 479, 229, -1]
    # the official rule gives 333 steps for 400
    for steps in (1, 7, 30, 400, 999):
        levels = cosine.from_the_top(steps)
        assert len(levels) == steps + 1
        assert all(a > b for a, b in pairwise(levels))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.startswith("kandinsky")])
@pytest.mark.parametrize("steps", [1, 3, 4, 50])
def test_every_sampler_falls_and_asks_for_its_draws(name: str, steps: int) -> None:
    rules = sampler(name)
    times = rules.times(steps, 1.0)
    assert len(times) == steps + 1
    assert bool((times.diff() < 0).all())
    assert times[-1] in (0, times.new_tensor(1e-3))
    with pytest.raises(RequestError, match=f"needs {steps - 1} fresh draws, not 7"):
        rules.step(times, 1.0, torch.zeros(7, 1, 1, 2, 2, 1))


def test_predictions_are_inverted() -> None:
    clean, noise = torch.randn(1, 2, 3, 3, 4), torch.randn(1, 2, 3, 3, 4)
    for predicts in ("noise", "v"):
        schedule = CosineSchedule(predicts=predicts)
        t = torch.tensor(schedule.time(400))
        share = schedule.share(t)
        said = noise if predicts == "noise" else math.sqrt(share) * noise - math.sqrt(1 - share) * clean
        torch.testing.assert_close(
            schedule.clean(schedule.noised(clean, noise, t), said, t), clean, rtol=1e-4, atol=1e-4
        )


def test_a_step_without_fresh_noise_keeps_what_it_is_made_of() -> None:
    """eta 0: state = √ā·clean + √(1 − ā)·noise at the next level, with the same two."""
    schedule = CosineSchedule()
    times = schedule.times([800, 400, -1])
    clean, noise = torch.rand(1, 1, 4, 4, 2) - 0.5, torch.randn(1, 1, 4, 4, 2)
    step = Ancestral(schedule, times, torch.randn(1, 1, 1, 4, 4, 2), eta=0.0)
    state = step.step(schedule.noised(clean, noise, times[0]), noise, times[0], times[1])
    torch.testing.assert_close(state, schedule.noised(clean, noise, times[1]), rtol=1e-4, atol=1e-4)


def test_thresholds() -> None:
    x = torch.tensor([0.5, -4.0, 2.0, 1.0])[None, None, :, None, None]
    assert threshold(x, None).abs().max() == 1
    kept = threshold(x, 1.0)
    torch.testing.assert_close(kept, x / 4)
    small = x / 8
    torch.testing.assert_close(threshold(small, 0.5), small.clamp(-1, 1))


def test_gaps_are_filled_in_order() -> None:
    frames = torch.arange(3.0)[None, :, None, None, None].expand(1, 3, 2, 2, 1)
    left, right = around(frames)
    between = torch.cat([left + (right - left) * share for share in (0.25, 0.5, 0.75)], dim=-1)
    filled = fill(frames, between)
    torch.testing.assert_close(filled[0, :, 0, 0, 0], torch.arange(9.0) / 4)


def test_two_weights() -> None:
    both, image, bare = (lambda x, t, v=value: torch.full_like(x, v) for value in (5.0, 3.0, 1.0))
    x, t = torch.zeros(1, 1, 1, 1, 1), torch.tensor(0.5)
    assert float(ImageGuidance(5.0, 2.0).guide(both, image, bare)(x, t)) == 1 + 2 * (3 - 1) + 5 * (5 - 3)
    assert float(ImageGuidance(1.0, 1.0).guide(both, image, bare)(x, t)) == 5.0


@pytest.mark.parametrize(("values", "said"), [({"levels": 1001}, "steps `1001`"), ({"predicts": "x"}, "`x`")])
def test_wrong_schedules(values: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        CosineSchedule(**values)  # type: ignore[arg-type]
