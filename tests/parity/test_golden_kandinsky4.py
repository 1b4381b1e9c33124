"""Recorded numbers of the official Kandinsky 4, through the conformance command's own code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from kandinsky import catalogue
from kandinsky.conformance import Status, check
from kandinsky.diffusion.cogvideox import CogVideoXSchedule
from kandinsky.diffusion.samplers import sampler
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D, DiTParams
from kandinsky.weights.read import read_state
from kandinsky.weights.write import write_state

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky4"
NEEDED = (
    "dit_groups",
    "dit_rope_bf16_args",
    "dit_varlen",
    "sample_bf16_rounding",
    "sample_fp32",
    "scheduler_4step",
    "scheduler_cogvideox2b_like",
    "text_embedder_t5",
    "vae_image",
    "vae_video",
)

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference folder is not beside this checkout")


@pytest.mark.parametrize("name", NEEDED)
def test_case_passes(name: str) -> None:
    (result,) = check([REFERENCE / "golden" / name])
    assert result.status is Status.PASS, result.line()


@pytest.mark.parametrize("name", ["kandinsky4_distil_512", "cogvideox_vae"])
def test_manifest_matches_on_the_meta_device(name: str) -> None:
    (result,) = check([REFERENCE / "manifests" / f"{name}.json"])
    assert result.status is Status.PASS and "kandinsky4-t2v-flash" in result.output, result.line()


def changed(case: str, folder: Path, **call: object) -> Path:
    """A copy of a case with other call arguments."""
    shutil.copytree(REFERENCE / "golden" / case, folder)
    values = json.loads((folder / "case.json").read_text())
    values["call"] |= call
    (folder / "case.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("case", "call"),
    [
        ("dit_groups", {"num_groups": [1, 1, 1]}),
        ("dit_groups", {"num_groups": [1, 4, 1]}),
        ("dit_groups", {"scale_factor": [1.0, 1.0, 1.0]}),
        ("sample_fp32", {"seed": 6555}),
        ("sample_bf16_rounding", {"noise_rounding": "none"}),
        ("scheduler_4step", {"num_inference_steps": 5}),
    ],
)
def test_another_call_fails(case: str, call: dict, tmp_path: Path) -> None:
    """So the arguments are not passed over."""
    (result,) = check([changed(case, tmp_path / "case", **call)])
    assert result.status is Status.FAIL


def test_a_loop_without_the_roundings_exceeds_the_mean(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    shutil.copytree(REFERENCE / "golden" / "sample_bf16_rounding", folder)
    outputs = read_state(folder / "outputs.safetensors")
    outputs["latent"] = outputs["latent"] + 3e-4  # within the limit of single numbers
    write_state(outputs, folder / "outputs.safetensors")
    (result,) = check([folder])
    assert result.status is Status.FAIL and "mean" in result.reason


def test_rounded_angles_are_the_file_s(tmp_path: Path) -> None:
    """Exact angles fail the case of rounded ones, as its notes say."""
    folder = tmp_path / "case"
    shutil.copytree(REFERENCE / "golden" / "dit_rope_bf16_args", folder)
    values = json.loads((folder / "case.json").read_text())
    for rounding, status in (("exact", Status.FAIL), ("bfloat16", Status.PASS)):
        values["config"]["rope_angles"] = rounding
        (folder / "case.json").write_text(json.dumps(values))
        (result,) = check([folder])
        assert result.status is status, result.line()


def test_the_card_agrees_with_the_official_values() -> None:
    card = catalogue.find("kandinsky4-t2v-flash")
    manifest = json.loads((REFERENCE / "manifests" / "kandinsky4_distil_512.json").read_text())
    assert card.dit.params.items() >= manifest["config"].items()
    assert card.parameters == manifest["parameters"]
    assert card.dit.parts[0].files == (manifest["file"],) and card.dit.parts[0].repo == manifest["checkpoint"]
    with torch.device("meta"):
        net = DiffusionTransformer3D(DiTParams.from_dict(card.dit.params))
    assert sum(p.numel() for p in net.parameters()) == card.parameters
    assert len(list(net.blocks())) == 42 and net.params.num_heads == 48
    autoencoder = json.loads((REFERENCE / "manifests" / "cogvideox_vae.json").read_text())
    assert card.vae.params["scaling_factor"] == autoencoder["config"]["scaling_factor"]
    assert card.vae.bytes == pytest.approx(2 * autoencoder["parameters"], rel=1e-3)
    recorded = json.loads((REFERENCE / "golden" / "scheduler_4step" / "case.json").read_text())
    assert CogVideoXSchedule.from_config(recorded["config"]) == CogVideoXSchedule(snr_shift=card.sampling.shift)
    assert card.sampling.steps == recorded["call"]["num_inference_steps"] and card.sampling.guidance == 1
    assert sampler(card.sampling.sampler).draws(card.sampling.steps) == 5
    pairs = {(512, 512), (352, 736), (736, 352), (384, 672), (672, 384), (480, 544), (544, 480)}
    assert {tuple(map(int, size.split("x"))) for size in card.clip.sizes} == pairs
