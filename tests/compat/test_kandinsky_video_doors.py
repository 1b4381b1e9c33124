"""The calls of the 1.0 and 1.1 documents, over tiny networks in the official files."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kandinsky_video
import video_kandinsky3
from kandinsky.errors import BackendError, RequestError, WeightsError
from tiny import unets as tiny

PROMPT = "a cat in a red hat"
FIRST = ("kandinsky_video.pt", "kandinsky_video_interpolation.pt")
SECOND = ("t2v.pt", "interpolation.pt", "t5_projections.pt", "movq.pt", "video_movq.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("doors") / "all")


@pytest.fixture(autouse=True)
def tiny_cards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder / "cards"))


def same(one: list, other: list) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_1_0_from_single_networks_and_as_one_pipeline(folder: Path) -> None:
    weights = folder / "weights"
    state = torch.random.get_rng_state()
    unet, null, projections = video_kandinsky3.get_T2V_unet("cpu", str(weights / "kandinsky_video.pt"))
    gaps, gaps_null = video_kandinsky3.get_interpolation_unet("cpu", str(weights / "kandinsky_video_interpolation.pt"))
    processor, encoder = video_kandinsky3.get_T5encoder("cpu", str(weights / "flan-ul2"), projections, fp16=False)
    movq = video_kandinsky3.get_movq("cpu", str(weights / "movq.pt"))
    # all positional, as in the first documents
    pipeline = video_kandinsky3.VideoKandinsky3T2VPipeline(
        "cpu", unet, null, gaps, gaps_null, processor, encoder, movq, False
    )
    frames = pipeline(PROMPT, width=128, height=64, fps="medium", steps=2, seed=3)
    assert len(frames) == 13
    assert frames[0].size == (128, 64)
    whole = video_kandinsky3.get_T2V_pipeline("cpu", cache_dir=str(weights))
    assert same(frames, whole(PROMPT, width=128, height=64, fps="medium", steps=2, seed=3))
    # a seed is enough: nothing of the global generator is used or moved
    torch.manual_seed(99)
    assert same(frames[::4], [f for f in whole(PROMPT, width=128, height=64, fps="medium", steps=2, seed=3)][::4])
    torch.random.set_rng_state(state)
    assert not same(frames, whole(PROMPT, "snow", width=128, height=64, fps="medium", steps=2, seed=3))
    assert whole.seed == 3


def test_1_0_networks_without_weights(folder: Path) -> None:
    unet, null, projections = video_kandinsky3.get_T2V_unet("cpu")
    assert isinstance(unet, torch.nn.Module)
    assert (null, projections) == (None, None)
    assert video_kandinsky3.get_interpolation_unet("cpu")[1] is None
    with pytest.raises(RequestError, match="projections_state_dict is missing"):
        video_kandinsky3.get_T5encoder("cpu", "google/flan-ul2")


def test_a_path_of_the_users_own_and_one_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    weights = folder / "weights"
    with pytest.raises(WeightsError, match=r"nowhere\.pt"):
        video_kandinsky3.get_T2V_pipeline("cpu", cache_dir=str(weights), unet_path=str(tmp_path / "nowhere.pt"))
    with pytest.raises(WeightsError, match=r"movq\.pt"):
        video_kandinsky3.get_movq("cpu", str(tmp_path / "movq.pt"))


def hub(folder: Path, target: Path) -> Path:
    """The tiny files as huggingface_hub caches them: snapshots of links to files without names."""
    held = {
        "ai-forever/KandinskyVideo": {f"weights/{name}" for name in (*FIRST, "movq.pt")},
        "ai-forever/KandinskyVideo_1_1": SECOND,
        "google/flan-ul2": {path.name for path in (folder / "weights" / "flan-ul2").iterdir()},
    }
    for number, (repository, names) in enumerate(held.items()):
        root, commit = target / f"models--{repository.replace('/', '--')}", str(number) * 40
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
        (root / "blobs").mkdir()
        for name in names:
            blob = root / "blobs" / f"{abs(hash(name)):x}"
            source = folder / "weights" / ("flan-ul2" if "google" in repository else "") / Path(name).name
            os.link(source, blob)
            link = root / "snapshots" / commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    return target


@pytest.fixture
def official_cards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny networks whose files have the official repositories' names, and two steps."""
    cards = tmp_path / "cards"
    cards.mkdir()
    for model, repo in (("kandinsky-video-1.0", "KandinskyVideo"), ("kandinsky-video-1.1", "KandinskyVideo_1_1")):
        text = (folder / "cards" / f"{model}.toml").read_text()
        before, _, after = text.partition('name = "projection"')
        before = before.replace("nobody/tiny", "google/flan-ul2")
        prefix = "weights/" if model.endswith("1.0") else ""
        after = after.replace("nobody/tiny", f"ai-forever/{repo}").replace('files = ["', f'files = ["{prefix}')
        text = before + 'name = "projection"' + after
        (cards / f"{model}.toml").write_text(text.replace("[clip]", "[sampling]\nsteps = 2\n\n[clip]"))
    monkeypatch.setenv("KANDINSKY_CARDS", str(cards))
    return cards


