"""What parts say they cost is what their networks do: operations counted while they run, weights as they are built."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kandinsky import catalogue
from kandinsky.bench.flops import count_flops
from kandinsky.engine.build import bare_network
from kandinsky.engine.plan import loaded_bytes, price
from kandinsky.engine.request import resolve
from kandinsky.families.kandinsky4 import cost as cost4
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D as Kandinsky4
from kandinsky.families.kandinsky4.params import DiTParams as Params4
from kandinsky.families.kandinsky4_v2a.layers import Conditions
from kandinsky.families.kandinsky5 import cost as cost5
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D as Kandinsky5
from kandinsky.families.kandinsky5.params import DiTParams as Params5
from kandinsky.families.nano.draft import tell
from kandinsky.families.nano.geometry import PACKED, packed
from kandinsky.families.nano.scene_words import SceneWords
from kandinsky.families.nano.scenes import ARRANGEMENTS, Scene, Subject
from kandinsky.families.parts.params import FLAN_UL2, T5_VOCABULARY, T5_XXL, T5Sizes
from kandinsky.families.parts.unet.unet import Marks
from kandinsky.model.card import Card, Component
from kandinsky.model.cost import Cost, Load
from kandinsky.model.values import LatentShape, Request, TextEmbeddings, VideoShape
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.runtime.blocks import block_lists
from kandinsky.runtime.quantise import layers as quantised_layers
from kandinsky.weights.locate import ASSETS, card_bytes
from tiny.held import Held

NO_FILE = Path("none")


def built(card: Card, component: Component) -> Any:
    with torch.device("meta"):
        net = bare_network(card.family.part(component.kind), component, NO_FILE)
    return net.eval().requires_grad_(False)


def cost_of(card: Card, component: Component, latent: tuple[int, int, int], frames: int, **changes: Any) -> Cost:
    sides = (latent[1] * card.clip.spatial, latent[2] * card.clip.spatial)
    load = Load(
        VideoShape(frames, *sides), LatentShape(*latent, card.clip.channels), 1, False, 2, AttentionSpec(), **changes
    )  # fmt: skip
    cost = card.family.part(component.kind).cost
    assert cost is not None
    found = cost()(card, component, load)
    assert found is not None
    return found


# -- transformers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("visual_cond", [False, True])
@pytest.mark.parametrize("latent", [(3, 8, 6), (1, 12, 4)])
def test_operations_of_kandinsky5(visual_cond: bool, latent: tuple[int, int, int]) -> None:
    params = Params5(
        in_text_dim=24, in_text_dim2=20, time_dim=16, model_dim=32, ff_dim=96, num_text_blocks=1, num_visual_blocks=2,
        axes_dims=(4, 6, 6), visual_cond=visual_cond,
    )  # fmt: skip
    with torch.device("meta"):
        net = Kandinsky5(params)
        x = torch.empty(1, *latent, params.input_channels)
        text = TextEmbeddings(torch.empty(1, 7, 24), torch.empty(1, 20))
        counted = count_flops(lambda: net(x, torch.ones(1), text))
    assert cost5.flops(params, latent, 7) == counted == cost5.operations(params, latent, 7).flops


def test_block_sparse_attention_costs_what_is_kept() -> None:
    params = Params5(model_dim=64, axes_dims=(4, 6, 6), num_visual_blocks=3)
    dense, half, whole = (cost5.operations(params, (4, 64, 64), 7, kept=kept) for kept in (None, 0.5, 1.0))
    assert dense.flops == whole.flops and dense.sparse == 0 and whole.attention < dense.attention
    assert whole.flops - half.flops == 3 * 0.5 * 4 * 4096**2 * 64
    # one exponential for each head's score
    assert dense.scores - whole.scores == 3 * 4096**2 * params.num_heads


@pytest.mark.parametrize("num_groups", [(1, 1, 1), (1, 2, 2)])
def test_operations_of_kandinsky4(num_groups: tuple[int, int, int]) -> None:
    params = Params4(
        in_text_dim=24, time_dim=16, model_dim=32, ff_dim=96, num_blocks=2, axes_dims=(4, 6, 6), num_groups=num_groups
    )
    with torch.device("meta"):
        net = Kandinsky4(params)
        text = TextEmbeddings(torch.empty(1, 7, 24), torch.empty(1, 1))
        x, time = torch.empty(3, 8, 8, params.input_channels), torch.ones(1, dtype=torch.long)
        counted = count_flops(lambda: net(x, time, text, frames=[3]))
    assert cost4.flops(params, (3, 8, 8), 7) == counted


def shares(net: nn.Module) -> tuple[float, float, float]:
    """Of all weights: in blocks, in the largest block, in layers that are quantised."""

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    blocks = [block for blocks in block_lists(net) for block in blocks]
    quantised = [net.get_submodule(name) for name in quantised_layers(net)]
    whole = count(net)
    return count(*blocks) / whole, max(map(count, blocks)) / whole, count(*quantised) / whole


@pytest.mark.parametrize(
    "model", ["kandinsky5-lite-t2v-sft-5s", "kandinsky5-pro-i2v-5s", "kandinsky5-lite-i2i", "kandinsky4-t2v-flash"]
)
def test_shares_of_a_transformers_weights(model: str) -> None:
    card = catalogue.find(model)
    cost = cost_of(card, card.dit, (5, 32, 32), 17)
    assert (cost.in_blocks, cost.block, cost.linear) == pytest.approx(shares(built(card, card.dit)), rel=2e-3)


def drawn(frames: int, arrangement: str) -> tuple[Any, Cost, int, int]:
    """The second Nano's denoiser, its price, and what drawing a draft takes: bytes at the peak and operations."""
    card = catalogue.find("nano2-t2v")
    net = bare_network(card.family.part(card.dit.kind), card.dit, NO_FILE).eval().requires_grad_(False)
    subjects = tuple(Subject(n, *at) for n, at in enumerate(ARRANGEMENTS[arrangement]))
    told = packed([Scene(subjects, arrangement=arrangement)])
    text = TextEmbeddings(torch.randn(1, 117, 768), torch.randn(1, 256 + PACKED))
    x = torch.randn(1, frames, 12, 12, 192)
    with Held(*net.parameters(), *net.buffers()) as held:
        tell(net.portraits, net.linear, text, told, x)
    counted = count_flops(lambda: tell(net.portraits, net.linear, text, told, x))
    return net, cost_of(card, card.dit, (frames, 12, 12), 1 + 8 * (frames - 1)), held.peak, counted


