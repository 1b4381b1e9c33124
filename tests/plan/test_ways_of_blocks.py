"""Choices of a network: both passes of guidance in one call, blocks that are compiled, calls as a CUDA graph."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import kandinsky
from kandinsky.catalogue import find
from kandinsky.diffusion.guidance import Guidance
from kandinsky.engine import probe, stages
from kandinsky.engine.build import check_blocks
from kandinsky.errors import BackendError, RequestError
from kandinsky.families.kandinsky5.denoiser import VelocityDenoiser, bind
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.parts.two_passes import beside
from kandinsky.media import recipe as recipes
from kandinsky.model.denoiser import VIDEO, Known, Pass
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec
from kandinsky.runtime import compiling, graphs
from kandinsky.runtime.placement import Precision
from kandinsky.runtime.tuning import Choices
from tiny.transformer import TINY

CPU = torch.device("cpu")
REQUEST: dict[str, Any] = {"prompt": "a panda", "seed": 3, "steps": 2, "seconds": 0, "guidance": 2.0, "progress": False}


@pytest.fixture
def net() -> DiffusionTransformer3D:
    torch.manual_seed(0)
    net = DiffusionTransformer3D(TINY).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.2)
    return net.requires_grad_(False)


@pytest.fixture
def fresh() -> Iterator[None]:
    """No program of an earlier test."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def text(count: int, tokens: int, seed: int = 1) -> TextEmbeddings:
    g = torch.Generator().manual_seed(seed)
    return TextEmbeddings(torch.randn(count, tokens, 12, generator=g), torch.randn(count, 10, generator=g))


def clips(count: int) -> Tensor:
    return torch.randn(count, 3, 4, 6, TINY.in_visual_dim, generator=torch.Generator().manual_seed(2))


# -- guidance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(5, 5), (6, 2), (1, 4)])
@pytest.mark.parametrize("clip_count", [1, 2])
def test_both_passes_in_one_call_are_the_two(
    net: DiffusionTransformer3D, lengths: tuple[int, int], clip_count: int
) -> None:
    ran: list[int] = []
    net.register_forward_pre_hook(lambda _, args: ran.append(len(args[0])))
    x, prompts = {VIDEO: clips(clip_count)}, (text(clip_count, lengths[0]), text(1, lengths[1], seed=4))

    def guided(together: bool | None) -> Tensor:
        shared: dict[Any, Any] = {}
        known = Known()
        passes = [bind(net, known, Pass(one, shared=shared, together=together)) for one in prompts]
        with torch.no_grad():
            return Guidance(4.0).guide(*passes)(x, torch.tensor(0.4))[VIDEO]

    apart = guided(None)
    assert ran == [clip_count, clip_count]
    ran.clear()
    torch.testing.assert_close(guided(True), apart, rtol=1e-4, atol=1e-5)
    assert ran == [2 * clip_count]
    assert (apart - guided(False)).abs().max() == 0


def test_a_time_for_each_clip_is_given_to_both(net: DiffusionTransformer3D) -> None:
    one, other = VelocityDenoiser(net, text(2, 5)), VelocityDenoiser(net, text(2, 3, seed=4))
    both = one.pair(other)
    assert both is not None
    x, t = clips(2), torch.tensor([0.2, 0.9])
    for made, alone in zip(both(x, t), (one(x, t), other(x, t)), strict=True):
        torch.testing.assert_close(made, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"runner": lambda x, n, run: x}, {"attention": AttentionSpec("nabla")}, {"rope_scale": (1.0, 2.0, 2.0)},
     {"branches": ("one",)}, {"memory": "some"}, {"lengths": ((1, 4, 6),)}],
)  # fmt: skip
def test_passes_that_differ_or_do_more_stay_apart(net: DiffusionTransformer3D, change: dict[str, Any]) -> None:
    one, other = VelocityDenoiser(net, text(1, 5)), VelocityDenoiser(net, text(1, 3))
    assert one.pair(other) is not None
    assert one.pair(replace(other, **change)) is None and replace(one, **change).pair(other) is None


def test_texts_beside_each_other_are_masked_where_one_is_shorter() -> None:
    both = beside(text(1, 2), text(1, 3))
    assert both.mask_BL is not None and both.mask_BL.tolist() == [[True, True, False], [True, True, True]]
    assert beside(text(1, 3), text(1, 3, seed=5)).mask_BL is None


