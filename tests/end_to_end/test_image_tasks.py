"""Tasks with images, with the real classes at tiny size: image to video, text to image, image editing."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kandinsky
from kandinsky.diffusion.first_frame import normalize_first_frame
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.stages import to_pixels
from kandinsky.errors import RequestError
from kandinsky.media.video import read_video
from kandinsky.model.denoiser import VIDEO
from kandinsky.model.values import Request
from tiny import family

PROMPT = "the cat turns its head"
FolderOf = Callable[[str, str], Path]


def small(pipe: GenerationPipeline) -> GenerationPipeline:
    """Sizes below the official ones, which take a processor seconds."""
    clip = dataclasses.replace(pipe.card.clip, sizes=("64x64", "96x64", "64x96"), default_size="64x64")
    classes = {name: dataclasses.replace(c, area=64 * 96, multiple=16) for name, c in pipe.card.classes.items()}
    pipe.card = dataclasses.replace(pipe.card, clip=clip, classes=classes)
    return pipe


def load(folder: Path) -> GenerationPipeline:
    return small(kandinsky.load(folder, device="cpu"))


@pytest.fixture(scope="module")
def pipes(folder_of: FolderOf) -> dict[str, GenerationPipeline]:
    return {kind: load(folder_of(kind, "official")) for kind in ("i2v", "t2i", "i2i")}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A soft pattern, wider than high."""
    y, x = np.mgrid[0:90, 0:134] / 30
    waves = np.stack([np.sin(x) * np.cos(y), np.sin(x + y), np.cos(2 * x - y)], axis=-1)
    return Image.fromarray((127.5 + 120 * waves).astype(np.uint8))


def resolved(pipe: GenerationPipeline, prompt: str = PROMPT, **changes):
    still = pipe.card.clip.max_seconds == 0
    values = {"steps": 2, "seed": 7} | ({} if still else {"seconds": 0.9}) | changes
    return pipe.resolve(Request(model=pipe.card.id, prompt=prompt, **values))


def latents(pipe: GenerationPipeline, *batch, on_step=None) -> torch.Tensor:
    known = pipe.known(batch)
    text, negative = pipe.encode(batch)
    return pipe.sample(pipe.noise(batch), text, negative, batch[0], known=known, on_step=on_step)


def test_layouts_agree_on_the_task(folder_of: FolderOf) -> None:
    for kind in ("i2v", "t2i", "i2i"):
        for layout in ("official", "diffusers"):
            card = kandinsky.load(folder_of(kind, layout), device="cpu").card
            assert card.task == family.KINDS[kind].task, (kind, layout)


def test_image_to_video_begins_with_the_image(pipes, picture: Image.Image, tmp_path: Path) -> None:
    file = tmp_path / "cat.png"
    picture.save(file)
    pipe = pipes["i2v"]
    video = pipe(PROMPT, image=file, seconds=0.9, steps=2, seed=7)
    # area 64·96 in the picture's own shape, on a grid of 16
    assert video.frames.shape == (21, 64, 96, 3)
    assert video.recipe["image"]["file"] == str(file) and len(video.recipe["image"]["sha256"]) == 64
    assert (video.recipe["image"]["given"], video.recipe["image"]["used"]) == ("134x90", "96x64")
    path = video.save(tmp_path / "cat.mp4")
    assert read_video(path).recipe["image"] == video.recipe["image"]
    assert np.array_equal(pipe(PROMPT, image=picture, seconds=0.9, steps=2, seed=7).frames, video.frames)
    assert not np.array_equal(
        pipe(PROMPT, image=picture.rotate(180), seconds=0.9, steps=2, seed=7).frames, video.frames
    )


def test_first_frame_is_the_image_before_every_step(pipes, picture: Image.Image) -> None:
    """Two guided steps by hand: frame 0 clean, zeros in the condition channels, 1 in the mask of frame 0."""
    pipe = pipes["i2v"]
    job = resolved(pipe, image=picture, guidance=3.0, shift=5.0)
    known = pipe.known([job])
    text, negative = pipe.encode([job])
    x = pipe.noise([job])
    mask = torch.zeros(*x.shape[:-1], 1)
    mask[:, 0] = 1
    with torch.no_grad(), pipe.placement.hold("dit") as dit:
        for t, t_next in ((1.0, 5 / 6), (5 / 6, 0.0)):
            x = known.pin({VIDEO: x})[VIDEO]
            given = torch.cat([x, torch.zeros_like(x), mask], dim=-1)
            time = torch.tensor([t]) * 1000
            v_c, v_u = (dit(given, time, s, rope_scale=(1.0, 2.0, 2.0)) for s in (text, negative))
            x = x + (t_next - t) * (v_u + 3.0 * (v_c - v_u))
    expected = normalize_first_frame(known.pin({VIDEO: x})[VIDEO])
    torch.testing.assert_close(latents(pipe, job), expected, rtol=1e-5, atol=1e-5)


