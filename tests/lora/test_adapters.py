"""Adapters on a network: the sum of their updates, switched, fused and taken off without a trace."""

import warnings
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

import kandinsky
from kandinsky.errors import BackendError, RequestError
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.lora import layer_shapes, updated_layers
from kandinsky.runtime.adapters import Adapters
from kandinsky.runtime.blocks import BlockSwap
from kandinsky.weights.lora import Lora, read_lora
from tiny import family
from tiny.loras import lora

PARAMS = DiTParams.from_dict(family.DIT_PARAMS)


def network(dtype: torch.dtype = torch.float32) -> DiffusionTransformer3D:
    net = DiffusionTransformer3D(PARAMS)
    net.load_state_dict(family.dit().state_dict())
    return net.to(dtype).eval().requires_grad_(False)


def forward(net: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 2, 4, 6, PARAMS.input_channels, generator=generator)
    tokens = torch.randn(1, 5, PARAMS.in_text_dim, generator=generator)
    pooled = torch.randn(1, PARAMS.in_text_dim2, generator=generator)
    with torch.no_grad():
        out: Tensor = net(x.to(dtype), torch.tensor([500.0]), TextEmbeddings(tokens.to(dtype), pooled.to(dtype)))
    return out.float()


def adapters(*loras: Lora) -> Adapters:
    made = Adapters("tiny", lambda: layer_shapes(family.dit()))
    for one in loras:
        made.add(one)
    return made


def by_hand(*weighted: tuple[Lora, float]) -> DiffusionTransformer3D:
    """The network with the products added to its weights one by one."""
    net = network()
    for one, strength in weighted:
        for name, update in one.updates.items():
            layer = net.get_submodule(name)
            layer.weight += strength * update.scale * update.up_OR @ update.down_RI
    return net


A, B = lora(family.dit(), name="a", seed=1), lora(family.dit(), name="b", seed=2, rank=5, only="attention")


@pytest.mark.parametrize("fused", [False, True])
def test_two_adapters_add_up(fused: bool) -> None:
    net, both = network(), adapters(A, B)
    plain = forward(net)
    both.set({"a": 0.8, "b": -0.5})
    both.fuse(fused)
    both.apply(net)
    wanted = forward(by_hand((A, 0.8), (B, -0.5)))
    assert (wanted - plain).abs().max() > 0.1, "the test would not notice an adapter that does nothing"
    torch.testing.assert_close(forward(net), wanted, rtol=1e-4, atol=1e-5)
    assert bool(list(updated_layers(net))) is not fused


def test_each_kind_of_layer_is_changed() -> None:
    """Among them those that the network evaluates in float32 without calling them."""
    plain = forward(network())
    for name in layer_shapes(family.dit()):
        net = network()
        adapters(lora(net, only=name)).apply(net)
        assert not torch.equal(forward(net), plain), name


def test_switching_and_unloading_leave_no_trace() -> None:
    net, both = network(), adapters(A, B)
    names, plain = list(net.state_dict()), forward(net)
    for fused in (False, True, False):
        both.fuse(fused)
        for scales in ({"a": 1.0}, {"b": 0.3}, {"a": 0.3, "b": 2.0}, {}):
            both.set(scales)
            both.apply(net)
            assert list(net.state_dict()) == names
            assert torch.equal(forward(net), plain) is (not scales)
    both.set({"a": 1.0})
    both.fuse()
    both.apply(net)
    both.remove()
    both.apply(net)
    assert torch.equal(forward(net), plain)
    for name, weight in family.dit().state_dict().items():
        assert torch.equal(net.state_dict()[name], weight), name
    assert not any(module._forward_hooks for module in net.modules())


def test_scale_zero_is_off_and_scale_counts() -> None:
    net = network()
    plain = forward(net)
    one = adapters(A)
    one.set({"a": 0.0})
    one.apply(net)
    assert torch.equal(forward(net), plain)
    one.set({"a": 0.5})
    one.apply(net)
    half = forward(net)
    torch.testing.assert_close(half, forward(by_hand((A, 0.5))), rtol=1e-4, atol=1e-5)


def test_another_file_under_the_same_name_is_noticed() -> None:
    net, one = network(), adapters(A)
    one.apply(net)
    first = forward(net)
    one.remove("a")
    one.add(Lora(B.updates, "a"))
    one.apply(net)
    assert not torch.equal(forward(net), first)


def test_a_network_read_again_gets_everything_once_more() -> None:
    one = adapters(A)
    first, second = network(), network()
    for net in (first, second, first):
        one.apply(net)
    assert torch.equal(forward(first), forward(second))


