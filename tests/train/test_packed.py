"""Clips of several sizes in one sequence: the same numbers as one after the other, in the network and in a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import kandinsky
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D as Kandinsky4
from kandinsky.families.kandinsky4.dit import DiTParams as Params4
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.kandinsky5.family import TRANSFORMER
from kandinsky.lab import distil
from kandinsky.model.denoiser import VIDEO, Known
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops import packed
from kandinsky.ops.attention import AttentionSpec, attention
from kandinsky.text.store import join
from kandinsky.train.adapter import AdapterSettings
from kandinsky.train.adapter import add as add_adapters
from kandinsky.train.data.encode import encode
from kandinsky.train.denoising import Denoising, Given
from kandinsky.train.recipe import check_recipe, run_recipe
from kandinsky.train.scale import Scale, Scaling
from tiny.clips import filled
from tiny.transformer import TINY

SIZES = ((3, 8, 6), (1, 4, 10), (2, 18, 20))  # frames, rows, columns; the last has more than one tile
ATTENTION = {
    "dense": AttentionSpec(),
    "nabla": AttentionSpec(type="nabla", P=0.4, wT=1, wH=1, wW=1),
    "causal": AttentionSpec(type="causal"),
}
PARAMS4 = Params4(
    in_visual_dim=4, out_visual_dim=4, in_text_dim=12, time_dim=16, model_dim=32, ff_dim=48, axes_dims=(4, 6, 6),
    num_blocks=2,
)  # fmt: skip
Change = Callable[[DiffusionTransformer3D], object]
CHANGES: dict[str, Change] = {
    "plain": lambda net: None,
    "checkpointed": lambda net: Scaling(Scale(activations="full")).spare(list(net.visual_transformer_blocks)),
    "lora": lambda net: add_adapters(net, AdapterSettings(rank=3), TRANSFORMER.adapts, seed=1),
}


def double(texts: list[TextEmbeddings]) -> list[TextEmbeddings]:
    return [TextEmbeddings(text.tokens_BLC.double(), text.pooled_BC.double()) for text in texts]


def check_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Of networks in float64: in float32, rounding alone is 5e-4 of gradients that nearly cancel, as of keys' biases.

    What is left is that of the float32 islands, and padded texts: another order of sums; measured up to 1e-5.
    """
    assert found.keys() == expected.keys() and found
    for name, grad in expected.items():
        off = float((found[name] - grad).abs().max()) / float(grad.abs().max())
        assert off <= 5e-5, (name, off)


def inputs() -> tuple[list[Tensor], list[TextEmbeddings]]:
    generator = torch.Generator().manual_seed(2)
    clips = [torch.randn(1, *size, TINY.input_channels, generator=generator) for size in SIZES]
    texts = [
        TextEmbeddings(torch.randn(1, n, 12, generator=generator), torch.randn(1, 10, generator=generator))
        for n in (5, 2, 7)
    ]
    return clips, texts


def times(by_frame: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [1000 * torch.rand(1, *((size[0],) if by_frame else ()), generator=generator) for size in SIZES]


def gradients(net: torch.nn.Module, outs: list[Tensor]) -> dict[str, Tensor]:
    """Of a loss in which every place counts differently."""
    generator = torch.Generator().manual_seed(4)
    net.zero_grad()
    sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outs).backward()  # type: ignore[union-attr]
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def check_alike(net: DiffusionTransformer3D, by_frame: bool = False, spec: AttentionSpec | None = None) -> None:
    clips, texts = inputs()
    clips, texts, net = [x.double() for x in clips], double(texts), net.double()
    given = times(by_frame)
    apart = [net(x, t, text, attention=spec) for x, t, text in zip(clips, given, texts, strict=True)]
    expected = gradients(net, apart)
    t = torch.cat(given, dim=-1)
    together = packed.taken(net(packed.laid(clips), t, join(texts), attention=spec, lengths=SIZES), SIZES)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    check_gradients(gradients(net, together), expected)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("by_frame", [False, True])
def test_a_sequence_is_its_clips_apart(change: str, by_frame: bool) -> None:
    net = filled(DiffusionTransformer3D(TINY))
    assert isinstance(net, DiffusionTransformer3D)
    CHANGES[change](net)
    if change == "lora":  # whose second matrix begins as zero
        filled(net)
    check_alike(net, by_frame)


