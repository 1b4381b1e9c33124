"""Networks that are a small file beside another's: low-rank updates, added when the weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kandinsky.errors import WeightsError
from kandinsky.ops.lora import LowRank
from kandinsky.weights.update import add_update, check_update, write_update
from kandinsky.weights.write import write_state


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 8))


def update(outputs: int, inputs: int, rank: int = 4) -> LowRank:
    generator = torch.Generator().manual_seed(outputs)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((rank, inputs), (outputs, rank)))
    return LowRank(down, up, 0.5)


def test_what_was_written_is_added(tmp_path: Path) -> None:
    net, plain = network(), network()
    made = {"0": update(40, 24), "2": update(8, 40)}
    path = write_update(made, tmp_path / "update.safetensors")
    check_update(net, path)
    add_update(net, path, dtype=torch.float32)
    for name, one in made.items():
        layer, before = net.get_submodule(name), plain.get_submodule(name)
        assert isinstance(layer, nn.Linear) and isinstance(before, nn.Linear)
        whole = one.added_to(before.weight)
        error, change = (layer.weight - whole).detach().norm(), (whole - before.weight).detach().norm()
        assert float(error / change) < 0.02  # int8 rows
        assert torch.equal(layer.bias, before.bias)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"0.down_RI": (4, 24)}, "half of an update"),
        ({"0.down_RI": (4, 23), "0.up_RO": (4, 40)}, "does not fit the network"),
        ({"0.down_RI": (4, 24), "0.up_RO": (3, 40)}, "does not fit the network"),
        ({"1.down_RI": (4, 24), "1.up_RO": (4, 40)}, "does not fit the network"),
        ({"0.down_RI": (), "0.up_RO": ()}, "does not fit the network"),
        ({"0.weight": (40, 24)}, "does not fit the network"),
    ],
)
def test_a_file_that_is_no_update_of_the_network_is_refused(
    state: dict[str, tuple[int, int]], message: str, tmp_path: Path
) -> None:
    path = write_state({name: torch.ones(shape) for name, shape in state.items()}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message):
        check_update(network(), path)