def test_first_frames_are_normalised_by_the_card_alone(pipes, picture: Image.Image) -> None:
    pipe = pipes["i2v"]
    job = resolved(pipe, image=picture)
    assert job.latent.frames == 6 and job.sampling.normalize_first_frame
    image = pipe.known([job]).clean[VIDEO][:, :1]
    plain = dataclasses.replace(job, sampling=dataclasses.replace(job.sampling, normalize_first_frame=False))
    kept = latents(pipe, plain)
    assert torch.equal(kept[:, :1], image)
    torch.testing.assert_close(latents(pipe, job), normalize_first_frame(kept), rtol=0, atol=0)
    assert not torch.equal(kept[:, 0], latents(pipe, job)[:, 0])


@pytest.mark.parametrize("seconds", [0, 0.2, 0.5])
def test_short_clips_from_images_are_finite(pipes, picture: Image.Image, seconds: float) -> None:
    """The official code fails at 0 seconds and gives NaN for 2 to 4 latent frames."""
    pipe = pipes["i2v"]
    job = resolved(pipe, image=picture, seconds=seconds)
    result = latents(pipe, job)
    assert result.shape[1] == {0: 1, 0.2: 2, 0.5: 4}[seconds]
    assert torch.isfinite(result).all() and torch.equal(result[:, :1], pipe.known([job]).clean[VIDEO][:, :1])


def test_seeds_repeat_a_clip_whatever_came_before(pipes, picture: Image.Image) -> None:
    """Officially the image's latent is drawn from the global generator."""
    pipe = pipes["i2v"]
    job = resolved(pipe, image=picture, seconds=0)
    torch.manual_seed(1)
    a = latents(pipe, resolved(pipe, image=picture))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(latents(pipe, resolved(pipe, image=picture)), a)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(pipe.known([job]).clean[VIDEO], pipe.known([job]).clean[VIDEO])


def test_preview_shows_the_image(pipes, picture: Image.Image) -> None:
    pipe = pipes["i2v"]
    job = resolved(pipe, image=picture)
    image, seen = pipe.known([job]).clean[VIDEO][:, :1], []
    latents(pipe, job, on_step=lambda step, total, preview: seen.append(torch.equal(preview[:, :1], image)))
    assert seen == [True, True]


def test_text_of_image_to_video_sees_no_image(pipes, picture: Image.Image) -> None:
    pipe = pipes["i2v"]
    a, b = (pipe.encode([resolved(pipe, image=i)])[0] for i in (picture, picture.rotate(180)))
    assert torch.equal(a.tokens_BLC, b.tokens_BLC)


def test_text_to_image(pipes, tmp_path: Path) -> None:
    pipe = pipes["t2i"]
    still = pipe("a cat", steps=2, seed=7)
    assert still.frames.shape == (1, 64, 64, 3) and still.frames.std() > 1
    assert still.image.size == (64, 64) and len(still.images) == 1
    file = still.save(tmp_path / "cat.png")
    assert np.array_equal(np.asarray(Image.open(file)), still.frames[0])
    assert kandinsky.media.recipe.read(file)["prompt"] == "a cat"
    with pytest.raises(RequestError, match=r"makes images: leave the 5 seconds out"):
        pipe("a cat", seconds=5)
    with pytest.raises(RequestError, match="takes no image"):
        pipe("a cat", image=still.image)


