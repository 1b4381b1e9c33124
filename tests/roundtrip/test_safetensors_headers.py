"""Headers of safetensors files: every rule of the format is asked, the tensor that breaks one is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kandinsky.errors import WeightsError
from kandinsky.ops.finite import is_finite
from kandinsky.weights.header import read_header, shard_files
from kandinsky.weights.read import check_finite, load_into, read_meta, read_shapes, read_state
from kandinsky.weights.write import write_state

Table = dict[str, Any]


def plain() -> Table:
    """Three tensors: a [2, 3] and b [4] of float32, flags [5] of bool."""
    return {
        "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b.bias": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
        "flags": {"dtype": "BOOL", "shape": [5], "data_offsets": [40, 45]},
    }


def write(path: Path, header: Table | bytes, data: bytes = bytes(45)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def change(name: str, **values: Any) -> Callable[[Table], Table]:
    return lambda table: table | {name: {k: v for k, v in (table[name] | values).items() if v is not ...}}


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        *((change("b.bias", shape=shape), "b.bias") for shape in (
            ..., None, 4, "4", [-4], [4.0], [True, 4], ["4"], [None], [[4]], {"0": 4}, [5], [2**64], [2**40, 2**40],
            [0, 2**63, 2**63], [1] * 17, [4, 0], [],
        )),
        *((change("b.bias", data_offsets=offsets), "b.bias") for offsets in (
            ..., None, [], [24], [24, 40, 40], [40, 24], [24.0, 40.0], ["24", "40"], {"begin": 24}, "24", [-1, 15],
            [24, 2**70], [20, 36], [28, 44], [24, 39], [True, 40],
        )),
        *((change("b.bias", dtype=dtype), "b.bias") for dtype in (
            ..., None, "F31", "f32", 32, ["F32"], "I64", "F64", "BOOL", "", "\ud800",
        )),
        (lambda table: table | {"b.bias": [1, 2]}, "b.bias"),
        (lambda table: table | {"b.bias": None}, "b.bias"),
        (lambda table: table | {"b.bias": "F32"}, "b.bias"),
        (lambda table: table | {"c": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]}}, "c"),
        (lambda table: {name: table[name] for name in ("a.weight", "flags")}, "flags"),
        (lambda table: table | {"\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [45, 45]}}, "\\ud800"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_named(tmp_path: Path, spoil: Callable[[Table], Table], name: str) -> None:
    file = write(tmp_path / "x.safetensors", spoil(plain()))
    for read in (read_header, read_meta, read_state, read_shapes):
        with pytest.raises(WeightsError) as caught:
            read(file)
        text = str(caught.value)
        assert f"`{name}`" in text and "x.safetensors" in text and text.isprintable()


def test_the_plain_file_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", plain() | {"__metadata__": {"format": "pt"}})
    assert read_shapes(file) == {"a.weight": (2, 3), "b.bias": (4,), "flags": (5,)}
    assert {name: tensor.dtype for name, tensor in read_state(file).items()} == {
        name: tensor.dtype for name, tensor in read_meta(file).items()
    }


@pytest.mark.parametrize(
    "header",
    [
        b"", b"null", b"[]", b"7", b"{", b'{"a":}', b'{"a": NaN}', b"\xff\xfe{}", b"\xef\xbb\xbf{}", b" {}",
        b"[" * 100_000, b'{"a":' * 50_000, b'{"a": ' + b"[" * 100_000,
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}',
        b'{"__metadata__": {"format": 5}}', b'{"__metadata__": ["pt"]}', b'{"__metadata__": {"a": {"b": "c"}}}',
        b'{"__metadata__": {"a": "\\ud800"}}', b'{"__metadata__": {"\\ud800": "a"}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "I32", "shape": [1], '
        b'"data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}',
    ],
)  # fmt: skip
def test_headers_that_are_none(tmp_path: Path, header: bytes) -> None:
    file = write(tmp_path / "x.safetensors", header, bytes(4))
    for read in (read_header, read_state):
        with pytest.raises(WeightsError, match=r"x\.safetensors") as caught:
            read(file)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("extra", [1, 8, 4096])
def test_bytes_behind_the_last_tensor(tmp_path: Path, extra: int) -> None:
    file = write(tmp_path / "x.safetensors", plain(), bytes(45 + extra))
    with pytest.raises(WeightsError, match=f"{extra} bytes follow the last tensor"):
        read_state(file)


def test_a_length_that_reaches_beyond_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    for length in (2**63, 2**64 - 1, 100_000_001, 1000):
        file.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(WeightsError, match="cut off within its header"):
            read_header(file)


@pytest.mark.parametrize(
    "index",
    [
        b"", b"[]", b"{", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}', b'{"weight_map": null}',
        b'{"weight_map": {"a": 5}}', b'{"weight_map": {"a": null}}', b'{"weight_map": {"a": ["x.safetensors"]}}',
        b'{"weight_map": {"a": "../x.safetensors"}}', b'{"weight_map": {"a": "/etc/x.safetensors"}}',
        b'{"weight_map": {"a": "sub/x.safetensors"}}', b'{"weight_map": {"a": "x.bin"}}', b'{"weight_map": {"a": ""}}',
        b'{"weight_map": {"a": ".."}}', b'{"weight_map": {"a": "x\\u0000.safetensors"}}',
        b'{"weight_map": {"a": "\\ud800.safetensors"}}', b'{"weight_map": {"a": "..\\\\x.safetensors"}}',
        b'{"weight_map": {"a": "' + b"x" * 300 + b'.safetensors"}}', b'{"weight_map": ' + b"[" * 100_000,
        b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
    ],
)  # fmt: skip
def test_an_index_that_is_none(tmp_path: Path, index: bytes) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(index)
    for read in (shard_files, read_state, read_shapes):
        with pytest.raises(WeightsError, match="index") as caught:
            read(path)
        assert str(caught.value).isprintable()


# ---------------------------------------------------------------- networks


def net() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def fresh() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.uint8])
def test_whole_numbers_where_floats_belong(tmp_path: Path, dtype: torch.dtype) -> None:
    file = write_state(fresh() | {"0.weight": torch.ones(2, 3, dtype=dtype)}, tmp_path / "x.safetensors")
    target = net()
    with pytest.raises(WeightsError, match=r"`0\.weight` .* holds (int|bool|uint).*floating-point"):
        load_into(target, file)
    assert all(tensor.is_meta for tensor in target.state_dict().values())


def test_floats_where_whole_numbers_belong(tmp_path: Path) -> None:
    file = write_state(fresh() | {"1.num_batches_tracked": torch.tensor(1.0)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"`1\.num_batches_tracked` .* holds float32, the network needs whole"):
        load_into(net(), file)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_a_tensor_that_is_not_finite_is_named(
    tmp_path: Path, stored: torch.dtype, value: float, dtype: torch.dtype | None
) -> None:
    state = fresh()
    state["0.weight"][1, 2] = value
    file = write_state(state | {"0.weight": state["0.weight"].to(stored)}, tmp_path / "x.safetensors")
    target = net()
    with pytest.raises(WeightsError, match=r"`0\.weight` in .*x\.safetensors` holds NaN or infinity"):
        load_into(target, file, dtype=dtype)
    assert all(tensor.is_meta for tensor in target.state_dict().values())


def test_values_too_large_for_the_compute_type(tmp_path: Path) -> None:
    state = fresh()
    state["0.bias"][0] = 1e20
    file = write_state(state, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"`0\.bias` .* too large for float16") as caught:
        load_into(net(), file, dtype=torch.float16)
    assert "bfloat16" in (caught.value.hint or "")
    load_into(net(), file, dtype=torch.bfloat16)


def test_int8_scales_that_are_not_finite(tmp_path: Path) -> None:
    file = write_state({"a.weight": torch.ones(4, 3)}, tmp_path / "x.safetensors", int8=("*.weight",))
    content = bytearray(file.read_bytes())
    content[-4:] = torch.tensor([math.nan]).numpy().tobytes()
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"`a\.weight`"):
        check_finite(read_state(file), str(file))


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
)
@pytest.mark.parametrize("size", [1, 7, 64, 1000, 4099])
def test_every_place_of_a_tensor_is_looked_at(dtype: torch.dtype, size: int) -> None:
    largest = torch.full((size,), torch.finfo(dtype).max, dtype=torch.float64).to(dtype)
    assert is_finite(largest) and is_finite(largest[:0]) and is_finite(torch.zeros(size, dtype=torch.int32))
    for place in {0, size // 2, size - 1}:
        for value in (math.nan,) if dtype is torch.float8_e4m3fn else (math.nan, math.inf, -math.inf):
            spoilt = largest.double()
            spoilt[place] = value
            assert not is_finite(spoilt.to(dtype))


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: name.replace("0.", "0._orig_mod."),
        lambda name: name.replace("0.", "0._fsdp_wrapped_module._checkpoint_wrapped_module."),
        lambda name: name.replace("0.", "0.base_layer."),
        lambda name: f"model.diffusion_model.{name}",
    ],
)
def test_names_that_wrappers_left(tmp_path: Path, rename: Callable[[str], str]) -> None:
    state = fresh()
    file = write_state({rename(name): tensor for name, tensor in state.items()}, tmp_path / "x.safetensors")
    target = net()
    load_into(target, file)
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())
    torch.save({rename(name): tensor for name, tensor in state.items()}, tmp_path / "x.pt")
    assert read_shapes(tmp_path / "x.pt") == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_int8_rows_under_a_wrapper(tmp_path: Path) -> None:
    file = write_state({"_orig_mod.a.weight": torch.ones(4, 3)}, tmp_path / "x.safetensors", int8=("*.weight",))
    assert read_shapes(file) == {"a.weight": (4, 3)}


def test_other_parts_beside_the_network_are_left_out(tmp_path: Path) -> None:
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in fresh().items()}
    others = {"first_stage_model.decoder.weight": torch.ones(2), "text_encoders.t5.weight": torch.ones(2)}
    load_into(net(), write_state(state | others, tmp_path / "x.safetensors"))
    with pytest.raises(WeightsError, match=r"`stray\.weight` belongs to no part"):
        load_into(net(), write_state(state | {"stray.weight": torch.ones(2)}, tmp_path / "y.safetensors"))


def test_names_that_become_the_same(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2), "_orig_mod.a.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="stands in it twice"):
        read_state(tmp_path / "x.safetensors")


def test_a_view_without_end_is_no_weight(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "x.pt")
    for read in (read_state, read_shapes):
        with pytest.raises(WeightsError, match=r"`a` .* is not stored whole"):
            read(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"hello world", b"\x80\x04K\x01.", b"PK\x03\x04junk", b"\x80\x02}q\x00."])
def test_pickled_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.pt") as caught:
        read_state(tmp_path / "x.pt")
    assert str(caught.value).isprintable()
