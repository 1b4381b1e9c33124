"""`kandinsky bench ID --random-weights` of full-size models: what a processor cannot hold is measured in part."""

import json
from collections.abc import Callable

import pytest

from kandinsky import catalogue
from kandinsky.bench.shortening import shorten
from kandinsky.runtime import devices

FLASH = "kandinsky4-t2v-flash"
TINY = "dit.in_text_dim=24 dit.time_dim=16 dit.model_dim=32 dit.ff_dim=48"
TINY += " dit.num_blocks=1 dit.axes_dims=4,6,6 text.num_layers=1"
CPU = {"device": "cpu", "dtype": None, "offload": "none"}


def test_the_model_stands_where_it_is_looked_for(call: Callable[..., "Done"]) -> None:  # noqa: F821
    sizes = [word for change in TINY.split() for word in ("--set", change)]
    options = ("--random-weights", *sizes, "--stages", "text,dit", "--seconds", "0", "--repeats", "1")
    done = call("bench", FLASH, *options, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert report["model"] == f"{FLASH} (random weights)" and report["shortened"] == ""
    for name in ("text", "dit"):
        assert stages[name]["rate"] > 0
        assert stages[name]["share"] == pytest.approx(stages[name]["rate"] / report["matmul_rate"])
    table = call("bench", "-m", FLASH, *options).out
    assert "TFLOP/s" in table and "of matmul" in table and "whole s" not in table
    wrong = call("bench", FLASH, "-m", "nano-t2v")
    assert wrong.code == 2 and "both `kandinsky4-t2v-flash` and `--model nano-t2v`" in wrong.err


def test_what_does_not_fit_is_shortened_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "host_memory", lambda: (20 * 10**9, 20 * 10**9))
    short = shorten(catalogue.find(FLASH), {}, **CPU)
    assert short.changes == {"dit.num_blocks": 1, "text.num_layers": 2} and short.request == {"seconds": 0}
    assert "dit.num_blocks 1 of 21, text.num_layers 2 of 24, frames 1 of 97" in short.said
    assert "49.4 GB with offload `none`" in short.said
    assert short.times["text"] == 12 and short.times["vae"] == 97
    assert short.times["dit"] > 21 * 25  # attention grows faster than the tokens
    kept = shorten(catalogue.find(FLASH), {"seconds": 3}, **CPU)
    assert kept.request == {} and "frames" not in kept.said and "vae" not in kept.times
    assert shorten(catalogue.find("nano-t2v"), {}, **CPU).said == ""
    lite = shorten(catalogue.find("kandinsky5-lite-t2v-sft-5s"), {}, **CPU)
    assert lite.changes == {"dit.num_visual_blocks": 2, "text.qwen_layers": 2}


def test_what_fits_is_measured_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "host_memory", lambda: (500 * 10**9, 500 * 10**9))
    monkeypatch.setattr(devices, "processor_count", lambda: 1000)
    assert shorten(catalogue.find(FLASH), {}, **CPU).changes == {}
    monkeypatch.setattr(devices, "processor_count", lambda: 1)  # it fits, and would take hours
    assert "h for one run" in shorten(catalogue.find(FLASH), {}, **CPU).said