def test_image_latents_are_scaled_and_not_shifted(pipes) -> None:
    """FACTS section 9.2, by Diffusers' class."""
    pipe = pipes["t2i"]
    latent = pipe.noise([resolved(pipe)])
    with torch.no_grad():
        theirs = family.flux().decode(latent[:, 0].permute(0, 3, 1, 2) / 0.3611).sample
    theirs = ((theirs.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.abs(pipe.decode(latent)[:, 0].astype(int) - theirs).max() <= 1


def test_editing_by_hand(pipes, picture: Image.Image) -> None:
    """One guided step: source latent and a channel of ones behind the state."""
    pipe = pipes["i2i"]
    job = resolved(pipe, image=picture, steps=1, guidance=3.5)
    assert (job.shape.width, job.shape.height, job.image.how) == (96, 64, "cover")
    text, negative = pipe.encode([job])
    noise = pipe.noise([job])
    with torch.no_grad():
        pixels = to_pixels(job.image.pixels())[:, 0].permute(0, 3, 1, 2)
        source = family.flux().encode(pixels).latent_dist.mode().permute(0, 2, 3, 1)[:, None] * 0.3611
        x = torch.cat([noise, source, torch.ones_like(source[..., :1])], dim=-1)
        with pipe.placement.hold("dit") as dit:
            v_c, v_u = (dit(x, torch.tensor([1000.0]), s) for s in (text, negative))
    torch.testing.assert_close(latents(pipe, job), noise - (v_u + 3.5 * (v_c - v_u)), rtol=1e-4, atol=1e-4)


def test_editing_text_sees_the_image(pipes, picture: Image.Image) -> None:
    pipe = pipes["i2i"]
    (a, a_negative), (b, _) = (pipe.encode([resolved(pipe, image=i)]) for i in (picture, picture.rotate(180)))
    assert not torch.allclose(a.tokens_BLC, b.tokens_BLC, atol=1e-3)
    assert torch.equal(a.pooled_BC, b.pooled_BC), "CLIP reads the words alone"
    plain, _ = pipe.encode([resolved(pipe)])
    # two image tokens of 48 x 32 pixels and their frame; three of the prompt are cropped with the template
    assert a.tokens_BLC.shape[1] != plain.tokens_BLC.shape[1]
    assert a_negative is not None and a_negative.tokens_BLC.shape[1] < a.tokens_BLC.shape[1]


def test_editing_without_an_image_is_text_to_image(pipes) -> None:
    pipe = pipes["i2i"]
    job = resolved(pipe, steps=1, guidance=1.0)
    text, _ = pipe.encode([job])
    noise = pipe.noise([job])
    with torch.no_grad(), pipe.placement.hold("dit") as dit:
        x = torch.cat([noise, torch.zeros(*noise.shape[:-1], family.CHANNELS + 1)], dim=-1)
        expected = noise - dit(x, torch.tensor([1000.0]), text)
    torch.testing.assert_close(latents(pipe, job), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["i2v", "i2i"])
def test_a_batch_of_images_equals_single_runs(pipes, picture: Image.Image, kind: str) -> None:
    pipe = pipes[kind]
    short = {"seconds": 0.2} if kind == "i2v" else {}
    jobs = [
        resolved(pipe, "a cat", image=picture, **short),
        resolved(pipe, "a very long dog in the snow", image=picture.rotate(180), seed=8, **short),
    ]
    together = latents(pipe, *jobs)
    for one, alone in zip(together, (latents(pipe, job) for job in jobs), strict=True):
        torch.testing.assert_close(one, alone[0], rtol=1e-4, atol=1e-4)
    videos = pipe.run_batch(jobs)
    assert videos[0].recipe["image"]["sha256"] != videos[1].recipe["image"]["sha256"]


def test_a_batch_where_only_some_have_an_image_is_refused(pipes, picture: Image.Image) -> None:
    pipe = pipes["i2i"]
    with pytest.raises(RequestError, match="seed and image only"):
        pipe.run_batch([resolved(pipe, image=picture, width=64, height=64), resolved(pipe)])


def test_both_layouts_give_equal_latents(pipes, folder_of: FolderOf, picture: Image.Image) -> None:
    for kind, image in (("i2v", picture), ("t2i", None), ("i2i", picture)):
        other = load(folder_of(kind, "diffusers"))
        job = resolved(pipes[kind], image=image, guidance=3.0, shift=5.0)
        theirs = dataclasses.replace(job, card=other.card)
        torch.testing.assert_close(latents(other, theirs), latents(pipes[kind], job), rtol=0, atol=0)


def test_offload_changes_nothing(pipes, folder_of: FolderOf, picture: Image.Image) -> None:
    offloaded = small(kandinsky.load(folder_of("i2v", "official"), device="cpu", offload="module"))
    job = resolved(pipes["i2v"], image=picture, seconds=0.2)
    again = dataclasses.replace(job, card=offloaded.card)
    assert torch.equal(latents(offloaded, again), latents(pipes["i2v"], job))
    assert not offloaded.placement._built


def test_bad_images_load_nothing(folder_of: FolderOf, tmp_path: Path, picture: Image.Image) -> None:
    broken, text = tmp_path / "broken.png", tmp_path / "text.png"
    picture.save(broken)
    broken.write_bytes(broken.read_bytes()[:300])
    text.write_text("no picture")
    fresh = load(folder_of("i2v", "official"))
    for image, message in (
        (None, "makes a video from an image, and none was given"),
        (tmp_path / "gone.png", r"image `.*gone\.png` does not exist"),
        (broken, r"image `.*broken\.png` is damaged"),
        (text, r"text\.png` is not an image"),
        (tmp_path, "cannot be read"),
        (7, "`image` must be a path, .* not `7`"),
        (np.zeros((4, 4, 3)), r"array \[4, 4, 3\] of float64"),
    ):
        with pytest.raises(RequestError, match=message):
            fresh(PROMPT, image=image)
    with pytest.raises(RequestError, match="prompt is empty"):
        fresh("", image=picture)
    assert not fresh.placement._built