def test_a_choice_of_guidance_is_in_the_recipe() -> None:
    usual = kandinsky.load("nano-t2v", device="cpu")(**REQUEST)
    made = kandinsky.load("nano-t2v", device="cpu", backends="guidance=together")(**REQUEST)
    assert made.recipe["backends"] == "guidance=together" and "backends" not in usual.recipe
    words = shlex.split(recipes.command(made.recipe))
    assert words[words.index("--backends") + 1] == "guidance=together"
    assert abs(usual.frames.astype(int) - made.frames.astype(int)).max() <= 3


def test_a_network_is_asked_which_way_of_guidance_is_faster() -> None:
    ways = probe.ways(find("nano-t2v"), Precision.choose("float32", CPU), CPU, tokens=252)
    assert list(ways["guidance"]) == ["apart", "together"] and "blocks" not in ways
    apart, together = (work() for work in ways["guidance"].values())
    torch.testing.assert_close(together[VIDEO], apart[VIDEO], rtol=1e-3, atol=1e-4)  # type: ignore[index]
    assert probe.ways(find("nano-t2v"), Precision.choose("float32", CPU), CPU, tokens=10**5) == {}
    assert probe.ways(find("kandinsky3.0"), Precision.choose("float32", CPU), CPU, tokens=1) == {}


@pytest.mark.parametrize(
    ("model", "guidance", "said"),
    [("nano2-t2v", 2.0, "runs one alone"), ("nano2-t2v", 1.0, "guidance is off"), ("nano-t2v", 2.0, None)],
)
def test_passes_that_cannot_be_joined_are_the_plain_ones_and_said(
    caplog: pytest.LogCaptureFixture, model: str, guidance: float, said: str | None
) -> None:
    stages._told_apart.cache_clear()
    request = {**REQUEST, "guidance": guidance}
    with caplog.at_level(logging.INFO):
        joined = kandinsky.load(model, device="cpu", backends="guidance=together")
        made = joined(**request)
        joined(**request)
    told = [one for one in caplog.messages if "`guidance=together`" in one]
    assert len(told) == (said is not None) and all(said in one for one in told if said)
    if said:
        assert (made.frames == kandinsky.load(model, device="cpu")(**request).frames).all()


# -- compiled blocks ---------------------------------------------------------------------------------------------------


