"""Whole recipes by two processes: each encodes its share of a folder, and adversarial distillation runs on shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from tiny import catalogue, family
from tiny.nursery import Nursery

HERE = Path(__file__).parent
LOOP = {"steps": 3, "lr": 1e-3, "warmup": 1, "bf16": False, "log_every": 1, "seed": 1}
# only the order of sums differs; see test_scale_processes.py
FIGURES, WEIGHTS = 1e-4, 2e-3
LADD = {
    "kind": "ladd", "guidance": 1.0, "student_steps": {"steps": 4}, "adversarial": {"r1": 0.5},
    "loop": {**LOOP, "optimiser": "sgd", "updates": {"discriminator": {"lr": 1e-2}}},
}  # fmt: skip
SHARDS = {"scale": {"fsdp": 2}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "cards").mkdir()
    family.write_official(folder / "t2v", "t2v")
    kind, base, more = catalogue.KANDINSKY5["tiny-t2v"]
    card = catalogue.card5("tiny-t2v", kind, base, more, folder / "t2v" / "weights")
    (folder / "cards" / "tiny-t2v.toml").write_text(card)
    rng = np.random.default_rng(0)
    for source, broken in (("data", ()), ("broken", (2,))):
        (folder / source).mkdir()
        for number in range(3):
            path = folder / source / f"{number}.png"
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
            if number in broken:
                path.write_bytes(path.read_bytes()[:60])
            path.with_suffix(".txt").write_text(f"a cat {number}")
    return folder


def recipe(models: Path, out: Path, source: str = "data", **more: Any) -> Path:
    values = {
        "kind": "denoiser", "model": "tiny-t2v", "weights": str(models / "t2v" / "weights"), "out": str(out),
        "data": {"source": str(models / source), "size": "64x64", "batch": 2}, "loop": LOOP, **more,
    }  # fmt: skip
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def check_alike(made: Path, alone: Path, file: str) -> None:
    found, expected = (json.loads((one / "steps.json").read_text()) for one in (made, alone))
    assert len(found) == len(expected) == LOOP["steps"]
    for one, other in zip(found, expected, strict=True):
        for name in other:
            if "loss" in name or name in ("real logit", "fake logit", "r1"):
                assert one[name] == pytest.approx(other[name], rel=FIGURES, abs=1e-6), name
    theirs, weights = load_file(alone / file), load_file(made / file)
    far = max(
        float((weights[key] - theirs[key]).abs().max() / theirs[key].abs().max().clamp_min(1e-6)) for key in theirs
    )
    print(file, found[-1], far)
    assert far <= WEIGHTS


def encoded(out: Path, rank: int) -> tuple[int, str]:
    count, said = json.loads((out / f"encoded-{rank}.json").read_text())
    return count, said


@pytest.mark.slow
def test_recipes_by_two_are_those_by_one(models: Path, tmp_path: Path) -> None:
    random, broken = {"start": "random"}, {"source": "broken"}
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "plain": ({}, {}), "ladd": (LADD, SHARDS), "random": (random, SHARDS), "broken": (broken, {}),
    }  # fmt: skip
    one = {name: recipe(models, tmp_path / f"{name} alone", **more) for name, (more, _) in kinds.items()}
    two = [recipe(models, tmp_path / name, **more, **spread) for name, (more, spread) in kinds.items()]
    with Nursery(HERE / "recipe_group.py", KANDINSKY_CARDS=str(models / "cards")) as nursery:
        nursery.start(1, [str(path) for path in one.values()])
        nursery.start(2, [str(path) for path in two])
    for name in one:
        assert encoded(tmp_path / f"{name} alone", 0) == (3, "")
        assert [encoded(tmp_path / name, rank) for rank in (0, 1)] == [(2, ""), (1, "")]
        # also of weights that one of them drew, and of what is left where one cannot read a file
        check_alike(tmp_path / name, tmp_path / f"{name} alone", "dit.safetensors")
        assert not list((tmp_path / name).glob(".start*"))