@pytest.mark.parametrize("frames", [2, 4])
def test_drafts_are_part_of_the_price(frames: int) -> None:
    """Memory for as many subjects as there can be, and the computed maps; operations for one of them."""
    net, cost, _, counted = drawn(frames, "one")
    peak = drawn(frames, "three in a row")[2]
    maps = sum(b.numel() * b.element_size() for b in net.buffers())
    assert cost.work == pytest.approx(peak + maps, rel=0.1)
    text = TextEmbeddings(torch.randn(1, 128, 768), torch.randn(1, 256))
    x = torch.randn(1, frames, 12, 12, net.params.input_channels)
    network = count_flops(lambda: net(x, torch.ones(1), text))
    assert cost.operations.flops == pytest.approx(counted + network, rel=0.03)


@pytest.mark.parametrize("frames", [2, 4])
def test_the_second_nanos_decoder_takes_what_its_price_says(frames: int) -> None:
    card = catalogue.find("nano2-t2v")
    net = bare_network(card.family.part(card.vae.kind), card.vae, NO_FILE).eval().requires_grad_(False)
    with Held(*net.parameters(), *net.buffers()) as held:
        net.decode(torch.randn(1, frames, 12, 12, 192))
    cost = cost_of(card, card.vae, (frames, 12, 12), 1 + 8 * (frames - 1))
    assert cost.work == pytest.approx(held.peak, rel=0.1)


def test_the_second_nanos_files_and_weights_are_counted() -> None:
    card = catalogue.find("nano2-t2v")
    folder = ASSETS / "nano2-t2v"
    files = {
        path.name: path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".xz")
    }
    assert card_bytes(card) == sum(files.values())
    net = bare_network(card.family.part(card.vae.kind), card.vae, NO_FILE)
    for name, numbers in (
        ("vae", sum(x.numel() for x in net.state_dict().values())),
        ("text", sum(x.numel() for x in SceneWords(574, codes=768, pooled=256).state_dict().values())),
    ):
        words = files["words.json.xz"] if name == "text" else 0
        assert loaded_bytes(card, name, 4) == pytest.approx(4 * numbers + words, rel=0.01), name


# -- U-Nets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "part", "frames"),
    [
        ("kandinsky3.1-flash", "dit", 1),
        ("kandinsky-video-1.0", "dit", 15),
        ("kandinsky-video-1.1", "interpolation", 11),
    ],
)
def test_a_unet_does_what_its_figures_say(model: str, part: str, frames: int) -> None:
    """Figures are rounded, and a size is not that at which they were counted."""
    card = catalogue.find(model)
    component, (rows, columns) = card.component(part), (48, 80)
    net = built(card, component)
    with torch.device("meta"):
        text = TextEmbeddings(torch.empty(1, 60, 4096), torch.empty(1, 4096))
        marks = Marks(tuple(range(frames))) if net.params.temporal.is_on else None
        x = torch.empty(1, frames, rows, columns, net.params.num_channels)
        counted = count_flops(lambda: net(x, torch.ones(1), text, marks))
    clip = frames if part == "dit" else frames * 4 + 1
    cost = cost_of(card, component, (frames, rows, columns), clip)
    passes = 1 if part == "dit" else 2  # guidance of the interpolation is the card's
    assert cost.operations.flops == pytest.approx(passes * counted, rel=0.06)
    assert (cost.in_blocks, cost.block) == pytest.approx(shares(net)[:2], rel=0.06)


