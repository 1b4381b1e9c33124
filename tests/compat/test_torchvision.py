"""``read_video`` in the place of torchvision's, which is no more: its results, and where it is put."""

import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky.compat.kandinsky4_v2a import fill_torchvision, read_video
from kandinsky.errors import RequestError
from kandinsky.media.video import write_video
from kandinsky.model.values import Audio, Video


@pytest.fixture
def film(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(0, 255, (10, 3, 4, 3), np.uint8), 16, 1), 16, 2)
    samples = (8000 * np.sin(np.arange(16000) / 20))[:, None].astype(np.int16)
    return write_video(Video(frames, fps=10, seed=0, audio=Audio(samples, 16000)), tmp_path / "film.mp4")


def test_what_it_returns(film: Path) -> None:
    frames, samples, rates = read_video(film)
    assert (frames.dtype, tuple(frames.shape)) == (torch.uint8, (10, 48, 64, 3))
    assert samples.dtype is torch.float32 and samples.shape[0] == 1 and 0.1 < samples.abs().max() <= 1
    assert rates == {"video_fps": 10.0, "audio_fps": 16000}
    again, _, _ = read_video(str(film), 0, None, "sec", "TCHW")
    assert torch.equal(again, frames.permute(0, 3, 1, 2))
    assert torch.equal(read_video(film, end_pts=math.inf)[0], frames)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_pts": 1}, "start_pts and end_pts are not supported"),
        ({"end_pts": 2.5}, "start_pts and end_pts are not supported"),
        ({"pts_unit": "frames"}, "pts_unit `frames` is unknown"),
        ({"output_format": "CTHW"}, "output_format `CTHW` is unknown"),
    ],
)
def test_what_it_refuses(film: Path, options: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_video(film, **options)


def torchvision(**io: object) -> types.ModuleType:
    module = types.ModuleType("torchvision")
    module.io = types.SimpleNamespace(**io)  # type: ignore[attr-defined]
    return module


def test_it_fills_only_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    fill_torchvision()
    assert "torchvision" not in sys.modules, "nothing is imported, nothing pretended"
    new, old = torchvision(), torchvision(read_video=len)
    monkeypatch.setitem(sys.modules, "torchvision", new)
    fill_torchvision()
    assert new.io.read_video is read_video
    monkeypatch.setitem(sys.modules, "torchvision", old)
    fill_torchvision()
    assert old.io.read_video is len
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    fill_torchvision()
    assert not hasattr(sys.modules["torchvision"], "io")


def test_no_module_of_ours_is_called_torchvision() -> None:
    source = Path(__file__).parents[2] / "src"
    assert not (source / "torchvision").exists() and not (source / "torchvision.py").exists()
