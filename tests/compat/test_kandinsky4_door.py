"""The call of the 4.0 documents, and which of two official functions of one name is meant."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from kandinsky import get_T2V_pipeline
from kandinsky.compat.kandinsky4 import Kandinsky4T2VPipeline, get_t2v_flash_pipeline
from kandinsky.compat.kandinsky5 import Kandinsky5T2VPipeline
from kandinsky.errors import RequestError, WeightsError
from kandinsky.media.video import read_video
from tiny import family
from tiny import kandinsky4 as tiny

MAMMOTHS = (
    "Several giant wooly mammoths approach treading through a snowy meadow, their long wooly fur lightly blows in the "
    "wind as they walk, snow covered trees and dramatic snow capped mountains in the distance"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("k4") / "all")


@pytest.fixture(autouse=True)
def in_the_folder(folder: Path, no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user who unpacked the official repository: `./weights/` lies here."""
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder / "cards"))
    monkeypatch.chdir(folder)


@pytest.fixture
def pipe(in_the_folder: None) -> Kandinsky4T2VPipeline:
    made = get_T2V_pipeline({"dit": torch.device("cpu"), "vae": "cpu", "text_embedder": torch.device("cpu")})
    assert isinstance(made, Kandinsky4T2VPipeline)
    return made


def defaults(function: Any) -> dict[str, Any]:
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.name != "self"}


def test_signatures_are_the_official_ones() -> None:
    assert list(defaults(get_t2v_flash_pipeline).items()) == [
        ("device_map", inspect.Parameter.empty),
        ("resolution", 512),
        ("cache_dir", "./weights/"),
        ("dit_path", None),
        ("text_encoder_path", None),
        ("tokenizer_path", None),
        ("vae_path", None),
        ("scheduler_path", None),
        ("conf_path", None),
    ]
    assert list(defaults(Kandinsky4T2VPipeline.__call__).items()) == [
        ("text", inspect.Parameter.empty),
        ("save_path", "./test.mp4"),
        ("bs", 1),
        ("time_length", 12),
        ("width", 512),
        ("height", 512),
        ("seed", None),
        ("return_frames", False),
    ]


