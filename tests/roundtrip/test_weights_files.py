"""Weights: written and read back, both layouts, and everything that can be wrong with a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kandinsky import catalogue
from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky5.convert import convert_transformer, infer_params
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.parts.keymaps import DIFFUSERS_INSIDE
from kandinsky.weights.keymaps import KeyMap, keymap_of
from kandinsky.weights.read import load_into, read_metadata, read_shapes, read_state
from kandinsky.weights.write import write_state
from tiny.transformer import TINY

PARAMS = dataclasses.replace(TINY, model_dim=128, ff_dim=32, axes_dims=(16, 24, 24))


def fresh(dtype=torch.bfloat16) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return DiffusionTransformer3D(PARAMS).to(dtype).state_dict()


@pytest.fixture
def official(tmp_path) -> Path:
    """A file as the official repository has it: written by safetensors, with metadata."""
    file = tmp_path / "official.safetensors"
    save_file(fresh(), file, metadata={"format": "pt"})
    return file


def meta_net() -> DiffusionTransformer3D:
    with torch.device("meta"):
        return DiffusionTransformer3D(PARAMS)


def test_reading_and_writing_gives_the_same_bytes(official, tmp_path):
    copy = write_state(read_state(official), tmp_path / "copy.safetensors", metadata=read_metadata(official))
    assert copy.read_bytes() == official.read_bytes()


def test_all_types_and_shapes_survive(tmp_path):
    state = {
        "half": torch.randn(3, 5).half(),
        "double": torch.randn(2).double(),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
        "counts": torch.arange(7),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "turned": torch.randn(4, 6).t(),
        "имя": torch.randn(2, 2).bfloat16(),
        "float8": torch.randn(4).to(torch.float8_e4m3fn),
    }
    file = write_state(state, tmp_path / "all.safetensors", metadata={"b": "1", "a": "ü"})
    again = read_state(file)
    theirs = load_file(file)  # the format's own reader agrees
    assert set(again) == set(theirs) == set(state) and list(again)[2:] == list(state)[2:]
    for name, tensor in state.items():
        assert again[name].dtype is tensor.dtype and again[name].shape == tensor.shape
        assert torch.equal(again[name].float(), tensor.float()) and torch.equal(theirs[name].float(), tensor.float())
    assert read_metadata(file) == {"b": "1", "a": "ü"}
    assert list(tmp_path.iterdir()) == [file]


def test_official_to_diffusers_and_back_is_byte_equal(official, tmp_path):
    folder = convert_transformer(official, tmp_path / "diffusers", to="diffusers")
    assert sorted(p.name for p in (folder / "transformer").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    back = convert_transformer(folder, tmp_path / "back.safetensors", to="official")
    assert back.read_bytes() == official.read_bytes()


def test_diffusers_loads_the_folder(official, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    folder = convert_transformer(official, tmp_path / "diffusers", to="diffusers")
    theirs = diffusers.Kandinsky5Transformer3DModel.from_pretrained(folder / "transformer", dtype=torch.bfloat16)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, fresh()[name]), name
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    assert (tmp_path / "theirs" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    net = meta_net()
    load_into(net, tmp_path / "theirs", dtype=torch.float32)
    assert all(torch.equal(t, fresh()[n].float()) for n, t in net.state_dict().items())
    back = convert_transformer(tmp_path / "theirs", tmp_path / "back.safetensors", to="official")
    assert read_shapes(back) == read_shapes(official)


def test_shards(tmp_path):
    state = fresh()
    folder = write_state(state, tmp_path / "shards", layout="diffusers", config={"a": 1}, shard_bytes=100_000)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2 and all(f.stat().st_size < 250_000 for f in files)
    again = read_state(folder)
    assert list(again) == list(state) and all(torch.equal(again[n], state[n]) for n in state)
    assert read_shapes(folder) == {n: tuple(t.shape) for n, t in state.items()}
    files[1].unlink()
    with pytest.raises(WeightsError, match=files[1].name):
        read_state(folder)


def test_pt_files_are_read_without_executing_anything(tmp_path):
    state = fresh()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": state, "step": 3}, tmp_path / "nested.pt")
    for name in ("plain.pt", "nested.pt"):
        net = meta_net()
        load_into(net, tmp_path / name)
        assert all(torch.equal(t, state[n]) for n, t in net.state_dict().items())

    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").touch, ())

    torch.save({"a": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(WeightsError, match="trap"):
        read_state(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "cut.pt").write_bytes((tmp_path / "plain.pt").read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cut"):
        read_state(tmp_path / "cut.pt")


@pytest.mark.parametrize("kept", [0, 5, 40, 0.5, 0.999])
def test_truncated_files(official, kept):
    content = official.read_bytes()
    official.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(WeightsError, match=r"official\.safetensors") as error:
        read_state(official)
    if isinstance(kept, float):
        assert any(f"`{name}`" in str(error.value) for name in fresh())


def test_garbage_is_no_weight_file(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x10" + b"\0" * 7 + b"this is no header" * 3)
    (tmp_path / "a.txt").write_text("hello")
    for name in ("a.safetensors", "a.txt", "absent.safetensors", "."):
        with pytest.raises(WeightsError):
            read_state(tmp_path / name)


def test_an_index_cannot_point_outside_its_folder(tmp_path, official):
    folder = tmp_path / "folder"
    folder.mkdir()
    index = {"weight_map": {"a": "../official.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="outside"):
        read_state(folder)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_wrong_tensors_are_named_and_the_network_is_unchanged(tmp_path, damage):
    state, name = fresh(), "visual_transformer_blocks.1.feed_forward.in_layer.weight"
    if damage == "missing":
        del state[name]
    elif damage == "unexpected":
        name = "visual_transformer_blocks.2.feed_forward.in_layer.weight"
        state[name] = torch.zeros(1)
    else:
        state[name] = torch.zeros(31, 128)
    file = write_state(state, tmp_path / "wrong.safetensors")
    net = meta_net()
    with pytest.raises(WeightsError, match=name) as error:
        load_into(net, file)
    assert "\n" not in str(error.value)
    assert all(parameter.is_meta for parameter in net.parameters())


def test_loading_casts_and_keeps_gradients_possible(official):
    net = meta_net()
    load_into(net, official, dtype=torch.float32)
    assert all(p.dtype is torch.float32 and p.requires_grad and not p.is_meta for p in net.parameters())


def test_int8_rows(tmp_path):
    state = {"a.weight": torch.randn(6, 40), "a.bias": torch.randn(6), "zero.weight": torch.zeros(2, 3, 3)}
    file = write_state(state, tmp_path / "small.safetensors", int8=("*.weight",))
    raw = load_file(file)
    assert raw["a.weight"].dtype is torch.int8 and raw["a.weight.int8_scale"].shape == (6,)
    again = read_state(file)
    assert set(again) == set(state) and torch.equal(again["a.bias"], state["a.bias"])
    step = state["a.weight"].abs().amax(1, keepdim=True) / 127
    assert ((again["a.weight"] - state["a.weight"]).abs() <= 0.5001 * step).all()
    assert torch.equal(again["zero.weight"], state["zero.weight"])
    assert read_shapes(file) == {n: tuple(t.shape) for n, t in state.items()}
    # stored again, nothing more is lost
    again_file = write_state(again, tmp_path / "again.safetensors", int8=("*.weight",))
    for name, tensor in read_state(again_file).items():
        torch.testing.assert_close(tensor, again[name], rtol=1e-6, atol=1e-7)
    with pytest.raises(RequestError):
        write_state({"n": torch.arange(3)}, tmp_path / "n.safetensors", int8=("n",))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = write_state({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    before = file.read_bytes()
    with pytest.raises(RequestError):
        write_state({"a": torch.ones(2, dtype=torch.complex64)}, file)
    with pytest.raises(NotImplementedError):
        write_state({"a": torch.ones(2), "b": torch.ones(2, device="meta")}, file)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    with pytest.raises(RequestError, match="layout"):
        write_state({}, file, layout="comfy")


words = st.text(st.sampled_from("abcxyz0123456789_"), min_size=1, max_size=6)


@settings(max_examples=60)
@given(index=st.integers(0, 99), rest=st.lists(words, min_size=1, max_size=3))
def test_key_maps_work_both_ways(index, rest):
    keymap = KeyMap((("blocks.{i}.attn.{rest}", "layers.{i}.attention.{rest}"), ("{name}.gamma", "{name}.weight")))
    for official in (f"blocks.{index}.attn.{'.'.join(rest)}", f"norm{index}.gamma", f"plain.{'.'.join(rest)}"):
        assert keymap.to_official(keymap.to_ours(official)) == official
    assert keymap.to_ours(f"blocks.{index}.attn.q") == f"layers.{index}.attention.q"
    assert DIFFUSERS_INSIDE.to_official(DIFFUSERS_INSIDE.to_ours("encoder.a")) == "encoder.a"


def test_the_transformer_needs_no_translation():
    keymap = keymap_of(catalogue.part("kandinsky5.dit"))
    assert all(keymap.to_ours(name) == name == keymap.to_official(name) for name in fresh())
    assert keymap_of(catalogue.part("hunyuan")) is DIFFUSERS_INSIDE


def test_parameters_are_inferred_from_shapes(tmp_path):
    assert infer_params(fresh()) == PARAMS
    with pytest.raises(WeightsError, match="missing"):
        infer_params({})
    file = write_state({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError):
        convert_transformer(file, tmp_path / "out", to="diffusers")
    for to, target in (("comfy", "x"), ("official", "folder"), ("diffusers", "file.safetensors")):
        with pytest.raises(RequestError):
            convert_transformer(file, tmp_path / target, to=to)


def test_convert_command(official, tmp_path):
    import typer
    from typer.testing import CliRunner

    from kandinsky.cli.convert import convert

    app = typer.Typer()
    app.command()(convert)
    result = CliRunner().invoke(app, [str(official), str(tmp_path / "out"), "--to", "diffusers"])
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "out")
    of_another_size = ["--to", "diffusers", "-m", "kandinsky5-lite-t2v-sft-5s"]
    wrong = CliRunner().invoke(app, [str(official), str(tmp_path / "b"), *of_another_size])
    assert isinstance(wrong.exception, WeightsError) and not (tmp_path / "b").exists()