@pytest.mark.parametrize("model", ["kandinsky4-v2a"])
def test_the_video_to_audio_unet_does_what_its_figures_say(model: str) -> None:
    card = catalogue.find(model)
    net, (rows, columns) = built(card, card.dit), (64, 96)
    width = net.params.encoder_dim
    with torch.device("meta"):
        conditions = Conditions(torch.empty(1, 100, width), torch.empty(1, 64, width))
        x = torch.empty(1, rows, columns, net.params.in_channels)
        counted = count_flops(lambda: net(x, torch.ones(1), conditions))
    assert cost_of(card, card.dit, (1, rows, columns), 1).operations.flops == pytest.approx(counted, rel=0.12)


# -- autoencoders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "latent", "params"),
    [
        ("kandinsky5-lite-t2v-sft-5s", (4, 16, 24), {"tiling": "none"}),
        ("kandinsky5-lite-t2v-sft-5s", (1, 24, 16), {"block_out_channels": (32, 64, 64, 128), "layers_per_block": 1}),
        ("kandinsky5-lite-t2v-sft-5s", (11, 16, 16), {"tiling": "official"}),
        ("kandinsky5-lite-t2i", (1, 32, 24), {}),
        ("kandinsky4-v2a", (1, 16, 40), {}),
        ("kandinsky4-t2v-flash", (7, 16, 12), {}),
        ("kandinsky4-t2v-flash", (1, 16, 12), {"layers_per_block": 2}),
        ("kandinsky3.0", (1, 32, 32), {}),
        ("kandinsky-video-1.0", (3, 16, 16), {}),
        ("kandinsky-video-1.1", (12, 16, 24), {}),
        ("nano-t2v", (7, 12, 12), {}),
        ("nano-v2a", (1, 8, 27), {}),
        ("nano2-t2v", (4, 12, 12), {}),
        ("nano2-t2v", (2, 12, 12), {}),
    ],
)
def test_decoding_costs_the_convolutions_it_does(
    model: str, latent: tuple[int, int, int], params: dict[str, Any]
) -> None:
    card = catalogue.find(model)
    component = dataclasses.replace(card.vae, params=card.vae.params | params)
    net = built(card, component)
    frames = 1 + (latent[0] - 1) * card.clip.temporal
    z = torch.empty(1, *latent, card.clip.channels, device="meta")
    counted = count_flops(lambda: net.decode(z))
    assert cost_of(card, component, latent, frames).operations.flops == pytest.approx(counted, rel=0.01)


# -- text encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [T5_XXL, FLAN_UL2, T5_XXL.changed({"width": 128, "num_layers": 3})])
def test_weights_of_a_t5_encoder(sizes: T5Sizes) -> None:
    transformers = pytest.importorskip("transformers")
    heads = max(1, sizes.width // sizes.head)
    config = transformers.T5Config(
        vocab_size=T5_VOCABULARY, d_model=sizes.width, d_kv=sizes.width // heads, d_ff=sizes.hidden, num_heads=heads,
        num_layers=sizes.num_layers, feed_forward_proj="gated-gelu", is_encoder_decoder=False,
    )  # fmt: skip
    with torch.device("meta"):
        net = transformers.T5EncoderModel(config)
    block = sum(p.numel() for p in net.encoder.block[1].parameters())
    assert sizes.layer == pytest.approx(block, rel=2e-3)  # but for the norms
    whole = sum(p.numel() for p in net.parameters())
    assert sizes.num_layers * sizes.layer + T5_VOCABULARY * sizes.width == pytest.approx(whole, rel=2e-3)


# -- every card --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", sorted(catalogue.cards()))
def test_every_network_of_every_card_has_a_price(model: str) -> None:
    card = catalogue.find(model)
    job = resolve(Request(model, "any", seed=0), card, needs_image=False)
    for name, component in card.components.items():
        assert card.family.part(component.kind).cost is not None, name
    priced = price(card, job, "auto", 2)
    for name, cost in priced.costs.items():
        assert cost.work > 0 and 0 <= cost.block <= cost.in_blocks <= 1 and 0 <= cost.linear <= 1, name
    assert priced.costs["dit"].operations.flops > 0 and priced.costs["dit"].tokens > 0
    # the interpolation is not read where no gap is filled
    assert ("interpolation" in priced.costs) == (card.keyframes is not None and job.shape.frames > card.keyframes.count)
