"""Rows of eight to four bits, and compressed columns: exact where the numbers are, near elsewhere, and refused where
damaged.
"""

from __future__ import annotations

import lzma
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

from kandinsky.errors import RequestError, WeightsError
from kandinsky.weights import rows
from kandinsky.weights.read import load_into, read_shapes, read_state, read_stored
from kandinsky.weights.write import write_state

FEW = (6, 5, 4)


@pytest.mark.parametrize("bits", FEW)
def test_whole_numbers_come_back_exactly(bits: int) -> None:
    """Rows that hold every number there is, so the scale is 1 for one row and 0.25 for the other."""
    most = 2 ** (bits - 1) - 1
    row = torch.arange(-most, most + 1).float()
    row = torch.cat([row, row.new_zeros(-len(row) % 8)])
    matrix = torch.stack([row, row.flip(0) / 4])
    stored, scale = rows.packed(matrix, bits)
    assert stored.dtype is torch.uint8 and stored.shape == (2, len(row) * bits // 8)
    assert torch.allclose(rows.expanded(stored, scale, bits), matrix, atol=1e-6)


def test_numbers_lie_where_the_format_says() -> None:
    """1, −2, 3, 0 with four bits: 9, 6 | 11, 8, the first of each two in the lower half of its byte."""
    stored, scale = rows.packed(torch.tensor([[1.0, -2, 3, 7]]), 4)
    assert scale.tolist() == [1.0] and stored.tolist() == [[9 + 16 * 6, 11 + 16 * 15]]
    six, _ = rows.packed(torch.tensor([[1.0, -2, 3, 31]]), 6)
    word = 33 | 30 << 6 | 35 << 12 | 63 << 18
    assert six.tolist() == [[word & 255, word >> 8 & 255, word >> 16]]


@pytest.mark.parametrize(("bits", "decibels"), [(8, 40), (6, 29), (5, 23.5), (4, 17.5)])
def test_more_bits_are_nearer(bits: int, decibels: float) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(64, 384)
    error = (rows.expanded(*rows.packed(matrix, bits), bits) - matrix).square().mean()
    assert -10 * torch.log10(error) > decibels


def test_a_file_of_mixed_rows_is_read_into_a_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    file = write_state(net.state_dict(), tmp_path / "few.safetensors", int8=["0.bias"], int5=["0.*"], int4=["1.weight"])
    assert read_stored(file).keys() == net.state_dict().keys()
    assert read_shapes(file) == {name: tuple(p.shape) for name, p in net.state_dict().items()}
    other = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    load_into(other, file, dtype=torch.float32)
    for name, p in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], read_state(file)[name])
        assert (other.state_dict()[name] - p).norm() < 0.12 * p.norm()
    assert torch.equal(other[1].bias, net[1].bias)


def test_what_has_no_such_rows_is_refused(tmp_path: Path) -> None:
    for wrong in (torch.zeros(2, 6), torch.zeros(8), torch.zeros(2, 8, dtype=torch.int32), torch.zeros(2, 2, 8)):
        with pytest.raises(RequestError, match=r"cannot be stored as int[56] rows"):
            bits = {"int6": ["x"]} if wrong.shape != (2, 2, 8) else {"int5": ["x"]}
            write_state({"x": wrong}, tmp_path / "x.safetensors", **bits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stored", "scale"),
    [
        (torch.zeros(2, 3, dtype=torch.int8), torch.ones(2)),
        (torch.zeros(2, 4, dtype=torch.uint8), torch.ones(2)),  # no multiple of three bytes
        (torch.zeros(2, 3, dtype=torch.uint8), torch.ones(3)),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.ones(2, dtype=torch.int32)),
    ],
)
def test_damaged_rows_are_named(tmp_path: Path, stored: torch.Tensor, scale: torch.Tensor) -> None:
    file = write_state({"x": stored, "x.int6_scale": scale}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"`x\.int6_scale`.*does not fit the rows of `x`"):
        read_state(file)
    write_state({"y.int4_scale": torch.ones(2)}, tmp_path / "y.safetensors")
    with pytest.raises(WeightsError, match="scales a tensor that is not there"):
        read_state(tmp_path / "y.safetensors")


