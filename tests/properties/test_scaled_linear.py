"""Stable Diffusion's schedule and its two steps, against Diffusers' schedulers, through the one loop."""

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch import Tensor

from kandinsky.diffusion.cogvideox import LEVELS, level_of
from kandinsky.diffusion.noise import draw
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.samplers import sampler
from kandinsky.diffusion.scaled_linear import Plms, ScaledLinearSchedule
from kandinsky.errors import RequestError
from kandinsky.model.values import LatentShape

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
NOISE = draw(LatentShape(1, 3, 4, 2), 5)


def network(x: Tensor, t: Tensor) -> Tensor:
    """Stands for a trained one: some function of state and time that is no constant."""
    return (x * (0.5 + t) + 0.3).sin()


def ours(name: str, steps: int) -> Tensor:
    rules = sampler(name)
    times = rules.times(steps, 1.0)
    return sample(network, NOISE, times, step=rules.step(times, 1.0, None))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 50, 333])
@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("pndm", lambda: PNDMScheduler(**CONFIG, skip_prk_steps=True)),
        ("ddim", lambda: DDIMScheduler(**CONFIG, clip_sample=False)),
    ],
)
def test_they_walk_as_diffusers_does(name: str, theirs, steps: int) -> None:
    scheduler, x = theirs(), NOISE
    scheduler.set_timesteps(steps)
    times = sampler(name).times(steps, 1.0)
    assert [int(level_of(t)) - 1 for t in times[:-1]] == scheduler.timesteps.tolist()
    for level in scheduler.timesteps:
        x = scheduler.step(network(x, (level + 1) / LEVELS), level, x).prev_sample
    torch.testing.assert_close(ours(name, steps), x, rtol=2e-4, atol=2e-4)


def test_a_run_with_a_memory_begins_at_its_beginning() -> None:
    rules = sampler("pndm")
    times = rules.times(5, 1.0)
    with pytest.raises(RequestError, match="begin at the first"):
        sample(network, NOISE, times, step=rules.step(times, 1.0, None), start=2)
    one, again = (sample(network, NOISE, times, step=rules.step(times, 1.0, None)) for _ in range(2))
    assert torch.equal(one, again), "each run has a memory of its own"


def test_previews_are_what_the_noise_leaves() -> None:
    schedule, clean = ScaledLinearSchedule(), draw(LatentShape(1, 3, 4, 2), 6)
    t = torch.tensor(0.6)
    x = schedule.noised(clean, NOISE, t)
    torch.testing.assert_close(Plms(schedule, t[None]).clean(x, NOISE, t), clean)
    torch.testing.assert_close(schedule.move(x, NOISE, t, torch.tensor(0.2)), schedule.noised(clean, NOISE, t / 3))


def test_runs_end_where_the_configuration_says() -> None:
    assert ScaledLinearSchedule(set_alpha_to_one=True).rates(torch.tensor(0.0))[1] == 0
    assert ScaledLinearSchedule().rates(torch.tensor(0.0)) == ScaledLinearSchedule().rates(torch.tensor(1 / LEVELS))
    assert ScaledLinearSchedule.from_config(CONFIG | {"_class_name": "PNDMScheduler"}) == ScaledLinearSchedule()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prediction_type": "v_prediction"}, "`prediction_type` = `v_prediction`"),
        ({"beta_schedule": "linear"}, "`beta_schedule` = `linear`"),
        ({"skip_prk_steps": False}, "`skip_prk_steps`"),
    ],
)
def test_other_schedules_are_refused(change: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        ScaledLinearSchedule.from_config(CONFIG | change)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(RequestError, match="not possible"):
        ScaledLinearSchedule().times(steps)
