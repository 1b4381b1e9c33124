"""The cards of Kandinsky 5 against the official configuration files."""

from __future__ import annotations

import json

import pytest
import torch

from kandinsky import catalogue
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.ops.attention import AttentionSpec
from parity.golden_cases import HAS_REFERENCE, REFERENCE


@pytest.mark.skipif(not HAS_REFERENCE, reason="the reference folder is not beside this checkout")
@pytest.mark.parametrize("name", ["sft", "pretrain", "nocfg", "distil"])
def test_cards_agree_with_the_official_configuration(name):
    official = json.loads((REFERENCE / "kandinsky5" / "configs.json").read_text())[f"k5_lite_t2v_5s_{name}_sd"]
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
