"""Roll-outs: what is remembered of finished chunks says the same as showing the network all frames again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kandinsky import catalogue
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.roll import Ask, CachedPast, Finished, Past, WholePast, as_context, caught_up
from kandinsky.diffusion.samplers import Straight
from kandinsky.families.kandinsky5.denoiser import bind
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.model.denoiser import VIDEO, Known, Pass
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.key_values import KeyValues
from kandinsky.weights.read import load_into
from tiny.transformer import TINY

ROOT = Path(catalogue.__file__).parent
NANO = DiTParams.from_dict(catalogue.source_of("nano-t2v").card.dit.params)
LEVEL = 0.1


@cache
def network(name: str) -> DiffusionTransformer3D:
    """`tiny`: Kandinsky 5's layout, random; `nano`: the shipped one."""
    if name == "nano":
        net = DiffusionTransformer3D(NANO)
        load_into(net, ROOT / "assets" / "nano-t2v" / "dit.safetensors", dtype=torch.float32)
        return net.eval()
    net, generator = DiffusionTransformer3D(TINY).eval(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return net


def texts(net: DiffusionTransformer3D, batch: int, seed: int) -> TextEmbeddings:
    generator, p = torch.Generator().manual_seed(seed), net.params
    mask = torch.ones(batch, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return TextEmbeddings(
        torch.randn(batch, 5, p.in_text_dim, generator=generator),
        torch.randn(batch, p.in_text_dim2, generator=generator),
        mask,
    )


def asked(
    net: DiffusionTransformer3D, prompts: Sequence[TextEmbeddings], spec: AttentionSpec, memories: Sequence[KeyValues]
) -> Ask:
    def ask(x: Tensor, t: Tensor, begin: int) -> Tensor:
        kept: Sequence[KeyValues | None] = memories or [None] * len(prompts)
        passes = [
            bind(net, Known(), Pass(text, "coordinates", (0.5, 1, 1), spec, memory=memory))
            for text, memory in zip(prompts, kept, strict=True)
        ]
        return Guidance(3.0 if len(passes) > 1 else 1.0).guide(*passes)({VIDEO: x}, t)[VIDEO]

    return ask


def cached(net: DiffusionTransformer3D, prompts: Sequence[TextEmbeddings], spec: AttentionSpec) -> CachedPast:
    memories = [KeyValues(spec) for _ in prompts]
    return CachedPast(asked(net, prompts, spec, memories), memories, LEVEL)


def whole(net: DiffusionTransformer3D, prompts: Sequence[TextEmbeddings], spec: AttentionSpec) -> WholePast:
    return WholePast(asked(net, prompts, spec, []), LEVEL)


@torch.no_grad()
def rolled(past: Past, chunks: int, size: int, batch: int, channels: int, begin: int = 0) -> list[Finished]:
    """Two steps for each chunk; returns what later chunks see."""
    done = []
    for number in range(chunks):
        generator = torch.Generator().manual_seed(number)
        x, noise = torch.randn(2, batch, size, 4, 4, channels, generator=generator)
        for t, to in ((1.0, 0.6), (0.6, 0.0)):
            x = x + (to - t) * past.ask(x, torch.tensor(t), begin + number * size)
        done.append(Finished(begin + number * size, as_context(Straight().noised, x, noise, LEVEL)))
        past.keep(done[-1])
    return done


@settings(max_examples=16)
@given(
    chunk=st.integers(1, 3),
    reach=st.integers(0, 3),
    sink=st.integers(0, 2),
    batch=st.integers(1, 2),
    guided=st.booleans(),
)
def test_what_is_remembered_is_what_would_be_seen_again(
    chunk: int, reach: int, sink: int, batch: int, guided: bool
) -> None:
    net, spec = network("tiny"), AttentionSpec("causal", frames=chunk, reach=reach, sink=sink)
    prompts = [texts(net, batch, seed) for seed in range(1 + guided)]
    one = rolled(cached(net, prompts, spec), 4, chunk, batch, 4)
    other = rolled(whole(net, prompts, spec), 4, chunk, batch, 4)
    for (_, a), (_, b) in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("chunk", "reach", "sink"), [(2, 2, 0), (1, 2, 1), (3, 1, 1)])
def test_nanos_network_remembers_too(chunk: int, reach: int, sink: int) -> None:
    net, spec = network("nano"), AttentionSpec("causal", frames=chunk, reach=reach, sink=sink)
    prompts = [texts(net, 1, seed) for seed in range(2)]
    one = rolled(cached(net, prompts, spec), 4, chunk, 1, 48)
    other = rolled(whole(net, prompts, spec), 4, chunk, 1, 48)
    for (_, a), (_, b) in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("reach", "sink"), [(2, 0), (1, 1), (2, 1)])
