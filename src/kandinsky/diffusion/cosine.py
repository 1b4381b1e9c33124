"""The cosine schedule of Kandinsky 3 and Kandinsky Video 1, and its steps.

x = √ā·clean + √(1 − ā)·noise. The network predicts the noise, or v = √ā·noise − √(1 − ā)·clean. Inside the library a
level is a time t in [0, 1], 1 = noise: t·1000 − 1 is what the network calls the time, and t = 0 the clean clip.

Legend: B clips; T H W C latent frames, rows, columns, channels; N draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kandinsky.diffusion.cogvideox import LEVELS, level_of
from kandinsky.errors import RequestError

PREDICTIONS = ("noise", "v")
BETA_LIMIT = 0.999


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """Share ā of the signal at each level.

    Source: ai-forever/KandinskyVideo@4e10a23, model/utils.py, get_named_beta_schedule; Diffusers, DDPMScheduler.

    Attributes:
        levels: Number of levels of the table, 1 to 1000. Kandinsky Video 1.0 makes a table of as many levels as a run
            has steps; then the network's time increases by ``stride`` from one to the next.
        zero_snr: Whether the last level is brought to no signal at all, keeping the first.
        predicts: What the network predicts: "noise" or "v".

    Raises:
        RequestError: A value is not known.
    """

    levels: int = LEVELS
    zero_snr: bool = False
    predicts: str = "noise"

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= LEVELS:
            raise RequestError(f"steps `{self.levels}` are not possible: use 1 to {LEVELS}")
        if self.predicts not in PREDICTIONS:
            raise RequestError(f"prediction `{self.predicts}` is unknown: use {' or '.join(PREDICTIONS)}")

    @property
    def stride(self) -> int:
        """How far apart the network's times of two levels are."""
        return LEVELS // self.levels

    @property
    def alphas_cumprod(self) -> Tensor:
        """ā of every level, float32 [levels]."""
        return _shares(self.levels, self.zero_snr)

    def time(self, level: int) -> float:
        """The time t of a level; level −1 is the clean clip."""
        return 0.0 if level < 0 else (level * self.stride + 1) / LEVELS

    def times(self, levels: list[int]) -> Tensor:
        """Falling times of a run through the given levels, float32."""
        return torch.tensor([self.time(level) for level in levels], dtype=torch.float32)

    def share(self, t: Tensor) -> float:
        """ā at a time, 1 at t = 0."""
        number = int(level_of(t))
        return 1.0 if number == 0 else float(self.alphas_cumprod[(number - 1) // self.stride])

    def noised(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """√ā·clean + √(1 − ā)·noise."""
        share = self.share(t)
        return math.sqrt(share) * clean + math.sqrt(1 - share) * noise

    def clean(self, x: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """The clean latent implied by x and the prediction."""
        share = self.share(t)
        if self.predicts == "v":
            return math.sqrt(share) * x - math.sqrt(1 - share) * predicted
        return (x - math.sqrt(1 - share) * predicted) / math.sqrt(share)


@cache
def _shares(levels: int, zero_snr: bool) -> Tensor:
    """Quirk: betas are made in float64 and kept in float32, their products are float32 from the start."""
    ends = torch.arange(levels + 1, dtype=torch.float64) / levels
    heights = torch.cos((ends + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - heights[1:] / heights[:-1]).clamp(max=BETA_LIMIT).float()
    shares = torch.cumprod(1 - betas, dim=0)
    if not zero_snr:
        return shares
    roots = shares.sqrt()
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    steps = torch.cat((roots[:1] ** 2, roots[1:] ** 2 / roots[:-1] ** 2))
    return torch.cumprod(1 - (1 - steps), dim=0)


def threshold(clean_BTHWC: Tensor, quantile: float | None) -> Tensor:
    """Keep a clean estimate within bounds, each frame separately.

    Source: ai-forever/KandinskyVideo@4e10a23, model/utils.py, dynamic thresholding.

    Args:
        clean_BTHWC: The estimate.
        quantile: Quantile of a frame's absolute values; if it is above 1, larger values are clipped to it and the frame
            is scaled so that it becomes 1. None: clip at 1.

    Returns:
        The bounded estimate.
    """
    if quantile is None:
        return clean_BTHWC.clamp(-1, 1)
    limits = torch.quantile(clean_BTHWC.abs().flatten(2), quantile, dim=-1).clamp(min=1)[..., None, None, None]
    return torch.maximum(torch.minimum(clean_BTHWC, limits), -limits) / limits


@dataclass(frozen=True, slots=True)
class Ancestral:
    """A step to the thresholded clean estimate and back to the next noise level.

    The noise added back is partly the predicted one and partly fresh; the last step adds none.

    Source: ai-forever/KandinskyVideo@4e10a23, model/diffusion.py, p_sample; ai-forever/Kandinsky-3@a4c9e92,
            model/diffusion.py, p_sample (eta inside the root); Diffusers, DDPMScheduler.step. All are this formula.

    Attributes:
        times: Times of the run, to find the draw of a step.
        draws_NBTHWC: Fresh noise for each step but the last.
        quantile: See ``threshold``.
        eta: Share of the variance that is fresh: 1 as in DDPM, 0 as in DDIM.
    """

    schedule: CosineSchedule
    times: Tensor
    draws_NBTHWC: Tensor
    quantile: float | None = None
    eta: float = 1.0

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        clean = self.clean(x, velocity, t)
        share, after = self.schedule.share(t), self.schedule.share(t_next)
        noise = (x - math.sqrt(share) * clean) / math.sqrt(1 - share)
        fresh = self.eta * (1 - share / after) * (1 - after) / (1 - share)
        state = math.sqrt(after) * clean + math.sqrt(max(1 - after - fresh, 0.0)) * noise
        number = int((self.times.to(t_next) > t_next).sum())
        if number > len(self.draws_NBTHWC):
            return state
        return state + math.sqrt(fresh) * self.draws_NBTHWC[number - 1].to(state)

    def clean(self, x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        return threshold(self.schedule.clean(x, velocity, t), self.quantile)


def every_level(steps: int) -> list[int]:
    """All levels of a table of as many, and the clean clip (Kandinsky Video 1.0)."""
    return [*reversed(range(steps)), -1]


def leading(steps: int) -> list[int]:
    """Levels 0, 1000//steps, … of 1000, falling (Kandinsky Video 1.1, keyframes)."""
    return [i * (LEVELS // steps) for i in reversed(range(steps))] + [-1]


def trailing(steps: int) -> list[int]:
    """Levels 999 and as many evenly spaced below (Kandinsky Video 1.1, interpolation)."""
    return [round(LEVELS - i * LEVELS / steps) - 1 for i in range(steps)] + [-1]


def from_the_top(steps: int) -> list[int]:
    """Levels 999, 999 − stride, …, and level 0, where Kandinsky 3 ends.

    Where the official rule gives another number of steps than asked for, levels are spaced evenly instead.
    """
    official = list(range(LEVELS - 1, 0, -math.ceil(LEVELS / steps)))
    even = [LEVELS - 1 - i * LEVELS // steps for i in range(steps)]
    return [*(official if len(official) == steps else even), 0]


def distilled(steps: int) -> list[int]:
    """Levels of the distilled Kandinsky 3.1: 979, 729, 479, 229 for its four steps."""
    first = 979
    stride = min(LEVELS // steps, first // max(steps - 1, 1))
    return [first - i * stride for i in range(steps)] + [-1]
