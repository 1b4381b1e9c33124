"""Kandinsky 4 from a prompt to frames: real classes at tiny size, the official folder layout, on the processor."""

from __future__ import annotations

import dataclasses
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kandinsky
from kandinsky import catalogue
from kandinsky.diffusion.cogvideox import CogVideoXSchedule
from kandinsky.engine.build import build
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky4.denoiser import DiscreteDenoiser
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D, DiTParams
from kandinsky.model.card import Card
from kandinsky.model.values import Request
from tiny import kandinsky4 as tiny
from tiny.family import randomise

PROMPT = "a cat in a red hat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("k4") / "all")


@pytest.fixture(autouse=True)
def tiny_cards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder / "cards"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> GenerationPipeline:
    card = catalogue.read(folder / "cards" / "tiny.toml")
    return GenerationPipeline(build(card, RunOptions(device="cpu"), root=folder / "weights"))


def request(**changes: object) -> Request:
    return Request(tiny.MODEL, PROMPT, seconds=1, width=64, height=48, seed=3).with_values(**changes)


def latents(pipe: GenerationPipeline, *requests: Request) -> torch.Tensor:
    batch = [pipe.resolve(one) for one in requests]
    text, negative = pipe.encode(batch)
    return pipe.sample(pipe.noise(batch), text, negative, batch[0], fresh_NBTHWC=pipe.fresh_noise(batch))


def test_a_clip_by_name(folder: Path) -> None:
    model = kandinsky.load(tiny.MODEL, weights=folder / "weights", device="cpu")
    seen = []
    video = model(PROMPT, size="64x48", seconds=1, seed=3, on_step=lambda step, total, _: seen.append((step, total)))
    assert video.frames.shape == (9, 48, 64, 3) and video.frames.dtype == np.uint8 and video.fps == 8
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert video.frames.std() > 1 and (video.recipe["steps"], video.recipe["guidance"]) == (4, 1.0)


def test_zero_seconds_are_an_image(pipe: GenerationPipeline) -> None:
    image = pipe(PROMPT, size="48x64", seconds=0, seed=3).frames
    assert image.shape == (1, 64, 48, 3) and image.std() > 1


def test_the_latent_is_the_official_loop_s(pipe: GenerationPipeline) -> None:
    """Written out here: five draws, four calls, the clean estimate re-noised; float64 between the calls."""
    ours = latents(pipe, request())
    with torch.no_grad():
        text, _ = pipe.encode([pipe.resolve(request())])
        generator, table = torch.Generator().manual_seed(3), CogVideoXSchedule().alphas_cumprod
        shape = (3, 6, 8, tiny.CHANNELS)

        def draw() -> torch.Tensor:
            return torch.randn(shape, generator=generator).bfloat16().double()

        image = draw()
        for k in (999, 749, 499, 249):
            x = table[k].sqrt() * image + (1 - table[k]).sqrt() * draw()
            v = tiny.dit()(x.float(), torch.tensor([k]), text, frames=[3])
            image = table[k].sqrt() * x - (1 - table[k]).sqrt() * v.double()
    torch.testing.assert_close(ours[0].double(), image, rtol=1e-3, atol=1e-4)


def test_a_batch_is_its_clips(pipe: GenerationPipeline) -> None:
    one, two = request(), request(seed=9, prompt="snow")
    together = latents(pipe, one, two)
    torch.testing.assert_close(together[:1], latents(pipe, one), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1:], latents(pipe, two), rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_placement_does_not_change_the_latent(pipe: GenerationPipeline, folder: Path) -> None:
    for offload in ("module", "block"):
        away = GenerationPipeline(build(pipe.card, RunOptions(device="cpu", offload=offload), root=folder / "weights"))
        assert torch.equal(latents(away, request()), latents(pipe, request())), offload
    watched = pipe.resolve(request())
    text, negative = pipe.encode([watched])
    told = pipe.sample(
        pipe.noise([watched]), text, negative, watched, fresh_NBTHWC=pipe.fresh_noise([watched]),
        on_step=lambda *_: True,
    )  # fmt: skip
    assert torch.equal(told, latents(pipe, request()))


def test_fresh_noise_is_asked_for(pipe: GenerationPipeline) -> None:
    one = pipe.resolve(request())
    text, negative = pipe.encode([one])
    with pytest.raises(RequestError, match="needs 3 fresh draws"):
        pipe.sample(pipe.noise([one]), text, negative, one)


def undistilled(card: Card) -> Card:
    """The many-step guided model of the documents, as card fields."""
    return dataclasses.replace(
        card, sampling=dataclasses.replace(card.sampling, sampler="cogvideox-ddim", steps=6, guidance=4.0)
    )


