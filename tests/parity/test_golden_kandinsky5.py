"""Recorded numbers of the official Kandinsky 5, through the conformance command's own code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kandinsky import cards
from kandinsky.conformance import Status, check
from kandinsky.conformance.cases import find
from kandinsky.nets.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.ops.attention import AttentionSpec

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky5"
NEEDED = (
    "dit_t2v_dense",
    "dit_i2v_visual_cond",
    "dit_i2i_channel",
    "sample_t2v_cfg",
    "sample_t2v_nocfg",
    "sample_i2i_channel",
    "sample_i2v_first_frame",
    "preprocess_image",
    "normalize_first_frame",
    "normalize_first_frame_clamped",
    "timesteps",
    "vae_plain",
    "vae_single_image",
    "vae_tiled_time",
    "vae_tiled_space",
    "vae_tiled_both",
)

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference folder is not beside this checkout")


@pytest.mark.parametrize("name", NEEDED)
def test_case_passes(name):
    (result,) = check([REFERENCE / "golden" / name])
    assert result.status is Status.PASS, result.line()


def test_what_is_not_built_is_skipped_with_a_reason():
    for result in check([REFERENCE / "golden"]):
        if Path(result.path).name not in NEEDED:
            assert result.status is not Status.FAIL, result.line()
        if "nabla" in result.path:
            assert result.status is Status.SKIP and result.reason


def test_cases_are_found_below_any_folder():
    assert find(REFERENCE / "golden" / "timesteps") == [REFERENCE / "golden" / "timesteps"]
    assert set(find(REFERENCE.parent)) > set(find(REFERENCE))


@pytest.mark.parametrize("name", ["sft", "pretrain", "nocfg", "distil"])
def test_cards_agree_with_the_official_configuration(name):
    official = json.loads((REFERENCE / "configs.json").read_text())[f"k5_lite_t2v_5s_{name}_sd"]
    card, model = cards.find(f"kandinsky5-lite-t2v-{name}-5s"), official["model"]
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
