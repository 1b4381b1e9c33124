"""`kandinsky bench train`: steps of the one loop, what lives at once, and a plain step of Diffusers beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kandinsky.bench import train as bench
from kandinsky.cli.main import main
from kandinsky.errors import RequestError

SMALL = bench.Setup(
    name="small", model=bench.LITE, latent=(2, 32, 32),
    changes={**bench.MID, "dit.model_dim": 64, "dit.ff_dim": 256, "dit.axes_dims": [8, 12, 12],
             "dit.num_visual_blocks": 4, "dit.time_dim": 32, "dit.in_text_dim": 32, "dit.in_text_dim2": 16},
)  # fmt: skip
DEVICE, FLOAT = torch.device("cpu"), torch.float32


def test_a_report_says_what_a_step_costs() -> None:
    lora = replace(SMALL, name="lora", adapter=bench.LORA)
    report = bench.bench([SMALL, lora], repeats=2)
    whole, part = report.rows
    assert whole.tokens == part.tokens == 2 * 16 * 16 and whole.parameters[0] == whole.parameters[1]
    assert 0 < part.parameters[1] < whole.parameters[0] < part.parameters[0]
    assert part.flops < whole.flops and len(whole.seconds) == 2 and report.matmul_rate > 0
    assert part.peak_bytes < whole.peak_bytes
    lines = bench.table(report).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["small", "lora"] and "matrix products reach" in lines[4]


def test_what_is_computed_again_need_not_live() -> None:
    steps = {
        kept: bench.Step(replace(SMALL, activations=kept), DEVICE, FLOAT) for kept in ("kept", "operations", "full")
    }
    peaks = {}
    for kept, step in steps.items():
        step()  # the optimiser has its states
        peaks[kept] = step.peak()
    assert peaks["full"] < peaks["operations"] < peaks["kept"]
    assert steps["full"]()["loss"] == pytest.approx(steps["kept"]()["loss"], rel=1e-5)
    states = 4 * 4 * steps["kept"].parameters[0]  # weights, average, two of AdamW
    assert peaks["full"] > states


def test_living_bytes_are_those_at_once() -> None:
    with bench.Living() as living:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100) * 2
    assert living.most == 8000 and living.now == 8000 and c.numel() == b.numel()


def test_a_plain_step_of_diffusers_begins_with_the_same_loss() -> None:
    diffusers = pytest.importorskip("diffusers", reason="it is an extra")
    from kandinsky import catalogue

    step = bench.Step(SMALL, DEVICE, FLOAT)
    make = catalogue.find(SMALL.model).part("dit").twins["diffusers"]()
    theirs, call = make(diffusers, step.network, step.job.sampling.rope_scale)
    t, text = torch.tensor([0.3]), step.batch.given.text
    with torch.no_grad():
        expected = step.objective.denoising.predict(step.network, step.batch.clean_BTHWC, t, step.batch.given)
        found = call(theirs, step.batch.clean_BTHWC, t, text)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    report = bench.bench([SMALL], repeats=1, against="diffusers")
    assert report.against is not None and report.against > 0
    assert "other library" in bench.table(report)


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError, match="has none of these networks"):
        bench.bench([replace(SMALL, model="kandinsky4-t2v", changes={})], against="diffusers")
    assert main(["bench", "train", "--stages", "dit"]) == 2
    assert "`bench train` takes" in capsys.readouterr().err