def test_many_steps_with_guidance_are_card_fields(pipe: GenerationPipeline, folder: Path) -> None:
    guided = GenerationPipeline(build(undistilled(pipe.card), RunOptions(device="cpu"), root=folder / "weights"))
    calls = []
    one = guided.resolve(request(negative_prompt="snow"))
    assert (one.steps, one.guidance) == (6, 4.0) and guided.fresh_noise([one]) is None
    text, negative = guided.encode([one])
    assert negative is not None
    made = guided.sample(guided.noise([one]), text, negative, one, on_step=lambda step, *_: calls.append(step))
    assert calls == [1, 2, 3, 4, 5, 6] and made.isfinite().all()
    assert (made - latents(guided, request(guidance=1.0))).abs().max() > 1e-3
    # by hand: both passes at each level, then DDIM
    schedule, x = CogVideoXSchedule(), guided.noise([one])
    times = schedule.times(6)
    with torch.no_grad():
        for t, t_next in pairwise(times):
            good, bad = (DiscreteDenoiser(tiny.dit(), states)(x, t) for states in (text, negative))
            v = bad + 4.0 * (good - bad)
            x = schedule.noised(schedule.clean(x, v, t), schedule.noise(x, v, t), t_next)
    torch.testing.assert_close(made, x, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def image_to_video(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> GenerationPipeline:
    """The same family with condition channels and a mask, as card fields, and weights of that shape."""
    card = catalogue.read(folder / "cards" / "tiny.toml")
    params = card.dit.params | {"visual_cond": True}
    root = tmp_path_factory.mktemp("i2v")
    for entry in (folder / "weights").iterdir():
        if entry.name != tiny.CHECKPOINT:
            (root / entry.name).symlink_to(entry)
    torch.save(randomise(DiffusionTransformer3D(DiTParams.from_dict(params))).state_dict(), root / tiny.CHECKPOINT)
    card = dataclasses.replace(card, task="image-to-video", dit=dataclasses.replace(card.dit, params=params))
    return GenerationPipeline(build(card, RunOptions(device="cpu"), root=root))


def test_image_to_video_keeps_the_first_frame(image_to_video: GenerationPipeline) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    one = image_to_video.resolve(Request(tiny.MODEL, PROMPT, seconds=1, seed=3, image=image))
    given = image_to_video.known([one])
    text, negative = image_to_video.encode([one])
    fresh = image_to_video.fresh_noise([one])
    made = image_to_video.sample(image_to_video.noise([one]), text, negative, one, known=given, fresh_NBTHWC=fresh)
    assert given.clean["video"].shape == (1, 3, 6, 8, tiny.CHANNELS)
    torch.testing.assert_close(made[:, :1], given.clean["video"][:, :1])
    other = image_to_video.sample(
        image_to_video.noise([one]),
        text,
        negative,
        one,
        known=given.over(lambda x: x + 1 if x.is_floating_point() else x),
        fresh_NBTHWC=fresh,
    )
    assert (made[:, 1:] - other[:, 1:]).abs().max() > 1e-4
    assert image_to_video.run(one).frames.shape == (9, 48, 64, 3)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("sprung"),))  # type: ignore[return-value]


def test_no_pickle_is_executed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    card = catalogue.find(tiny.MODEL)
    root = damaged(folder, tmp_path)
    torch.save({"time_embeddings.in_layer.weight": Trap()}, root / tiny.CHECKPOINT)
    with pytest.raises(WeightsError, match="holds more than tensors"):
        GenerationPipeline(build(card, RunOptions(device="cpu"), root=root))
    (root / tiny.CHECKPOINT).write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(WeightsError):
        GenerationPipeline(build(card, RunOptions(device="cpu"), root=root))
    assert not (tmp_path / "sprung").exists()


def damaged(folder: Path, tmp_path: Path) -> Path:
    """The weights' folder again, with the place of the transformer free."""
    root = tmp_path / "weights"
    root.mkdir()
    for entry in (folder / "weights").iterdir():
        if entry.name != tiny.CHECKPOINT:
            (root / entry.name).symlink_to(entry)
    return root


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state | {"out_layer.norm.bias": torch.zeros(3)}, r"`out_layer\.norm\.bias`.*has shape \[3\]"),
        (lambda state: state | {"extra": torch.zeros(3)}, "`extra` belongs to no part"),
        (
            lambda state: {k: v for k, v in state.items() if k != "out_layer.norm.bias"},
            r"out_layer\.norm\.bias` is mis",
        ),
    ],
)
def test_a_wrong_checkpoint_is_refused_before_it_is_read(folder: Path, tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    root = damaged(folder, tmp_path)
    torch.save(damage(tiny.dit().state_dict()), root / tiny.CHECKPOINT)
    with pytest.raises(WeightsError, match=message):
        GenerationPipeline(build(catalogue.find(tiny.MODEL), RunOptions(device="cpu"), root=root))


def test_a_truncated_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    root = damaged(folder, tmp_path)
    data = (folder / "weights" / tiny.CHECKPOINT).read_bytes()
    (root / tiny.CHECKPOINT).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=r"kandinsky4_distil_512\.pt` is damaged"):
        GenerationPipeline(build(catalogue.find(tiny.MODEL), RunOptions(device="cpu"), root=root))


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"width": 384, "height": 670}, "size `384x670` is not supported", "384x672"),
        ({"width": 720, "height": 400}, "size `720x400` is not supported", "672x384"),
        ({"seconds": 4000}, "`4000` seconds are not supported .* use 0 to 3600", None),
        ({"seconds": -1}, "`-1` seconds are not supported", None),
        ({"seconds": 0.5}, "too short", None),
        ({"steps": 0}, "steps `0` are not supported", None),
    ],
)
def test_bad_requests(pipe: GenerationPipeline, changes: dict[str, object], message: str, hint: str | None) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        pipe.resolve(request(**changes))
    if hint:
        assert caught.value.hint is not None and hint in caught.value.hint


@pytest.mark.parametrize(("seconds", "frames"), [(0, 1), (1, 9), (2.9, 17), (5, 41), (12, 97)])
def test_lengths_are_whole_seconds(pipe: GenerationPipeline, seconds: float, frames: int) -> None:
    one = pipe.resolve(request(seconds=seconds))
    assert (one.shape.frames, one.latent.frames % 2) == (frames, 1)