README_1_0 = """
from video_kandinsky3 import get_T2V_unet, get_interpolation_unet, get_T5encoder, get_movq, VideoKandinsky3T2VPipeline

unet, null_embedding, projections_state_dict = get_T2V_unet('cpu', kandinsky_video.pt, fp16=True)
interpolation_unet, interpolation_null_embedding = get_interpolation_unet('cpu', kandinsky_video_interpolation.pt, fp16=True)
processor, condition_encoders = get_T5encoder('cpu', 'google/flan-ul2', projections_state_dict)
movq = get_movq('cpu', 'movq.pt', fp16=True)

pipeline = VideoKandinsky3T2VPipeline(
    'cpu', unet, null_embedding, interpolation_unet, interpolation_null_embedding, processor,
    condition_encoders, movq, True
)
video = pipeline(
    'a red car is drifting on the mountain road, close view, fast movement',
    width=128, height=64, fps='medium', steps=2
)
"""  # noqa: E501 - to the letter, but for device, size and steps


@pytest.mark.slow
def test_the_example_of_the_1_0_documents(
    folder: Path, tmp_path: Path, official_cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(hub(folder, tmp_path / "hub")))
    monkeypatch.chdir(folder / "weights")
    names: dict[str, Any] = {name.removesuffix(".pt"): SimpleNamespace(pt=name) for name in FIRST}
    exec(README_1_0, names)
    assert [picture.size for picture in names["video"]] == [(128, 64)] * 13
    assert {p.dtype for p in names["unet"].parameters()} == {torch.float16}
    # the encoder in half, its projection whole
    encoder = names["condition_encoders"]
    assert encoder.t5.encoder.shared.weight.dtype is torch.float16
    assert {p.dtype for p in encoder.projection.parameters()} == {torch.float32}


@pytest.mark.slow
def test_the_example_of_the_1_1_documents(
    folder: Path, tmp_path: Path, official_cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(hub(folder, tmp_path / "hub")))
    pipe = kandinsky_video.get_T2V_pipeline("cpu")
    video = pipe(
        "A cat wearing sunglasses and working as a lifeguard at a pool.",
        width=64,
        height=64,
        fps="medium",
        motion="high",
        key_frame_guidance_scale=5.0,
        guidance_weight_prompt=5.0,
        guidance_weight_image=3.0,
    )
    target = tmp_path / "video.gif"
    video[0].save(target, save_all=True, append_images=video[1:], duration=int(5500 / len(video)), loop=0)
    with Image.open(target) as made:
        assert (made.n_frames, made.size) == (13, (64, 64))  # type: ignore[attr-defined]
    # and from a picture of the user's
    video = pipe("A panda eats.", image=video[0], width=128, height=64, fps="low", motion="medium")
    assert [picture.size for picture in video] == [(128, 64)] * 4


