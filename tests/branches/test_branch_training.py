"""Branches trained by recipes of kind `denoiser`, at tiny size: data, loop, file, generation, command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import kandinsky
from kandinsky.errors import KandinskyError
from kandinsky.train.recipe import check_recipe, run_recipe
from kandinsky.weights.branch_files import read_branch
from kandinsky.weights.read import read_state

SIDE = 64


def picture(seed: int) -> np.ndarray:
    few = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return few.repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)


def images(folder: Path, *, captions: bool = True, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        Image.fromarray(picture(seed + number)).save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(f"squares {number}")
    return folder


def recipe(tmp_path: Path, source: Path, **more: Any) -> Path:
    values = {
        "kind": "denoiser", "model": "nano-t2v", "out": str(tmp_path / "out"),
        "data": {"source": str(source), "batch": 2},
        "branch": {"kind": "control", "blocks": 1, "dtype": "float32"},
        "loop": {"steps": 3, "lr": 1e-2, "warmup": 0, "bf16": False, "seed": 1},
        **more,
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def nano_control(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A control branch of Nano after some steps on two stills, and the losses."""
    folder = tmp_path_factory.mktemp("nano")
    losses: list[float] = []
    loop = {"steps": 8, "lr": 5e-3, "warmup": 0, "bf16": False, "seed": 1}
    path = recipe(folder, images(folder / "data"), loop=loop, times={"kind": "points", "points": [0.9]})
    return run_recipe(path, on_log=lambda line: losses.append(line["loss"])), losses


def test_a_control_branch_learns_and_its_file_is_used(nano_control, tmp_path: Path) -> None:
    file, losses = nano_control
    assert file.name == "control.safetensors" and np.mean(losses[-3:]) < 0.9 * np.mean(losses[:2])
    found = read_branch(file)
    assert (found.kind, found.signal, found.model, found.params) == ("control", "edges", "nano-t2v", {"blocks": 1})
    state = read_state(file)
    assert not any("branch" in name for name in state) and state["joins.0.weight"].abs().max() > 0
    pipe = kandinsky.load("nano-t2v", device="cpu")
    options: dict[str, Any] = {"seconds": 0, "steps": 2, "seed": 3, "guidance": 1, "progress": False}
    plain = pipe("squares", **options)
    followed = pipe("squares", control=picture(0), branch=file, **options)
    assert np.abs(followed.frames.astype(int) - plain.frames).mean() > 1
    # the network of image-to-video is the same one
    other = kandinsky.load("nano-i2v", device="cpu")
    other.load_branch(file)
    image = Image.fromarray(picture(1))
    assert other("squares", image=image, control=picture(0), seconds=0.4, steps=1, progress=False).frames.shape[0] == 5


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    source = images(tmp_path / "data")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loop = {"steps": 2, "lr": 1e-3, "decay": 0, "warmup": 0, "bf16": False}
    path = recipe(tmp_path, source, loop=loop)
    run_recipe(path, out=whole)
    run_recipe(path, out=parts, steps=1)
    run_recipe(path, out=parts)
    a, b = read_state(whole / "control.safetensors"), read_state(parts / "control.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("is_pair", [False, True])
def test_a_reference_branch_is_trained_from_pairs_or_from_the_clips_themselves(tmp_path: Path, is_pair: bool) -> None:
    source = images(tmp_path / "data" / "clips").parent if is_pair else images(tmp_path / "data")
    if is_pair:
        images(source / "references", captions=False, seed=5)
    branch = {"kind": "reference", "width": 32, "first": 2, "dtype": "int5" if is_pair else "int8", "rotary": is_pair}
    path = recipe(tmp_path, source, branch=branch)
    file = run_recipe(path, steps=1)
    found = read_branch(file)
    assert (found.kind, found.signal, found.features) == ("reference", "", "vae")
    matrices = [tensor.numel() for tensor in read_state(file).values() if tensor.ndim == 2]
    assert 0.9 * sum(matrices) < found.numbers < 1.1 * sum(matrices)  # not the bytes that hold them
    pipe = kandinsky.load("nano-t2v", device="cpu")
    made = pipe("squares", reference=picture(0), branch=file, seconds=0, steps=1, progress=False)
    assert made.recipe["conditions"][0]["reference"] is True


def test_given_signals_lie_beside_the_clips(tmp_path: Path) -> None:
    source = images(tmp_path / "data" / "clips").parent
    images(source / "controls", captions=False, seed=7)
    branch = {"kind": "control", "signal": "depth", "blocks": 1}
    path = recipe(tmp_path, source, branch=branch)
    file = run_recipe(path, steps=1)
    assert read_branch(file).signal == "depth"
    pipe = kandinsky.load("nano-t2v", device="cpu")
    asked = kandinsky.Request("nano-t2v", "x", control=picture(0), branch=file, seconds=0)
    assert pipe.resolve(asked).conditions[0].signal == ""  # it is shown as it is


def test_recipes_that_cannot_be_run_say_why(tmp_path: Path) -> None:
    source = images(tmp_path / "data")
    data = {"source": str(source), "batch": 2}
    faults: list[tuple[dict[str, Any], str]] = [
        ({"branch": {"kind": "control", "signal": "depth"}}, "`depth` is not found in clips: put the clips into"),
        ({"branch": {"kind": "control", "signal": "smell"}}, "`smell`: use edges"),
        ({"branch": {"kind": "control", "blocks": 99}}, "99 blocks: the network has 7"),
        ({"branch": {"kind": "reference", "first": 7}}, "first is block 7, and the network has 7"),
        ({"branch": {"kind": "reference", "width": 30}}, "no multiple of head_dim"),
        ({"branch": {"kind": "reference", "width": 36, "head_dim": 18, "rotary": True}}, "a multiple of 4"),
        ({"branch": {"kind": "other"}}, "kind"),
        ({"adapter": {"rank": 4}}, "`adapter` cannot be used with `branch`"),
        ({"samples": {"prompts": ["x"]}}, "`samples` cannot be used with `branch`"),
        ({"data": {**data, "sequence": 512}}, "`data.sequence`"),
        ({"kind": "guidance-distillation"}, "`branch` has no part in recipes of this kind"),
        ({"model": "kandinsky3.0"}, "nothing can stand beside network"),
    ]
    for changes, words in faults:
        more = {"data": data} | changes
        path = recipe(tmp_path, source, **more)
        with pytest.raises(KandinskyError, match=words) as caught:
            check_recipe(path)
        assert "\n" not in str(caught.value)
    lengths = images(tmp_path / "pairs" / "clips").parent
    images(lengths / "controls", captions=False)
    (lengths / "controls" / "0.png").unlink()
    path = recipe(tmp_path, lengths)
    with pytest.raises(KandinskyError, match="has no control: put one of that name into `controls/`"):
        run_recipe(path)
