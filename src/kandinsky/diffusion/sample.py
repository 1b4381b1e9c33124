"""The one sampling loop, over a tensor or over a state of several tracks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from kandinsky.diffusion.steps import Euler, Step
from kandinsky.errors import Cancelled

X = TypeVar("X", bound=Tensor | Mapping[str, Tensor])
# (step from 1, total, the clean latent as currently predicted); returning False cancels, anything else continues
OnStep = Callable[[int, int, Tensor], bool | None]
ALONE = ""  # the track of a state that is given as a plain tensor


@dataclass(frozen=True, slots=True)
class Progress(Generic[X]):
    """A step that was taken.

    Attributes:
        step: Its number, from 1.
        total: Number of all steps.
        clean: Computes the current clean estimate.
        finite: Whether the state is finite, a boolean on its device, which costs no wait until it is read.
    """

    step: int
    total: int
    clean: Callable[[], X]
    finite: Tensor


def steps(
    denoiser: Callable[[X, Tensor], X],
    noise: X,
    times: Tensor,
    *,
    step: Step | Mapping[str, Step] | None = None,
    start: int = 0,
    pin: Callable[[X, Tensor], X] | None = None,
    again: Callable[[X, Tensor, int], X] | None = None,
    resample: int = 0,
) -> Generator[Progress[X], None, X]:
    """Denoise from noise to a clean latent, one step at a time; the generator returns the latent.

    Args:
        denoiser: ``(x, t) -> prediction``, both of the same form as ``noise``.
        noise: State at ``times[start]``, [B, T, H, W, C], or one for each track; its type is the state's type.
        times: Falling, [steps + 1], 1 = noise (``flow_times``).
        step: What each step does; one for each track if it has state; ``Euler()`` if omitted.
        start: First step to take: to resume a loop whose state was kept, or to begin from a noised clip.
        pin: ``(x, t) -> x``, puts what is known of the clean latent into a state at time t; applied before every step
            and at the end.
        again: ``(clean estimate, t, number) -> x``, a state at time t with noise of its own for each number, from 0.
        resample: How often each step is taken again from the clean estimate it led to, which carries what is known
            into the rest; where t is 1, nothing would be carried and the step is taken once.

    Yields:
        Progress after each step.

    Returns:
        The latent at ``times[-1]``.
    """
    is_plain = isinstance(noise, Tensor)

    def given(state: dict[str, Tensor]) -> X:
        return cast(X, state[ALONE] if is_plain else state)

    def named(x: X) -> dict[str, Tensor]:
        return {ALONE: x} if isinstance(x, Tensor) else dict(x)

    def pinned(state: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        return state if pin is None else named(pin(given(state), t))

    state, total, number = named(noise), len(times) - 1, 0
    rules = step if isinstance(step, Mapping) else dict.fromkeys(state, step or Euler())
    is_noise = [t >= 1 for t in times.tolist()]
    times = times.to(device=next(iter(state.values())).device)
    state = pinned(state, times[start])

    def taken(x: dict[str, Tensor], t: Tensor, t_next: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The prediction at a state, and the state that it leads to."""
        made = named(denoiser(given(x), t))
        predicted = {name: made[name].to(one.dtype) for name, one in x.items()}
        moved = {name: rules[name].step(one, predicted[name], t, t_next) for name, one in x.items()}
        return predicted, pinned(moved, t_next)

    def estimate(x: dict[str, Tensor], predicted: dict[str, Tensor], t: Tensor) -> X:
        return given(pinned({name: rules[name].clean(one, predicted[name], t) for name, one in x.items()}, times[-1]))

    for i in range(start, total):
        t, t_next = times[i], times[i + 1]
        with torch.no_grad():  # not around the yield: the caller's arithmetic is its own
            before = state
            predicted, state = taken(before, t, t_next)
            for _ in range(0 if again is None or is_noise[i] else resample):
                assert again is not None
                before = pinned(named(again(estimate(before, predicted, t), t, number)), t)
                predicted, state = taken(before, t, t_next)
                number += 1
            finite = torch.stack([torch.isfinite(x).all() for x in state.values()]).all()

        def clean(before: dict[str, Tensor] = before, predicted: dict[str, Tensor] = predicted, t: Tensor = t) -> X:
            with torch.no_grad():
                return estimate(before, predicted, t)

        yield Progress(i + 1, total, clean, finite)
    return given(state)


def sample(
    denoiser: Callable[[X, Tensor], X],
    noise: X,
    times: Tensor,
    *,
    step: Step | Mapping[str, Step] | None = None,
    on_step: Callable[[int, int, X], bool | None] | None = None,
    start: int = 0,
    pin: Callable[[X, Tensor], X] | None = None,
) -> X:
    """Run ``steps`` to the end.

    Args:
        denoiser: As for ``steps``.
        noise: As for ``steps``.
        times: As for ``steps``.
        step: As for ``steps``.
        on_step: Called after each step with its number, the total and the clean estimate; returning False cancels.
        start: As for ``steps``.
        pin: As for ``steps``.

    Returns:
        The latent at ``times[-1]``, of the shape and type of the noise.

    Raises:
        Cancelled: ``on_step`` returned False.
    """
    walk = steps(denoiser, noise, times, step=step, start=start, pin=pin)
    while True:
        try:
            progress = next(walk)
        except StopIteration as end:
            return cast(X, end.value)
        if on_step is not None and on_step(progress.step, progress.total, progress.clean()) is False:
            raise Cancelled(f"cancelled after step {progress.step} of {progress.total}")
