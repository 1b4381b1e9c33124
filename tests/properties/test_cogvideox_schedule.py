"""The CogVideoX schedule, its two steps, and re-noising through the one loop."""

from __future__ import annotations

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kandinsky.diffusion.cogvideox import LEVELS, CogVideoXSchedule, Ddim, Renoise, level_of
from kandinsky.diffusion.noise import RULES, draw, draw_series
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.samplers import SAMPLERS, sampler
from kandinsky.errors import RequestError
from kandinsky.model.values import LatentShape

SHAPE = LatentShape(2, 3, 4, 5)
CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
quick = settings(max_examples=40)


def randn(seed: int = 0) -> Tensor:
    return draw(SHAPE, seed)


def network(x: Tensor, t: Tensor) -> Tensor:
    """Stands for a trained one: some function of state and time that is no constant."""
    return (x * (0.5 + t) + 0.3).sin()


@quick
@given(shift=st.floats(0.2, 20.0))
def test_signal_falls_from_almost_all_to_none(shift: float) -> None:
    table = CogVideoXSchedule(snr_shift=shift).alphas_cumprod
    assert table.dtype is torch.float64 and len(table) == LEVELS
    assert (table.diff() < 0).all() and table[-1] == 0 and table[0] < 1


@quick
@given(shift=st.floats(0.2, 20.0), level=st.integers(0, LEVELS))
def test_the_prediction_is_inverted(shift: float, level: int) -> None:
    schedule, clean, noise = CogVideoXSchedule(snr_shift=shift), randn(1), randn(2)
    t = torch.tensor(level / LEVELS)
    signal, spread = schedule.rates(t)
    x, v = schedule.noised(clean, noise, t), signal * noise - spread * clean
    torch.testing.assert_close(signal**2 + spread**2, torch.tensor(1.0))
    torch.testing.assert_close(schedule.clean(x, v, t), clean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(schedule.noise(x, v, t), noise, rtol=1e-4, atol=1e-5)


@quick
@given(steps=st.integers(1, LEVELS))
def test_times_fall_from_one_to_zero_on_levels(steps: int) -> None:
    times = CogVideoXSchedule().times(steps)
    assert len(times) == steps + 1 and times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    levels = level_of(times)
    torch.testing.assert_close(levels.float() / LEVELS, times)
    theirs = CogVideoXDDIMScheduler(**CONFIG)
    theirs.set_timesteps(steps)
    # theirs has one level too many, -1, where the float range oversteps (61 steps)
    assert (levels[:-1] - 1).tolist() == theirs.timesteps.tolist()[:steps]


def test_official_levels_of_four_steps() -> None:
    schedule = CogVideoXSchedule()
    assert (level_of(schedule.times(4))[:-1] - 1).tolist() == [999, 749, 499, 249]
    assert schedule.alphas_cumprod[749] == pytest.approx(0.033171482831862664, rel=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ddim_is_diffusers(shift: float) -> None:
    theirs = CogVideoXDDIMScheduler(**CONFIG, snr_shift_scale=shift)
    theirs.set_timesteps(8)  # theirs steps by 1000 // n, which is the next level only where n divides 1000
    schedule, x = CogVideoXSchedule(snr_shift=shift), randn()
    torch.testing.assert_close(schedule.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-12, atol=0)
    ours = sample(network, x, schedule.times(8), step=Ddim(schedule))
    for k in theirs.timesteps:
        x = theirs.step(network(x, (k + 1) / LEVELS), k, x).prev_sample
    torch.testing.assert_close(ours, x.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_renoising_through_the_one_loop(steps: int) -> None:
    """Against the official loop: draw, add noise, ask, take the clean estimate; in float64."""
    rules, schedule = sampler("cogvideox-renoise"), CogVideoXSchedule()
    times = rules.times(steps, 1.0)
    draws = draw_series(SHAPE, [11], count=rules.draws(steps))
    previews: list[Tensor] = []
    ours = sample(
        network,
        draws[rules.unused],
        times,
        step=rules.step(times, 1.0, draws[rules.unused + 1 :]),
        on_step=lambda step, total, preview: previews.append(preview),
    )
    generator = torch.Generator().manual_seed(11)

    def again() -> Tensor:
        return torch.randn(SHAPE.as_tuple(), generator=generator)[None].double()

    image = again()
    for k in level_of(times)[:-1] - 1:
        a = schedule.alphas_cumprod[k]
        x = a.sqrt() * image + (1 - a).sqrt() * again()
        image = a.sqrt() * x - (1 - a).sqrt() * network(x, (k + 1) / LEVELS)
    torch.testing.assert_close(ours.double(), image, rtol=1e-4, atol=1e-5)
    assert len(previews) == steps and torch.equal(previews[-1], ours)


def test_a_resumed_run_is_the_same_run() -> None:
    schedule = CogVideoXSchedule()
    times, draws = schedule.times(4), draw_series(SHAPE, [3], count=4)
    step = Renoise(schedule, times, draws[1:])
    states = [draws[0]]
    for i in range(4):
        v = network(states[-1], times[i])
        states.append(step.step(states[-1], v, times[i], times[i + 1]))
    whole = sample(network, draws[0], times, step=step)
    assert torch.equal(whole, states[-1])
    assert torch.equal(whole, sample(network, states[2], times, step=step, start=2))


@pytest.mark.parametrize("given_draws", [None, 0, 2, 4])
def test_missing_draws_are_named(given_draws: int | None) -> None:
    rules = sampler("cogvideox-renoise")
    draws = None if given_draws is None else draw_series(SHAPE, [3], count=5)[:given_draws]
    with pytest.raises(RequestError, match="needs 3 fresh draws"):
        rules.step(rules.times(4, 1.0), 1.0, draws)


@pytest.mark.parametrize("rule", RULES)
def test_a_series_is_what_a_generator_gives_in_turn(rule: str) -> None:
    series = draw_series(SHAPE, [5, 9], rule, count=3)
    assert series.shape == (3, 2, *SHAPE.as_tuple()) and torch.equal(series[0], draw(SHAPE, [5, 9], rule))
    assert torch.equal(series[:, 1], draw_series(SHAPE, [9], rule, count=3)[:, 0])
    generator = torch.Generator().manual_seed(5)
    drawn, rounded = RULES[rule]
    for i in range(3):
        noise = torch.randn(SHAPE.as_tuple(), generator=generator, dtype=drawn)
        assert torch.equal(series[i, 0], noise.to(rounded).float())


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_makes_times_and_a_step(name: str) -> None:
    rules = sampler(name)
    times, draws = rules.times(5, 1.0), draw_series(SHAPE, [1], count=rules.draws(5))
    fresh = draws[rules.unused + 1 :] if rules.fresh else None
    assert sample(network, draws[rules.unused], times, step=rules.step(times, 1.0, fresh)).isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CogVideoXSchedule(snr_shift=0), "shift"),
        (lambda: CogVideoXSchedule().times(0), "steps `0`"),
        (lambda: CogVideoXSchedule().times(1001), "steps `1001`"),
        (lambda: CogVideoXSchedule.from_config({"prediction_type": "epsilon"}), "prediction_type"),
        (lambda: sampler("euler"), "sampler `euler` is unknown"),
        (lambda: draw(SHAPE, 1, "float16"), "noise rule `float16` is unknown"),
    ],
)
def test_what_is_not_possible(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RequestError, match=message):
        call()
