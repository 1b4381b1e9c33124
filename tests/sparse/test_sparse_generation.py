"""Block-sparse attention on the whole way: transformer, denoiser, nano's trained weights, command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import kandinsky
from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.engine.attention import attention_for
from kandinsky.errors import BackendError, RequestError
from kandinsky.families.kandinsky5.denoiser import Layouts, VelocityDenoiser
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.model.values import Request, TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.ops.nabla import KeptBlocks

WIDE = "nabla:P=1,wT=99,wH=9,wW=9"
SHORT = {"seconds": 1.0, "steps": 2, "seed": 3}
SHORT_BENCH = {"seconds": 1.0, "steps": 1}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    params = DiTParams(
        in_text_dim=12, in_text_dim2=10, time_dim=16, model_dim=32, ff_dim=48, num_text_blocks=1, num_visual_blocks=2,
        axes_dims=(4, 6, 6),
    )  # fmt: skip
    net = DiffusionTransformer3D(params).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
    return net.requires_grad_(False)


def inputs(batch=1, grid=(3, 20, 34)):
    g = torch.Generator().manual_seed(1)
    text = TextEmbeddings(torch.randn(batch, 5, 12, generator=g), torch.randn(batch, 10, generator=g))
    return torch.randn(batch, *grid, 4, generator=g), torch.rand(batch, generator=g) * 1000, text


@pytest.mark.parametrize("grid", [(3, 32, 48), (2, 20, 34), (1, 6, 6)])
def test_a_window_over_everything_is_dense_attention(net, grid):
    spec, kept = AttentionSpec().chosen(WIDE), KeptBlocks()
    sparse = net(*inputs(grid=grid), rope_scale=(1.0, 2.0, 2.0), attention=spec, kept=kept)
    torch.testing.assert_close(sparse, net(*inputs(grid=grid), rope_scale=(1.0, 2.0, 2.0)), rtol=1e-4, atol=1e-4)
    assert kept.passes() == [{0: [1.0], 1: [1.0]}]


def test_a_batch_equals_single_runs_and_reports_each_clip(net):
    x, time, text = inputs(batch=3)
    spec, kept = AttentionSpec(type="nabla", P=0.4, wT=1, wH=1, wW=1), KeptBlocks()
    together = net(x, time, text, attention=spec, kept=kept)
    shares = []
    for i in range(3):
        alone, one = KeptBlocks(), slice(i, i + 1)
        states = TextEmbeddings(text.tokens_BLC[one], text.pooled_BC[one])
        single = net(x[one], time[one], states, attention=spec, kept=alone)
        torch.testing.assert_close(together[one], single, rtol=1e-4, atol=1e-5)
        assert kept.mean(i) == pytest.approx(alone.mean())
        shares.append(alone.mean())
    assert len(set(shares)) > 1 and max(shares) < 0.9


def test_gradients_reach_every_parameter_through_it():
    torch.manual_seed(0)
    params = dict(in_text_dim=12, in_text_dim2=10, time_dim=16, model_dim=32, ff_dim=48, axes_dims=(4, 6, 6))
    fresh = DiffusionTransformer3D(DiTParams(**params, num_text_blocks=1, num_visual_blocks=1))
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.normal_(std=0.2)
    fresh(*inputs(grid=(2, 18, 18)), attention=AttentionSpec(type="nabla", P=0.3, wT=1)).square().mean().backward()
    for name, parameter in fresh.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_layout_is_made_once_and_changes_nothing(net, monkeypatch):
    x, _, text = inputs(grid=(2, 20, 34))
    spec, made = AttentionSpec(type="nabla", P=0.4, wT=1), []
    original = DiffusionTransformer3D.layout
    monkeypatch.setattr(
        DiffusionTransformer3D, "layout", lambda *args, **kwargs: made.append(args[1]) or original(*args, **kwargs)
    )
    layouts: Layouts = {}
    branches = [VelocityDenoiser(net, text, attention=spec, layouts=layouts) for _ in range(2)]
    times = torch.tensor([0.9, 0.3])
    results = [branch(x, t) for t in times for branch in branches]
    assert made == [(2, 10, 17)] and len(layouts) == 1
    for t, pair in zip(times, (results[:2], results[2:]), strict=True):
        assert torch.equal(*pair)
        assert torch.equal(pair[0], net(x, (t * 1000)[None], text, attention=spec))
    # another size gets its own, and a latent that cannot be patched is refused as ever
    branches[0](x[:, :1], times[0])
    assert list(layouts) == [((2, 10, 17), x.device), ((1, 10, 17), x.device)]
    with pytest.raises(RequestError, match="cannot be cut into patches"):
        branches[0](x[:, :, :19], times[0])


@pytest.fixture(scope="module")
def dense():
    return kandinsky.load("nano-t2v", device="cpu")


def latents(pipe, **changes):
    resolved = pipe.resolve(Request(model="nano-t2v", prompt="a panda waves", **(SHORT | changes)))
    return pipe.sample(pipe.noise([resolved]), *pipe.encode([resolved]), resolved)


def test_nano_with_a_wide_window_makes_the_same_clip(dense):
    wide = kandinsky.load("nano-t2v", device="cpu", attention=WIDE)
    torch.testing.assert_close(latents(wide), latents(dense), rtol=1e-3, atol=1e-3)


def test_nano_runs_sparse_and_says_what_it_kept(dense):
    """6×6 tokens a frame are less than one tile: padding all the way."""
    sparse = kandinsky.load("nano-t2v", device="cpu", attention="nabla:P=0.5,wT=1")
    video = sparse("a panda waves", **SHORT)
    assert video.frames.shape == (13, 96, 96, 3)
    assert video.recipe["attention"] == "nabla:P=0.5,wT=1,wH=3,wW=3"
    assert 0.25 <= video.recipe["kept_blocks"] < 0.9
    exact, near = latents(dense), latents(sparse)
    assert 0 < (near - exact).norm() < 0.5 * exact.norm()
    plain = dense("a panda waves", **SHORT)
    assert not {"attention", "kept_blocks"} & set(plain.recipe)
    still = sparse("a panda waves", seconds=0, steps=1, seed=1)
    assert len(still.frames) == 1 and still.recipe["kept_blocks"] == 1.0


def test_backends_give_the_same_clip():
    found = [latents(kandinsky.load("nano-t2v", device="cpu", attention=f"nabla:P=0.5,wT=1,backend={name}"))
             for name in ("gathered", "sdpa", "plain")]  # fmt: skip
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-3)


def test_calls_at_the_same_time_share_nothing():
    pipe = kandinsky.load("nano-t2v", device="cpu", attention="nabla:P=0.5,wT=1")
    alone, other = pipe("a panda waves", **SHORT), {"seconds": 0.5, "steps": 1, "seed": 9}
    other_alone = pipe("a red heart", **other)
    nested = []
    outer = pipe("a panda waves", on_step=lambda *_: nested.append(pipe("a red heart", **other)), **SHORT)
    assert (outer.frames == alone.frames).all() and outer.recipe == alone.recipe
    for inner in nested:
        assert (inner.frames == other_alone.frames).all() and inner.recipe == other_alone.recipe
    batch = [pipe.resolve(Request(model="nano-t2v", prompt=p, **SHORT)) for p in ("a panda waves", "a red heart")]
    together = pipe.run_batch(batch)
    assert together[0].recipe["kept_blocks"] == pytest.approx(alone.recipe["kept_blocks"], abs=2e-3)
    assert together[1].recipe["kept_blocks"] != together[0].recipe["kept_blocks"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "sparse.mp4"
    words = [
        "generate",
        "a panda waves",
        "-m",
        "nano-t2v",
        "--seconds",
        "0.5",
        "--steps",
        "1",
        "--seed",
        "1",
        "--device",
        "cpu",
        "--json",
    ]
    assert main([*words, "-o", str(target), "--attention", "nabla:P=0.6,wT=1"]) == 0
    out, err = capsys.readouterr()
    recipe = json.loads(out)["recipe"]
    assert recipe["attention"] == "nabla:P=0.6,wT=1,wH=3,wW=3"
    assert f"kept {recipe['kept_blocks']:.0%} of the blocks" in err
    assert main(["show", str(target)]) == 0
    assert "--attention nabla:P=0.6,wT=1,wH=3,wW=3" in capsys.readouterr().out
    for choice in ("spiral", "nabla:P=2", "flex", "sage", "nabla:backend=math"):
        assert main([*words, "-o", str(tmp_path / "x.mp4"), "--attention", choice]) == 2
        err = capsys.readouterr().err
        assert err.count("error: ") == 1 and "attention" in err
    assert list(tmp_path.iterdir()) == [target]


def test_cards_of_ten_seconds_choose_it():
    card = catalogue.find("kandinsky5-lite-t2v-sft-10s")
    spec = attention_for(card, card.sampling, "auto", "cpu")
    assert (spec.type, spec.P, spec.wT, spec.wH, spec.wW) == ("nabla", 0.9, 11, 3, 3)
    assert attention_for(card, card.sampling, "dense").type == "dense"
    with pytest.raises(BackendError, match="`sage` has no nabla attention"):
        attention_for(card, card.sampling, "sage")
    flash = catalogue.find("kandinsky4-t2v-flash")
    assert attention_for(flash, flash.sampling, "sdpa", "cpu") == AttentionSpec(backend="sdpa")
    with pytest.raises(RequestError, match="`nabla` is not for `kandinsky4-t2v-flash`"):
        attention_for(flash, flash.sampling, "nabla")
    with pytest.raises(BackendError, match="not installed"):
        attention_for(flash, dataclasses.replace(flash.sampling), "flash_attention_3", "cpu")


def test_bench_counts_what_is_computed():
    from kandinsky.bench.run import bench, table

    runs = {
        choice: bench("nano-t2v", stages=["dit"], repeats=1, device="cpu", attention=choice, request=SHORT_BENCH)
        for choice in ("dense", "nabla:P=0.3,wT=1")
    }
    dense, sparse = (report.stages[1] for report in runs.values())
    assert dense.kept_blocks is None and 0 < sparse.kept_blocks < 0.9 and sparse.flops < dense.flops
    assert f"attention of dit kept {sparse.kept_blocks:.0%} of its blocks" in table(runs["nabla:P=0.3,wT=1"])
