"""The second Nano's tools: what is measured, what is said beside an image, what is told of a prompt."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky.errors import BackendError, RequestError
from kandinsky.families.nano.scene_encoder import said_beside_image
from kandinsky.families.nano.scene_words import NOTHING, ROLES
from kandinsky.lab.nano.captions import held_colours
from kandinsky.lab.nano2.catalogue import catalogue, toned
from kandinsky.lab.nano2.generate import read_image, told
from kandinsky.lab.nano2.make import Stage, carry_out, stages
from kandinsky.lab.nano2.measures import fixed_prompts, scene_groups
from kandinsky.lab.nano2.picture import strips
from kandinsky.lab.nano2.train import probe_scenes
from kandinsky.lab.nano2.word_list import read, reader


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


def writes(name: str, folder: Path, *, needs: tuple[str, ...] = (), says: str = "") -> Stage:
    """A stage that notes its beginning, checks that what it needs is there, and writes its result."""
    there = [str(folder / one) for one in needs]
    code = (
        "import os, pathlib, sys, time\n"
        f"folder, name = pathlib.Path({str(folder)!r}), {name!r}\n"
        f"assert all(map(os.path.exists, {there!r}))\n"
        "(folder / 'began').open('a').write(name + ' ')\n"
        f"{says}\n"
        "(folder / name).touch()\n"
    )
    module = folder / f"stage_{name}.py"
    module.write_text(code)
    return Stage(name, (module.stem,), folder / name, needs)


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules the stages can run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_stages_run_side_by_side_in_order_and_only_once(on_path: Path) -> None:
    """Two that wait for each other's beginning only end where both run at once."""
    meet = "while len((folder / 'began').read_text().split()) < 2: time.sleep(0.01)"
    plan = [
        writes("first", on_path, says=meet),
        writes("third", on_path, needs=("first", "second"), says="print('so it says', flush=True)"),
        writes("second", on_path, says=meet),
    ]
    assert carry_out(plan, on_path, jobs=2).keys() == {"first", "second", "third"}
    assert (on_path / "began").read_text().split()[2:] == ["third"]
    assert "so it says" in (on_path / "third.log").read_text()
    (on_path / "third").unlink()
    assert carry_out(plan, on_path, jobs=1).keys() == {"third"}


def test_a_stage_that_fails_ends_those_beside_it(on_path: Path) -> None:
    wait = "while len((folder / 'began').read_text().split()) < 2: time.sleep(0.01)"
    plan = [
        writes("slow", on_path, says="time.sleep(600)"),
        writes("broken", on_path, says=f"{wait}\nsys.exit('no images')"),
        writes("after", on_path, needs=("broken",)),
    ]
    with pytest.raises(BackendError, match=r"`broken` ended with code 1: see .*broken\.log"):
        carry_out(plan, on_path, jobs=2)
    assert "no images" in (on_path / "broken.log").read_text()
    assert not (on_path / "slow").exists() and not (on_path / "after").exists()
    plan[1] = writes("broken", on_path, says="(folder / name).touch(); os._exit(3)")
    with pytest.raises(BackendError, match="code 3"):
        carry_out(plan[1:], on_path, jobs=1)


def test_stages_that_are_asked_to_end_write_first(on_path: Path) -> None:
    """SIGTERM to the command reaches each of its processes, which is waited for."""
    catch = (
        "import signal\n"
        "def end(number, frame):\n"
        "    time.sleep(0.3); (folder / 'written').touch(); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "(folder / 'ready').touch()\n"
        "time.sleep(600)"
    )
    plan = [writes("long", on_path, says=catch)]

    def ask() -> None:
        while not (on_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    with pytest.raises(KeyboardInterrupt):
        carry_out(plan, on_path, jobs=1)
    assert (on_path / "written").exists() and not (on_path / "long").exists()


def test_the_stages_of_a_release_are_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes these options and then misses the images; none needs a stage that comes after it."""
    plan = stages(tmp_path / "data", tmp_path / "run")
    assert {stage.name for stage in plan} == {"linear", "portraits", "denoiser", "decoder-exact", "decoder", "tones"}
    done: set[str] = set()
    for stage in plan:
        assert done.issuperset(stage.needs)
        done.add(stage.name)
        monkeypatch.setattr(sys, "argv", list(stage.command))
        try:
            with pytest.raises(RequestError, match="data nano --folder"):
                importlib.import_module(stage.command[0]).main()
        finally:
            torch.set_flush_denormal(False)