@pytest.mark.parametrize("kind", ATTENTION)
def test_each_kind_of_attention_stays_within_its_clip(kind: str) -> None:
    net = filled(DiffusionTransformer3D(TINY))
    assert isinstance(net, DiffusionTransformer3D)
    check_alike(net, spec=ATTENTION[kind])


SIZES4 = ((3, 8, 8), (1, 4, 12), (2, 16, 4))  # whose rows and columns of tokens can be halved


@pytest.mark.parametrize("groups", [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("change", ["plain", "checkpointed"])
def test_a_sequence_of_kandinsky4_is_its_clips_apart(groups: tuple[int, int, int], change: str) -> None:
    net = filled(Kandinsky4(PARAMS4)).double()
    assert isinstance(net, Kandinsky4)
    if change == "checkpointed":
        Scaling(Scale(activations="full")).spare(list(net.blocks()))
    generator = torch.Generator().manual_seed(2)
    clips = [torch.randn(1, *size, 4, generator=generator).double() for size in SIZES4]
    texts = double([TextEmbeddings(torch.randn(1, n, 12, generator=generator), torch.zeros(1, 0)) for n in (5, 2, 7)])
    given = [torch.tensor([time]) for time in (900.0, 30.0, 400.0)]
    apart = [
        net(x[0], t, text, frames=[len(x[0])], groups=groups)[None]
        for x, t, text in zip(clips, given, texts, strict=True)
    ]
    expected = gradients(net, apart)
    made = net(packed.laid(clips), torch.cat(given), join(texts), groups=groups, lengths=SIZES4)
    together = packed.taken(made, SIZES4)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert len(expected) == len(list(net.parameters()))
    check_gradients(gradients(net, together), expected)


@pytest.mark.parametrize("process", distil.SETTINGS)
def test_the_door_of_a_network_takes_a_sequence(process: str) -> None:
    """With conditions and times of each clip, for flow matching and v-prediction."""
    denoising, net = distil.bare(distil.SETTINGS[process])
    filled(net)
    generator = torch.Generator().manual_seed(5)
    clips = [torch.randn(1, *size, distil.CHANNELS, generator=generator) for size in SIZES4]
    given = []
    for number, x in enumerate(clips):
        text = distil.World().given(torch.tensor([number])).text
        mask = torch.zeros(1, x.shape[1], 1, 1, 1, dtype=torch.bool)
        mask[:, 0] = number == 0
        given.append(Given(text, Known({VIDEO: torch.ones_like(x)}, {VIDEO: mask}) if number == 0 else Known()))
    t = [denoising.times(torch.tensor([at])) for at in (0.8, 0.2, 0.5)]
    together = denoising.predict_packed(net, clips, t, given)
    for made, *one in zip(together, clips, t, given, strict=True):
        torch.testing.assert_close(made, denoising.predict(net, *one), atol=1e-5, rtol=1e-4)


def test_what_lies_beside_a_clip_is_not_seen() -> None:
    net = filled(DiffusionTransformer3D(TINY))
    clips, texts = inputs()
    t = torch.cat(times(False))
    first = packed.taken(net(packed.laid(clips), t, join(texts), lengths=SIZES), SIZES)
    clips[1], texts[1] = 5 * clips[1], TextEmbeddings(-texts[1].tokens_BLC, texts[1].pooled_BC + 1)
    second = packed.taken(net(packed.laid(clips), t, join(texts), lengths=SIZES), SIZES)
    assert torch.equal(first[0], second[0]) and torch.equal(first[2], second[2])
    assert not torch.allclose(first[1], second[1])


def test_the_kernel_for_unequal_lengths_is_told_where_clips_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments, as the kernel itself takes them; the kernel needs a GPU, and ran on none here."""
    calls = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> Tensor:
        calls.append((cu_q.tolist(), cu_k.tolist(), max_q, max_k))
        assert cu_q.dtype == cu_k.dtype == torch.int32
        out = []
        for i in range(len(cu_q) - 1):
            rows, seen = slice(int(cu_q[i]), int(cu_q[i + 1])), slice(int(cu_k[i]), int(cu_k[i + 1]))
            out.append(attention(q[None, rows], k[None, seen], v[None, seen])[0])
        return torch.cat(out)

    monkeypatch.setattr(packed, "_at_once", lambda q, backend: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    net = filled(DiffusionTransformer3D(TINY))
    assert isinstance(net, DiffusionTransformer3D)
    check_alike(net)
    tokens = [0, 36, 46, 226]
    assert calls[0] == (tokens, tokens, 180, 180) and calls[1] == (tokens, [0, 5, 7, 14], 180, 7)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, and clips of two lengths."""
    folder = tmp_path_factory.mktemp("packed") / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(folder / "still.png")
    for name, frames in (("short", 14), ("long", 26), ("other", 14)):
        clip = rng.integers(0, 255, (frames, 96, 96, 3), dtype=np.uint8)
        kandinsky.Video(clip, fps=24.0, seed=0).save(folder / f"{name}.mp4")
    for name in ("still", "short", "long", "other"):
        (folder / f"{name}.txt").write_text(f"a {name} clip")
    return encode(folder, "nano-i2v", folder.parent / "encoded", seconds=[0.4, 0.8]).folder


def recipe(folder: Path, source: Path, *, model: str = "nano-i2v", kind: str = "denoiser", **more: Any) -> Path:
    data = {"source": str(source), **more.pop("data")}
    values = {"kind": kind, "model": model, "out": str(folder / "run"), "data": data, **more}
    values.setdefault("loop", {"steps": 3, "lr": 1e-3, "warmup": 1, "log_every": 1, "bf16": False, "seed": 3})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def losses(path: Path) -> list[float]:
    run_recipe(path)
    return [json.loads(line)["loss"] for line in (path.parent / "run" / "log.jsonl").read_text().splitlines()]


GIVEN = {"conditions": {"first": 0.5, "region": 0.2}, "seconds": 0.8}


@pytest.mark.slow
def test_a_packed_training_is_that_of_the_clips_apart(
    encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**GIVEN, "sequence": 200, "batch": 2}
    together = losses(recipe(tmp_path / "packed", encoded, data=given))
    micro = {"steps": 3, "lr": 1e-3, "warmup": 1, "log_every": 1, "bf16": False, "seed": 3, "accumulate": 2}
    assert losses(recipe(tmp_path / "micro", encoded, data=given, loop=micro)) == pytest.approx(together, rel=1e-4)
    sizes = []

    def apart(self: Denoising, network: Any, noisy: Any, times: Any, given: Any) -> list[Tensor]:
        sizes.append({x.shape for x in noisy})
        return [self.predict(network, *one) for one in zip(noisy, times, given, strict=True)]

    monkeypatch.setattr(Denoising, "predict_packed", apart)
    assert losses(recipe(tmp_path / "apart", encoded, data=given)) == pytest.approx(together, rel=1e-5)
    assert max(map(len, sizes)) == 3  # an image and clips of two lengths shared a step


@pytest.mark.slow
def test_of_one_size_a_packed_training_is_the_batched_one(encoded: Path, tmp_path: Path) -> None:
    tasks = {"tasks": {"text-to-image": 1}}  # one image: the size of batches is all that differs
    batched = losses(recipe(tmp_path / "batched", encoded, data={**GIVEN, **tasks, "batch": 1}))
    one = losses(recipe(tmp_path / "packed", encoded, data={**GIVEN, **tasks, "batch": 1, "sequence": 180}))
    assert one == pytest.approx(batched, rel=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "network": ({"model": "kandinsky3.0"}, "cannot keep the clips of a sequence apart"),
    "kind": ({"kind": "guidance-distillation"}, "recipes of this kind take clips of one size"),
    "tokens": ({"data": {"sequence": 100, "tokens": 100}}, "either `data.tokens`"),
    "ring": ({"scale": {"ring": 2}}, "leave `scale.ring`"),
    "auxiliary": ({"auxiliary": {"adversarial": 0.1}}, "`auxiliary` losses need clips of one size"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_packed_is_refused_before_anything_is_read(tmp_path: Path, fault: str) -> None:
    more, message = REFUSED[fault]
    path = recipe(tmp_path, tmp_path / "absent", **{"data": {"sequence": 100}, **more})
    with pytest.raises(RequestError, match=message):
        check_recipe(path, processes=more.get("scale", {}).get("ring", 1))


def test_a_clip_that_is_longer_than_a_sequence_is_named(encoded: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not fit into sequences of 40 tokens: raise the budget"):
        run_recipe(recipe(tmp_path, encoded, data={"sequence": 40, "seconds": 0.8}))
    assert "valid" in check_recipe(recipe(tmp_path, encoded, data={"sequence": 400, "seconds": 0.8}))[0]