def test_a_new_prompt_is_told_of_the_window_alone(reach: int, sink: int) -> None:
    """After a switch the memory is that of a clip that begins with the kept chunks under the new prompt."""
    net, spec = network("tiny"), AttentionSpec("causal", frames=2, reach=reach, sink=sink)
    before, after = ([texts(net, 1, seed)] for seed in (0, 7))
    done = rolled(cached(net, before, spec), 5, 2, 1, 4)
    window = spec.kept(done)
    assert [chunk.begin // 2 for chunk in window] == spec.seen(5)
    switched = rolled(caught_up(cached(net, after, spec), window), 3, 2, 1, 4, begin=10)
    again = rolled(caught_up(whole(net, after, spec), window), 3, 2, 1, 4, begin=10)
    stayed = rolled(caught_up(cached(net, before, spec), window), 3, 2, 1, 4, begin=10)
    for (_, a), (_, b), (_, c) in zip(switched, again, stayed, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        assert (a - c).abs().amax() > 1e-2


def test_memory_is_that_of_the_window() -> None:
    net, spec = network("tiny"), AttentionSpec("causal", frames=2, reach=2, sink=1)
    past, sizes = cached(net, [texts(net, 1, 0)], spec), []
    for _ in range(8):
        rolled(past, 1, 2, 1, 4)
        sizes.append((past.memories[0].frames, past.memories[0].bytes))
    assert [frames for frames, _ in sizes] == [2, 4, 6, 6, 6, 6, 6, 6] and len({size for _, size in sizes[2:]}) == 1


def test_windows_look_the_same_wherever_they_are() -> None:
    """Positions are counted within what is seen: the sixtieth chunk is made as the third of the same window."""
    net, spec = network("tiny"), AttentionSpec("causal", frames=1, reach=2, sink=1)
    done = rolled(cached(net, [texts(net, 1, 0)], spec), 60, 1, 1, 4)
    window = spec.kept(done)
    assert [chunk.begin for chunk in window] == [0, 58, 59]
    x, t = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(9)), torch.tensor(0.5)

    def asked(kept: list[Finished], begin: int) -> Tensor:
        return caught_up(cached(net, [texts(net, 1, 0)], spec), kept).ask(x, t, begin)

    early = [Finished(number, chunk.frames_BTHWC) for number, chunk in enumerate(window)]
    late = asked(window, 60)
    torch.testing.assert_close(late, asked(early, 3), atol=1e-5, rtol=1e-5)
    assert (late - asked([early[0]], 1)).abs().amax() > 1e-3  # what is seen counts


def test_a_gradient_goes_through_the_last_step_alone() -> None:
    net, spec = network("tiny"), AttentionSpec("causal", frames=1, reach=2)
    past = cached(net, [texts(net, 1, 0)], spec)
    done = rolled(past, 2, 1, 1, 4)
    x = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(5), requires_grad=True)
    made = past.ask(x, torch.tensor(0.5), 2)
    past.keep(Finished(2, made.detach()))
    (gradient,) = torch.autograd.grad(made.square().sum(), x)
    frozen = whole(net, [texts(net, 1, 0)], spec)
    again = caught_up(frozen, done).ask(x, torch.tensor(0.5), 2)
    (expected,) = torch.autograd.grad(again.square().sum(), x)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)
    assert not any(k.requires_grad for pairs in past.memories[0]._blocks.values() for k, _ in pairs)


def test_blocks_that_are_computed_again_see_what_they_saw() -> None:
    """Activation checkpointing runs a block again at the way back, when more chunks are finished."""
    net, spec = network("tiny"), AttentionSpec("causal", frames=1, reach=1)
    x = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(5), requires_grad=True)

    def gradient(wrap: Callable[[int, Callable[[Tensor], Tensor], Tensor], Tensor]) -> Tensor:
        memory = KeyValues(spec)
        text = texts(net, 1, 0)

        def runner(h: Tensor, count: int, run: Callable[[int, Tensor], Tensor]) -> Tensor:
            for number in range(count):
                h = wrap(number, lambda y, number=number: run(number, y), h)  # type: ignore[misc]
            return h

        def ask(y: Tensor, t: Tensor, begin: int) -> Tensor:
            run = Pass(text, "coordinates", attention=spec, runner=runner, memory=memory)
            return bind(net, Known(), run)({VIDEO: y}, t)[VIDEO]

        past = CachedPast(ask, [memory])
        past.keep(Finished(0, torch.ones(1, 1, 4, 4, 4)))
        made = past.ask(x, torch.tensor(0.5), 1)
        past.keep(Finished(1, made.detach()))
        (found,) = torch.autograd.grad(made.square().sum(), x)
        return found

    again = gradient(lambda number, run, h: torch.utils.checkpoint.checkpoint(run, h, use_reentrant=False))
    assert torch.equal(again, gradient(lambda number, run, h: run(h)))
