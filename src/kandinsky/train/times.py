"""Times at which a network is trained: where on the way between latent (0) and noise (1) its loss is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kandinsky.diffusion.schedule import shift_times
from kandinsky.errors import RequestError
from kandinsky.train.objective import Rng

LEVELS = 1000  # of schedules with discrete levels


@dataclass(frozen=True, slots=True)
class Times:
    """A distribution of times, then a shift towards noise.

    Sources: logit-normal and mode, Esser et al. 2024 (arXiv 2403.03206, section 3.1); strata, CogVideoX ("explicit
    uniform sampling").

    Attributes:
        kind: `logit-normal`; `uniform`; `mode`, heavier in the middle; `points`, one of ``points`` at random.
        mean, std: Of the normal distribution under `logit-normal`.
        mode_scale: Of `mode`, −1 to 1.75; 0 is uniform.
        points: Of `points`, such as the times of a few-step sampler.
        shift: Timestep shift after it; the model's own at its size where absent.
        by_frame: Share of the clips whose frames have times of their own (diffusion forcing, Chen et al. 2024, arXiv
            2407.01392); for networks that take a time of each frame.
        chunk: Frames that share a time then.
        stratified: Whether the examples of a step come from equal parts of the distribution, one each, which makes the
            loss steadier at no cost; parts are shared by all processes and micro-batches.
    """

    kind: Literal["logit-normal", "uniform", "mode", "points"] = "logit-normal"
    mean: float = 0.0
    std: float = field(default=1.0, metadata={"above": 0})
    mode_scale: float = field(default=1.29, metadata={"least": -1, "most": 1.75})
    points: tuple[float, ...] = field(default=(), metadata={"above": 0, "most": 1})
    shift: float | None = field(default=None, metadata={"above": 0})
    by_frame: float = field(default=0.0, metadata={"least": 0, "most": 1})
    chunk: int = field(default=1, metadata={"least": 1})
    stratified: bool = True

    def __post_init__(self) -> None:
        if (self.kind == "points") != bool(self.points):
            raise RequestError("`points` are the times of kind `points`: name some there, and none elsewhere")

    def draw(self, rng: Rng, numbers: Sequence[int], total: int, *, shift: float, stream: str = "time") -> Tensor:
        """Times of some examples of a step.

        Args:
            rng: Of the step.
            numbers: Their places in the global batch.
            total: Size of the global batch.
            shift: The model's own, for where the settings name none.
            stream: Of the random numbers, for objectives that need several times.

        Returns:
            float32 [len(numbers)] in (0, 1].
        """
        places = torch.tensor([float(torch.rand((), generator=rng.example(n, stream))) for n in numbers])
        if self.stratified and total > 1:
            order = torch.randperm(total, generator=rng.example(-1, stream))
            places = (order[torch.tensor(list(numbers), dtype=torch.long)] + places) / total
        return shift_times(self.at(places), shift if self.shift is None else self.shift).clamp(1e-5, 1.0)

    def spread(self, t_B: Tensor, frames: int, rng: Rng, numbers: Sequence[int], *, shift: float) -> Tensor:
        """Times of each frame: a share of the clips gets times by chunk, the rest one time throughout.

        Args:
            t_B: From ``draw``.
            frames: Latent frames of a clip.
            rng: As for ``draw``, like the next two.
            numbers: Places in the global batch.
            shift: The model's own.

        Returns:
            [B, T].
        """
        out = t_B[:, None].repeat(1, frames)
        for row, n in zip(out, numbers, strict=True):
            generator = rng.example(n, "frame times")
            if float(torch.rand((), generator=generator)) < self.by_frame:
                places = torch.rand(-(-frames // self.chunk), generator=generator)
                t = shift_times(self.at(places), shift if self.shift is None else self.shift).clamp(1e-5, 1.0)
                row.copy_(t.repeat_interleave(self.chunk)[:frames])
        return out

    def at(self, place: Tensor) -> Tensor:
        """The quantile function: the time below which so large a share of the times lies, before the shift."""
        match self.kind:
            case "logit-normal":
                inside = place.double().clamp(1e-6, 1 - 1e-6)
                normal = torch.special.ndtri(inside) * self.std + self.mean
                return torch.sigmoid(normal).float()
            case "mode":
                u = place.double()
                return (1 - u - self.mode_scale * (torch.cos(torch.pi / 2 * u) ** 2 - 1 + u)).float().clamp(0, 1)
            case "points":
                points = torch.tensor(sorted(self.points))
                return points[(place * len(points)).long().clamp(max=len(points) - 1)]
        return place


def to_levels(t: Tensor) -> Tensor:
    """Times of a schedule with discrete levels: the next one, k/1000."""
    return (t * LEVELS).ceil().clamp(1, LEVELS) / LEVELS
