"""bfloat16 where the processor multiplies it number by number: in float32, a layer at a time, rounded once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kandinsky.ops import linear, widening
from kandinsky.ops.linear import WIDENED, Linear


@pytest.fixture(autouse=True)
def without_products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on such a processor, whatever this one is."""
    monkeypatch.setattr(linear, "computes", lambda dtype: dtype is torch.float32)


def exact(layer: nn.Module, x: Tensor) -> Tensor:
    """The definition: in float64, rounded once."""
    made: Tensor = copy.deepcopy(layer).double()(x.double())
    return made.to(x.dtype)


LAYERS = {
    "linear": (lambda: nn.Linear(48, 40), (3, 11, 48)),
    "linear, no bias": (lambda: nn.Linear(48, 40, bias=False), (9, 48)),
    "pixels": (lambda: nn.Conv2d(16, 24, 1), (2, 16, 7, 5)),
    "image": (lambda: nn.Conv2d(16, 24, 3, padding=1), (2, 16, 7, 5)),
    "groups and strides": (
        lambda: nn.Conv2d(16, 24, 3, stride=2, groups=4, padding=1, padding_mode="reflect"),
        (2, 16, 8, 6),
    ),
    "audio": (lambda: nn.Conv1d(16, 8, 5, dilation=2), (2, 16, 30)),
    "clip": (lambda: nn.Conv3d(8, 8, 3, padding=1), (1, 8, 3, 6, 5)),
    "enlarged": (lambda: nn.ConvTranspose2d(16, 12, 2, 2), (2, 16, 4, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_the_definition_rounded_once(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    plain = nn.Sequential(make()).bfloat16()
    net = copy.deepcopy(plain)
    widening.use(net)
    widening.use(net)  # a second time changes nothing
    assert list(net.state_dict()) == list(plain.state_dict()) and isinstance(net[0], type(plain[0]))
    assert all(p.dtype is torch.bfloat16 for p in net.parameters())
    x = torch.randn(shape).bfloat16()
    with torch.no_grad():
        made = net(x)
    wanted = exact(plain, x)
    assert made.dtype is torch.bfloat16 and made.shape == wanted.shape
    # sums of float32 may fall to the other side of a tie, a step of bfloat16 apart
    assert (made != wanted).double().mean() < 0.02
    torch.testing.assert_close(made, wanted, rtol=2**-7, atol=1e-3)


def test_wide_weights_are_widened_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(1024, 2 * WIDENED // 1024 + 8).bfloat16()
    seen: list[int] = []
    plain = linear.linear

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.dtype is torch.float32:
            seen.append(weight.numel())
        return plain(x, weight, bias)

    monkeypatch.setattr(linear, "linear", watched)
    x = torch.randn(8, 1024).bfloat16()
    with torch.no_grad():
        made = layer(x)
    assert len(seen) == 3 and max(seen) <= WIDENED
    torch.testing.assert_close(made, exact(layer, x), rtol=2**-7, atol=1e-2)


def test_gradients_autocast_and_other_types_stay_with_pytorch() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 2)).bfloat16()
    widening.use(net)
    x = torch.randn(1, 4, 8, 8).bfloat16()
    assert not widening.widens(x, net[0].weight)  # gradients may be wanted
    net(x).float().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with torch.no_grad():
        assert widening.widens(x, net[0].weight)
        assert not widening.widens(x.float(), net[0].weight)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not widening.widens(x, net[0].weight)


def test_networks_of_other_types_stay_as_they_are() -> None:
    """Their numbers too: another class may compute by another library."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3))
    widening.use(net)
    assert [type(one) for one in net] == [nn.Linear, nn.Conv2d]
    widening.use(net.bfloat16(), torch.float32)  # read as they are stored
    assert [type(one) for one in net] == [nn.Linear, nn.Conv2d]
    widening.use(net.float(), torch.bfloat16)
    assert type(net[0]) is Linear and type(net[1]) is not nn.Conv2d


def test_networks_stay_as_they_are_where_bfloat16_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "computes", lambda dtype: True)
    net = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3)).bfloat16()
    widening.use(net)
    assert [type(one) for one in net] == [nn.Linear, nn.Conv2d]
