"""Linear layers on the faster library: the same numbers, and only where nothing else has a say in the product."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D as Kandinsky4
from kandinsky.families.kandinsky4.dit import DiTParams as Params4
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D as Kandinsky5
from kandinsky.families.kandinsky5.dit import DiTParams as Params5
from kandinsky.ops import linear as products
from kandinsky.ops.linear import Linear

X = torch.randn(2, 65, 48, generator=torch.Generator().manual_seed(1))
onednn = pytest.mark.skipif(not products._ONEDNN, reason="this PyTorch has no oneDNN")


class Watched(TorchDispatchMode):
    """Whether oneDNN's product ran."""

    used = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.used = self.used or "mkldnn" in str(func)
        return func(*args, **(kwargs or {}))


def layer(bias: bool = True) -> Linear:
    torch.manual_seed(0)
    return Linear(48, 33, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 65, 48), (1, 48), (48,), (0, 48), (5, 1, 2, 48)])
def test_the_numbers_are_those_of_a_plain_layer(shape: tuple[int, ...], bias: bool) -> None:
    net, x = layer(bias), X.flatten()[: torch.Size(shape).numel()].reshape(shape)
    with torch.no_grad():
        torch.testing.assert_close(net(x), F.linear(x, net.weight, net.bias), rtol=1e-5, atol=1e-6)
        turned = X.mT.contiguous().mT  # not in the order of its memory
        torch.testing.assert_close(net(turned), F.linear(X, net.weight, net.bias), rtol=1e-5, atol=1e-6)


def test_gradients_flow() -> None:
    net, x = layer(), X.clone().requires_grad_()
    net(x).sum().backward()
    assert net.weight.grad is not None and torch.allclose(x.grad, net.weight.sum(0).expand_as(X), atol=1e-5)


@onednn
def test_when_the_faster_library_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(net: nn.Module, x: torch.Tensor) -> bool:
        with Watched() as watched:
            net(x)
        return watched.used

    by_type = {torch.float32: "onednn", torch.bfloat16: "torch"}
    monkeypatch.setattr(products, "usual", lambda dtype: by_type.get(dtype, "onednn"))
    monkeypatch.setattr(products, "computes", lambda dtype: dtype in by_type)  # else layers widen: `test_widening.py`
    with torch.no_grad():
        assert used(layer(), X)
        assert not used(layer().bfloat16(), X.bfloat16())
        assert not used(layer().double(), X.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not used(layer(), X)
            assert layer()(X).dtype == torch.bfloat16, "autocast rounds, as it does any layer"
    assert not used(layer(), X), "gradients"


def test_the_transformers_are_made_of_them() -> None:
    for network, params in ((Kandinsky4, Params4()), (Kandinsky5, Params5())):
        with torch.device("meta"):
            net = network(params)
        assert not [name for name, one in net.named_modules() if type(one) is nn.Linear]
