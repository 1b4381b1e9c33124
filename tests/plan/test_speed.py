"""Processors by name and by memory, and how operations become seconds."""

from __future__ import annotations

import dataclasses

import pytest

import kandinsky
from kandinsky import catalogue
from kandinsky.engine.plan import plan_resolved
from kandinsky.engine.request import resolve
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.model.cost import Operations
from kandinsky.model.values import Request
from kandinsky.runtime import devices, speed

LITE = "kandinsky5-lite-t2v-sft-5s"


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060"),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_gpus_by_the_names_that_drivers_report(reported: str, name: str | None) -> None:
    found = speed.named(reported)
    assert (None if found is None else found.name) == name


def test_gpus_by_memory() -> None:
    for gigabytes, name in ((6, "RTX 4060"), (12, "RTX 4070"), (13, "RTX 4080"), (24, "RTX 4090"), (80, "H100"),
                            (100, "H200"), (1000, "B200")):  # fmt: skip
        assert speed.of_memory(gigabytes * 10**9)[0].name == name
    assert [gpu.memory for gpu in speed.GPUS] == sorted(gpu.memory for gpu in speed.GPUS)


def test_attention_on_an_h100_is_what_was_measured() -> None:
    """FlashAttention-3, figure 5: 497 TFLOP/s at heads of 64, 648 at 128, 16k tokens."""
    h100 = next(gpu for gpu in speed.GPUS if gpu.name == "H100")
    for head, tflops in ((64, 497), (128, 648)):
        operations = Operations.attending(16384, 16384, 2048, head)
        assert operations.flops / h100.seconds(operations, "bfloat16") / 1e12 == pytest.approx(tflops, rel=0.03)


def test_operations_add_and_multiply() -> None:
    one = Operations(1, 2, 3, 4, 5, 6, 7)
    assert one + one == one * 2 == Operations(2, 4, 6, 8, 10, 12, 14)
    assert one.flops == 1 + 2 + 3 + 5
    for gpu in speed.GPUS:
        assert gpu.seconds(one * 1e12, "float32") > gpu.seconds(one * 1e12, "bfloat16")
        assert gpu.seconds(one * 2e12, "bfloat16") == pytest.approx(2 * gpu.seconds(one * 1e12, "bfloat16"))


def test_the_gpu_at_hand_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "choose_device", lambda name=None: "cuda:0")
    monkeypatch.setattr(devices, "device_memory", lambda device: (40 * 10**9, 48 * 10**9))
    monkeypatch.setattr(devices, "device_name", lambda device: "NVIDIA L40S")
    plan = kandinsky.plan(LITE)
    assert (plan.timed_on, plan.timed_why) == ("L40S", "in this machine")
    monkeypatch.setattr(devices, "device_name", lambda device: "NVIDIA Quadro X9000")
    plan = kandinsky.plan(LITE)
    assert plan.timed_on == "L40S" and "`NVIDIA Quadro X9000`" in plan.timed_why


def test_the_processor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "processor_count", lambda: 1)
    one = kandinsky.plan(LITE, device="cpu", offload="none")
    monkeypatch.setattr(devices, "processor_count", lambda: 48)
    many = kandinsky.plan(LITE, device="cpu", offload="none")
    assert (one.timed_on, many.timed_on) == ("1 CPU core", "48 CPU cores")
    assert 40 < one.seconds / many.seconds < 50
    assert kandinsky.plan(LITE, device="cpu", offload="none", dtype="bfloat16").seconds < many.seconds
    assert kandinsky.plan(LITE, device="cpu", memory="64GB").timed_on == "48 CPU cores"


def test_weights_that_travel_take_time() -> None:
    def seconds(offload: str, steps: int = 50) -> float:
        plan = kandinsky.plan("kandinsky5-pro-t2v-sft-5s", memory="80GB", seconds=0, offload=offload, steps=steps)
        return plan.seconds

    assert seconds("none") < seconds("module") < seconds("block")
    # a still of Pro is soon computed: its 38 GB are on the way in every pass
    assert seconds("block") > 100 * 35e9 / speed.LINK
    assert seconds("block", 100) == pytest.approx(2 * seconds("block"), rel=0.1)


def test_defaults_are_those_of_the_parameters() -> None:
    """A card that leaves hyper-parameters out is planned as it is built."""
    card = catalogue.find(LITE)
    bare = dataclasses.replace(card, dit=dataclasses.replace(card.dit, params={"in_visual_dim": 16}))
    full = dataclasses.asdict(DiTParams(in_visual_dim=16))
    spelled = dataclasses.replace(card, dit=dataclasses.replace(card.dit, params=full))
    plans = [
        plan_resolved(resolve(Request(LITE, "x", seed=0), one), memory="80GB", gpus=4) for one in (bare, spelled, card)
    ]
    assert plans[0] == plans[1] and plans[0] != plans[2]
