"""Weights that change their type: converted tensor by tensor, with the numbers and errors of the plain way."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kandinsky.errors import WeightsError
from kandinsky.runtime.meter import CLEAR_PEAK, forget_peak, peak_host_bytes
from kandinsky.weights.keymaps import KeyMap
from kandinsky.weights.read import assign_state, load_into, read_state
from kandinsky.weights.rows import INT8_SCALE

TABLE = KeyMap((("first.{rest}", "0.{rest}"), ("second.{rest}", "1.{rest}")), table="net", elsewhere=("ema.",))


def network() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4, bias=False))


def tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (6, 8), "0.bias": (6,), "1.weight": (4, 6)}
    return {name: torch.randn(shape, generator=made).to(dtype) for name, shape in shapes.items()}


def both(path: Path, keymap: KeyMap | None, dtype: torch.dtype) -> None:
    plain, converted = network(), network()
    assign_state(plain, read_state(path), keymap=keymap, dtype=dtype, where=str(path))
    load_into(converted, path, keymap=keymap, dtype=dtype)
    for name, expected in plain.state_dict().items():
        found = converted.state_dict()[name]
        assert found.dtype is dtype and torch.equal(found, expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_numbers_are_those_of_the_plain_way(tmp_path: Path, stored: torch.dtype, dtype: torch.dtype) -> None:
    save_file(tensors(stored), tmp_path / "plain.safetensors")
    both(tmp_path / "plain.safetensors", None, dtype)
    save_file({f"module._orig_mod.{n}": t for n, t in tensors(stored).items()}, tmp_path / "wrapped.safetensors")
    both(tmp_path / "wrapped.safetensors", None, dtype)
    other = {"model.diffusion_model." + n: t for n, t in tensors(stored).items()} | {"vae.x": torch.ones(3)}
    save_file(other, tmp_path / "among.safetensors")
    both(tmp_path / "among.safetensors", None, dtype)
    named = {"net." + n.replace("0.", "first.").replace("1.", "second."): t for n, t in tensors(stored).items()}
    # what is not the network's may be anything
    save_file(named | {"ema.x": torch.full((2,), torch.nan), "beside": torch.ones(2)}, tmp_path / "table.safetensors")
    both(tmp_path / "table.safetensors", TABLE, dtype)
    rows = torch.randint(-127, 127, (6, 8), dtype=torch.int8)
    scaled = tensors(stored) | {"0.weight": rows, "0.weight" + INT8_SCALE: torch.rand(6).to(stored)}
    save_file(scaled, tmp_path / "int8.safetensors")
    both(tmp_path / "int8.safetensors", None, dtype)
    torch.save(tensors(stored), tmp_path / "pickled.pt")
    both(tmp_path / "pickled.pt", None, dtype)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"0.bias": torch.full((6,), torch.nan)}, "`0.bias` in .* holds NaN or infinity"),
        ({"0.bias": torch.full((6,), 1e30)}, "`0.bias` in .* has values too large for float16"),
        ({"0.bias": torch.ones(7)}, r"`0.bias` in .* has shape \[7\]"),
        ({"0.bias": torch.ones(6, dtype=torch.int32)}, "`0.bias` in .* holds int32"),
        ({"2.weight": torch.ones(2)}, "`2.weight` belongs to no part"),
    ],
)
def test_errors_are_those_of_the_plain_way(tmp_path: Path, change: dict[str, Tensor], said: str) -> None:
    path, net = tmp_path / "x.safetensors", network()
    save_file(tensors(torch.float32) | change, path)
    with pytest.raises(WeightsError, match=said):
        load_into(net, path, dtype=torch.float16)
    assert all(parameter.is_meta for parameter in net.parameters()), "the network is unchanged"


def test_what_stays_as_it_is_stays_mapped(tmp_path: Path) -> None:
    net = network()
    save_file(tensors(torch.float32) | {"0.bias": torch.ones(6, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    load_into(net, tmp_path / "x.safetensors", dtype=torch.float32)
    shared = {p.untyped_storage().filename is not None for n, p in net.named_parameters() if n != "0.bias"}
    assert shared <= {True, False} and torch.equal(net[0].bias, torch.ones(6))


@pytest.mark.skipif(not CLEAR_PEAK.exists(), reason="only Linux can reset the peak memory of a process")
def test_memory_never_holds_the_file_beside_the_weights(tmp_path: Path) -> None:
    side, count = 2048, 12
    save_file(
        {f"{i}.weight": torch.ones(side, side, dtype=torch.bfloat16) for i in range(count)}, tmp_path / "x.safetensors"
    )
    with torch.device("meta"):
        net = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(count)))
    forget_peak(torch.device("cpu"))
    before = peak_host_bytes()
    load_into(net, tmp_path / "x.safetensors", dtype=torch.float32)
    weights = sum(parameter.nbytes for parameter in net.parameters())
    one = 2 * side * side
    assert peak_host_bytes() - before < weights + 6 * one  # the file would be twelve
