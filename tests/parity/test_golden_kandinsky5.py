"""Recorded numbers of the official Kandinsky 5, through the conformance command's own code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kandinsky import catalogue
from kandinsky.conformance import Status, check
from kandinsky.conformance.cases import find
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.ops.attention import AttentionSpec

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky5"
# shapes of their own, seen nowhere else: they must be among those that are found
NEEDED = {"dit_t2v_nabla", "sample_t2v_nabla", "nabla_mask", "nabla_mask_low_p", "fractal", "sample_magcache_cfg"}
CASES = find(REFERENCE / "golden") if REFERENCE.is_dir() else []

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference folder is not beside this checkout")


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_case_passes(folder):
    (result,) = check([folder])
    assert result.status is Status.PASS, result.line()


def test_no_case_is_overlooked():
    assert {folder.name for folder in CASES} >= NEEDED


def test_cases_are_found_below_any_folder():
    assert find(REFERENCE / "golden" / "timesteps") == [REFERENCE / "golden" / "timesteps"]
    assert set(find(REFERENCE.parent)) > set(find(REFERENCE))


@pytest.mark.parametrize("name", ["sft", "pretrain", "nocfg", "distil"])
def test_cards_agree_with_the_official_configuration(name):
    official = json.loads((REFERENCE / "configs.json").read_text())[f"k5_lite_t2v_5s_{name}_sd"]
    card, model = catalogue.find(f"kandinsky5-lite-t2v-{name}-5s"), official["model"]
    assert card.dit.params == model["dit_params"]
    assert (card.sampling.steps, card.sampling.guidance) == (model["num_steps"], model["guidance_weight"])
    assert list(card.sampling.rope_scale) == official["metrics"]["scale_factor"]
    assert list(card.sampling.mag_ratios) == official.get("magcache", {}).get("mag_ratios", [])
    assert "./weights/" + card.dit.parts[0].local == model["checkpoint_path"]
    assert AttentionSpec.from_dict(card.sampling.attention) == AttentionSpec.from_dict(model["attention"])
    encoders = model["text_embedder"]
    assert card.text.params["qwen_max_length"] == encoders["qwen"]["max_length"]
    assert card.text.params["clip_max_length"] == encoders["clip"]["max_length"]
    with torch.device("meta"):
        net = DiffusionTransformer3D(DiTParams.from_dict(card.dit.params))
    assert sum(p.numel() for p in net.parameters()) == card.parameters