def test_the_call_of_the_documents(pipe: Kandinsky4T2VPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stop(resolved: Any, **_: Any) -> None:
        seen.append(resolved)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipe.pipeline, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        pipe(seed=42, time_length=12, width=672, height=384, save_path="./test.mp4", text=MAMMOTHS)
    (one,) = seen
    assert (one.shape.frames, one.shape.height, one.shape.width, one.seed) == (97, 384, 672, 42)
    assert one.latent.as_tuple() == (25, 48, 84, tiny.CHANNELS)
    assert (one.steps, one.guidance, one.prompt) == (4, 1.0, MAMMOTHS)


def test_a_clip_is_written_and_nothing_returned(pipe: Kandinsky4T2VPipeline, tmp_path: Path) -> None:
    path = tmp_path / "test.mp4"
    result = pipe(seed=42, time_length=1, width=64, height=48, save_path=str(path), text="a cat")
    assert result is None and pipe.seed == 42
    written = read_video(path)
    assert written.fps == 8 and written.frames.shape == (9, 48, 64, 3)
    frames = pipe("a cat", time_length=1, width=64, height=48, seed=42, return_frames=True, save_path="nowhere/x.mp4")
    assert frames is not None and len(frames) == 9 and frames[0].size == (64, 48)


def test_zero_seconds_give_one_image(pipe: Kandinsky4T2VPipeline, tmp_path: Path) -> None:
    images = pipe("a cat", save_path=str(tmp_path / "x.mp4"), time_length=0, width=48, height=64)
    assert images is not None and len(images) == 1 and images[0].size == (48, 64)
    assert pipe.seed is not None and 0 <= pipe.seed < 2**63 - 1 and not list(tmp_path.iterdir())
    again = pipe("a cat", time_length=0, width=48, height=64, seed=pipe.seed)
    assert again is not None and np.array_equal(np.asarray(images[0]), np.asarray(again[0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 384, "height": 670}, "size `384x670` is not supported"),
        ({"bs": 2}, "bs `2`"),
        ({"time_length": 64}, "`64` seconds are not supported"),
        ({"time_length": -1}, "`-1` seconds are not supported"),
        ({"text": " "}, "prompt is empty"),
        ({"save_path": "a.avi"}, "ending `.avi`"),
    ],
)
def test_bad_calls_load_nothing(pipe: Kandinsky4T2VPipeline, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**({"text": "a cat", "time_length": 1, "width": 64, "height": 48} | changes))
    assert not pipe.pipeline.placement._built


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"resolution": 512},
        {"cache_dir": 512},
        {"cache_dir": "weights"},
        {"tokenizer_path": "weights/tokenizer"},
        {"dit_path": f"weights/{tiny.CHECKPOINT}"},
        {"scheduler_path": "scheduler"},
    ],
)
def test_without_configuration_it_is_kandinsky_4(options: dict[str, Any], folder: Path) -> None:
    (folder / "scheduler").mkdir(exist_ok=True)
    values = {"_class_name": "CogVideoXDPMScheduler", "snr_shift_scale": 1.0, "prediction_type": "v_prediction"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
    assert isinstance(get_T2V_pipeline("cpu", **options), Kandinsky4T2VPipeline)


def test_what_lies_in_the_folder_can_decide(tmp_path: Path) -> None:
    """An official 5.0 folder is not opened with 4.0; that its one file is no network is said by 5.0's loader."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "kandinsky5lite_t2v_sft_5s.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="kandinsky5lite_t2v_sft_5s"):
        get_T2V_pipeline("cpu", cache_dir=str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"kandinsky4_distil_512\.pt"):
        get_T2V_pipeline("cpu", cache_dir=str(tmp_path / "empty"))


def test_arguments_of_kandinsky_5_mean_kandinsky_5(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="kandinsky5lite_t2v_sft_5s"):
        get_T2V_pipeline("cpu", cache_dir=str(tmp_path), offload=True)
    conf = family.write_official(tmp_path)
    assert isinstance(get_T2V_pipeline("cpu", conf_path=str(conf)), Kandinsky5T2VPipeline)


def conf(folder: Path, **changes: Any) -> str:
    values: dict[str, Any] = {
        "vae": {"checkpoint_path": str(folder / "weights" / "vae")},
        "text_embedder": {
            "emb_size": tiny.WIDTH,
            "tokens_lenght": 16,
            "params": {
                "checkpoint_path": str(folder / "weights" / "text_encoder"),
                "tokenizer_path": str(folder / "weights" / "tokenizer"),
            },
        },
        "dit": {
            "checkpoint_path": str(folder / "weights" / tiny.CHECKPOINT),
            "params": {
                key: value for key, value in tiny.DIT_PARAMS.items() if key not in ("num_groups", "rope_angles")
            },
        },
        "resolution": 512,
    }
    path = folder / "conf.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return str(path)


def test_an_official_configuration(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = get_T2V_pipeline("cpu", conf_path=conf(folder))
    assert isinstance(made, Kandinsky4T2VPipeline)
    assert made.pipeline.card.text.params == {"max_length": 16}
    images = made("a cat", time_length=0, width=64, height=48)
    assert images is not None and images[0].size == (64, 48)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 1024}, "resolution `1024`"),
        ({"cache_dir": 1024}, "resolution `1024`"),
        ({"tokenizer_path": "x", "offload": True}, "`tokenizer_path` is of Kandinsky 4 and `offload` of Kandinsky 5"),
        ({"scheduler_path": "nowhere"}, "scheduler `nowhere` cannot be read"),
        ({"conf_path": "nowhere.yaml"}, "nowhere.yaml"),
        ({"device_map": {"dit": "cpu"}}, "device_map lacks"),
    ],
)
def test_bad_factories(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        get_T2V_pipeline(**({"device_map": "cpu"} | options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 1024}, "resolution `1024`"),
        ({"other": 1}, "unknown key `other`"),
        ({"vae": None}, "no table `vae`"),
    ],
)
def test_bad_configurations(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        get_T2V_pipeline("cpu", conf_path=conf(folder, **changes))


def test_another_schedule_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"prediction_type": "epsilon"}))
    with pytest.raises(RequestError, match="prediction_type"):
        get_T2V_pipeline("cpu", scheduler_path=str(tmp_path))
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"beta_end": 0.02}))
    with pytest.raises(RequestError, match="other betas"):
        get_T2V_pipeline("cpu", scheduler_path=str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"text_embedder": {"params": [1]}},
        {"text_embedder": {"tokens_lenght": "abc"}},
        {"dit": {"params": [1]}},
        {"vae": {"checkpoint_path": 5}},
        {1: 2, "x": 3},
    ],
)
def test_values_of_another_kind_are_one_line(folder: Path, changes: dict[Any, Any]) -> None:
    with pytest.raises((RequestError, WeightsError)):
        get_T2V_pipeline("cpu", conf_path=conf(folder, **{str(k): v for k, v in changes.items() if isinstance(k, str)}))
    path = folder / "whole.yaml"
    path.write_text(yaml.safe_dump({"vae": {}, "text_embedder": {}, "dit": {}} | changes))
    with pytest.raises((RequestError, WeightsError)):
        get_T2V_pipeline("cpu", conf_path=str(path))


@pytest.mark.parametrize("content", ["dit: 1".encode("utf-16"), b"[" * 5000], ids=["encoding", "depth"])
def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "conf.yaml").write_bytes(content)
    with pytest.raises((RequestError, WeightsError)):
        get_T2V_pipeline("cpu", conf_path=str(tmp_path / "conf.yaml"))