# -- compressed columns -----------------------------------------------------------------------------------------------


def columns() -> tuple[torch.Tensor, torch.Tensor]:
    """Whole multiples of a scale of each column, most of them zero, some of more than eight bits."""
    torch.manual_seed(0)
    scale = torch.rand(12) + 0.1
    numbers = torch.randint(-3, 4, (70, 12)) * (torch.rand(70, 12) < 0.2)
    numbers[3, 4], numbers[5, 0] = 2**15 - 1, -300
    return numbers * scale, scale


def test_compressed_columns_come_back_exactly(tmp_path: Path) -> None:
    matrix, scale = columns()
    state = {"codes": matrix, "other": torch.randn(3)}
    file = write_state(state, tmp_path / "x.safetensors", int8=["codes"], xz={"codes": scale})
    assert torch.allclose(read_state(file)["codes"], matrix, rtol=1e-6)
    assert read_stored(file).keys() == state.keys() and read_shapes(file)["codes"] == (70, 12)
    assert file.stat().st_size < 70 * 12
    net = nn.ParameterDict({"codes": nn.Parameter(torch.zeros(70, 12)), "other": nn.Parameter(torch.zeros(3))})
    load_into(net, file, dtype=torch.float32)
    assert torch.allclose(net["codes"], matrix, rtol=1e-6)


def test_what_is_no_whole_multiple_is_not_compressed(tmp_path: Path) -> None:
    matrix, scale = columns()
    unset, no_scale = matrix.clone(), scale.clone()
    unset[7, 7], no_scale[3] = torch.nan, 0  # of a column of zeros too
    cases = ((matrix + 0.01, scale), (matrix * 2, scale), (matrix, scale[:5]), (matrix[0], scale))
    for wrong, by in (*cases, (unset, scale), (matrix, no_scale)):
        with pytest.raises(RequestError, match="`codes` cannot be stored as xz columns"):
            write_state({"codes": wrong}, tmp_path / "x.safetensors", xz={"codes": by})


@pytest.mark.parametrize(
    ("kind", "said"),
    [("cut", "damaged|bytes of numbers"), ("noise", "damaged"), ("bomb", "not"), ("greedy", "[Mm]emory")],
)
def test_damaged_columns_are_refused(tmp_path: Path, kind: str, said: str) -> None:
    """Cut off, not compressed at all, swelling to a gigabyte where few numbers belong, or asking for four of memory."""
    matrix, scale = columns()
    stored = rows.compressed(matrix, scale)
    if kind == "cut":
        stored = stored[:, : stored.shape[1] // 2].contiguous()
    elif kind == "noise":
        stored = torch.randint(0, 256, stored.shape, dtype=torch.uint8)
    elif kind == "greedy":
        data = bytearray(stored.numpy().tobytes())
        end = 12 + 4 * data[12]  # of the block's header, behind which its checksum stands
        data[16] = 40  # the size of the dictionary
        data[end : end + 4] = zlib.crc32(data[12:end]).to_bytes(4, "little")
        stored = torch.frombuffer(data, dtype=torch.uint8).view(70, -1)
    else:
        stream = lzma.compress(bytes(2**30), preset=1)
        stored = torch.zeros(70, -(-len(stream) // 70), dtype=torch.uint8)
        stored.view(-1)[: len(stream)] = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
    file = write_state({"codes": stored, "codes.xz_scale": scale}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=said):
        read_state(file)
    for wrong in (torch.ones(12, 2), torch.ones(12, dtype=torch.int64)):
        file = write_state({"codes": stored, "codes.xz_scale": wrong}, tmp_path / "y.safetensors")
        with pytest.raises(WeightsError, match=r"codes.xz_scale.*does not fit"):
            read_state(file)