@pytest.mark.parametrize("given", [None, "hub cache"])
@pytest.mark.parametrize("package", [video_kandinsky3, kandinsky_video], ids=["1.0", "1.1"])
@pytest.mark.slow
def test_the_temporary_folder_is_left_alone(
    package: Any, given: str | None, folder: Path, tmp_path: Path, official_cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Officially models are cached in, and read from, a folder of the system's temporary one that anybody may write."""
    temporary, files = tmp_path / "temporary", hub(folder, tmp_path / "hub")
    temporary.mkdir()
    # somebody else was there first
    planted = hub(folder, temporary / "kandinsky_video")
    for link in planted.rglob("*.pt"):
        link.unlink()
        link.write_bytes(b"not what you think")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert tempfile.gettempdir() == str(temporary)
    there = {path: path.stat().st_mtime_ns for path in temporary.rglob("*")}
    monkeypatch.setenv("HF_HUB_CACHE", str(files if given is None else tmp_path / "empty"))
    pipe = package.get_T2V_pipeline("cpu", **({} if given is None else {"cache_dir": str(files)}))
    steps = {"steps": 2} if package is video_kandinsky3 else {}
    assert len(pipe(PROMPT, width=64, height=64, seed=3, **steps)) == 4
    assert {path: path.stat().st_mtime_ns for path in temporary.rglob("*")} == there
    assert not (tmp_path / "empty").exists()


def short(pipe: Any) -> Any:
    """Fifty steps are fixed in the official call; a card of its own makes a test short."""
    card = pipe.pipeline.card
    pipe.pipeline.card = dataclasses.replace(card, sampling=dataclasses.replace(card.sampling, steps=2))
    return pipe


@pytest.mark.slow
def test_1_1_with_text_and_with_an_image(folder: Path) -> None:
    pipe = short(kandinsky_video.get_T2V_pipeline("cpu", cache_dir=str(folder / "weights")))
    made = pipe(PROMPT, width=64, height=64, seed=3)
    assert len(made) == 4
    # the default motion is legal, and says nothing
    assert same(made, pipe(PROMPT, width=64, height=64, seed=3, motion="medium"))
    from_image = pipe(PROMPT, image=made[0], width=64, height=64, fps="medium", guidance_weight_image=3.0, seed=3)
    assert len(from_image) == 13
    assert not same(made, pipe(PROMPT, negative_prompt="snow", width=64, height=64, seed=3))
    assert not same(made, pipe(PROMPT, width=64, height=64, seed=3, noise_augmentation=200))
    assert not same(made, pipe(PROMPT, width=64, height=64, seed=3, key_frame_guidance_scale=1.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fps": "fast"}, "fps `fast`"),
        ({"motion": "wild"}, "motion `wild`"),
        ({"width": 100}, "size `100x512`"),
        ({"noise_augmentation": 1000}, "noise_augmentation `1000`"),
        ({"guidance_weight_image": -1}, "image guidance `-1`"),
    ],
)
def test_1_1_refuses_what_the_official_code_takes_for_something_else(
    folder: Path, changes: dict[str, object], said: str
) -> None:
    pipe = kandinsky_video.get_T2V_pipeline("cpu", cache_dir=str(folder / "weights"))
    with pytest.raises(RequestError, match=said):
        pipe(PROMPT, **changes)  # type: ignore[arg-type]


KEYS = ("unet", "interpolation_unet", "text_encoder", "movq")


def single_networks(weights: Path, **encoder: Any) -> Any:
    """The pipeline of 1.1 from what its getters give."""
    here = str(weights)
    unet, null, nothing = kandinsky_video.get_T2V_unet(here, "cpu", tiny.UNET | tiny.KEYFRAMES_1_1)
    # as in configs.json, where the last argument is at its default
    gaps, gaps_null, _ = kandinsky_video.get_interpolation_unet(here, "cpu", configs=tiny.UNET | tiny.GAPS)
    width = {"context_dim": tiny.CONTEXT, "tokens_length": 16}
    processor, t5 = kandinsky_video.get_T5encoder(here, "cpu", str(weights / "flan-ul2"), **(width | encoder))
    movq = kandinsky_video.get_movq(here, "cpu", configs=tiny.MOVQ)
    video_movq = kandinsky_video.get_video_movq(here, torch.device("cpu"), tiny.VIDEO_MOVQ, dtype=torch.float32)
    assert nothing is None
    types = dict.fromkeys(KEYS, torch.float32)
    return short(
        kandinsky_video.KandinskyVideoT2VPipeline(
            dict.fromkeys(KEYS, "cpu"), types, unet, null, gaps, gaps_null, processor, t5, movq, video_movq
        )
    )


@pytest.mark.slow
def test_1_1_from_single_networks_equals_the_one_pipeline(folder: Path) -> None:
    weights = folder / "weights"
    whole = short(kandinsky_video.get_T2V_pipeline("cpu", cache_dir=str(weights)))
    made = whole(PROMPT, width=64, height=64, fps="medium", seed=3)
    assert same(made, single_networks(weights)(PROMPT, width=64, height=64, fps="medium", seed=3))


@pytest.mark.slow
def test_1_1_stage_by_stage_with_one_seed(folder: Path) -> None:
    pipe = short(kandinsky_video.get_T2V_pipeline("cpu", cache_dir=str(folder / "weights")))
    size = {"width": 128, "height": 64, "seed": 3}
    expected = pipe(PROMPT, fps="medium", guidance_weight_image=3.0, **size)
    picture = pipe.generate_key_frame(PROMPT, guidance_scale=5.0, **size)
    assert picture.size == (256, 128)
    latent = pipe.encode_image(picture, 128, 64)
    assert latent.shape == (4, 8, 16)
    assert pipe.decode_image(latent[None]).size == (128, 64)
    latents = pipe.generate_base_frames(PROMPT, key_frame_guidance_scale=5.0, **size)
    assert latents.shape == (4, 4, 8, 16)
    told = {"guidance_scale": 0.5, "prompt": PROMPT, **size}
    latents = pipe.interpolate_base_frames(latents, skip_frames=3, **told)
    assert same(expected, pipe.decode_video(latents))
    # the second pass is told another length of the gaps
    passes = [pipe.interpolate_base_frames(latents[:2], skip_frames=skip, **told) for skip in (3, 1)]
    assert passes[1].shape == (5, 4, 8, 16)
    assert torch.equal(passes[1][::4], latents[:2]) and not torch.allclose(*passes)
    # a picture of the user's in the place of the first
    given = pipe.generate_base_frames(PROMPT, picture, motion="extreme", **size)
    assert not torch.equal(given, pipe.generate_base_frames(PROMPT, picture, motion="low", **size))
    assert pipe.seed == 3


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: p.generate_key_frame(PROMPT, width=100), "size `100x512`"),
        (lambda p: p.generate_key_frame(PROMPT, guidance_scale=-1), "key_frame_guidance_scale `-1` is below 0"),
        (lambda p: p.generate_base_frames(PROMPT, motion="wild"), "motion `wild`"),
        (lambda p: p.interpolate_base_frames(torch.zeros(3, 4, 8, 8), 64, 64, 0.5, 2, PROMPT), "skip_frames `2`"),
        (lambda p: p.interpolate_base_frames(torch.zeros(3, 4, 8, 8), 64, 128, 0.5, 3, PROMPT), "latents of 64x64"),
        (lambda p: p.decode_video(torch.zeros(3, 8, 8, 4)), r"latents are \[frames, 4, rows, columns\]"),
        (lambda p: p.encode_image("nowhere.png", 64, 64), r"nowhere\.png"),
    ],
)
def test_1_1_stages_refuse(folder: Path, call: Any, said: str) -> None:
    pipe = kandinsky_video.get_T2V_pipeline("cpu", cache_dir=str(folder / "weights"))
    with pytest.raises(RequestError, match=said):
        call(pipe)
    assert pipe.pipeline.placement._built == {}