def test_bfloat16() -> None:
    net, one = network(torch.bfloat16), adapters(A)
    one.apply(net, dtype=torch.bfloat16)
    loose = forward(net, torch.bfloat16)
    wanted = forward(by_hand((A, 1.0)))
    assert (loose - wanted).abs().max() < 0.05 * wanted.abs().max()
    one.fuse()
    one.apply(net, dtype=torch.bfloat16)
    assert (forward(net, torch.bfloat16) - wanted).abs().max() < 0.05 * wanted.abs().max()
    one.remove()
    one.apply(net)
    assert torch.equal(forward(net, torch.bfloat16), forward(network(torch.bfloat16), torch.bfloat16))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_blocks_that_are_moved_one_by_one(fused: bool, stored: torch.dtype) -> None:
    """Weights that rest in a smaller type than they run in give the same bits as resident ones."""
    resident, both = network(stored).float(), adapters(A, B)
    both.fuse(fused)
    both.apply(resident, dtype=torch.float32)
    net = network(stored)
    swap = BlockSwap(net, torch.device("cpu"), dtype=torch.float32, ahead=True)
    swap.enter()
    both.apply(net, dtype=torch.float32)
    for _ in range(2):
        assert torch.equal(forward(net), forward(resident))
    swap.leave()  # as a placement does between two generations
    swap.enter()
    both.remove()
    both.apply(net, dtype=torch.float32)
    assert torch.equal(forward(net), forward(network(stored).float()))
    assert next(net.visual_transformer_blocks[0].feed_forward.parameters()).dtype == stored


def test_quantised_layers_take_adapters_but_cannot_be_fused() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    net = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(
            net.visual_transformer_blocks, quantization.Int8WeightOnlyConfig(), lambda m, _: isinstance(m, nn.Linear)
        )
    plain = forward(net)
    one = adapters(A)
    one.apply(net, dtype=torch.float32)
    changed = forward(net)
    wanted = forward(by_hand((A, 1.0)))
    assert (changed - wanted).abs().max() < 0.1 * (wanted - plain).abs().max()
    one.fuse()
    with pytest.raises(BackendError, match="is quantised, so adapters cannot be fused"):
        one.apply(net, dtype=torch.float32)
    one.fuse(False)
    one.apply(net, dtype=torch.float32)
    assert torch.equal(forward(net), changed)


def test_fusing_into_quantised_weights_is_refused_when_it_is_asked_for() -> None:
    pytest.importorskip("torchao")
    pipe = kandinsky.load("nano-t2v", device="cpu", quantize="int8")
    with pytest.raises(RequestError, match=r"`nano-t2v` are quantised \(`int8`\), so no LoRA can be fused"):
        pipe.fuse_lora()
    assert not pipe.adapters.is_fused
    pipe.unfuse_lora()
    text_only = kandinsky.load("nano-t2v", device="cpu", quantize={"text": "int8"})
    text_only.fuse_lora()
    assert text_only.adapters.is_fused


@pytest.mark.parametrize("stabilised", [False, True])
def test_equal_to_peft_on_a_trained_folder(stabilised: bool, tmp_path: Path) -> None:
    """PEFT trains and saves; read from its folder, the network answers as PEFT's own does."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=stabilised,
        target_modules=["to_query", "to_value", "feed_forward.out_layer"],
        rank_pattern={r"visual_transformer_blocks\.0\.self_attention\.to_query": 2},
        alpha_pattern={r"visual_transformer_blocks\.1\..*\.to_value": 3},
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(network(), config)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        x = torch.randn(1, 1, 4, 4, PARAMS.input_channels)
        text = TextEmbeddings(torch.randn(1, 3, PARAMS.in_text_dim), torch.randn(1, PARAMS.in_text_dim2))
        optimiser.zero_grad()
        theirs(x, torch.tensor([300.0]), text).square().mean().backward()
        optimiser.step()
    theirs.eval()
    theirs.save_pretrained(str(tmp_path))
    ours = network()
    read = read_lora(tmp_path, layer_shapes(ours), model="tiny", name="trained")
    assert {u.rank for u in read.updates.values()} == {2, 4}
    adapters(read).apply(ours)
    assert (forward(ours) - forward(network())).abs().max() > 0.01
    torch.testing.assert_close(forward(ours), forward(theirs), rtol=1e-5, atol=1e-6)


def test_names_and_scales_that_do_not_fit() -> None:
    one = adapters(A)
    with pytest.raises(RequestError, match="`a` is loaded already"):
        one.add(A)
    with pytest.raises(RequestError, match="no LoRA named `x` is loaded: loaded are `a`"):
        one.set({"x": 1.0})
    with pytest.raises(RequestError, match="no LoRA named `x`"):
        one.remove("x")
    for scale in (float("nan"), float("inf"), "1", True):
        with pytest.raises(RequestError, match="must be a finite number"):
            one.set({"a": scale})  # type: ignore[dict-item]
    assert one.scales == {"a": 1.0}


def test_what_a_recipe_lists() -> None:
    both = adapters(Lora(A.updates, "a", "sks ", "a.safetensors", "12"), Lora(B.updates, "b", "camera ", "o/b", "34"))
    both.set({"b": 0.5, "a": 1})
    assert both.trigger == "camera sks "
    assert both.recipe() == [
        {"name": "b", "scale": 0.5, "source": "o/b", "sha256": "34"},
        {"name": "a", "scale": 1.0, "source": "a.safetensors", "sha256": "12"},
    ]
    both.set({})
    assert both.trigger == "" and both.recipe() == [] and both.names == ("a", "b")
