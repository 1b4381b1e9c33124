"""Quantised layers: which they are, how far results move, and what they combine with."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kandinsky.catalogue import load
from kandinsky.cli.main import main
from kandinsky.errors import BackendError, RequestError
from kandinsky.families.kandinsky5 import conformance as golden
from kandinsky.golden.cases import Case
from kandinsky.runtime.placement import Placement
from kandinsky.runtime.quantise import check, layers, parse, quantise
from memory.test_block_offload import HERE, ask, exact, transformer
from tiny import family, unets


def plain() -> nn.Module:
    return transformer().float()


@pytest.mark.parametrize(
    ("value", "schemes"),
    [
        (None, {}),
        ("int8", {"dit": "int8"}),
        ("dit=fp8,text=nf4", {"dit": "fp8", "text": "nf4"}),
        ({"text": "int8"}, {"text": "int8"}),
    ],
)
def test_names(value, schemes: dict[str, str]) -> None:
    assert parse(value) == schemes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("int4", "quantize `int4` is not available for `dit`: use `int8` or `fp8`"),
        ("nf4", "quantize `nf4` is not available for `dit`"),
        ("text=int3", "quantize `int3` is not available for `text`: use `int8` or `fp8` or `nf4`"),
        ({"vae": "int8"}, "quantize was given for `vae`: `dit` and `text` can be quantised"),
    ],
)
def test_unknown_names_are_refused(value, message: str, capsys) -> None:
    with pytest.raises(RequestError, match=message):
        parse(value)
    if isinstance(value, str):
        assert main(["generate", "a panda", "--quantize", value]) == 2
        assert message in capsys.readouterr().err


def test_a_package_that_is_not_there_is_named_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    check({})
    monkeypatch.setitem(sys.modules, "torchao", None)
    check({})
    with pytest.raises(BackendError, match=r"needs the package `torchao`: install `kandinsky-video\[full\]`"):
        check({"text": "nf4"})


def test_only_products_inside_blocks_are_quantised() -> None:
    names = set(layers(plain()))
    assert len(names) == 2 * (4 + 2) + 4 * (8 + 2), "attention and feed-forward of two text and four visual blocks"
    assert not [name for name in names if "modulation" in name or "embedding" in name]
    assert not [name for name in names if name.startswith("out_layer")]


def test_of_the_text_encoders_only_the_language_model_is_quantised() -> None:
    net = nn.Module()
    net.qwen, net.clip = family.qwen(), family.clip()
    names = set(layers(net))
    assert names and all(name.startswith("qwen.model.language_model.layers.") for name in names)


@pytest.mark.parametrize(("scheme", "error"), [("int8", 0.03), ("fp8", 0.15)])
def test_results_move_a_little(scheme: str, error: float) -> None:
    net = plain()
    assert quantise(net, scheme, device=HERE) == 52
    expected, out = exact(), ask(net)
    distance = (out - expected).norm() / expected.norm()
    assert 0 < distance < error
    held = net.visual_transformer_blocks[0].feed_forward.in_layer.weight
    assert held.qdata.dtype.itemsize == 1 and held.dtype is torch.float32


def encoder() -> nn.Module:
    """T5 at small size, with layers of whole and of broken groups of 64 weights."""
    net = unets.t5.__wrapped__()
    assert len(set(layers(net))) == 2 * 7
    return net.requires_grad_(False)


@pytest.mark.parametrize(("scheme", "error", "bits"), [("int8", 0.04, 8), ("nf4", 0.5, 4)])
def test_text_encoders_in_8_and_4_bits(scheme: str, error: float, bits: int) -> None:
    words = torch.arange(2, 9)[None]
    expected = encoder()(words).last_hidden_state
    net = encoder()
    assert quantise(net, scheme, device=HERE) == 14
    distance = (net(words).last_hidden_state - expected).norm() / expected.norm()
    assert 0 < distance < error
    weight = net.encoder.block[0].layer[0].SelfAttention.q.weight
    names, _ = weight.__tensor_flatten__()
    stored = sum(t.nbytes for t in (getattr(weight, name) for name in names) if t.numel() * 2 >= weight.numel())
    assert stored == weight.numel() * bits // 8


def test_4_bits_visit_the_device_block_by_block() -> None:
    def small() -> nn.Module:
        net = encoder()
        quantise(net, "nf4", device=HERE)
        return net

    words, states = torch.arange(2, 9)[None], []
    for offload in ("none", "block"):
        placement = Placement({"text": small}, device=HERE, offload=offload, quantized=True)
        with placement.hold("text") as net:
            states.append(net(words).last_hidden_state)
            assert [swap.moves.brought for swap in placement.swaps("text")] == ([2] if offload == "block" else [])
    assert torch.equal(*states)


def test_quantised_blocks_visit_the_device() -> None:
    resident, swapped = (
        Placement({"dit": lambda: quantised()}, device=HERE, offload=offload, quantized=True)
        for offload in ("none", "block")
    )
    with resident.hold("dit") as dit:
        expected = ask(dit)
    with swapped.hold("dit") as dit:
        assert torch.equal(ask(dit), expected) and swapped.swaps("dit")[0].moves.brought == 6


def quantised() -> nn.Module:
    net = plain()
    quantise(net, "int8", device=HERE)
    return net


@pytest.mark.slow
def test_load_quantises_and_the_recipe_says_so(official) -> None:
    request = {"seconds": 0, "steps": 1, "seed": 7}
    exact_clip = load(official, device="cpu")("a cat", **request)
    pipe = load(official, device="cpu", quantize={"dit": "int8", "text": "int8"}, offload="block")
    clip = pipe("a cat", **request)
    assert clip.recipe["quantize"] == {"dit": "int8", "text": "int8"} and "quantize" not in exact_clip.recipe
    from kandinsky.media.recipe import command

    assert "--quantize dit=int8,text=int8" in command(clip.recipe)
    difference = abs(clip.frames.astype(int) - exact_clip.frames.astype(int))
    assert difference.max() > 0 and difference.mean() < 3


def test_nothing_is_said_on_import() -> None:
    code = "import torch; from kandinsky.runtime.quantise import check; check({'dit': 'int8'})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == said.stderr == ""


GOLDEN = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky5" / "golden" / "dit_t2v_dense"


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference folder is not beside this checkout")
@pytest.mark.parametrize(("scheme", "error"), [("int8", 0.006), ("fp8", 0.03)])
def test_distance_from_the_official_numbers(scheme: str, error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of docs/guides/memory.md: 0.5 % and 2.4 %."""
    case, build = Case.read(GOLDEN), golden.transformer
    expected = golden.run_dit(case)["output"]

    def small(case: Case) -> nn.Module:
        net = build(case).requires_grad_(False)
        quantise(net, scheme, device=HERE)
        return net

    monkeypatch.setattr(golden, "transformer", small)
    distance = (golden.run_dit(case)["output"] - expected).norm() / expected.norm()
    assert 0.5 * error < distance < error
