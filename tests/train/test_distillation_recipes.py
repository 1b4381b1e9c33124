"""The shipped recipes of distillation, run at tiny size: two steps each, with the keys they have at full size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import kandinsky
from kandinsky.errors import RequestError
from kandinsky.train import loop, recipe
from kandinsky.train.recipe import read_recipe, run_recipe
from kandinsky.weights.read import read_state
from tiny import catalogue, family, kandinsky4, unets

RECIPES = Path(kandinsky.__file__).parents[2] / "recipes"
# recipe → tiny model, folder of its weights, size
TINY = {
    "kandinsky5-lite-nocfg": ("tiny-t2v", "t2v", "64x64"),
    "kandinsky5-lite-distil16": ("tiny-t2v", "t2v", "64x64"),
    "kandinsky5-lite-distil16-ladd": ("tiny-t2v", "t2v", "64x64"),
    "kandinsky4-flash": (catalogue.GUIDED4, "k4", "64x48"),
    "kandinsky3.1-flash": ("kandinsky3.0", "unets", "64x64"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teachers, and `cards` that name them."""
    folder = tmp_path_factory.mktemp("teachers")
    cards = folder / "cards"
    cards.mkdir()
    family.write_official(folder / "t2v", "t2v")
    kind, base, more = catalogue.KANDINSKY5["tiny-t2v"]
    (cards / "tiny-t2v.toml").write_text(catalogue.card5("tiny-t2v", kind, base, more, folder / "t2v" / "weights"))
    kandinsky4.write(folder / "k4")
    guided = kandinsky4.CARD.replace(f'id = "{kandinsky4.MODEL}"', f'id = "{catalogue.GUIDED4}"')
    guided += '\n[sampling]\nsampler = "cogvideox-ddim"\nsteps = 6\nguidance = 4.0\n'
    (cards / "guided.toml").write_text(guided)
    unets.write(folder / "unets")
    shutil.copy(folder / "unets" / "cards" / "kandinsky3.0.toml", cards)
    data = folder / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(f"a cat {name}")
    return folder


def shrunk(name: str, models: Path, out: Path, **changes: Any) -> Path:
    """A shipped recipe at tiny size; returns its file."""
    model, place, size = TINY[name]
    values = read_recipe(RECIPES / f"{name}.yaml")
    values |= {"model": model, "weights": str(models / place / "weights"), "out": str(out)}
    values["data"] = {**values["data"], "source": str(models / "data"), "size": size, "batch": 2}
    values["data"].pop("seconds", None)
    values["loop"] = {**values["loop"], "steps": 2, "log_every": 1}
    values["teacher_dtype"] = "float32"
    values.pop("student", None)
    if "steps" in values:
        values["steps"] = {**values["steps"], "levels": [8, 4], "level_steps": 1}
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values | changes))
    return path


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever runs here has the updates that its recipe names before anything is read."""
    told, run, read = list[tuple[str, ...]](), loop.run, recipe.read_settings

    def noted(values: Any, path: Path) -> Any:
        settings = read(values, path)
        told.append(settings.learners)
        return settings

    def checked(objective: Any, *args: Any, **more: Any) -> Any:
        assert tuple(update.name for update in objective.updates) == told[-1]
        return run(objective, *args, **more)

    monkeypatch.setattr(recipe, "read_settings", noted)
    monkeypatch.setattr(loop, "run", checked)
    yield


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TINY)
def test_a_recipe_of_the_family_runs(name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_CARDS", str(models / "cards"))
    written = run_recipe(shrunk(name, models, tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(np.isfinite(list(line.values())).all() for line in lines)
    assert read_state(written)
    if read_recipe(RECIPES / f"{name}.yaml")["kind"] == "ladd":
        assert {"real logit", "fake logit", "accuracy", "collapse", "discriminator loss"} <= set(lines[-1])


@pytest.mark.filterwarnings("ignore")
def test_stages_follow_each_other(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stage begins with the first one's weights; examples may be the teacher's; DMD2 runs from a recipe."""
    monkeypatch.setenv("KANDINSKY_CARDS", str(models / "cards"))
    first = run_recipe(shrunk("kandinsky5-lite-nocfg", models, tmp_path / "first"))
    second = shrunk("kandinsky5-lite-distil16-ladd", models, tmp_path / "second", student=str(first), synthetic=2)
    assert run_recipe(second).is_file()
    values = yaml.safe_load(second.read_text())
    for key in ("adversarial", "synthetic"):
        del values[key]
    values |= {"kind": "dmd2", "out": str(tmp_path / "third"), "student_steps": {"steps": 2}}
    values |= {"matching": {"every": 2, "gan": 0.1}, "guidance": 2.0, "negative_prompt": "grey"}
    values["loop"] = {"steps": 3, "lr": 1e-4, "updates": {"fake": {"lr": 1e-3}}}
    second.write_text(yaml.safe_dump(values))
    assert run_recipe(second).is_file()
    values |= {"kind": "self-forcing", "out": str(tmp_path / "fourth"), "chunks": {"chunk": 1, "context": "frames"}}
    del values["matching"]
    second.write_text(yaml.safe_dump(values))
    assert run_recipe(second).is_file()
    second.write_text(yaml.safe_dump(values | {"start": "random"}))
    with pytest.raises(RequestError, match="random weights teaches nothing"):
        run_recipe(second)


@pytest.mark.parametrize("name", ["nano-nocfg", "nano-flash", "nano-live-start", "nano-live-dmd", "nano-live-forcing"])
def test_nanos_recipes_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parent)
    values = read_recipe(RECIPES / f"{name}.yaml")
    rng = np.random.default_rng(0)
    out = tmp_path / "run"
    out.mkdir()
    frames = 5 if "live" in name else 2
    np.save(out / "latents.npy", rng.standard_normal((6, frames, 4, 4, 48)).astype(np.float16))
    rows = [
        {"concept": i if i < 4 else None, "colour": i, "position": None, "scale": None, "camera": None}
        for i in range(6)
    ]
    (out / "latents.json").write_text(json.dumps(rows))
    values |= {"out": str(out), "stages": [{"until": 1.0, "frames": frames, "batch": 2}]}
    for begin in ("student", "teacher"):
        values.pop(begin, None)
    values["loop"] = {**values["loop"], "steps": 2, "log_every": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    assert read_state(run_recipe(path))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line[next(key for key in ("fake loss", "loss") if key in line)] for line in lines]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)


def test_the_last_level_that_a_training_reaches_is_known() -> None:
    path = RECIPES / "kandinsky5-lite-distil16.yaml"
    values = read_recipe(path)

    def reached(steps: int) -> int:
        settings: Any = recipe.read_settings(values | {"loop": {**values["loop"], "steps": steps}}, path)
        return int(settings.reached)

    assert recipe.read_settings(values, path).reached == 16  # type: ignore[attr-defined]
    assert [reached(steps) for steps in (5, 5000, 5001, 10000, 10001)] == [64, 64, 32, 32, 16]
