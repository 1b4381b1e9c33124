"""Clips made in windows, with the real classes at tiny size: Kandinsky 5 (two layouts) and 4; going on; refusals."""

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import kandinsky
from kandinsky import Frames, Source, Video, catalogue
from kandinsky.engine import long
from kandinsky.engine.build import build
from kandinsky.engine.latents import read_latent
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.plan import plan_resolved
from kandinsky.errors import Cancelled, RequestError
from kandinsky.media import recipe as recipes
from kandinsky.model.values import Request
from tiny import kandinsky4

PROMPT = "a cat in a red hat"
KINDS = ("t2v", "diffusers", "i2v", "k4")
LONGEST = 17  # frames
OPTIONS = {"steps": 1, "seed": 7, "size": "64x64", "progress": False}


@pytest.fixture(scope="module")
def pipes(folder_of: Callable[[str, str], Path], tmp_path_factory) -> dict[str, GenerationPipeline]:
    """One of each network; none makes more than 17 frames at once."""
    where = {"t2v": ("t2v", "official"), "diffusers": ("t2v", "diffusers"), "i2v": ("i2v", "official")}
    made = {kind: kandinsky.load(folder_of(*place), device="cpu") for kind, place in where.items()}
    folder = kandinsky4.write(tmp_path_factory.mktemp("k4") / "all")
    card = catalogue.read(folder / "cards" / "tiny.toml")
    made["k4"] = GenerationPipeline(build(card, RunOptions(device="cpu"), root=folder / "weights"))
    for pipe in made.values():
        clip = pipe.card.clip
        longest = LONGEST / clip.fps
        clip = dataclasses.replace(
            clip, sizes=("64x64",), default_size="64x64", max_seconds=longest, seconds=longest, overlap=None
        )
        classes = {name: dataclasses.replace(c, area=64 * 64, multiple=16) for name, c in pipe.card.classes.items()}
        pipe.card = dataclasses.replace(pipe.card, clip=clip, classes=classes)
    return made


def asked(pipe: GenerationPipeline, frames: int, **changes: object) -> dict[str, object]:
    """Options of a clip of so many frames."""
    image = {"image": pattern(1)[0]} if pipe.card.does.image == "required" else {}
    return {"seconds": frames / pipe.card.clip.fps, **image, **OPTIONS, **changes}


def pattern(frames: int) -> Video:
    y, x = np.mgrid[0:64, 0:64] / 20
    waves = [np.stack([np.sin(x + t / 4), np.cos(y - t / 5), np.sin(x * y)], -1) for t in range(frames)]
    return Video((127.5 + 120 * np.stack(waves)).astype(np.uint8), 24.0)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_carried_on_and_a_run_goes_on_from_those_that_are_kept(pipes, kind: str, tmp_path: Path) -> None:
    pipe, steps = pipes[kind], list[tuple[int, int]]()
    options = asked(pipe, 41, on_step=lambda step, total, preview: steps.append((step, total)))
    whole = pipe(PROMPT, keep_latent=tmp_path / "kept", **options)
    job = pipe.resolve(
        Request(pipe.card.id, PROMPT, **{k: v for k, v in asked(pipe, 41).items() if k in ("seconds", "image")})
    )
    count = len(job.long.windows)
    assert len(whole) == 41 and count > 2 and steps == [(i + 1, count) for i in range(count)]
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == count
    for a, b, window in zip(files[:-1], files[1:], job.long.windows[1:], strict=True):
        before, after = read_latent(a).latents_THWC, read_latent(b).latents_THWC
        shared = window.known - window.start
        assert shared >= 1 and torch.equal(after[1:shared], before[len(before) - shared + 1 :])
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-9])  # broken
    steps.clear()
    again = pipe(PROMPT, keep_latent=tmp_path / "kept", **options)
    assert [step for step, _ in steps] == [2, 3] and np.array_equal(again.frames, whole.frames)
    assert again.recipe == whole.recipe and whole.recipe["overlap"] == round(4 / pipe.card.clip.fps, 6)
    steps.clear()
    other = pipe(
        PROMPT, keep_latent=tmp_path / "kept", **(options | {"seed": 8})
    )  # windows of another clip are not used
    assert len(steps) == count and not np.array_equal(other.frames, whole.frames)


