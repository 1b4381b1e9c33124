"""Known frames and sources, with the real classes at tiny size: Kandinsky 5 and 4; refusals; recipes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import kandinsky
from kandinsky import Frames, Source, Video, catalogue
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import RequestError
from kandinsky.media import recipe as recipes
from kandinsky.model.denoiser import VIDEO
from kandinsky.model.values import Request
from tiny import kandinsky4

PROMPT = "a cat in a red hat"
KINDS = ("t2v", "i2v", "k4")


def clip(frames: int, size: tuple[int, int] = (64, 64), fps: float = 24.0, seed: int = 0) -> Video:
    """A soft pattern that moves."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]] / 20
    waves = [np.stack([np.sin(x + t / 4 + seed), np.cos(y - t / 5), np.sin(x * y + seed)], -1) for t in range(frames)]
    return Video((127.5 + 120 * np.stack(waves)).astype(np.uint8), fps)


@pytest.fixture(scope="module")
def pipes(folder_of: Callable[[str, str], Path], tmp_path_factory) -> dict[str, GenerationPipeline]:
    """One of each network, all at 64x64 and 24 frames a second or fewer."""
    made = {kind: kandinsky.load(folder_of(kind, "official"), device="cpu") for kind in ("t2v", "i2v")}
    for pipe in made.values():
        sizes = dataclasses.replace(pipe.card.clip, sizes=("64x64", "96x64", "64x96"), default_size="64x64")
        classes = {name: dataclasses.replace(c, area=64 * 64, multiple=16) for name, c in pipe.card.classes.items()}
        pipe.card = dataclasses.replace(pipe.card, clip=sizes, classes=classes)
    folder = kandinsky4.write(tmp_path_factory.mktemp("k4") / "all")
    card = catalogue.read(folder / "cards" / "tiny.toml")
    card = dataclasses.replace(card, clip=dataclasses.replace(card.clip, sizes=("64x64",), default_size="64x64"))
    made["k4"] = GenerationPipeline(build(card, RunOptions(device="cpu"), root=folder / "weights"))
    return made


def job_of(pipe: GenerationPipeline, **changes: object):
    values = {"seconds": 17 / pipe.card.clip.fps, "steps": 2, "seed": 7, "width": 64, "height": 64} | changes
    return pipe.resolve(Request(model=pipe.card.id, prompt=PROMPT, **values))


