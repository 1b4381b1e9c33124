"""The one sampling loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kandinsky.diffusion.guidance import Denoiser
from kandinsky.diffusion.steps import Euler, Step
from kandinsky.errors import Cancelled

# (step, total, preview_latents); returning False cancels, anything else goes on
OnStep = Callable[[int, int, Tensor], bool | None]


def sample(
    denoiser: Denoiser,
    noise_BTHWC: Tensor,
    times: Tensor,
    *,
    step: Step | None = None,
    on_step: OnStep | None = None,
    start: int = 0,
    pin: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Walk from noise to a clean latent.

    Args:    denoiser: ``(x_BTHWC, t) -> velocity_BTHWC``.
             noise_BTHWC: state at ``times[start]``; its type is the state's type (float32 by our noise rule).
             times: falling, [steps + 1], 1 = noise (``flow_times``).   step: ``Euler()`` when not given.
             on_step: told after each step its number (from 1), the total and the present clean estimate.
             start: first step to take, to resume a loop whose state was kept.
             pin: puts what is known of the clean latent into a state; applied before every step and at the end.
    Returns: the latent at ``times[-1]``, shape and type of the noise.
    Raises:  Cancelled when ``on_step`` returns False.
    """
    step = step or Euler()
    pin = pin or _as_it_is
    x, total = pin(noise_BTHWC), len(times) - 1
    times = times.to(device=x.device)
    with torch.no_grad():
        for i in range(start, total):
            t, t_next = times[i], times[i + 1]
            velocity = denoiser(x, t).to(x.dtype)
            before, x = x, pin(step.step(x, velocity, t, t_next))
            if on_step is not None and on_step(i + 1, total, pin(step.clean(before, velocity, t))) is False:
                raise Cancelled(f"cancelled after step {i + 1} of {total}")
    return x


def _as_it_is(x_BTHWC: Tensor) -> Tensor:
    return x_BTHWC
