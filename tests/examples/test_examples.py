"""Every script and every notebook in `examples/` runs, with nano or with tiny weights."""

import dataclasses
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kandinsky.families.kandinsky5 import official_config
from kandinsky.media import mux
from kandinsky.media import recipe as recipes
from kandinsky.media.video import read_video
from kandinsky.model.card import Card
from kandinsky.weights.lora import write_lora
from tiny import family, kandinsky4, sound, unets
from tiny.loras import lora

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
FolderOf = Callable[[str, str], Path]
FAST = ("--steps", "1")
SHORT = ("--seconds", "0.4", *FAST)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results lie in a folder of the test, and official configurations have sizes a processor makes at once."""

    def small(card: Card) -> Card:
        clip = dataclasses.replace(card.clip, sizes=("64x64", "96x64"), default_size="64x64")
        classes = {name: dataclasses.replace(c, area=64 * 64, multiple=16) for name, c in card.classes.items()}
        return dataclasses.replace(card, clip=clip, classes=classes)

    read = official_config.read
    monkeypatch.setattr(official_config, "read", lambda *a, **k: small(read(*a, **k)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a script as a person does; returns its exit code."""

    def run(name: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def size(file: str) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def config_in(folder: Path) -> str:
    """The one YAML file of a tiny model's folder, as source code."""
    (path,) = folder.glob("*.yaml")
    return repr(str(path))


def cells(notebook: Path, changes: dict[str, str]) -> str:
    """The code of a notebook with its settings changed; each change must be found, once."""
    values = json.loads(notebook.read_text(encoding="utf-8"))
    code = "\n\n".join("".join(cell["source"]) for cell in values["cells"] if cell["cell_type"] == "code")
    for old, new in changes.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


def run_notebook(name: str, changes: dict[str, str]) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(cells(EXAMPLES / name, changes), name, "exec"), scope)
    return scope


def test_text_to_video(script: Callable[..., int]) -> None:
    assert script("text_to_video.py", *SHORT) == 0
    video = read_video(Path("text_to_video.mp4"))
    assert video.frames.shape == (5, 96, 96, 3)
    assert recipes.read(Path("text_to_video.mp4"))["prompt"] == "a panda waves on a blue background"


def test_image_to_video(script: Callable[..., int]) -> None:
    assert script("image_to_video.py", *SHORT) == 0
    assert recipes.read(Path("image_to_video.mp4"))["image"]["file"].endswith("panda.png")


def test_text_to_image(script: Callable[..., int]) -> None:
    assert script("text_to_image.py", *FAST) == 0
    assert size("text_to_image.png") == (96, 96)


def test_edit_image(script: Callable[..., int], folder_of: FolderOf) -> None:
    Image.new("RGB", (90, 70), "red").save("photo.png")
    assert (
        script("edit_image.py", "photo.png", "make it blue", "--model", str(folder_of("i2i", "official")), *FAST) == 0
    )
    assert size("edited.png") in ((64, 64), (96, 64))


def test_a_lora_taught_and_used(script: Callable[..., int]) -> None:
    assert script("teach_lora.py", *FAST) == 0
    assert script("use_lora.py", "--lora", "heart_lora", *SHORT) == 0
    scales = [
        recipes.read(Path(f"lora-{name}.mp4")).get("lora", [{}])[0].get("scale") for name in ("on", "half", "off")
    ]
    assert scales == [1.0, 0.5, None]


def test_notebook_text_to_video(official: Path) -> None:
    scope = run_notebook(
        "text_to_video.ipynb",
        {
            "STEPS = None": "STEPS = 1",
            "SECONDS = 2": "SECONDS = 0.4",
            "CONFIG = None": f"CONFIG = {config_in(official)}",
            '"cuda:0"': '"cpu"',
            '{"time_length": 5, "width": 768, "height": 512}': '{"time_length": 0, "width": 64, "height": 64}',
            "expand_prompts=True": "expand_prompts=False",
        },
    )
    assert scope["video"].frames.shape == (5, 96, 96, 3) and Path("panda.mp4").exists()
    assert size("dragon.png") == (64, 64)


def test_notebook_image_to_video(folder_of: FolderOf) -> None:
    scope = run_notebook(
        "image_to_video.ipynb",
        {
            "STEPS = None": "STEPS = 1",
            "SECONDS = 2": "SECONDS = 0.4",
            "CONFIG = None": f"CONFIG = {config_in(folder_of('i2v', 'official'))}",
            '"cuda:0"': '"cpu"',
            "TIME_LENGTH = 5": "TIME_LENGTH = 0",
        },
    )
    assert scope["video"].recipe["image"]["used"] == "96x96" and Path("moving.mp4").exists()