def latents(pipe: GenerationPipeline, *batch) -> torch.Tensor:
    text, negative = pipe.encode(batch)
    known, noise, fresh = pipe.known(batch), pipe.noise(batch), pipe.fresh_noise(batch)
    return pipe.sample(noise, text, negative, batch[0], known=known, fresh_NBTHWC=fresh)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_span_is_kept_to_the_last_bit(pipes, kind: str, data: st.DataObject) -> None:
    pipe = pipes[kind]
    start = data.draw(st.integers(0, 16))
    length = data.draw(st.integers(1, 17 - start))
    given_clip = clip(length, fps=pipe.card.clip.fps)
    conditions = [Frames(given_clip, at=start)]
    if kind == "i2v" and start:
        conditions.append(Frames(clip(1, seed=3)[0], at=0))
    try:
        job = job_of(pipe, conditions=conditions, resample=data.draw(st.integers(0, 1)))
    except RequestError as error:
        assert "known" in str(error) or "known frames or a mask" in str(error)
        return
    known = pipe.known([job])
    # an image alone is matched to the frames that follow, as officially
    job = dataclasses.replace(job, sampling=dataclasses.replace(job.sampling, normalize_first_frame=bool(known.follow)))
    result = latents(pipe, job)
    for masks in (known.mask, known.follow):
        for name, mask in masks.items():
            kept = mask.expand_as(result)
            assert torch.equal(result[kept], known.clean[name][kept])
    assert torch.isfinite(result).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_is_encoded_as_the_beginning_of_a_clip_and_a_suffix_with_the_frame_before(pipes, kind: str) -> None:
    pipe = pipes[kind]
    source = clip(17, fps=pipe.card.clip.fps)
    job = job_of(pipe, conditions=[Frames(source, at=0, cut="0:9"), Frames(source, at="end", cut="12:17")])
    known = pipe.known([job])
    with torch.no_grad(), pipe.placement.hold("vae") as vae:
        pixels = torch.from_numpy(source.frames)[None].float() / 127.5 - 1
        before, after = vae.encode(pixels[:, :9]), vae.encode(pixels[:, 12:17])[:, 1:]
    clean = known.clean[VIDEO]
    torch.testing.assert_close(clean[:, :3], before, rtol=0, atol=0)
    torch.testing.assert_close(clean[:, 4:], after, rtol=0, atol=0)
    follow = known.follow[VIDEO][0, :, 0, 0, 0].tolist()
    if kind == "i2v":  # the first frame as it was trained to be given; the rest by replacement
        assert known.mask[VIDEO][0, :, 0, 0, 0].tolist() == [True] + [False] * 4
        assert follow == [False, True, True, False, True]
    else:
        assert not known.mask and follow == [True, True, True, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_retake_and_a_mask_keep_the_rest_of_the_latent(pipes, kind: str) -> None:
    pipe = pipes[kind]
    source = clip(17, fps=pipe.card.clip.fps)
    mask = np.zeros((64, 64), bool)
    mask[16:40, 16:33] = True
    with torch.no_grad(), pipe.placement.hold("vae") as vae:
        clean = vae.encode(torch.from_numpy(source.frames)[None].float() / 127.5 - 1)
    for options in ({"span": "5:9"}, {"mask": mask}, {"mask": mask, "span": "5:9", "strength": 0.7}):
        job = job_of(pipe, video=source, **options)
        result = latents(pipe, job)
        anew = np.ones(result.shape[1:4], bool)
        if "span" in options:
            anew[[0, 1, 3, 4]] = False
        if "mask" in options:
            rows, columns = slice(2, 5), slice(2, 5)
            inside = np.zeros_like(anew)
            inside[:, rows, columns] = True
            anew &= inside
        kept = torch.from_numpy(~anew)
        assert torch.equal(result[0][kept], clean[0][kept])
        assert not torch.equal(result[0][~kept], clean[0][~kept])


def test_the_place_of_a_smaller_source_is_kept_and_the_rest_is_generated(pipes) -> None:
    pipe = pipes["t2v"]
    source = clip(17, size=(32, 32))
    job = job_of(pipe, video=source, place="32x32+16+16")
    kept = job.conditions[0].kept.keep_THW
    expected = np.zeros_like(kept)
    expected[:, 2:6, 2:6] = True
    assert np.array_equal(kept, expected)
    frames = job.conditions[0].data.frames_THWC
    assert np.array_equal(frames[:, 16:48, 16:48], source.frames)
    assert np.array_equal(frames[:, 0, 0], source.frames[:, 0, 0])  # its border goes on, so that no edge is encoded


def test_a_clip_of_masks_chooses_by_frame(pipes) -> None:
    pipe = pipes["t2v"]
    masks = np.zeros((17, 64, 64, 3), np.uint8)
    masks[6, 8:16, 8:16] = 255
    kept = job_of(pipe, video=clip(17), mask=Video(masks, 24.0)).conditions[0].kept.keep_THW
    assert (~kept).sum() == 1 and not kept[2, 1, 1]  # frame 6 is in the group of 5 to 8


def test_an_image_by_either_word_is_the_same_and_other_rates_are_read_at_the_clips(pipes) -> None:
    pipe = pipes["i2v"]
    image = clip(1)[0]
    short, long = (latents(pipe, job_of(pipe, **one)) for one in ({"image": image}, {"conditions": [Frames(image)]}))
    assert torch.equal(short, long)
    slow = clip(9, fps=12.0)
    job = job_of(pipes["t2v"], conditions=[Frames(slow, at=0, cut="0:6")])
    assert job.conditions[0].data.numbers == (0, 0, 1, 1, 2, 2, 3, 3, 4)  # 12 frames at 24 a second, nine whole


def test_a_batch_equals_single_runs_and_other_places_do_not_mix(pipes) -> None:
    pipe = pipes["t2v"]
    a, b = (job_of(pipe, conditions=[Frames(clip(5, seed=s), at="end")], seed=s, resample=1, steps=3) for s in (1, 2))
    both = latents(pipe, a, b)
    assert torch.equal(pipe.known([a, b]).clean[VIDEO][1:], pipe.known([b]).clean[VIDEO])
    torch.testing.assert_close(both[:1], latents(pipe, a), rtol=1e-4, atol=1e-4)
    other = job_of(pipe, conditions=[Frames(clip(5), at=0)], seed=1, resample=1, steps=3)
    with pytest.raises(RequestError, match="one batch"):
        pipe.known([a, other])


def test_recipes_hold_what_was_given_and_their_commands_ask_for_it(pipes, tmp_path: Path) -> None:
    pipe = pipes["t2v"]
    file, end = tmp_path / "a.mp4", tmp_path / "end.png"
    clip(17).save(file)
    Image.fromarray(clip(1)[0]).save(end)
    options = {"seconds": 17 / 24, "steps": 1, "seed": 3, "size": "64x64", "progress": False}
    made = pipe(PROMPT, conditions=[f"{file}[0:5]@0"], last_image=end, resample=1, **options)
    path = made.save(tmp_path / "b.mp4")
    recipe = recipes.read(path)
    assert [one["at"] for one in recipe["conditions"]] == [0, "end"] and recipe["resample"] == 1
    assert recipe["conditions"][0]["cut"] == "0:5" and len(recipe["conditions"][1]["sha256"]) == 64
    told = recipes.command(recipe)
    assert f"--known '{file}[0:5]@0'" in told and f"--known {end}@end" in told and "--resample 1" in told
    changed = pipe(PROMPT, video=file, strength=0.5, span="1:9", **options)
    told = recipes.command(changed.recipe)
    assert f"--video {file}" in told and "--strength 0.5" in told and "--span 1:9" in told


def test_what_cannot_be_is_refused_before_anything_is_loaded(pipes) -> None:
    pipe = pipes["t2v"]
    whole, short, still = clip(17), clip(5), clip(1)[0]
    small = np.ones((32, 32), bool)
    for options, message in (
        ({"conditions": [Frames(short, at=17)]}, "has frames 0 to 16"),
        ({"conditions": [Frames(short, at=-18)]}, "which is frame -1"),
        ({"conditions": [Frames(short, at="5s")]}, "which is frame 120"),
        ({"conditions": [Frames(short, at=14)]}, "ends after 17: use a part of it"),
        ({"conditions": [Frames(whole)]}, "nothing is left to generate"),
        ({"conditions": [Frames(short), Frames(still, at=4)]}, "both to be known"),
        ({"conditions": [Frames(short), Frames(still, at=2)]}, "both to be known"),
        ({"conditions": [Frames(short)], "image": still}, "both to be known"),
        ({"conditions": [Frames(still), Frames(still)]}, "both to be known"),
        ({"conditions": [Frames(short, cut="3:9")]}, "use a part between 0 and 5"),
        ({"conditions": [Frames(still, cut="0:1")]}, "is a still"),
        ({"conditions": [Frames("gone.mp4")]}, "`gone.mp4` does not exist"),
        ({"video": short, "strength": 0.5}, "has 5 frames at 24 a second and the result 17"),
        ({"video": whole}, "was not told how"),
        ({"video": whole, "strength": 1.5}, "above 0, up to 1"),
        ({"video": whole, "mask": small}, "give a mask of the image's size"),
        ({"video": whole, "mask": Video(np.zeros((17, 32, 32, 3), np.uint8), 24.0)}, "masks of its size"),
        ({"video": whole, "mask": np.zeros((64, 64), bool)}, "marks nothing"),
        ({"video": whole, "span": "9:30"}, "use a part between 0 and 17"),
        ({"video": whole, "span": "9:9"}, "not empty"),
        ({"video": whole, "place": "32x32+64+0"}, "lies outside"),
        ({"video": whole, "place": "64x64+0+0"}, "nothing of the source"),
        ({"video": whole, "span": "5:9", "last_image": still}, "is kept: leave one out"),
        ({"video": whole, "strength": 0.5, "conditions": [Source(whole, strength=0.5)]}, "several videos"),
        ({"mask": small}, "none was given"),
        ({"span": "1:2"}, "none was given"),
        ({"strength": 0.5}, "none was given"),
        ({"resample": 2}, "neither is given"),
        ({"resample": 30, "last_image": still}, "from 0 to 20"),
        ({"last_image": still, "resample": 1, "cache": "taylor:interval=2"}, "step caches need every step"),
        ({"video": whole, "strength": 0.5, "cache": "taylor:interval=2"}, "step caches need every step"),
        ({"video": whole, "source_prompt": "a dog", "resample": 1}, "nothing is replaced"),
    ):
        with pytest.raises(RequestError, match=message) as raised:
            job_of(pipe, **options)
        assert "\n" not in str(raised.value), options
    with pytest.raises(RequestError, match="needs a model of flow matching"):
        job_of(pipes["k4"], video=clip(17, fps=pipes["k4"].card.clip.fps), source_prompt="a dog")
    with pytest.raises(RequestError, match="from an image, and none was given"):
        job_of(pipes["i2v"], conditions=[Frames(short, at="end")])
    for model, options, message in (
        ("kandinsky5-lite-i2i", {"last_image": still}, "takes no known frames"),
        ("kandinsky5-lite-t2i", {"conditions": [Frames(still)]}, "takes no known frames"),
        ("kandinsky-video-1.0", {"video": whole, "strength": 0.5}, "takes no video to change"),
        (
            "nano2-t2v",
            {"upscale": 2},
            "takes no video to change: leave `upscale=…` out, or give the finished clip as `video=…` to `nano-t2v`",
        ),
        ("nano-v2a", {"conditions": [Frames(still)], "video": whole}, "makes sound and takes no conditions"),
    ):
        card = catalogue.find(model)
        with pytest.raises(RequestError, match=message):
            card.does.resolve()(Request(model, "any", **options), card, False)


def test_two_prompts_change_a_source_and_the_same_prompt_leaves_it(pipes) -> None:
    pipe = pipes["t2v"]
    source, options = clip(17), {"seconds": 17 / 24, "steps": 3, "seed": 3, "size": "64x64", "progress": False}
    same = pipe(PROMPT, video=source, source_prompt=PROMPT, guidance=1.0, **options)
    with torch.no_grad(), pipe.placement.hold("vae") as vae:
        clean = vae.encode(torch.from_numpy(source.frames)[None].float() / 127.5 - 1)
    assert np.array_equal(same.frames, pipe.decode(clean)[0])
    other = pipe("a dog", video=source, source_prompt=PROMPT, **options)
    assert not np.array_equal(other.frames, same.frames)


def test_a_still_is_changed_by_strength(pipes) -> None:
    pipe = pipes["t2v"]
    image = clip(1)[0]
    made = pipe(PROMPT, conditions=[Source(image, strength=0.4)], steps=2, size="64x64", seed=1, progress=False)
    assert made.frames.shape == (1, 64, 64, 3) and not np.array_equal(made.frames[0], image)