def test_a_window_begins_as_a_clip_does(pipes) -> None:
    pipe, seen = pipes["t2v"], list[torch.Tensor]()
    streams = pipe.stream_batch([pipe.resolve(Request(pipe.card.id, PROMPT, seed=1, steps=1, seconds=25 / 24))])
    carried = long.carried

    def watched(context, window, before):
        seen.append(carried(context, window, before))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long, "carried", watched)
        frames = streams[0].gather().frames
    job = pipe.resolve(Request(pipe.card.id, PROMPT, seed=1, steps=1, seconds=25 / 24))
    second = job.long.windows[1]
    with torch.no_grad(), pipe.placement.hold("vae") as vae:
        still = vae.encode(torch.from_numpy(frames[second.start * 4][None, None]).float() / 127.5 - 1)
    torch.testing.assert_close(seen[0][:, :1], still, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["t2v", "i2v", "k4"])
def test_the_end_of_a_loop_leads_to_its_beginning(pipes, kind: str, tmp_path: Path) -> None:
    pipe = pipes[kind]
    for frames in (17, 33):
        folder = tmp_path / str(frames)
        made = pipe(PROMPT, loop=True, keep_latent=folder, **asked(pipe, frames))
        step, tail = pipe.card.clip.temporal, 0
        values = asked(pipe, frames, loop=True)
        job = pipe.resolve(
            Request(pipe.card.id, PROMPT, **{k: values[k] for k in ("seconds", "image", "loop") if k in values})
        )
        tail = job.long.windows[-1].tail
        assert len(made) == job.shape.frames and tail and made.recipe["loop"] is True
        beginning = torch.from_numpy(np.concatenate([made.frames[:1], made.frames[: tail * step]]))
        with torch.no_grad(), pipe.placement.hold("vae") as vae:
            known = vae.encode(beginning[None].float() / 127.5 - 1)[0, 1:]
        last = read_latent(sorted(folder.iterdir())[-1]).latents_THWC
        torch.testing.assert_close(last[-tail:], known, rtol=0, atol=0)


def test_a_prompt_holds_from_its_time_on_and_fades_in(pipes) -> None:
    pipe = pipes["t2v"]
    options = asked(pipe, 49, steps=2)
    same = pipe([("a cat", 0), ("a cat", "25")], **options)
    other = pipe([("a cat", 0), ("a dog", "25")], **options)
    faded = pipe("a cat", prompt_at=["25 a dog"], fade=1.0, **options)
    assert np.array_equal(same.frames[:25], other.frames[:25])
    assert not np.array_equal(same.frames[25:29], other.frames[25:29])
    assert np.array_equal(other.frames[:25], faded.frames[:25]) and not np.array_equal(other.frames, faded.frames)
    assert faded.recipe["prompt_at"] == [{"prompt": "a dog", "at": "25"}] and faded.recipe["fade"] == 1
    told = recipes.command(faded.recipe)
    assert "--prompt-at '25 a dog'" in told and "--fade 1" in told and "--overlap " in told


def test_known_frames_lie_anywhere_in_a_long_clip(pipes, tmp_path: Path) -> None:
    pipe, clip = pipes["t2v"], pattern(9)
    options = asked(pipe, 41, conditions=[Frames(clip, at=24)], last_image=clip[0])
    pipe(PROMPT, keep_latent=tmp_path / "kept", **options)
    job = pipe.resolve(
        Request(pipe.card.id, PROMPT, **{k: options[k] for k in ("seconds", "conditions", "last_image")})
    )
    latents = torch.zeros(job.latent.as_tuple())
    for file, window in zip(sorted((tmp_path / "kept").iterdir()), job.long.windows, strict=True):
        latents[window.known : window.stop] = read_latent(file).latents_THWC[window.known - window.start :]
    for condition, known in long.stages.encoded_conditions(pipe.context, [job]):
        assert torch.equal(latents[condition.at.start : condition.at.stop], known[0])