def test_notebook_images(folder_of: FolderOf) -> None:
    scope = run_notebook(
        "images.ipynb",
        {
            "STEPS = None": "STEPS = 1",
            "EDIT_MODEL = None": f"EDIT_MODEL = {str(folder_of('i2i', 'official'))!r}",
            "\nCONFIG = None": f"\nCONFIG = {config_in(folder_of('t2i', 'official'))}",
            '"cuda:0"': '"cpu"',
            "width=1024": "width=64",
            "height=1024": "height=64",
        },
    )
    assert scope["edited"].image.size == (64, 64) and scope["image"].size == (64, 64)
    assert not np.array_equal(np.asarray(scope["edited"].image), np.asarray(scope["image"]))


def test_notebook_lora(official: Path) -> None:
    import kandinsky

    with kandinsky.load("nano-t2v").placement.hold("dit") as dit:
        write_lora(lora(dit, size=0.05), Path("heart_lora"), style="peft")
    write_lora(lora(family.dit()), Path("camera"))
    scope = run_notebook(
        "lora.ipynb",
        {
            "STEPS = None": "STEPS = 1",
            "SECONDS = 2": "SECONDS = 0.4",
            "CONFIG = None": f"CONFIG = {config_in(official)}",
            '"cuda:0"': '"cpu"',
            "./loras/dolly_in": "camera",
        },
    )
    assert scope["video"].recipe["lora"][0]["scale"] == 0.8 and scope["pipe"].adapters.names == ()
    assert scope["official"].pipeline.adapters.names == ("dolly_in",)


@pytest.fixture
def kandinsky4_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KANDINSKY_CARDS", str(kandinsky4.write(tmp_path / "k4") / "cards"))
    monkeypatch.chdir(tmp_path / "k4")
    return tmp_path / "k4"


def test_notebook_kandinsky4(kandinsky4_folder: Path) -> None:
    scope = run_notebook(
        "kandinsky4_t2v_flash.ipynb",
        {
            "WEIGHTS = None": 'WEIGHTS = "weights"',
            '"cuda:0"': '"cpu"',
            '{"seconds": 12, "width": 672, "height": 384}': '{"seconds": 1, "width": 64, "height": 48}',
        },
    )
    assert scope["video"].frames.shape == (9, 48, 64, 3) and scope["image"].size == (64, 48)
    assert recipes.read(Path("test.mp4"))["seed"] == 42 and Path("mammoths.mp4").exists()


def test_notebook_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = sound.write_official(tmp_path / "kandinsky-4-v2a")
    sound.write_encoder(folder / "encoder")
    scope = run_notebook(
        "kandinsky4_v2a.ipynb",
        {
            "STEPS = None": "STEPS = 2",
            "seconds=2": "seconds=1.5, steps=1",
            "OFFICIAL = None": f"OFFICIAL = {str(folder)!r}",
            '"cuda:0"': '"cpu"',
        },
    )
    assert scope["made"].audio.samples_SC.any() and scope["out"].size == (96, 512)
    assert mux.probe("with_sound.mp4").has_audio and mux.probe("official.mp4").has_audio
    assert Path("sound.flac").stat().st_size > 0


@pytest.fixture
def unets_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny networks, and few steps in the official calls, which have no argument for them."""
    folder = unets.write(tmp_path / "unets")
    for path in (folder / "cards").glob("kandinsky-video-*.toml"):
        path.write_text(path.read_text().replace("[clip]", "[sampling]\nsteps = 2\n\n[clip]"))
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder / "cards"))
    return folder


@pytest.mark.slow
def test_notebook_kandinsky_video(unets_folder: Path) -> None:
    scope = run_notebook(
        "kandinsky_video.ipynb",
        {
            "WEIGHTS = None": f"WEIGHTS = {str(unets_folder / 'weights')!r}",
            '"cuda:0"': '"cpu"',
            "STEPS = None": "STEPS = 2",
            '{"width": 512, "height": 512}': '{"width": 64, "height": 64}',
        },
    )
    assert scope["video"].frames.shape == (13, 64, 64, 3) and len(scope["moving"].frames) == 4
    for file in ("panda.gif", "car.gif"):
        with Image.open(file) as made:
            assert made.size == (64, 64) and made.n_frames == 4  # type: ignore[attr-defined]


def test_notebook_kandinsky3(unets_folder: Path) -> None:
    scope = run_notebook(
        "kandinsky3.ipynb",
        {
            "WEIGHTS = None": f"WEIGHTS = {str(unets_folder / 'weights')!r}",
            '"cuda:0"': '"cpu"',
            "STEPS = None": "STEPS = 2",
            '{"width": 1024, "height": 1024}': '{"width": 128, "height": 64}',
        },
    )
    assert size("flash.png") == size("panda.png") == size("hat.png") == (128, 64)
    assert not np.array_equal(np.asarray(scope["quick"]), np.asarray(scope["image"]))


def test_every_example_is_tested_and_listed() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert len(SCRIPTS) == 6 and len(NOTEBOOKS) == 8
    for path in (*SCRIPTS, *NOTEBOOKS):
        assert f'"{path.name}"' in here and f"`{path.name}`" in page, path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_small_and_carry_no_outputs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    values = json.loads(text)
    assert values["nbformat"] == 4 and len(text) < 10_000
    for cell in values["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)