def test_blocks_are_compiled_one_by_one_and_by_name(net: DiffusionTransformer3D, monkeypatch: Any) -> None:
    asked: list[Any] = []

    def by(forward: Callable[..., Any]) -> Callable[..., Any]:
        asked.append(forward)
        return lambda *given: forward(*given) * 1.0

    names, x = set(net.state_dict()), clips(1)
    plain = VelocityDenoiser(net, text(1, 5))(x, torch.tensor(0.5))
    count = compiling.compile_blocks(net, by)
    assert count == len(asked) == TINY.num_visual_blocks + TINY.num_text_blocks
    assert set(net.state_dict()) == names
    assert torch.equal(VelocityDenoiser(net, text(1, 5))(x, torch.tensor(0.5)), plain)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_blocks_give_the_same_up_to_rounding_by_two_programs(
    dtype: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KANDINSKY_CACHE", str(tmp_path))
    monkeypatch.delenv(compiling.PLACE, raising=False)
    made = {}
    for backends in ("default", "blocks=compiled"):
        pipe = kandinsky.load("nano-t2v", device="cpu", dtype=dtype, backends=backends)
        job = pipe.resolve(kandinsky.Request("nano-t2v", "a panda", seed=3, steps=2, seconds=0, guidance=1.0))
        (states, _), noise = pipe.encode([job]), pipe.noise([job])
        made[backends] = pipe.sample(noise, states, None, job)
    assert pipe.recipe(job)["backends"] == "blocks=compiled"
    gap = (made["blocks=compiled"] - made["default"]).norm() / made["default"].norm()
    assert 0 < gap < (1e-5 if dtype == "float32" else 3e-2)
    assert counters["stats"]["unique_graphs"] == 2, "one for the blocks of the text, one for those of the clip"
    assert not counters["graph_break"]
    assert any((tmp_path / "inductor").rglob("*.so")) or any((tmp_path / "inductor").rglob("*.cpp"))


def test_where_the_compiler_fails_blocks_run_as_they_are(
    net: DiffusionTransformer3D, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def by(forward: Callable[..., Any]) -> Callable[..., Any]:
        def broken(*_: Any) -> Any:
            raise TorchDynamoException("no compiler here")

        return broken

    x = clips(1)
    plain = VelocityDenoiser(net, text(1, 5))(x, torch.tensor(0.5))
    compiling.compile_blocks(net, by)
    assert torch.equal(VelocityDenoiser(net, text(1, 5))(x, torch.tensor(0.5)), plain)
    assert [record.message for record in caplog.records if "no compiler here" in record.message] != []
    assert "forward" not in vars(net.visual_transformer_blocks[0])


@pytest.mark.parametrize("offload", ["block"])
def test_blocks_that_come_and_go_are_not_compiled(offload: str) -> None:
    with pytest.raises(RequestError, match="all blocks on one device"):
        check_blocks(Choices(blocks="compiled"), offload, CPU)
    check_blocks(Choices(), offload, CPU)
    check_blocks(Choices(blocks="compiled"), "module", CPU)
    with pytest.raises(BackendError, match="CUDA"):
        kandinsky.load("nano-t2v", device="cpu", backends="blocks=graph")


# -- graphs ------------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands in for CUDA graphs: replays the work into the memory that the record has; the work reads what it read."""

    def __init__(self) -> None:
        self.records = self.plays = 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.records += 1
        out = work()

        def play() -> None:
            self.plays += 1
            for name, made in work().items():
                out[name].copy_(made)

        return out, play


def test_a_denoiser_is_recorded_once_a_size_and_gives_the_same(net: DiffusionTransformer3D) -> None:
    shared: dict[Any, Any] = {}
    denoiser = Guidance(3.0).guide(*(bind(net, Known(), Pass(text(1, n), shared=shared)) for n in (5, 3)))
    record = Recorder()
    graphed = graphs.Graphed(denoiser, record)
    kept = []
    for at, t in enumerate((0.9, 0.6, 0.3)):
        x = {VIDEO: clips(1) + at}
        made = graphed(x, torch.tensor(t))
        kept.append((made[VIDEO], denoiser(x, torch.tensor(t))[VIDEO]))
    assert (record.records, record.plays) == (1, 2), "the first call only prepares"
    for one, other in kept:  # later calls have not written over what earlier ones gave
        assert torch.equal(one, other)
    for _ in range(2):
        graphed({VIDEO: clips(2)}, torch.tensor(0.5))
    assert record.records == 2


def test_what_cannot_be_recorded_is_called(caplog: pytest.LogCaptureFixture) -> None:
    def record(work: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed = graphs.Graphed(lambda x, t: x * t, record)
    x = torch.ones(3)
    for t in (0.5, 0.25, 0.125):
        assert torch.equal(graphed(x, torch.tensor(t)), x * t)
    assert sum("not permitted" in one.message for one in caplog.records) == 1


def test_memory_that_runs_out_is_told() -> None:
    def record(work: Callable[[], Any]) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    graphed = graphs.Graphed(lambda x, t: x * t, record)
    graphed(torch.ones(1), torch.tensor(1.0))
    with pytest.raises(torch.OutOfMemoryError):
        graphed(torch.ones(1), torch.tensor(1.0))


def test_only_work_that_is_the_same_at_all_steps_is_recorded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    context = kandinsky.load("nano-t2v", device="cpu").context
    context.graphs = True
    context.computing(lambda x, t: x)
    assert "not recorded" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_gives_what_the_calls_give() -> None:
    made = {}
    for backends in ("default", "blocks=graph"):
        pipe = kandinsky.load("nano-t2v", device="cuda", backends=backends)
        job = pipe.resolve(kandinsky.Request("nano-t2v", "a panda", seed=3, steps=4))
        (states, negative), noise = pipe.encode([job]), pipe.noise([job])
        made[backends] = pipe.sample(noise, states, negative, job)
    torch.testing.assert_close(made["blocks=graph"], made["default"], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_work_with_a_look_at_numbers_is_no_graph() -> None:
    module = nn.Linear(4, 4, device="cuda")

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        return module(x) if float(x.sum()) > -1e9 else x

    graphed = graphs.Graphed(denoiser)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(2, 4, device="cuda")
            assert torch.equal(graphed(x, torch.tensor(0.5)), module(x))
