"""Blocks visit their device one by one, whatever order they are run in, and no bit of a result changes."""

import pytest
import torch
from torch import nn

from kandinsky.errors import OutOfMemory, RequestError
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.model.values import TextEmbeddings
from kandinsky.runtime.blocks import BlockSwap, block_lists
from kandinsky.runtime.placement import Placement

HERE = torch.device("cpu")
PARAMS = DiTParams.from_dict(
    {
        "in_visual_dim": 4,
        "out_visual_dim": 4,
        "in_text_dim": 12,
        "in_text_dim2": 8,
        "time_dim": 16,
        "model_dim": 32,
        "ff_dim": 48,
        "num_text_blocks": 2,
        "num_visual_blocks": 4,
        "axes_dims": [4, 6, 6],
    }
)


def transformer() -> DiffusionTransformer3D:
    net = DiffusionTransformer3D(PARAMS)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return net.to(torch.bfloat16).eval().requires_grad_(False)


def ask(net: nn.Module, runner=None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    text = TextEmbeddings(noise(1, 5, 12), noise(1, 8))
    return net(noise(1, 2, 4, 4, 4), torch.tensor([500.0]), text, runner=runner)


def exact(runner=None) -> torch.Tensor:
    return ask(transformer().float(), runner)


def odd_blocks(x, count, run):
    for number in range(0, count, 2):
        x = run(number, x)
    return x


def backwards(x, count, run):
    for number in reversed(range(count)):
        x = run(number, x)
    return x


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("runner", [None, odd_blocks, backwards])
def test_results_are_equal_bit_for_bit_in_any_order(ahead: bool, runner) -> None:
    """The blocks wait in bfloat16 and run in float32: without a visit the product of the two types would fail."""
    net = transformer()
    swap = BlockSwap(net, HERE, dtype=torch.float32, ahead=ahead)
    swap.enter()
    for _ in range(2):
        assert torch.equal(ask(net, runner), exact(runner))
        at_home = [p.dtype for block in swap.blocks for p in block.parameters()]
        assert set(at_home) == {torch.bfloat16}, "everything went home"
    assert swap.moves.peak == (2 if ahead else 1)


def test_the_next_block_is_foreseen_from_the_order_seen() -> None:
    net = transformer()
    swap = BlockSwap(net, HERE, dtype=torch.float32, ahead=True)
    swap.enter()
    assert len(swap.blocks) == 6, "both lists of the network"
    ask(net)
    # all but the very first follow the list; the block after the last is the first of the next pass
    assert (swap.moves.brought, swap.moves.foreseen, swap.moves.wrong) == (6, 5, 0)
    ask(net)
    assert (swap.moves.brought, swap.moves.foreseen, swap.moves.wrong) == (12, 11, 0)
    ask(net, odd_blocks)  # runs visual blocks 0 and 2: block 1 was guessed
    assert swap.moves.wrong == 1
    ask(net, odd_blocks)
    assert swap.moves.wrong == 2, "block 3 was still expected after 2; everything else was learnt at once"
    ask(net, odd_blocks)
    assert swap.moves.wrong == 2
    swap.leave()
    assert not swap._coming


def test_a_failing_block_goes_home_too() -> None:
    net = transformer()
    swap = BlockSwap(net, HERE, dtype=torch.float32)
    swap.enter()
    broken = net.visual_transformer_blocks[1].feed_forward.in_layer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(net)
    broken.remove()
    assert torch.equal(ask(net), exact())


def test_what_is_added_to_a_block_travels_along() -> None:
    net = transformer()
    swap = BlockSwap(net, HERE, dtype=torch.float32, ahead=True)
    layer = net.visual_transformer_blocks[2].feed_forward.out_layer
    layer.update = nn.Linear(48, 32, bias=False, dtype=torch.bfloat16)
    nn.init.constant_(layer.update.weight, 0.01)
    layer.register_forward_hook(lambda layer, given, out: out + layer.update(given[0]))
    swap.enter()
    assert not torch.equal(ask(net), exact())


def test_removal_leaves_a_plain_network() -> None:
    net = transformer()
    swap = BlockSwap(net, HERE, dtype=torch.float32)
    swap.enter()
    ask(net)
    assert swap.remove() is net
    before = swap.moves.brought
    assert torch.equal(ask(net), exact()) and swap.moves.brought == before
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_networks_name_their_blocks_or_show_them() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(1, 1))
            self.inner.add_module("layers", nn.ModuleList([nn.ModuleList([nn.Linear(1, 1)])]))

    net = Deep()
    assert block_lists(net) == [net.inner.layers], "the outermost one"
    net.offload_blocks = ("inner.layers.0",)
    assert block_lists(net) == [net.inner.layers[0]]
    net.offload_blocks = ()
    assert block_lists(net) == []


def test_placement_swaps_what_has_blocks_and_moves_the_rest() -> None:
    built = []

    def build() -> nn.Module:
        built.append(1)
        return transformer()

    placement = Placement(
        {"dit": build, "plain": lambda: nn.Linear(2, 2)}, device=HERE, offload="block", types={"dit": torch.float32}
    )
    with placement.hold("dit") as dit:
        with placement.hold("dit") as again:
            assert again is dit
        assert torch.equal(ask(dit), exact()), "an inner hold does not put away what the outer one holds"
        (swap,) = placement.swaps("dit")
        assert swap.moves.brought == 6
    assert not placement.swaps("dit") and built == [1], "freed, since the host is the device"
    with placement.hold("plain") as plain:
        assert not placement.swaps("plain")[0].blocks and plain(torch.ones(1, 2)).shape == (1, 2)


def test_out_of_memory_walks_through_the_placements() -> None:
    said = []
    for offload, quantized in (("none", False), ("module", False), ("block", False), ("block", True)):
        placement = Placement({"dit": transformer}, device=HERE, offload=offload, quantized=quantized)
        with pytest.raises(OutOfMemory) as failure, placement.hold("dit"):
            torch.empty(2**60)
        said.append(str(failure.value).partition(": ")[2].partition(",")[0])
    assert said == [
        'try `offload="module"`',
        'try `offload="block"`',
        'try `quantize="int8"`',
        "try a smaller size or fewer seconds",
    ]


def test_an_unknown_placement_is_refused() -> None:
    with pytest.raises(RequestError, match="offload `all` is not available: use `none`, `module` or `block`"):
        Placement({}, device=HERE, offload="all")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_two_blocks_at_most_are_resident() -> None:
    device = torch.device("cuda")
    plain = Placement({"dit": transformer}, device=device)
    block = Placement({"dit": transformer}, device=device, offload="block")
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1, 2, 4, 4, 4, generator=generator).to(device)
    text = TextEmbeddings(torch.ones(1, 5, 12), torch.ones(1, 8)).to(device)
    results = []
    for placement in (plain, block):
        with placement.hold("dit") as dit, torch.no_grad():
            results += [dit(x, torch.tensor([500.0], device=device), text) for _ in range(3)]
        if placement is block:
            (swap,) = placement.swaps("dit")
            assert swap.moves.peak <= 2 and swap.moves.foreseen == swap.moves.brought - 1
            assert all(p.is_pinned() for b in swap.blocks for p in b.parameters())
    assert all(torch.equal(one, results[0]) for one in results)
