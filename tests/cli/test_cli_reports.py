"""`models`, `show`, `plan`, `doctor`, `bench`, `data`: what they print for people and for programs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kandinsky
from kandinsky import catalogue
from kandinsky.errors import BackendError, RequestError

Call = Callable[..., "Done"]  # noqa: F821
LITE = "kandinsky5-lite-t2v-sft-5s"


def test_models(tiny: Path, call: Call) -> None:
    table = call("models").lines
    assert table[0].split() == ["ID", "TASK", "PARAMETERS", "MAKES", "FILES", "LOCAL", "LICENCE"]
    rows = {line.split()[0]: line for line in table[1:]}
    assert set(rows) == set(catalogue.cards()) and "tiny" in rows
    assert next(iter(rows)) == "nano2-t2v", "the default stands first"
    assert "23.3 GB" in rows[LITE] and rows[LITE].endswith("no     MIT")
    assert rows[LITE].split()[1:4] == ["text-to-video", "2.0", "B"] and "5 s, 768x512 and 2 other sizes" in rows[LITE]
    assert "image-editing" in rows["kandinsky5-lite-i2i"] and "image, 1024x1024 and 6" in rows["kandinsky5-lite-i2i"]
    facts = {entry["id"]: entry for entry in json.loads(call("models", "--json").out)}
    assert facts["tiny"]["local"] is True and facts[LITE]["local"] is False
    assert facts[LITE]["bytes"] == 23_311_500_000 and facts[LITE]["parameters"] == 2_007_702_848


def test_show_card(call: Call) -> None:
    text = call("show", LITE).out
    for expected in ("Kandinsky 5.0 T2V Lite SFT", "model_dim", "768x512", "openai/clip-vit-large-patch14"):
        assert expected in text
    assert json.loads(call("show", LITE, "--json").out) == json.loads(
        json.dumps(catalogue.to_dict(catalogue.find(LITE)))
    )


def test_show_keeps_a_table_of_numbers_short(call: Call) -> None:
    lines = call("show", LITE).lines
    assert 5 < sum("mag_ratios" in line for line in lines) < 20 and max(map(len, lines[:-4])) < 200


def test_plan_of_every_model(call: Call) -> None:
    transformers = {model: card for model, card in catalogue.cards().items() if card.dit.kind == "kandinsky5.dit"}
    for model, card in transformers.items():
        for size in card.clip.sizes:
            width, height = map(int, size.split("x"))
            plan = kandinsky.plan(model, device="cpu", width=width, height=height)
            sampling = card.sampling_for(width, height)
            assert plan.passes == sampling.steps * (1 if sampling.guidance == 1 else 2)
    image = call("plan", "-m", "kandinsky5-lite-t2i", "--device", "cpu").out
    assert "1024x1024, one image, 4096 tokens" in image and "gated: needs a token, HF_TOKEN" in image


def test_plan_figures() -> None:
    plan = kandinsky.plan(LITE, device="cpu", offload="none")
    assert plan.tokens == 31 * 32 * 48 and plan.passes == 100 and plan.frames == 121
    assert plan.peak_device_bytes == 0 and plan.peak_host_bytes > 4 * 2_007_702_848
    assert plan.why == "asked for" and plan.time_class in ("hours", "days")
    assert set(plan.estimates) <= set(plan.to_dict())
    # needs grow with the work
    still = kandinsky.plan(LITE, device="cpu", seconds=0, offload="none")
    assert still.tokens == 32 * 48 and still.seconds < plan.seconds / 31
    assert still.peak_host_bytes < plan.peak_host_bytes
    assert kandinsky.plan(LITE, device="cpu", guidance=1).passes == 50
    assert kandinsky.plan("kandinsky5-lite-t2v-distil-5s", device="cpu").passes == 16
    # one network at a time needs less than all, half the width needs less than the whole
    module = kandinsky.plan(LITE, device="cpu", offload="module")
    assert module.peak_host_bytes < plan.peak_host_bytes
    assert kandinsky.plan(LITE, device="cpu", dtype="bf16", offload="none").peak_host_bytes < plan.peak_host_bytes


def test_plan_chooses_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    from kandinsky.runtime import devices

    for free_gb, offload, fits in (
        (1000, "none", True),
        (45, "module", True),
        (12, "block", True),
        (2, "block", False),
    ):
        monkeypatch.setattr(devices, "host_memory", lambda free=free_gb: (free * 10**9, free * 10**9))
        plan = kandinsky.plan(LITE, device="cpu", dtype="float32")
        assert (plan.offload, plan.fits) == (offload, fits), plan.why
    assert "smaller size" in plan.advice
    monkeypatch.setattr(devices, "host_memory", lambda: None)
    assert kandinsky.plan(LITE, device="cpu").fits is None


def test_plan_for_a_card_that_is_not_here(call: Call) -> None:
    """The aims: Lite of 5 seconds within 8 GB, Pro in SD within 16 GB."""
    for model, memory in ((LITE, "8GB"), ("kandinsky5-pro-t2v-sft-5s", "16 GB")):
        plan = kandinsky.plan(model, memory=memory)
        assert (plan.offload, plan.fits, plan.dtype) == ("block", True, "bfloat16"), plan.why
        assert plan.placements["none"] > plan.placements["module"] > plan.placements["block"]
        assert plan.peak_device_bytes == plan.placements["block"]
    exact = kandinsky.plan(LITE, memory="24GB", offload="module")
    small = kandinsky.plan(LITE, memory="24GB", offload="module", quantize="dit=int8,text=int8")
    ratio = small.components["dit"].weights / exact.components["dit"].weights
    assert 0.5 < ratio < 0.65, "all but modulation and embeddings has one byte instead of two"
    assert small.components["vae"] == exact.components["vae"] and small.quantize == {"dit": "int8", "text": "int8"}
    tight = kandinsky.plan(LITE, memory="13GB", offload="module")
    assert tight.fits is False and tight.advice == 'try `offload="block"`'
    said = call("plan", "-m", LITE, "--memory", "13GB", "--offload", "module").out
    assert "try `--offload block`" in said and "needs none" in " ".join(said.split())
    with pytest.raises(RequestError, match="memory `much` is not an amount"):
        kandinsky.plan(LITE, memory="much")


def test_plan_refuses_as_a_generation_would() -> None:
    for wrong, error in (
        ({"width": 500, "height": 500}, RequestError),
        ({"seconds": 4000}, RequestError),
        ({"offload": "disk"}, RequestError),
        ({"dtype": "int3"}, RequestError),
        ({"device": "cuda:99"}, BackendError),
    ):
        with pytest.raises(error):
            kandinsky.plan(LITE, **wrong)


def test_doctor(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr("kandinsky.runtime.threads.quota", lambda: 1.5)
    done = call("doctor")
    assert "quota of 1.5 cores" in done.out and "they sleep while they wait (OMP_WAIT_POLICY=PASSIVE" in done.out
    assert done.code == 0 and "all is well" in done.out
    report = json.loads(call("doctor", "--json").out)
    assert report["problems"] == [] and report["kandinsky"] == kandinsky.__version__
    cpu = next(device for device in report["torch"]["devices"] if device["name"] == "cpu")
    features = torch.cpu.get_capabilities()
    assert cpu["bfloat16"].startswith("native") == bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    assert cpu["vectors"] == torch.backends.cpu.get_cpu_capability() and cpu["vectors"] in done.out
    assert "sdpa" in report["torch"]["attention"]
    assert report["codecs"] == {"libx264": True, "libvpx-vp9": True}
    assert report["memory"]["free_gb"] > 0 and report["packages"]["transformers"]["version"]


def test_doctor_keeps_the_token_to_itself(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    done = call("doctor", "--json")
    assert json.loads(done.out)["hub"]["token"] is True and "hf_very_secret" not in done.out


def test_bench(tiny: Path, call: Call) -> None:
    done = call("bench", "-m", "tiny", "--repeats", "2", "--seconds", "0", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert list(stages) == ["load", "text", "dit", "vae", "write"]
    assert all(stage["median_s"] > 0 and stage["spread_s"] >= 0 for stage in stages.values())
    assert stages["dit"]["flops"] > 0 and stages["write"]["flops"] == 0 and report["steps"] == 2
    assert report["matmul_rate"] > 1e8 and report["peak_host_bytes"] > 1e8
    assert report["processor"] and report["waiting"] in ("passive", "active") and len(report["load"]) == 2
    done = call("bench", "-m", "tiny", "--repeats", "1", "--seconds", "0", "--stages", "dit", "-o", "report.json")
    assert "of matmul" in done.out and "peak GB" in done.out and report["processor"] in done.out
    assert json.loads(Path("report.json").read_text())["stages"][1]["name"] == "dit"


def test_help_without_arguments(call: Call) -> None:
    for arguments in ((), ("data",)):
        done = call(*arguments)
        assert done.code == 0 and "Commands:" in done.out
    assert call("--version").out.strip() == f"kandinsky {kandinsky.__version__}"