@pytest.mark.parametrize(("option", "error"), [("load_in_8bit", 0.05), ("load_in_4bit", 0.5)])
def test_1_1_with_a_text_encoder_in_few_bits(folder: Path, option: str, error: float) -> None:
    weights, states = folder / "weights", []
    for options in ({}, {option: True}):
        _, encoder = kandinsky_video.get_T5encoder(
            str(weights), "cpu", str(weights / "flan-ul2"), context_dim=tiny.CONTEXT, **options
        )
        states.append(encoder.encode([PROMPT]).tokens_BLC)
    assert 0 < (states[1] - states[0]).norm() / states[0].norm() < error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"load_in_8bit": True, "load_in_4bit": True}, "choose one"),
        ({"low_cpu_mem_usage": False}, "low_cpu_mem_usage=False is not available"),
        ({"context_dim": 4096}, "context_dim `4096` is not the projections': they are 32 wide"),
        ({"context_dim": tiny.CONTEXT, "dtype": "float8"}, "float8"),
    ],
)
def test_1_1_encoders_that_cannot_be(folder: Path, options: dict[str, Any], said: str) -> None:
    weights = folder / "weights"
    with pytest.raises((RequestError, BackendError), match=said):
        kandinsky_video.get_T5encoder(str(weights), "cpu", str(weights / "flan-ul2"), **options)


