"""How fast stages are: seconds of video in a second of work, beside what decoding alone does with the same files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DECODING = "decoding"  # of all frames, without anything that is done with them: the limit


@dataclass(slots=True)
class Spent:
    """What a stage took.

    Attributes:
        count: Files or scenes.
        video_s: Seconds of video in them.
        work_s: Seconds of work, of all workers together.
    """

    count: int = 0
    video_s: float = 0.0
    work_s: float = 0.0

    @property
    def rate(self) -> float:
        """Seconds of video in a second of one worker; 0 where nothing was done."""
        return self.video_s / self.work_s if self.work_s > 0 else 0.0


@dataclass(slots=True)
class Speeds:
    """What all stages took."""

    stages: dict[str, Spent] = field(default_factory=dict)

    def add(self, name: str, count: int, video_s: float, work_s: float) -> None:
        """Count what was done in a stage."""
        spent = self.stages.setdefault(name, Spent())
        spent.count += count
        spent.video_s += video_s
        spent.work_s += work_s

    def join(self, other: Speeds) -> None:
        """Count what another worker did."""
        for name, one in other.stages.items():
            self.add(name, one.count, one.video_s, one.work_s)

    def told(self, workers: int, wall_s: float) -> dict[str, Any]:
        """All of it as JSON holds it; nothing where nothing was done."""
        limit = self.stages.get(DECODING, Spent()).rate
        stages = {}
        for name, one in self.stages.items():
            stages[name] = {
                "count": one.count,
                "video_s": round(one.video_s, 3),
                "work_s": round(one.work_s, 3),
                "video_s_per_s": round(one.rate, 2),
                "of_decoder": round(one.rate / limit, 3) if limit else None,
            }
        return {"workers": workers, "wall_s": round(wall_s, 3), "stages": stages} if stages else {}
