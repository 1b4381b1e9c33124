"""Walks of few steps, as generation takes them: their times, the states on the way, and whole samples.

Legend: N draws; B batch; T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.samplers import Sampler, sampler
from kandinsky.errors import RequestError
from kandinsky.train.denoising import Denoising, Given
from kandinsky.train.model_recipe import Batch
from kandinsky.train.objective import Rng

# (noisy [B, T, H, W, C], times [B]) -> prediction
Predict = Callable[[Tensor, Tensor], Tensor]
NEAR = 1.5e-3  # times of two grids that are at most so far apart count as equal: levels are thousandths


@dataclass(frozen=True, slots=True)
class StudentSteps:
    """How a student will be sampled.

    Attributes:
        steps: Of its sampler.
        sampler: The student's, where it is not the teacher's, such as `cogvideox-renoise`; both must have one schedule.
        weights: How often each step is trained, from noise on; equally often where empty.
    """

    steps: int = field(default=4, metadata={"least": 1})
    sampler: str | None = None
    weights: tuple[float, ...] = field(default=(), metadata={"least": 0})

    def __post_init__(self) -> None:
        if self.sampler is not None:
            sampler(self.sampler)
        if self.weights and len(self.weights) != self.steps:
            raise RequestError(f"`weights` are {len(self.weights)}, and steps are {self.steps}: give one for each")


class Walk:
    """The steps of a sampler from noise to a latent.

    Args:
        denoising: The noise process.
        settings: See ``StudentSteps``.

    Raises:
        RequestError: The sampler is unknown or has another schedule or kind of prediction than the model, or there are
            not as many weights as steps.
    """

    def __init__(self, denoising: Denoising, settings: StudentSteps) -> None:
        self.denoising, self.steps = denoising, settings.steps
        self.rules: Sampler = denoising.rules if settings.sampler is None else sampler(settings.sampler)
        if self.rules.predicts != denoising.predicts or type(self.rules.noising(1.0)) is not type(denoising.noising):
            raise RequestError(
                f"sampler `{settings.sampler}` does not fit the model: it has another noise schedule or prediction"
            )
        if settings.weights and (len(settings.weights) != settings.steps or min(settings.weights) < 0):
            raise RequestError(f"`weights` must be {settings.steps} numbers from 0 on, one for each step")
        self.weights = torch.tensor(settings.weights or (1.0,) * settings.steps)
        self.times = self.rules.times(settings.steps, denoising.shift)

    def refined(self, parts: int) -> Tensor:
        """Times with each step cut into so many: those of the sampler where it has them, else evenly spaced ones.

        Steps begin and end where this walk has them: its sampler's finer times may lie a level beside.
        """
        fine = self.rules.times(self.steps * parts, self.denoising.shift)
        if len(fine) == self.steps * parts + 1 and (fine[::parts] - self.times).abs().max() < NEAR:
            fine[::parts] = self.times
            return fine
        shares = torch.arange(parts) / parts
        between = torch.lerp(self.times[:-1, None], self.times[1:, None], shares).flatten()
        return torch.cat((self.denoising.times(between), self.times[-1:]))

    def drawn(self, rng: Rng, numbers: Sequence[int], stream: str = "step") -> Tensor:
        """A step, counted from noise, for each of some examples."""
        each = [torch.multinomial(self.weights, 1, generator=rng.example(n, stream)) for n in numbers]
        return torch.cat(each)

    def begin(self, batch: Batch, rng: Rng) -> Tensor:
        """The state at the first time, from noise of each clip's own."""
        count = self.rules.unused + 1
        return self.rules.start(torch.stack([batch.noise(rng, f"begin {n}") for n in range(count)]), self.times)

    def after(self, number: int, prediction: Tensor, noisy: Tensor, noise: Callable[[], Tensor]) -> Tensor:
        """The state after a step, with fresh noise where the sampler takes some."""
        if self.rules.fresh:  # the sampler's own step, which takes the draw of its number
            drawn = noise() if number + 1 < self.steps else noisy
            step = self.rules.step(self.times, self.denoising.shift, drawn.expand(self.steps - 1, *drawn.shape))
            return step.step(noisy, prediction, self.times[number], self.times[number + 1])
        t, to = (self.times[n].to(noisy.device).expand(len(noisy)) for n in (number, number + 1))
        return self.denoising.moved(prediction, noisy, t, to)

    @torch.no_grad()
    def simulated(self, predict: Predict, batch: Batch, rng: Rng, steps: int) -> Tensor:
        """The state that a network reaches by itself from noise after some steps."""
        x = self.begin(batch, rng)
        for number in range(steps):
            t = self.times[number].to(x.device).expand(len(x))

            def noise(number: int = number) -> Tensor:
                return batch.noise(rng, f"fresh {number}")

            x = self.after(number, predict(x, t), x, noise)
        return x

    @torch.no_grad()
    def sampled(self, predict: Predict, draws_NBTHWC: Tensor, given: Given | None = None) -> Tensor:
        """Samples by the sampler itself.

        Args:
            predict: The network with what it is told.
            draws_NBTHWC: As many as the sampler needs, see ``draws``.
            given: Says what is known; it is put in its place before every step and at the end.
        """
        step = self.rules.step(self.times, self.denoising.shift, draws_NBTHWC[self.rules.unused + 1 :])
        track = self.denoising.track

        def pin(x: Tensor, t: Tensor) -> Tensor:
            return x if given is None else given.known.pin({track: x})[track]

        return sample(
            lambda x, t: predict(x, t.expand(len(x))),
            self.rules.start(draws_NBTHWC, self.times),
            self.times,
            step=step,
            pin=pin,
        )

    def draws(self, shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """The draws of samples, of each seed's generator: [N, B, T, H, W, C].

        Args:
            shape: T, H, W, C of a sample.
            seeds: One for each.
        """
        made = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            made.append(
                torch.stack([torch.randn(*shape, generator=generator) for _ in range(self.rules.draws(self.steps))])
            )
        return torch.stack(made, dim=1)


def per_clip(rng: Rng, numbers: Sequence[int], count: int, stream: str) -> Tensor:
    """A whole number below ``count`` for each of some examples."""
    return torch.tensor([int(torch.randint(count, (), generator=rng.example(n, stream))) for n in numbers])
