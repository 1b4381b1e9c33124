"""Step caches: what is left out, what stands in, and that calls and samples share nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kandinsky.diffusion import caching
from kandinsky.diffusion.caching import FirstBlockCache, MagCache, TaylorCache
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.schedule import flow_times
from kandinsky.diffusion.step_cache import RatioRecorder, StepCache, start
from kandinsky.errors import RequestError
from kandinsky.families.kandinsky5.denoiser import VelocityDenoiser
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from kandinsky.model.values import TextEmbeddings

RATIOS = tuple(1 + 0.01 * (i % 7) for i in range(2 * 12 - 2))
ALL = (
    MagCache(ratios=RATIOS),
    FirstBlockCache(threshold=0.2),
    TaylorCache(order=1, interval=3, first=2),
    TaylorCache(order=2, interval=2),
)


def network(seed: int = 0) -> DiffusionTransformer3D:
    torch.manual_seed(seed)
    params = DiTParams(
        in_text_dim=6, in_text_dim2=6, time_dim=16, model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=3,
        axes_dims=(2, 2, 4), in_visual_dim=2, out_visual_dim=2,
    )  # fmt: skip
    net = DiffusionTransformer3D(params).eval().requires_grad_(False)
    for p in net.parameters():
        p.normal_(std=0.15)
    return net


def states(batch: int, seed: int) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return TextEmbeddings(torch.randn(batch, 4, 6, generator=generator), torch.randn(batch, 6, generator=generator))


def walk(net: DiffusionTransformer3D, noise: Tensor, text: TextEmbeddings, cache: StepCache | None, steps: int = 12):
    def branch(name: str, scale: float) -> VelocityDenoiser:
        known = TextEmbeddings(text.tokens_BLC * scale, text.pooled_BC * scale)
        return VelocityDenoiser(net, known, runner=cache.runner(name) if cache else None)

    guided = Guidance(3.0).guide(branch("conditional", 1.0), branch("unconditional", 0.1))
    return sample(guided, noise, flow_times(steps, 3.0))


NOISE = torch.randn(2, 2, 4, 4, 2, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("settings", ALL, ids=caching.describe)
def test_a_cache_leaves_passes_out_and_stays_near(settings):
    net, cache = network(), StepCache(settings, steps=12)
    plain = walk(net, NOISE, states(2, 1), None)
    near = walk(net, NOISE, states(2, 1), cache)
    told = cache.report(0)
    assert told["kind"] == settings.kind and told["skipped"] > 0 and told["computed"] + told["skipped"] == 24
    error = float((near - plain).norm() / plain.norm())
    assert 0 < error < 0.03


@pytest.mark.parametrize("settings", ALL, ids=caching.describe)
def test_each_sample_of_a_batch_gets_what_it_gets_alone(settings):
    net, text, together = network(), states(2, 1), StepCache(settings, steps=12)
    noise = NOISE * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1)
    both = walk(net, noise, text, together)
    for i in range(2):
        alone = StepCache(settings, steps=12)
        one = TextEmbeddings(text.tokens_BLC[i : i + 1], text.pooled_BC[i : i + 1])
        torch.testing.assert_close(walk(net, noise[i : i + 1], one, alone), both[i : i + 1], rtol=1e-4, atol=1e-4)
        assert alone.report() == together.report(i)


def test_samples_of_a_batch_decide_for_themselves():
    """Else the test above would not say much."""
    cache = StepCache(FirstBlockCache(threshold=0.2), steps=12)
    walk(network(), NOISE * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1, 1), states(2, 1), cache)
    assert any(len(set(skips)) == 2 for skips in cache.skips)


@pytest.mark.parametrize("settings", ALL, ids=caching.describe)
def test_two_calls_at_once_share_nothing(settings):
    net, results, barrier = network(), {}, threading.Barrier(2)
    calls = {12: NOISE, 9: NOISE[:1, :, :2] * 2}

    def call(steps: int) -> None:
        barrier.wait()
        results[steps] = walk(net, calls[steps], states(1, 1), StepCache(settings, steps=steps), steps)

    threads = [threading.Thread(target=call, args=(steps,)) for steps in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for steps, noise in calls.items():
        expected = walk(net, noise, states(1, 1), StepCache(settings, steps=steps), steps)
        assert torch.equal(results[steps], expected)


def test_left_out_passes_run_no_block():
    ran: list[int] = []

    def run(number: int, x: Tensor) -> Tensor:
        ran.append(number)
        return x + 1

    cache = StepCache(TaylorCache(order=0, interval=2, first=1, last=0), steps=4)
    for _ in range(4):
        out = cache.runner("conditional")(torch.zeros(1, 2, 3), 5, run)
        assert torch.equal(out, torch.full((1, 2, 3), 5.0))
    assert ran == [*range(5), *range(5)] and cache.skips == [[False], [True], [False], [True]]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_residual_that_is_a_polynomial_is_continued_exactly(order):
    cache, step = StepCache(TaylorCache(order=order, interval=3, first=order + 1), steps=11), 0

    def residual(step: int) -> float:
        return sum((0.3 * step) ** power for power in range(order + 1))

    runner = cache.runner("unconditional")
    for step in range(11):
        out = runner(torch.zeros(1, 1, 1), 1, lambda _, x: x + residual(step))  # noqa: B023 - called at once
        assert float(out) == pytest.approx(residual(step), rel=1e-4)
    assert cache.report()["skipped"] == sum(caching.taylor_plan(TaylorCache(order, 3, order + 1), 11)) > 3


def test_taylor_computes_both_ends():
    plan = caching.taylor_plan(TaylorCache(interval=4, first=3, last=2), 13)
    assert plan == (*[False] * 3, *[True] * 3, False, *[True] * 3, False, False, False)


def test_first_block_computes_again_what_has_changed():
    seen, scale = [], 1.0
    cache = StepCache(FirstBlockCache(threshold=0.1), steps=4)
    for scale in (1.0, 1.05, 1.2, 1.25):
        seen.append(cache.runner("conditional")(torch.ones(1, 2, 2), 2, lambda n, x: x + scale))  # noqa: B023
    assert [s[0] for s in cache.skips] == [False, True, False, True]
    # left out: the first block as it is now, the others as last computed
    assert [float(out[0, 0, 0]) for out in seen] == pytest.approx([3.0, 1 + 1.05 + 1.0, 1 + 2.4, 1 + 1.25 + 1.2])


def test_magcache_start_is_whole_steps_unless_official():
    ratios = (1.0,) * 24  # 13 steps: int(0.2·26) = 5 lies between the two passes of step 2
    ours, official = (caching.magcache_plan(MagCache(ratios=ratios, whole_steps=w), 13) for w in (True, False))
    assert [plan[2] for plan in ours] == [False, False] and [plan[2] for plan in official] == [False, True]
    assert [plan[3] for plan in ours] == [True, True]


def test_magcache_never_leaves_out_what_was_not_measured():
    ratios = tuple(value for _ in range(9) for value in (1.0, 0.0))
    conditional, unconditional = caching.magcache_plan(MagCache(ratios=ratios, retention=0.0), 10)
    assert sum(conditional) == 6 and sum(unconditional) == 0 and not conditional[0]


@pytest.mark.parametrize("steps", [1, 2, 7, 49])
def test_magcache_takes_the_steps_of_the_call(steps):
    settings = MagCache(ratios=tuple(1 + i / 1000 for i in range(98)))
    rows = caching.ratio_rows(settings.ratios, steps)
    assert [len(row) for row in rows] == [steps, steps]
    assert rows[0][-1] == settings.ratios[-2] and rows[1][-1] == settings.ratios[-1]
    assert steps == 1 or rows[0][0] == 1.0
    assert [len(plan) for plan in caching.magcache_plan(settings, steps)] == [steps, steps]


def test_one_pass_too_many_is_refused():
    cache = StepCache(TaylorCache(), steps=1)
    runner = cache.runner("conditional")
    runner(torch.zeros(1, 1, 1), 1, lambda _, x: x)
    with pytest.raises(RequestError, match="1 steps was asked for one more"):
        runner(torch.zeros(1, 1, 1), 1, lambda _, x: x)


def test_no_cache_is_no_object():
    assert start(None, steps=3) is None


def test_recorder_measures_the_mean_ratio_over_tokens():
    recorder, residuals = RatioRecorder(), iter([[3.0, 4.0], [6.0, 2.0], [6.0, 4.0]])
    runner, other = recorder.runner("conditional"), recorder.runner("unconditional")
    for _ in range(3):
        change = torch.tensor(next(residuals))[None, :, None] * torch.tensor([0.6, 0.8])
        runner(torch.ones(1, 2, 2), 1, lambda _, x: x + change)  # noqa: B023
    other(torch.ones(1, 2, 2), 1, lambda _, x: x + 1)
    assert recorder.ratios("conditional") == pytest.approx(((2 + 0.5) / 2, (1 + 2) / 2))
    assert recorder.ratios("unconditional") == ()


@pytest.mark.parametrize(
    "text",
    [
        "magcache",
        "magcache:threshold=0.2,K=3",
        "first-block",
        "first-block:threshold=0.05",
        "taylor:order=2,interval=4",
    ],
)
def test_options_are_read_and_written(text):
    settings = caching.parse(text)
    assert settings is not None and caching.describe(settings) == text


def test_ratios_come_from_files(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"mag_ratios": [1.0, 0.9]}))
    (tmp_path / "b.toml").write_text("[sampling]\nmag_ratios = [1.0, 0.9]\n")
    for name in ("a.json", "b.toml"):
        text = f"magcache:ratios={tmp_path / name}"
        settings = caching.parse(text)
        assert isinstance(settings, MagCache) and settings.ratios == (1.0, 0.9) and caching.describe(settings) == text
    (tmp_path / "c.toml").write_text("steps = 3\n")
    for name, message in (("c.toml", "holds no list `mag_ratios`"), ("d.toml", "cannot be read")):
        with pytest.raises(RequestError, match=message):
            caching.parse(f"magcache:ratios={tmp_path / name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacache", "`teacache` is unknown: use `magcache`, `first-block`, `taylor` or `none`"),
        ("taylor:order=7", "order `7`: use 0, 1 or 2"),
        ("taylor:order=1.5", "order `1.5`: use a whole number"),
        ("taylor:depth=2", "no option `depth=2`: use `order=…`"),
        ("first-block:threshold=-1", "threshold `-1.0`: use a number above 0"),
        ("first-block:threshold=nan", "threshold `nan`: use a number"),
        ("magcache:K=0", "K `0`: use a whole number from 1"),
    ],
)
def test_bad_options_are_refused(text, message):
    with pytest.raises(RequestError) as caught:
        caching.parse(text)
    assert message in str(caught.value).replace("\n", " ")


def test_magcache_without_calibration_names_the_command():
    with pytest.raises(RequestError, match=r"`some-model` has no MagCache calibration: .*calibrate some-model"):
        caching.choose("magcache", model="some-model", ratios=())
    chosen = caching.choose("magcache:K=3", model="some-model", ratios=(1.0, 0.9))
    assert chosen == MagCache(K=3, ratios=(1.0, 0.9))
    assert caching.choose("none", model="m", ratios=()) is caching.choose(None, model="m", ratios=()) is None
    assert caching.choose(TaylorCache(), model="m", ratios=()) == TaylorCache()


def test_settings_are_read_without_torch():
    code = (
        "import sys; from kandinsky.diffusion.caching import parse; parse('taylor'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_option_that_is_given_twice_is_refused() -> None:
    with pytest.raises(RequestError, match="`interval` is given twice"):
        caching.parse("taylor:interval=2,interval=3")