def test_1_1_obeys_a_configuration_beside_the_files(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "weights").iterdir():
        (tmp_path / file.name).symlink_to(file)
    configs = {
        "t2v": {"configs": tiny.UNET | tiny.KEYFRAMES_1_1},
        "interpolation": {"configs": tiny.UNET | tiny.GAPS},
        "text_encoder": {"weights_path": "google/flan-ul2"},
        "image_movq": {"configs": tiny.MOVQ},
        "video_movq": {"configs": tiny.VIDEO_MOVQ},
    }
    (tmp_path / "configs.json").write_text(json.dumps(configs))
    pipe = kandinsky_video.get_T2V_pipeline("cpu", cache_dir=str(tmp_path))
    assert pipe.pipeline.card.dit.params == configs["t2v"]["configs"]
    configs["t2v"]["configs"] = tiny.UNET | tiny.KEYFRAMES_1_1 | {"wings": 2}
    (tmp_path / "configs.json").write_text(json.dumps(configs))
    with pytest.raises(RequestError, match="unknown U-Net parameter `wings`"):
        kandinsky_video.get_T2V_pipeline("cpu", cache_dir=str(tmp_path))
    (tmp_path / "configs.json").write_text("[")
    with pytest.raises(WeightsError, match=r"configs\.json` is not a configuration"):
        kandinsky_video.get_T2V_pipeline("cpu", cache_dir=str(tmp_path))


def test_1_1_device_map(folder: Path) -> None:
    kandinsky_video.get_T2V_pipeline(dict.fromkeys(KEYS, "cpu"), cache_dir=str(folder / "weights"))
    with pytest.raises(RequestError, match="device_map lacks `movq`"):
        kandinsky_video.get_T2V_pipeline(dict.fromkeys(KEYS[:3], "cpu"))


def test_official_signatures() -> None:
    def names(call: object) -> list[str]:
        return list(inspect.signature(call).parameters)  # type: ignore[arg-type]

    assert names(video_kandinsky3.VideoKandinsky3T2VPipeline) == [
        "device",
        "unet",
        "null_embedding",
        "interpolation_unet",
        "interpolation_null_embedding",
        "t5_processor",
        "t5_encoder",
        "movq",
        "fp16",
    ]
    # the seed is ours, and last
    assert names(video_kandinsky3.VideoKandinsky3T2VPipeline.__call__)[1:] == [
        "text",
        "negative_text",
        "width",
        "height",
        "fps",
        "guidance_scale",
        "interpolation_guidance_scale",
        "steps",
        "seed",
    ]
    assert names(kandinsky_video.KandinskyVideoT2VPipeline.__call__)[1:] == [
        "prompt",
        "negative_prompt",
        "image",
        "width",
        "height",
        "fps",
        "motion",
        "key_frame_guidance_scale",
        "guidance_weight_prompt",
        "guidance_weight_image",
        "interpolation_guidance_scale",
        "noise_augmentation",
        "seed",
    ]
    assert names(kandinsky_video.get_T2V_unet) == ["cache_dir", "device", "configs", "dtype"]
    assert names(kandinsky_video.get_interpolation_unet) == ["cache_dir", "device", "configs", "dtype"]
    assert names(kandinsky_video.get_movq) == ["cache_dir", "device", "configs", "dtype"]
    assert names(kandinsky_video.get_video_movq) == ["cache_dir", "device", "configs", "dtype"]
    assert names(kandinsky_video.get_T5encoder) == [
        "cache_dir",
        "device",
        "weights_path",
        "tokens_length",
        "context_dim",
        "dtype",
        "low_cpu_mem_usage",
        "load_in_8bit",
        "load_in_4bit",
    ]
    assert names(kandinsky_video.KandinskyVideoT2VPipeline) == [
        "device_map",
        "dtype_map",
        "unet",
        "null_embedding",
        "interpolation_unet",
        "interpolation_null_embedding",
        "t5_processor",
        "t5_encoder",
        "movq",
        "video_movq",
    ]
    of = kandinsky_video.KandinskyVideoT2VPipeline
    assert names(of.generate_key_frame)[1:] == ["prompt", "height", "width", "guidance_scale", "seed"]
    assert names(of.interpolate_base_frames)[1:-1] == [
        "base_frames",
        "height",
        "width",
        "guidance_scale",
        "skip_frames",
        "prompt",
    ]
    assert names(of.encode_image)[1:] == ["image", "width", "height"]
