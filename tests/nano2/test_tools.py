"""The second Nano's tools: what is measured, what is said beside an image, what is told of a prompt."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky.families.nano.scene_encoder import said_beside_image
from kandinsky.families.nano.scene_words import NOTHING, ROLES
from kandinsky.lab.nano.captions import held_colours
from kandinsky.lab.nano2 import make as make_module
from kandinsky.lab.nano2.catalogue import catalogue, toned
from kandinsky.lab.nano2.generate import read_image, told
from kandinsky.lab.nano2.measures import fixed_prompts, scene_groups
from kandinsky.lab.nano2.picture import strips
from kandinsky.lab.nano2.train import STEPS, probe_scenes
from kandinsky.lab.nano2.word_list import read, reader
from kandinsky.train.steady import Steady


def test_measured_scenes_show_colours_no_training_had() -> None:
    groups = scene_groups(24)
    assert set(groups) == {"plain", "motions", "cameras", "counts", "two subjects", "places", "sizes", "tones"}
    for scenes in groups.values():
        for scene in scenes:
            assert scene.colours[0] in held_colours(catalogue()[scene.subjects[0].concept or 0])
    assert groups == scene_groups(24)
    assert all(len({s.concept for s in scene.subjects}) == 2 for scene in groups["two subjects"])
    assert {len(scene.subjects) for scene in groups["counts"]} == {2, 3}
    people = [scene.subjects[0] for scene in groups["tones"]]
    assert {s.tone for s in people} == {1, 2, 3, 4, 5} and all(s.concept in toned() for s in people)
    assert len(probe_scenes(574)) == 24 and probe_scenes(574) == probe_scenes(574)


def test_fixed_prompts_are_48_in_two_languages_and_all_are_read() -> None:
    prompts = fixed_prompts()
    assert len({p["text"] for p in prompts}) == 48 and all(p["names"] for p in prompts)
    assert sum(p["text"].isascii() for p in prompts) == 24
    assert all(read(p["text"]).scene is not None for p in prompts)


def test_an_image_decides_what_words_leave_open() -> None:
    said = said_beside_image(read("a panda jumps"))
    assert said.subjects[0] > 0 and said.words["motion"] > 1
    for role in ("colour", "backdrop", "place", "size", "arrangement"):
        assert said.words[role] == 0, role
    assert said_beside_image(read("qwrtz")) == NOTHING and set(said.words) == set(ROLES)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/guides/first-video.md",
        "docs/guides/ru/first-video.md",
        "src/kandinsky/assets/nano2-t2v/MODEL_CARD.md",
    ],
)
def test_examples_of_the_pages_do_all_that_they_say(page: str) -> None:
    """A motion without the name of a thing moves nothing, beside an image too."""
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"kandinsky generate (?!.* -m (?!nano2-))", line)]
    prompts = [found[1] for line in lines if (found := re.search(r'"([^"]+)"', line))]
    assert any("--image" in line for line in lines) and len(prompts) == len(lines) > 2
    for prompt in prompts:
        understood = read(prompt)
        assert understood.scene is not None and not understood.ignored, prompt


def test_unknown_prompts_name_the_nearest() -> None:
    assert "penguin" in reader().nearest("a pengiun") and len(reader().nearest("a pengiun")) == 3
    assert reader().nearest("zxcvb") == []
    report = told("a green owl", read("a green owl"))
    assert report["subjects"] == ["owl"] and report["ignored"] == ["green"] and "colour" in report["left open"]


def test_images_of_any_shape_become_a_frame(tmp_path: Path) -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = 255  # the middle square
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    frame = read_image(tmp_path / "wide.png")
    assert frame.shape == (1, 192, 192, 3) and float(frame.min()) > 0.9


def test_strips_show_real_clips_above_the_made() -> None:
    clip = np.zeros((25, 16, 16, 3), np.uint8)
    assert strips([clip] * 4, [clip] * 4).size == (3 * 6 * 16, 2 * 2 * 16)


def test_one_command_makes_everything_and_can_be_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages in their order; what was done before is not done again."""
    done: list[str] = []
    broken = ["decoder"]
    taken = [337, STEPS]  # at first it is asked to end

    def train_decoder(data: Path, out: Path, *, steps: int, start: Path | None = None, made: bool = False) -> None:
        if out.name in broken:
            raise KeyboardInterrupt
        assert made == (out.name == "decoder") == (start is not None)
        out.mkdir(parents=True)
        (out / "vae.safetensors").touch()
        done.append(out.name)

    def train(data: Path, out: Path, *, settings: Steady) -> int:
        assert settings.end == STEPS and settings.factor(STEPS - 1) < 0.01
        out.mkdir(parents=True, exist_ok=True)
        done.append(out.name)
        return taken.pop(0)

    def make_tones(data: Path, run: Path) -> None:
        (run / make_module.tones.FILE).touch()
        done.append("tones")

    monkeypatch.setattr(make_module.emoji, "fetch", lambda data: done.append("fetch"))
    monkeypatch.setattr(make_module.emoji, "decode", lambda data, side: done.append(f"decode {side}"))
    monkeypatch.setattr(make_module, "train", train)
    monkeypatch.setattr(make_module, "train_decoder", train_decoder)
    monkeypatch.setattr(make_module.tones, "make", make_tones)
    monkeypatch.setattr(make_module, "Trained", lambda run: run)
    monkeypatch.setattr(make_module, "package", lambda trained, out: {"dit.safetensors": 1})
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_module.make(tmp_path / "data", tmp_path / "run", tmp_path / "out")
    broken.clear()
    assert make_module.make(tmp_path / "data", tmp_path / "run", tmp_path / "out") == {"dit.safetensors": 1}
    data = ["fetch", "decode 160"]
    assert done == [*data, "denoiser", *data, "denoiser", "tones", "decoder-exact", *data, "decoder"]
