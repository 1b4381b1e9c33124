"""The official call: signature, YAML files, results, and clear words for what is not built yet."""

import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from kandinsky import catalogue, get_T2V_pipeline
from kandinsky.compat.kandinsky5 import Kandinsky5T2VPipeline
from kandinsky.errors import BackendError, RequestError, WeightsError
from kandinsky.families.kandinsky5 import official_config
from kandinsky.media.video import read_video
from tiny import family

CALL = {"text": "a cat", "time_length": 0, "width": 512, "height": 512, "num_steps": 1, "seed": 3, "progress": False}
NEGATIVE = (
    "Static, 2D cartoon, cartoon, 2d animation, paintings, images, worst quality, low quality, ugly, deformed, "
    "walking backwards"
)


@pytest.fixture(scope="module")
def pipe(official: Path) -> Kandinsky5T2VPipeline:
    return get_T2V_pipeline("cpu", conf_path=str(official / "config.yaml"))


def quiet(pipe: Kandinsky5T2VPipeline, **changes: Any) -> Any:
    return pipe(**(CALL | {"expand_prompts": False} | changes))


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"}


def test_factory_signature_is_the_official_one() -> None:
    """Order and defaults of kandinsky-5@6e2a805; `resolution`, of the first release, is by name only."""
    expected = {
        "device_map": inspect.Parameter.empty,
        "cache_dir": "./weights/",
        "dit_path": None,
        "text_encoder_path": None,
        "text_encoder2_path": None,
        "vae_path": None,
        "conf_path": None,
        "offload": False,
        "magcache": False,
        "quantized_qwen": False,
        "text_token_padding": True,
        "attention_engine": "auto",
    }
    assert list(defaults(get_T2V_pipeline).items()) == list(expected.items())


def test_call_signature_is_the_official_one() -> None:
    expected = {
        "text": inspect.Parameter.empty,
        "time_length": 5,
        "width": 768,
        "height": 512,
        "seed": None,
        "num_steps": None,
        "guidance_weight": None,
        "scheduler_scale": 10.0,
        "negative_caption": NEGATIVE,
        "expand_prompts": True,
        "save_path": None,
        "progress": True,
    }
    assert list(defaults(Kandinsky5T2VPipeline.__call__).items()) == list(expected.items())


def test_time_length_zero_gives_an_image(pipe: Kandinsky5T2VPipeline, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    images = quiet(pipe, save_path=str(path))
    assert isinstance(images, list) and len(images) == 1 and images[0].size == (512, 512)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(images[0]))


@pytest.mark.slow
def test_video_is_a_uint8_tensor_and_a_file(pipe: Kandinsky5T2VPipeline, tmp_path: Path) -> None:
    path = tmp_path / "cat.mp4"
    frames = quiet(pipe, time_length=1, save_path=[str(path)], guidance_weight=1.0)
    assert frames.shape == (1, 3, 25, 512, 512) and frames.dtype is torch.uint8
    written = read_video(path)
    assert written.fps == 24 and written.frames.shape == (25, 512, 512, 3)
    grey = frames[0].float().mean(dim=0).flatten()
    assert np.corrcoef(grey, written.frames.mean(axis=-1).ravel())[0, 1] > 0.9


def test_defaults_reach_the_sampler(pipe: Kandinsky5T2VPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(resolved: Any, **_: Any) -> None:
        seen.append(resolved)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipe.pipeline, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        pipe("a cat", expand_prompts=False)
    (resolved,) = seen
    assert (resolved.shape.width, resolved.shape.height, resolved.shape.frames) == (768, 512, 121)
    assert (resolved.steps, resolved.guidance, resolved.shift) == (3, 5.0, 10.0)
    assert resolved.negative_prompt == NEGATIVE and 0 <= resolved.seed < 2**32 - 1


def test_seed_is_told_and_repeats(pipe: Kandinsky5T2VPipeline) -> None:
    first = np.asarray(quiet(pipe, seed=None)[0])
    assert pipe.seed is not None
    assert np.array_equal(np.asarray(quiet(pipe, seed=pipe.seed)[0]), first)
    assert not np.array_equal(np.asarray(quiet(pipe, seed=pipe.seed + 1)[0]), first)


def test_unpadded_text_and_offload_give_the_same_picture(official: Path, pipe: Kandinsky5T2VPipeline) -> None:
    conf = str(official / "config.yaml")
    other = get_T2V_pipeline("cpu", conf_path=conf, text_token_padding=False, offload=True, attention_engine="sdpa")
    a, b = (np.asarray(quiet(p)[0]).astype(int) for p in (pipe, other))
    assert np.abs(a - b).max() <= 1


def test_device_map_is_not_changed(official: Path) -> None:
    device_map = {"dit": "cpu", "vae": torch.device("cpu"), "text_embedder": "cpu"}
    before = dict(device_map)
    get_T2V_pipeline(device_map, conf_path=str(official / "config.yaml"))
    assert device_map == before
    with pytest.raises(RequestError, match="device_map lacks `vae`"):
        get_T2V_pipeline({"dit": "cpu", "text_embedder": "cpu"}, conf_path=str(official / "config.yaml"))
    with pytest.raises(RequestError, match="device_map does not know `unet`"):
        get_T2V_pipeline(before | {"unet": "cpu"}, conf_path=str(official / "config.yaml"))


def test_prompts_are_expanded_unless_told_otherwise(pipe: Kandinsky5T2VPipeline, monkeypatch: Any) -> None:
    asked = []

    def written(prompt: str, **how: Any) -> str:
        asked.append((prompt, how["task"], how["seed"]))
        return "a cat, at length"

    with pipe.pipeline.placement.hold("text") as encoder:
        monkeypatch.setattr(encoder, "expand", written)
    long = np.asarray(pipe(**CALL)[0])
    assert asked == [("a cat", "text-to-video", CALL["seed"])]
    assert np.array_equal(np.asarray(quiet(pipe, text="a cat, at length")[0]), long)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"magcache": True}, RequestError, "has no MagCache calibration"),
        ({"attention_engine": "sage"}, BackendError, "sage"),
        ({"attention_engine": "flush"}, RequestError, "attention_engine `flush` is unknown"),
        ({"resolution": 1024}, RequestError, "resolution `1024` is not available"),
        ({"cache_dir": 512}, RequestError, "give `resolution` by name"),
    ],
)
def test_what_is_not_there_is_said(official: Path, options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        get_T2V_pipeline("cpu", conf_path=str(official / "config.yaml"), **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 500}, "size `500x512` is not supported"),
        ({"time_length": 60}, "`60` seconds are not supported"),
        ({"text": ""}, "prompt is empty"),
        ({"save_path": ["a.mp4", "b.mp4"]}, "save_path has 2 entries"),
        ({"save_path": "a.avi"}, "ending `.avi`"),
    ],
)
def test_bad_calls_load_nothing(official: Path, changes: dict[str, Any], message: str) -> None:
    fresh = get_T2V_pipeline("cpu", conf_path=str(official / "config.yaml"))
    with pytest.raises(RequestError, match=message):
        quiet(fresh, **changes)
    assert not fresh.pipeline.placement._built


