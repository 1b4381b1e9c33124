"""Conversion of every kind of Kandinsky 5 transformer, there and back, as Diffusers' own class reads it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import Kandinsky5Transformer3DModel
from safetensors.torch import save_file

from kandinsky.catalogue import find
from kandinsky.errors import WeightsError
from kandinsky.families.kandinsky5.convert import convert_transformer, infer_params
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.weights.read import load_into, read_shapes, read_state
from tiny.family import randomise

CARDS = ["kandinsky5-lite-t2v-sft-10s", "kandinsky5-lite-i2v-5s", "kandinsky5-lite-t2i", "kandinsky5-lite-i2i",
         "kandinsky5-pro-t2v-sft-5s"]  # fmt: skip
SMALL = {"model_dim": 256, "ff_dim": 32, "time_dim": 16, "in_text_dim": 12, "in_text_dim2": 10, "num_text_blocks": 1}


def small(model: str) -> DiTParams:
    """The card's network, two blocks of a small width; channels, heads and conditioning as they are."""
    return replace(DiTParams.from_dict(find(model).dit.params), num_visual_blocks=2, **SMALL)


@pytest.mark.parametrize("model", CARDS)
def test_there_and_back(model: str, tmp_path: Path) -> None:
    params, spec = small(model), AttentionSpec.from_dict(find(model).sampling.attention)
    net = randomise(DiffusionTransformer3D(params)).to(torch.bfloat16)
    save_file(net.state_dict(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    convert_transformer(tmp_path / "a.safetensors", tmp_path / "b", to="diffusers", params=params, attention=spec)
    convert_transformer(tmp_path / "b", tmp_path / "c.safetensors", to="official")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()

    config = json.loads((tmp_path / "b" / "transformer" / "config.json").read_text(encoding="utf-8"))
    assert config["visual_cond"] == params.has_condition_channels and "instruct_type" not in config
    assert config["attention_type"] == ("nabla" if "10s" in model else "regular")
    theirs, report = Kandinsky5Transformer3DModel.from_pretrained(
        tmp_path / "b" / "transformer", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ours = read_state(tmp_path / "b")
    assert all(torch.equal(tensor.to(torch.bfloat16), ours[name]) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("model", CARDS)
def test_shapes_tell_the_parameters(model: str) -> None:
    with torch.device("meta"):
        state = DiffusionTransformer3D(small(model)).state_dict()
    found = infer_params(state)
    # editing and image to video have the same tensors
    assert replace(found, visual_cond=False) == replace(small(model), visual_cond=False, instruct_type=None)
    assert found.input_channels == small(model).input_channels


def test_a_folder_with_one_file_is_that_file(tmp_path: Path) -> None:
    net = DiffusionTransformer3D(small("kandinsky5-lite-t2i"))
    save_file(net.state_dict(), tmp_path / "whatever_its_name.safetensors")
    assert read_shapes(tmp_path).keys() == net.state_dict().keys()
    load_into(net, tmp_path)
    save_file(net.state_dict(), tmp_path / "another.safetensors")
    with pytest.raises(WeightsError, match="holds no weights"):
        read_shapes(tmp_path)
