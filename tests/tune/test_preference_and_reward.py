"""Objectives of taste: pairs and rewards, for each kind of prediction."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import kandinsky
from kandinsky.errors import RequestError
from kandinsky.train import pairs, reward
from kandinsky.train.denoiser import DenoiserObjective
from kandinsky.train.objective import Portion, Rng
from kandinsky.train.preference import PairBatches, PreferenceObjective, paired
from kandinsky.train.recipe import run_recipe
from kandinsky.train.reward import RewardObjective, RewardRecipe
from kandinsky.train.times import Times
from tiny.tune_tasks import TinyDenoising, batches, clips, learned, network, settings


def frozen(net: nn.Module):  # type: ignore[no-untyped-def]
    before = copy.deepcopy(net).requires_grad_(False)

    @contextmanager
    def reference(current: nn.Module) -> Iterator[nn.Module]:
        yield before

    return before, reference


@pytest.fixture(scope="module", params=["flow", "cogvideox-ddim", "kandinsky3"])
def taught(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyDenoising, nn.Module]:
    """A network that has learnt clips around 0 a little, under velocity, v or noise."""
    denoising, net = TinyDenoising(request.param), network()
    objective = DenoiserObjective(denoising, net, batches(clips(6)), Times())
    learned(objective, tmp_path_factory.mktemp("taught"), 60)
    return denoising, net.requires_grad_(True)


def preferring(denoising: TinyDenoising, net: nn.Module, **more: float) -> PreferenceObjective:
    winners, losers = clips(4, shift=0.5), clips(4, shift=-0.5)
    before, reference = frozen(net)
    each = [clip for pair in zip(winners, losers, strict=True) for clip in pair]
    both = PairBatches(paired(None, len(each)), batches(each, batch=4))
    return PreferenceObjective(
        denoising, net, reference, both, Times(), **({"beta": 20.0} | more), frozen={"reference": before}
    )  # fmt: skip


@pytest.mark.slow
def test_winners_are_learned_and_losers_are_not(taught: tuple[TinyDenoising, nn.Module], tmp_path: Path) -> None:
    denoising, net = taught[0], copy.deepcopy(taught[1])
    objective = preferring(denoising, net)
    rng = Rng(0, 0)
    first = objective.loss("network", objective.batch(0, rng, Portion()), rng)
    assert float(first.value.detach()) == pytest.approx(math.log(2), abs=1e-4)  # the reference is the network itself
    _, look = learned(objective, tmp_path, 60, lr=1e-3)
    assert look("loss")[-1] < 0.35 and look("accuracy")[-1] > 0.9 and look("margin")[-1] > 0


def test_what_a_clip_shows_is_known_where_its_prompt_was_dropped() -> None:
    dropped, kept = (batches(clips(4), batch=4, drop=drop)(0, Rng(0, 0), Portion()) for drop in (1.0, 0.0))
    assert dropped.captions == kept.captions and all(dropped.captions)
    assert not torch.equal(dropped.given.text.tokens_BLC, kept.given.text.tokens_BLC)


def test_every_epoch_shows_each_pair_once_and_side_by_side() -> None:
    winners, losers = clips(4, shift=0.5), clips(4, shift=-0.5)
    each = [clip for pair in zip(winners, losers, strict=True) for clip in pair]
    made = PairBatches(paired(None, 8), batches(each, batch=2), seed=3)
    seen = []
    for step in range(2):
        rng = Rng(3, step)
        first, second = made(step, rng, Portion())
        assert first.numbers == second.numbers == [0, 1] and first.captions == second.captions
        assert torch.equal(first.given.text.tokens_BLC, second.given.text.tokens_BLC)
        for one, other in zip(first.clean_BTHWC, second.clean_BTHWC, strict=True):
            number = next(i for i, clip in enumerate(winners) if torch.equal(clip.latent[0], one))
            assert torch.equal(losers[number].latent[0], other)
            seen.append(number)
        halves = [made(step, rng, Portion(half, 2))[1].clean_BTHWC for half in (0, 1)]
        assert torch.equal(torch.cat(halves), second.clean_BTHWC)
    assert sorted(seen) == [0, 1, 2, 3]


def test_the_pairs_of_encoded_data_are_told_by_their_folders() -> None:
    names = ["losers/a.mp4", "losers/b.mp4", "winners/a.webm", "winners/b.mp4"]
    assert paired(names, 4) == [(2, 0), (3, 1)]
    for wrong, message in ((names[1:], "`a` of the encoded data has no counterpart"), (["a.mp4"], "is no pair's")):
        with pytest.raises(RequestError, match=message):
            paired(wrong, len(wrong))


def test_the_supervised_part_is_the_winners_error(taught: tuple[TinyDenoising, nn.Module]) -> None:
    denoising, net = taught[0], copy.deepcopy(taught[1])
    plain, more = preferring(denoising, net), preferring(denoising, net, supervised=0.5)
    rng = Rng(3, 4)
    batch = plain.batch(4, rng, Portion())
    own = DenoiserObjective(denoising, net, batches(clips(1)), Times()).loss("network", batch[0], rng).value
    difference = more.loss("network", batch, rng).value - plain.loss("network", batch, rng).value
    torch.testing.assert_close(difference, 0.5 * own, rtol=1e-4, atol=1e-6)


def decode(latents: Tensor) -> Tensor:
    """Latents of four channels as pixels twice as large."""
    return latents[..., :3].repeat_interleave(2, 2).repeat_interleave(2, 3).tanh()


def rewarded(denoising: TinyDenoising, net: nn.Module, name: str = "brightness", **more: object) -> RewardObjective:
    before, reference = frozen(net)
    recipe = RewardRecipe(model="", out="", data=batches(clips(1)).settings, loop=settings(1), reward=name,
                          **{"steps": 4, "last": 2, "beta": 0.02, **more})  # type: ignore[arg-type]  # fmt: skip
    return RewardObjective(denoising, net, reference, decode, reward.find(name), batches(clips(6), batch=4), recipe,
                           frozen={"reference": before})  # fmt: skip


@pytest.mark.slow
def test_a_reward_is_climbed(taught: tuple[TinyDenoising, nn.Module], tmp_path: Path) -> None:
    objective = rewarded(taught[0], copy.deepcopy(taught[1]))
    _, look = learned(objective, tmp_path, 40, lr=2e-3)
    # from pure noise a network that predicts noise says little of the clip: its first steps are large ones
    rise = 0.02 if taught[0].predicts == "noise" else 0.08
    assert look("reward")[-1] > look("reward")[0] + rise, look("reward")
    assert look("strayed")[0] == 0 < look("strayed")[-1]


@pytest.mark.slow
def test_beta_holds_the_network_back(tmp_path: Path) -> None:
    strayed = []
    for beta in (0.0001, 3.0):
        _, look = learned(rewarded(TinyDenoising(), network(), beta=beta), tmp_path / str(beta), 12, lr=2e-3)
        strayed.append(look("strayed")[-1])
    assert strayed[1] < 0.5 * strayed[0]


def test_only_the_last_steps_carry_gradients_and_checkpointing_changes_nothing() -> None:
    found = {}
    for last, checkpointed in ((4, False), (4, True), (1, False), (1, True)):
        net = network()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        objective = rewarded(TinyDenoising(), net, last=last, checkpointed=checkpointed, guidance=3.0)
        rng = Rng(0, 0)
        objective.loss("network", objective.batch(0, rng, Portion()), rng).value.backward()
        found[last, checkpointed] = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    for last in (1, 4):
        torch.testing.assert_close(found[last, True], found[last, False], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(found[1, True], found[4, True], rtol=0.05)


@pytest.mark.parametrize("name", reward.BUILT_IN)
def test_rewards_that_come_along_are_differentiable_and_mean_their_names(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(2, 3, 8, 8, 3, generator=generator, requires_grad=True)
    value = reward.BUILT_IN[name](clip, ["a", "b"], lambda: clip.detach() * 0.5)
    value.sum().backward()
    assert (
        value.shape == (2,) and clip.grad is not None and torch.isfinite(clip.grad).all() and clip.grad.abs().max() > 0
    )
    grey = clip.detach().mean(-1, keepdim=True).expand_as(clip)
    smooth = clip.detach().mean((2, 3), keepdim=True).expand_as(clip)
    better, worse = {
        "brightness": (clip.detach() * 0.5 + 0.5, clip.detach() * 0.5),
        "colour": (clip.detach(), grey),
        "sharpness": (clip.detach(), smooth),
        "likeness": (clip.detach() * 0.5, clip.detach()),
    }[name]
    real = clip.detach() * 0.5
    values = [reward.BUILT_IN[name](one, [], lambda: real) for one in (better, worse)]
    assert (values[0] > values[1]).all()


def test_a_reward_is_found_by_name_or_refused() -> None:
    assert reward.find("kandinsky.train.reward:colour") is reward.colour
    wrong = {
        "pretty": "is unknown: use brightness",
        "no_such_module:f": "cannot be imported",
        "math:nothing": "cannot be imported",
        "math:pi": "is no function",
        ":f": "is unknown",
    }
    for name, said in wrong.items():
        with pytest.raises(RequestError, match=said):
            reward.find(name)
    objective = rewarded(TinyDenoising(), network())
    objective.reward = lambda made, prompts, real: made.mean()
    rng = Rng(0, 0)
    with pytest.raises(RequestError, match=r"shape \[\], not one number for each of 4"):
        objective.loss("network", objective.batch(0, rng, Portion()), rng)


@pytest.fixture
def liked(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    rng = np.random.default_rng(0)
    for side, level in (("winners", 200), ("losers", 40)):
        (folder / side).mkdir(parents=True)
        for name in ("a", "b"):
            frames = np.clip(rng.normal(level, 10, (8, 32, 32, 3)), 0, 255).astype(np.uint8)
            kandinsky.Video(frames, fps=24.0, seed=0).save(folder / side / f"{name}.mp4")
            if side == "winners":
                (folder / side / f"{name}.txt").write_text(f"a lamp {name}")
    return folder


def test_pairs_come_from_a_folder_or_a_list(liked: Path) -> None:
    found = pairs.find(str(liked))
    sides = [(side, name, f"a lamp {name}") for name in ("a", "b") for side in ("winners", "losers")]
    assert [(one.path.parent.name, one.path.stem, one.caption) for one in found] == sides
    listed = liked / "pairs.jsonl"
    row = {"caption": "a lamp a", "winner": "winners/a.mp4", "loser": "losers/a.mp4"}
    line = json.dumps({**row, "caption": "one\u2028two\x85three"}, ensure_ascii=False)  # no ends of lines in JSON
    listed.write_text(line + "\r\n", encoding="utf-8")
    assert pairs.find(str(listed))[0].captions[0].text == "one\u2028two\x85three"
    listed.write_text(json.dumps(row) + "\n\n")
    assert [(one.path, one.captions) for one in pairs.find(str(listed))] == [
        (one.path, one.captions) for one in found[:2]
    ]
    for wrong, said in (
        ({"caption": "x", "winner": "winners/a.mp4"}, "line 1. must hold the texts"),
        (row | {"more": "x"}, "must hold the texts"),
        (row | {"loser": "losers/z.mp4"}, "z.mp4., which is not there"),
        (row | {"loser": "../../etc/passwd"}, "passwd"),
        (row | {"caption": 3}, "must hold the texts"),
    ):
        listed.write_text(json.dumps(wrong))
        with pytest.raises(RequestError, match=said):
            pairs.find(str(listed))
    for contents, said in ((b"", "are empty"), (b"\xff", "UTF-8")):
        listed.write_bytes(contents)
        with pytest.raises(RequestError, match=said):
            pairs.find(str(listed))
    (liked / "losers" / "b.mp4").rename(liked / "losers" / "c.mp4")
    with pytest.raises(RequestError, match=r"b\.mp4` has no loser"):
        pairs.find(str(liked))
    (liked / "winners" / "b.mp4").unlink()
    (liked / "winners" / "b.txt").unlink()
    with pytest.raises(RequestError, match=r"c\.mp4` has no winner"):
        pairs.find(str(liked))


@pytest.mark.parametrize("adapter", ["", "adapter: {rank: 2}\n"])
@pytest.mark.parametrize("kind", ["preference", "reward"])
@pytest.mark.slow
def test_a_shipped_model_is_trained_to_taste(kind: str, adapter: str, liked: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    source = liked if kind == "preference" else liked / "winners"
    more = "reward: likeness\nsteps: 2\nlast: 1\ndecoded: 1\n" if kind == "reward" else "supervised: 0.1\n"
    recipe.write_text(
        f"kind: {kind}\nmodel: nano-t2v\nout: {tmp_path / 'run'}\n{more}{adapter}"
        f"data: {{source: {source}, batch: 1, seconds: 0.4, drop_text: 0}}\n"
        "loop: {steps: 2, lr: 1e-4, warmup: 1, log_every: 1, bf16: false}\n"
    )
    written = run_recipe(recipe)
    assert written.name == ("lora.safetensors" if adapter else "dit.safetensors")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(math.isfinite(line["loss"]) and line["norm"] > 0 for line in lines)
