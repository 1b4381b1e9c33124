"""The plan's times beside every time that the models' authors have published."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

import kandinsky

LITE, PRO = "kandinsky5-lite-t2v-{}-{}", "kandinsky5-pro-t2v-sft-{}"
README = "Kandinsky 5 README, model zoo: H100 80 GB, CUDA 12.8.1, PyTorch 2.8, FlashAttention 3 at 5 s, second run"
REPORT = "Kandinsky 5.0 technical report, table 5: H100 80 GB"
OFFLOADED = REPORT + "; with offloading"
K4 = "Kandinsky 4.0 Flash: 12 s of 672x384, 4 steps, one H100"
HD = {"width": 1280, "height": 768}
FLASH = {"steps": 16, "guidance": 1.0}


@dataclass(frozen=True)
class Published:
    """A time, and what was made in it."""

    seconds: float
    model: str
    source: str
    asked: dict[str, Any] = field(default_factory=dict)


TIMES = (
    Published(139, LITE.format("sft", "5s"), README),
    Published(139, LITE.format("pretrain", "5s"), README),
    Published(77, LITE.format("nocfg", "5s"), README),
    Published(35, LITE.format("distil", "5s"), README),
    Published(224, LITE.format("sft", "10s"), README),
    Published(224, LITE.format("pretrain", "10s"), README),
    Published(124, LITE.format("nocfg", "10s"), README),
    Published(61, LITE.format("distil", "10s"), REPORT),
    Published(55, LITE.format("distil", "10s"), README),
    Published(139, "kandinsky5-lite-i2v-5s", README),
    Published(74, LITE.format("sft", "5s"), REPORT + "; MagCache", {"cache": "magcache"}),
    Published(13, "kandinsky5-lite-t2i", REPORT),
    Published(560, PRO.format("5s"), REPORT),
    Published(1158, PRO.format("10s"), REPORT),
    Published(1241, PRO.format("5s"), REPORT, HD),
    Published(3218, PRO.format("10s"), OFFLOADED, HD),
    # 16 passes of the distilled Pro models, which have no card: the same network
    Published(123, PRO.format("5s"), REPORT, FLASH),
    Published(242, PRO.format("10s"), REPORT, FLASH),
    Published(235, PRO.format("5s"), REPORT, HD | FLASH),
    Published(576, PRO.format("10s"), OFFLOADED, HD | FLASH),
    Published(11, "kandinsky4-t2v-flash", K4, {"width": 672, "height": 384, "seconds": 12}),
)


@pytest.mark.parametrize("published", TIMES, ids=lambda p: f"{p.model}-{p.seconds:g}s")
def test_within_thirty_per_cent(published: Published) -> None:
    plan = kandinsky.plan(published.model, memory="80GB", offload="none", **published.asked)
    assert plan.timed_on == "H100"
    assert plan.seconds == pytest.approx(published.seconds, rel=0.3), (published.source, plan.times)
    assert plan.seconds == pytest.approx(sum(plan.times.values()))


def test_most_are_nearer() -> None:
    """One model of shares for all: not one number for each checkpoint."""
    off = sorted(
        abs(kandinsky.plan(p.model, memory="80GB", offload="none", **p.asked).seconds / p.seconds - 1) for p in TIMES
    )
    assert off[len(off) // 2] < 0.1 and off[len(off) * 3 // 4] < 0.16


@pytest.mark.parametrize(
    ("seconds", "names", "asked"),
    [
        # "50 key frame steps in 24 s, 50 interpolation steps in 21 s", notebook of Kandinsky Video 1.0
        (45, ("dit", "interpolation"), {"fps": "medium", "width": 640, "height": 384}),
        # "8 s of 512x512 in about 3 minutes", report of Kandinsky Video
        (180, ("dit", "interpolation", "vae"), {"fps": "high"}),
    ],
)
def test_kandinsky_video_on_the_gpu_of_its_day(seconds: float, names: tuple[str, ...], asked: dict[str, Any]) -> None:
    """Both were published without the GPU's name; in 2023 that was an A100."""
    plan = kandinsky.plan("kandinsky-video-1.0", memory="40GB", offload="none", **asked)
    assert plan.timed_on == "A100 40GB"
    assert sum(plan.times[name] for name in names) == pytest.approx(seconds, rel=0.3)


def test_parts_that_can_be_told_apart() -> None:
    """What 100, 50 and 16 passes leave is decoding: 15 s of Lite 5 s; and a pass of it takes 1.24 s."""
    plan = kandinsky.plan(LITE.format("sft", "5s"), memory="80GB", offload="none")
    assert plan.times["vae"] == pytest.approx(15, rel=0.15)
    assert plan.times["dit"] / plan.passes == pytest.approx(1.24, rel=0.15)
