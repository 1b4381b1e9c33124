"""Schedules, noise, guidance and the loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.noise import draw
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.schedule import flow_times, shift_times
from kandinsky.diffusion.steps import Euler, clean_estimate
from kandinsky.errors import Cancelled, RequestError
from kandinsky.model.values import LatentShape

SHAPE = LatentShape(2, 4, 6, 3)
quick = settings(max_examples=40)
shifts = st.floats(0.2, 25.0)


@quick
@given(steps=st.integers(1, 200), shift=shifts)
def test_times_fall_from_one_to_zero(steps, shift):
    times = flow_times(steps, shift)
    assert times.dtype is torch.float32 and len(times) == steps + 1
    assert abs(times[0] - 1) <= 2**-22 and times[-1] == 0
    if shift == int(shift):
        assert times[0] == 1
    assert (times.diff() < 0).all()


@quick
@given(shift=shifts)
def test_shift_is_inverted(shift):
    t = torch.linspace(0, 1, 33)
    torch.testing.assert_close(shift_times(shift_times(t, shift), 1 / shift), t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("steps", "shift"), [(0, 5.0), (-3, 5.0), (4, 0.0), (4, -1.0), (4, float("nan"))])
def test_impossible_schedules_are_refused(steps, shift):
    with pytest.raises(RequestError):
        flow_times(steps, shift)


@quick
@given(seed=st.integers(0, 2**32 - 2), batch=st.integers(1, 4), dtype=st.sampled_from(["float32", "bfloat16"]))
def test_noise_of_a_sample_does_not_depend_on_the_batch(seed, batch, dtype):
    together = draw(SHAPE, seed, dtype, batch=batch)
    assert together.dtype is torch.float32 and together.shape == (batch, 2, 4, 6, 3)
    for i in range(batch):
        assert torch.equal(together[i], draw(SHAPE, seed + i, dtype)[0])
    assert torch.equal(together, draw(SHAPE, [seed + i for i in range(batch)], dtype))


def test_noise_rule_and_global_state():
    state = torch.get_rng_state()
    a, b = draw(SHAPE, 7, "bfloat16"), draw(SHAPE, 7, "float32")
    assert torch.equal(a, a.bfloat16().float()) and not torch.equal(b, b.bfloat16().float())
    official = torch.randn(2, 4, 6, 3, generator=torch.Generator().manual_seed(7), dtype=torch.bfloat16)
    assert torch.equal(a[0], official.float())
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RequestError, match="float64"):
        draw(SHAPE, 7, "float64")
    with pytest.raises(RequestError):
        draw(SHAPE, [])


def test_guidance_of_one_runs_no_second_pass():
    def conditional(x, t):
        return x * t

    def never(x, t):
        raise AssertionError("the unconditional pass ran")

    assert Guidance(1.0).guide(conditional, never) is conditional
    assert Guidance(1.0 + 1e-7).guide(conditional) is conditional
    with pytest.raises(RequestError, match="negative"):
        Guidance(5.0).guide(conditional)


@quick
@given(weight=st.floats(0.0, 10.0))
def test_guidance_is_linear_in_its_weight(weight):
    x = torch.tensor([1.0, -2.0])
    guided = Guidance(weight).guide(lambda x, t: 3 * x, lambda x, t: x)
    torch.testing.assert_close(guided(x, torch.tensor(0.5)), x + weight * 2 * x)


def test_guidance_order_is_conditional_first():
    order = []
    Guidance(2.0).guide(lambda x, t: order.append("c") or x, lambda x, t: order.append("u") or x)(
        torch.ones(1), torch.tensor(1.0)
    )
    assert order == ["c", "u"]


@quick
@given(steps=st.integers(1, 30), shift=shifts)
def test_a_straight_flow_is_walked_exactly(steps, shift):
    noise, clean = torch.randn(1, 1, 2, 2, 3, generator=torch.Generator().manual_seed(0)), torch.full((1,), 0.25)
    end = sample(lambda x, t: noise - clean, noise, flow_times(steps, shift), step=Euler())
    torch.testing.assert_close(end, clean.expand_as(end), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clean_estimate(noise, noise - clean, torch.tensor(1.0)), clean.expand_as(noise))


def curved(x, t):
    return torch.sin(3 * x) + t


def test_resuming_equals_never_stopping():
    noise, times = draw(SHAPE, 3), flow_times(9, 5.0)
    straight = sample(curved, noise, times)
    for k in range(10):
        half = noise
        for i in range(k):
            half = half + (times[i + 1] - times[i]) * curved(half, times[i])
        assert torch.equal(sample(curved, half, times, start=k), straight)


def test_steps_are_reported_and_change_nothing():
    noise, times, seen = draw(SHAPE, 3), flow_times(4, 5.0), []
    reported = sample(curved, noise, times, on_step=lambda *args: seen.append(args))
    assert torch.equal(reported, sample(curved, noise, times))
    assert [(step, total) for step, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    # at the last step, t_next = 0: the estimate of the clean latent is the result
    torch.testing.assert_close(seen[-1][2], reported)


def test_a_callback_cancels():
    calls = []

    def denoiser(x, t):
        calls.append(float(t))
        return x

    with pytest.raises(Cancelled, match="2 of 5"):
        sample(denoiser, draw(SHAPE, 3), flow_times(5, 1.0), on_step=lambda step, total, _: step < 2)
    assert len(calls) == 2


def test_the_state_stays_float32_for_a_bfloat16_network():
    end = sample(lambda x, t: x.bfloat16(), draw(SHAPE, 3), flow_times(2, 5.0))
    assert end.dtype is torch.float32
