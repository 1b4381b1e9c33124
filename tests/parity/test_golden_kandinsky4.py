"""Kandinsky 4: rotary angles as the file has them; the card and the official full-size networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kandinsky import catalogue
from kandinsky.conformance import Status, check
from kandinsky.diffusion.cogvideox import CogVideoXSchedule
from kandinsky.diffusion.samplers import sampler
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D, DiTParams
from parity.golden_cases import HAS_REFERENCE, REFERENCE, copy

FOLDER = REFERENCE / "kandinsky4"

pytestmark = pytest.mark.skipif(not HAS_REFERENCE, reason="the reference folder is not beside this checkout")


@pytest.mark.parametrize("name", ["kandinsky4_distil_512", "cogvideox_vae"])
def test_manifest_matches_on_the_meta_device(name: str) -> None:
    (result,) = check([FOLDER / "manifests" / f"{name}.json"])
    assert result.status is Status.PASS and "kandinsky4-t2v-flash" in result.output, result.line()


def test_rounded_angles_are_the_file_s(tmp_path: Path) -> None:
    """Exact angles fail the case of rounded ones, as its notes say."""
    for rounding, status in (("exact", Status.FAIL), ("bfloat16", Status.PASS)):
        source = FOLDER / "golden" / "dit_rope_bf16_args"
        (result,) = check([copy(source, tmp_path / rounding, config={"rope_angles": rounding})])
        assert result.status is status, result.line()


def test_the_card_agrees_with_the_official_values() -> None:
    card = catalogue.find("kandinsky4-t2v-flash")
    manifest = json.loads((FOLDER / "manifests" / "kandinsky4_distil_512.json").read_text())
    assert card.dit.params.items() >= manifest["config"].items()
    assert card.parameters == manifest["parameters"]
    assert card.dit.parts[0].files == (manifest["file"],) and card.dit.parts[0].repo == manifest["checkpoint"]
    with torch.device("meta"):
        net = DiffusionTransformer3D(DiTParams.from_dict(card.dit.params))
    assert sum(p.numel() for p in net.parameters()) == card.parameters
    assert len(list(net.blocks())) == 42 and net.params.num_heads == 48
    autoencoder = json.loads((FOLDER / "manifests" / "cogvideox_vae.json").read_text())
    assert card.vae.params["scaling_factor"] == autoencoder["config"]["scaling_factor"]
    assert card.vae.bytes == pytest.approx(2 * autoencoder["parameters"], rel=1e-3)
    recorded = json.loads((FOLDER / "golden" / "scheduler_4step" / "case.json").read_text())
    assert CogVideoXSchedule.from_config(recorded["config"]) == CogVideoXSchedule(snr_shift=card.sampling.shift)
    assert card.sampling.steps == recorded["call"]["num_inference_steps"] and card.sampling.guidance == 1
    assert sampler(card.sampling.sampler).draws(card.sampling.steps) == 5
    pairs = {(512, 512), (352, 736), (736, 352), (384, 672), (672, 384), (480, 544), (544, 480)}
    assert {tuple(map(int, size.split("x"))) for size in card.clip.sizes} == pairs
