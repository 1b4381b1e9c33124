"""The official doors for images: signatures, results, and faults of the official code that are gone."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kandinsky
from kandinsky.compat import kandinsky5
from kandinsky.errors import BackendError, RequestError, WeightsError
from kandinsky.families.kandinsky5 import official_config
from kandinsky.model.card import SizeClass
from tiny import family

FolderOf = Callable[[str, str], Path]
DOORS = {"i2v": kandinsky.get_I2V_pipeline, "t2i": kandinsky.get_T2I_pipeline, "i2i": kandinsky.get_I2I_pipeline}
PATHS = dict.fromkeys(("dit_path", "text_encoder_path", "text_encoder2_path", "vae_path", "conf_path"))
FACTORY = {"cache_dir": "./weights/"} | PATHS | {"offload": False, "magcache": False, "quantized_qwen": False}
FACTORY |= {"text_token_padding": True, "attention_engine": "auto"}
NEGATIVE = official_config.VIDEO_NEGATIVE_PROMPT
COMMON: dict[str, Any] = {"seed": None, "num_steps": None, "guidance_weight": None}
END = {"expand_prompts": True, "save_path": None, "progress": True}
REQUIRED = inspect.Parameter.empty
CALLS: dict[str, dict[str, Any]] = {
    "i2v": {"text": REQUIRED, "image": REQUIRED, "time_length": 5}
    | COMMON
    | {"scheduler_scale": 10.0, "negative_caption": NEGATIVE}
    | END,
    "t2i": {"text": REQUIRED, "width": 1024, "height": 1024}
    | COMMON
    | {"scheduler_scale": 3.0, "negative_caption": ""}
    | END,
    "i2i": {"text": REQUIRED, "width": None, "height": None}
    | COMMON
    | {"scheduler_scale": 3.0, "negative_caption": ""}
    | END
    | {"image": None},
}
QUIET = {"num_steps": 1, "seed": 3, "progress": False, "expand_prompts": False}


def defaults(function: Any) -> list[tuple[str, Any]]:
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values() if p.name != "self"]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x % 256, y % 256, (x * y) % 256], axis=-1).astype(np.uint8)).convert(mode)


@pytest.fixture(scope="module")
def doors(folder_of: FolderOf) -> Callable[..., Any]:
    """Opens a door onto the tiny family, at sizes a processor can do."""

    def opened(kind: str, **options: Any) -> Any:
        conf = folder_of(kind, "official") / f"{family.KINDS[kind].config}.yaml"
        return DOORS[kind]("cpu", conf_path=str(conf), **options)

    return opened


def small(pipe: Any) -> Any:
    """An area that a processor fills in no time."""
    card = pipe.pipeline.card
    classes = {name: SizeClass(area=64 * 96, multiple=16) for name in card.classes}
    pipe.pipeline.card = dataclasses.replace(card, classes=classes)
    return pipe


@pytest.mark.parametrize("kind", DOORS)
def test_signatures_are_the_official_ones(kind: str) -> None:
    resolution = {} if kind == "i2v" else {"resolution": 1024}
    assert defaults(DOORS[kind]) == list(({"device_map": REQUIRED} | resolution | FACTORY).items())
    pipeline = getattr(kandinsky5, f"Kandinsky5{kind.upper()}Pipeline")
    assert defaults(pipeline.__call__) == list(CALLS[kind].items())


@pytest.mark.parametrize("kind", DOORS)
def test_defaults_reach_the_sampler(doors: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = doors(kind)
    seen: list[Any] = []

    def stop(resolved: Any, **_: Any) -> None:
        seen.append(resolved)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipe.pipeline, "run", stop)
    image = {} if kind == "t2i" else {"image": picture(300, 210)}
    with pytest.raises(KeyboardInterrupt):
        pipe("a cat", expand_prompts=False, **image)
    (job,) = seen
    size = (job.shape.width, job.shape.height, job.shape.frames)
    assert size == {"i2v": (752, 528, 121), "t2i": (1024, 1024, 1), "i2i": (1152, 896, 1)}[kind]
    assert (job.shift, job.guidance, job.steps) == ((10.0, 5.0, 3) if kind == "i2v" else (3.0, 3.5, 3))
    assert job.negative_prompt == CALLS[kind]["negative_caption"]
    assert 0 <= job.seed < 2**32 - 1


def test_zero_seconds_from_an_image_work(doors: Any, tmp_path: Path) -> None:
    """Officially the normalisation of a single frame returns a tuple, which cannot be decoded."""
    pipe, path = small(doors("i2v")), tmp_path / "cat.png"
    result = pipe("a cat", picture(120, 80), time_length=0, save_path=str(path), **QUIET)
    assert isinstance(result, list) and len(result) == 1 and result[0].size == (96, 64)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(result[0]))


@pytest.mark.parametrize("mode", ["RGBA", "P", "L"])
def test_any_mode_as_path_and_as_object(doors: Any, tmp_path: Path, mode: str) -> None:
    """Officially editing converts neither, image to video paths alone."""
    image, path = picture(64, 64, mode), tmp_path / f"{mode}.png"
    image.save(path)
    for kind in ("i2v", "i2i"):
        pipeline = doors(kind).pipeline
        for given in (image, str(path)):
            job = pipeline.resolve(kandinsky.Request(pipeline.card.id, "a cat", image=given, seed=1))
            assert job.image.pixels().mode == "RGB"


def test_clips_are_tensors(doors: Any) -> None:
    pipe = small(doors("i2v"))
    frames = pipe("a cat", picture(120, 80), time_length=1, **QUIET)
    assert frames.shape == (1, 3, 25, 64, 96) and frames.dtype is torch.uint8
    assert torch.equal(pipe("a cat", picture(120, 80), time_length=1, **QUIET), frames), "a seed repeats"


def test_sizes_off_the_list_are_refused(doors: Any) -> None:
    """1408 is on it (the official command line lacks it)."""
    t2i, i2i = doors("t2i"), doors("i2i")
    for pipe in (t2i, i2i):
        with pytest.raises(RequestError, match=r"size `500x500` is not supported .*`1408x640`"):
            pipe("a cat", width=500, height=500, **QUIET)
    with pytest.raises(RequestError, match="only the width was given"):
        i2i("a cat", width=1024, image=picture(64, 64), **QUIET)
    job = t2i.pipeline.resolve(kandinsky.Request("t2i", "a cat", width=1408, height=640, seed=1))
    assert (job.latent.width, job.latent.height) == (176, 80)
    for pipe in (t2i, i2i):
        assert not pipe.pipeline.placement._built


def test_image_doors_know_one_resolution(doors: Any) -> None:
    for kind in ("t2i", "i2i"):
        with pytest.raises(RequestError, match="resolution `512` is not available for images"):
            doors(kind, resolution=512)


def test_a_missing_image_is_one_line(doors: Any) -> None:
    with pytest.raises(RequestError, match="from an image, and none was given"):
        doors("i2v")("a cat", None, **QUIET)


def test_the_yaml_file_of_another_model_is_refused(folder_of: FolderOf) -> None:
    conf = folder_of("t2i", "official") / "k5_tiny_t2i.yaml"
    with pytest.raises(RequestError, match=r"is for image-to-video, which needs model\.vae\.name `hunyuan`"):
        kandinsky.get_I2V_pipeline("cpu", conf_path=str(conf))


@pytest.mark.parametrize(
    ("kind", "file"),
    [("i2v", "kandinsky5lite_i2v_5s"), ("t2i", "kandinsky5lite_t2i"), ("i2i", "kandinsky5lite_i2i")],
)
def test_without_configuration_the_right_file_is_looked_for(kind: str, file: str, tmp_path: Path) -> None:
    """Officially image to video looks for a file that no repository has."""
    with pytest.raises(WeightsError, match=rf"{file}\.safetensors"):
        DOORS[kind]("cpu", cache_dir=str(tmp_path))


def test_unknown_and_absent_engines(doors: Any) -> None:
    with pytest.raises(RequestError, match="attention_engine `magic` is unknown"):
        doors("i2v", attention_engine="magic")
    with pytest.raises(BackendError, match="sage"):
        doors("i2i", attention_engine="sage")
    with pytest.raises(RequestError, match="has no MagCache calibration"):
        doors("i2v", magcache=True)