def test_cancelling_stops_within_a_window_and_closing_leaves_what_is_finished(pipes, tmp_path: Path) -> None:
    pipe = pipes["t2v"]
    options = asked(pipe, 41, on_step=lambda step, total, preview: step < 2)
    with pytest.raises(Cancelled, match="after step 2 of"):
        pipe(PROMPT, keep_latent=tmp_path / "kept", **options)
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_what_cannot_be_is_refused_before_anything_is_loaded(pipes) -> None:
    pipe = pipes["t2v"]
    still = pattern(1)[0]
    for options, message in (
        ({"seconds": 4000}, "use 0 to 3600"),
        ({"seconds": 5, "overlap": 2}, "overlap `2` s leaves nothing to make in a window of 0.7"),
        ({"seconds": 5, "overlap": 0}, "know nothing of each other"),
        ({"seconds": 5, "overlap": "much"}, "overlap `much` is no time"),
        ({"seconds": 5, "overlap": 0.5, "loop": True}, "that loops: use up to 0.1667"),
        ({"seconds": 0.5, "overlap": 0.1}, "made as a whole: leave it out"),
        ({"seconds": 0.5, "fade": 0.1}, "made as a whole: leave it out"),
        ({"seconds": 5, "fade": 0.1}, "between prompts, and there is one"),
        ({"seconds": 5, "fade": 6, "prompt_at": [("b", 1)]}, "fade `6` is out of range"),
        ({"seconds": 5, "prompt_at": [("b", 6)]}, "outside of a clip of 5.042 s"),
        ({"seconds": 5, "prompt_at": [("b", 1, 3), ("c", 2)]}, "both asked for at 2 s"),
        ({"seconds": 5, "prompt_at": [("b", 1), ("c", 1.05)]}, "holds for less than 4 frames"),
        ({"seconds": 0, "loop": True}, "a still image has no time"),
        ({"seconds": 0.2, "loop": True}, "too short to loop"),
        ({"seconds": 5, "expand": True}, "leave `expand=True` out"),
        ({"seconds": 5, "video": pattern(5), "strength": 0.5}, "cut it into parts"),
        ({"seconds": 5, "conditions": [Source(still, strength=0.5)]}, "cut it into parts"),
    ):
        with pytest.raises(RequestError, match=message) as raised:
            pipe.resolve(Request(pipe.card.id, "any", width=64, height=64, **options))
        assert "\n" not in str(raised.value), options
    with pytest.raises(RequestError, match="give it the time 0"):
        pipe([("a", 1), ("b", 2)], seconds=5)
    for model, options, message in (
        ("kandinsky5-lite-t2i", {"loop": True}, "makes images: leave `loop=True` out"),
        ("kandinsky5-lite-t2i", {"seconds": 9}, "makes images"),
        ("kandinsky-video-1.0", {"seconds": 9}, "the length of `kandinsky-video-1.0` is fixed"),
        ("kandinsky-video-1.0", {"loop": True}, "makes its clips as a whole"),
        ("nano-v2a", {"video": pattern(5), "loop": True}, "makes sound and takes no loop"),
        ("nano-v2a", {"video": pattern(5), "prompt_at": ["1s a"]}, "makes sound and takes no prompt at"),
    ):
        card = catalogue.find(model)
        with pytest.raises(RequestError, match=message):
            card.does.resolve()(Request(model, "any", **options), card, False)


def test_a_plan_of_a_long_clip_has_the_memory_of_one_window_and_the_time_of_all(pipes) -> None:
    card = catalogue.find("kandinsky5-lite-t2v-sft-5s")
    plans = [
        plan_resolved(card.does.resolve()(Request(card.id, "any", seconds=s, seed=0), card, False), memory="24GB")
        for s in (5, 30, 60)
    ]
    assert [one.windows for one in plans] == [1, 8, 15] and [one.frames for one in plans] == [121, 721, 1441]
    assert len({one.peak_device_bytes for one in plans}) == len({one.peak_host_bytes for one in plans}) == 1
    assert plans[2].seconds == pytest.approx(2 * plans[1].seconds, rel=0.1)
    assert plans[2].passes == 15 * plans[0].passes and plans[2].overlap_seconds == pytest.approx(7 / 6)
    with pytest.raises(RequestError, match="made by one process"):
        job = card.does.resolve()(Request(card.id, "any", seconds=60, seed=0), card, False)
        plan_resolved(job, memory="80GB", gpus=4)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_equal_and_memory_does_not_grow(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_long_clips.py")
    done = subprocess.run([sys.executable, script, tmp_path, "2", "7"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(tmp_path)