def test_without_configuration_the_files_are_looked_for_in_cache_dir(official: Path) -> None:
    with pytest.raises(WeightsError, match=r"kandinsky5lite_t2v_sft_5s\.safetensors") as caught:
        get_T2V_pipeline("cpu", cache_dir=str(official / "weights"))
    assert str(official / "weights") in str(caught.value)


def test_paths_replace_files_of_cache_dir(official: Path, tmp_path: Path) -> None:
    dit = official / "weights" / "model" / family.CHECKPOINT
    with pytest.raises(WeightsError, match=f"{family.CHECKPOINT}`: is it another model"):
        get_T2V_pipeline("cpu", cache_dir=str(tmp_path), dit_path=str(dit))


def test_configuration_makes_paths_count_for_nothing(official: Path) -> None:
    get_T2V_pipeline("cpu", conf_path=str(official / "config.yaml"), dit_path="/nowhere", cache_dir="/nowhere")


def official_values(path: str = "x", **model: Any) -> dict[str, Any]:
    return copy.deepcopy(family.official_config(path, **model))


def test_unknown_keys_are_refused() -> None:
    for place, key, message in (
        ((), "metric", "unknown key `metric`, did you mean `metrics`"),
        (("metrics",), "resolutions", "unknown key `metrics.resolutions`"),
        (("model",), "num_step", "unknown key `model.num_step`, did you mean `model.num_steps`"),
        (("model", "text_embedder", "qwen"), "length", "unknown key `model.text_embedder.qwen.length`"),
    ):
        values = official_values()
        table: Any = values
        for name in place:
            table = table[name]
        table[key] = 1
        with pytest.raises(RequestError, match=message):
            official_config.card_of(values, name="t", cards=catalogue.CARDS, bases=[Path()])


def test_missing_keys_are_named() -> None:
    values = official_values()
    del values["model"]["guidance_weight"]
    with pytest.raises(RequestError, match=r"key `model\.guidance_weight` is missing"):
        official_config.card_of(values, name="t", cards=catalogue.CARDS, bases=[Path()])


def test_disagreeing_widths_are_refused() -> None:
    values = official_values(dit_params=family.DIT_PARAMS | {"in_text_dim": 7})
    with pytest.raises(RequestError, match="in_text_dim is 7, but the text encoder's emb_size is 32"):
        official_config.card_of(values, name="t", cards=catalogue.CARDS, bases=[Path()])


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not there"):
        official_config.read(tmp_path / "no.yaml", cards=catalogue.CARDS)
    (tmp_path / "bad.yaml").write_text("a: [1", encoding="utf-8")
    with pytest.raises(RequestError, match="is not valid YAML"):
        official_config.read(tmp_path / "bad.yaml", cards=catalogue.CARDS)
    (tmp_path / "list.yaml").write_text("- 1", encoding="utf-8")
    with pytest.raises(RequestError, match="must be a table"):
        official_config.read(tmp_path / "list.yaml", cards=catalogue.CARDS)


def test_relative_paths_are_looked_for_in_the_working_directory_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "weights" / "model").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    conf = tmp_path / "configs" / "c.yaml"
    conf.write_text(yaml.safe_dump(official_values("./weights")), encoding="utf-8")
    (tmp_path / "run" / "weights" / "model" / family.CHECKPOINT).touch()
    monkeypatch.chdir(tmp_path / "run")
    assert official_config.read(conf, cards=catalogue.CARDS).dit.parts[0].repo == str(
        tmp_path / "run" / "weights" / "model"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "weights").rename(tmp_path / "weights")
    assert official_config.read(conf, cards=catalogue.CARDS).dit.parts[0].repo == str(tmp_path / "weights" / "model")
