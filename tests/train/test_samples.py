"""Samples of a run as it goes: files by step, of the averaged weights, and no trace in the training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import kandinsky
from kandinsky.cli.main import main
from kandinsky.errors import RequestError
from kandinsky.media.video import read_video
from kandinsky.train.recipe import run_recipe
from kandinsky.train.samples import _exchanged

PROMPTS = ["a panda", "a red balloon"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number in range(2):
        clip = rng.integers(0, 255, (9, 96, 96, 3), dtype=np.uint8)
        kandinsky.Video(clip, fps=12.0, seed=0).save(folder / f"{number}.mp4")
        (folder / f"{number}.txt").write_text(f"clip {number}")
    return folder


def recipe(folder: Path, data: Path, model: str = "nano-t2v", **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    loop = {"steps": 3, "lr": 1e-3, "warmup": 1, "bf16": False, "seed": 1, "ema": 0.5}
    values = {
        "kind": "denoiser", "model": model, "out": str(folder / "run"),
        "data": {"source": str(data), "batch": 2, "seconds": 0.5}, "loop": loop, **more,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def losses(folder: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return [(line["loss"], line["norm"]) for line in lines]


@pytest.mark.slow
def test_samples_leave_no_trace_in_the_training(tmp_path: Path, data: Path) -> None:
    run_recipe(recipe(tmp_path / "plain", data))
    samples = {"prompts": PROMPTS, "every": 2, "steps": 2}
    run_recipe(recipe(tmp_path / "sampled", data, samples=samples))
    assert losses(tmp_path / "plain") == losses(tmp_path / "sampled")
    ways = [load_file(tmp_path / name / "run" / "dit.safetensors") for name in ("plain", "sampled")]
    assert all(torch.equal(ways[0][name], ways[1][name]) for name in ways[0])
    found = sorted(path.name for path in (tmp_path / "sampled" / "run" / "samples").iterdir())
    assert found == [
        f"step-{step:08d}-{n}.{end}" for step in (2, 3) for n in (1, 2) for end in ("mp4", "png")
    ]  # fmt: skip
    last = read_video(tmp_path / "sampled" / "run" / "samples" / "step-00000003-1.mp4")
    assert last.recipe["training step"] == 3 and last.recipe["prompt"] == PROMPTS[0] and last.seed == 0


def test_the_last_sample_is_what_the_written_weights_make(tmp_path: Path, data: Path) -> None:
    samples = {"prompts": PROMPTS, "steps": 2, "seed": 5}
    written = run_recipe(recipe(tmp_path, data, samples=samples))
    pipe = kandinsky.load("nano-t2v", dtype="float32")
    with pipe.placement.hold("dit") as network:
        network.load_state_dict(load_file(written), strict=False)
        made = pipe(PROMPTS[1], seed=6, steps=2, seconds=0.5)
    target = tmp_path / "made.mp4"
    made.save(target)
    expected = read_video(target).frames_THWC
    found = read_video(tmp_path / "run" / "samples" / "step-00000003-2.mp4").frames_THWC
    assert np.array_equal(found, expected)


def test_a_model_that_continues_an_image_gets_one(tmp_path: Path, data: Path) -> None:
    image = tmp_path / "first.png"
    Image.fromarray(np.full((96, 96, 3), 200, np.uint8)).save(image)
    samples = {"prompts": ["a panda"], "steps": 2, "image": str(image)}
    run_recipe(recipe(tmp_path, data, "nano-i2v", samples=samples))
    clip = read_video(tmp_path / "run" / "samples" / "step-00000003-1.mp4").frames_THWC
    assert abs(float(clip[0].mean()) - 200) < 40


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ({"prompts": []}, "`samples.prompts` is empty"),
        ({"prompts": "a panda"}, "`prompts` must be a list of texts"),
        ({"every": 3}, "`prompts` is missing"),
        ({"prompts": PROMPTS, "every": 0}, "`every` must be 1 or more"),
        ({"prompts": PROMPTS, "image": "absent.png"}, "`samples.image` is `absent.png`, which does not exist"),
        ({"prompts": PROMPTS, "guidance": 0.5}, "`guidance` must be 1 or more"),
        ({"prompts": PROMPTS, "steps": 10**9}, "`samples`: "),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_anything_is_read(
    tmp_path: Path, samples: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, tmp_path / "absent", samples=samples)
    assert main(["train", str(path)]) == 2
    assert said in capsys.readouterr().err.splitlines()[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_samples_may_change_when_a_run_is_resumed(tmp_path: Path, data: Path) -> None:
    run_recipe(recipe(tmp_path, data))
    run_recipe(recipe(tmp_path, data, samples={"prompts": PROMPTS[:1], "steps": 1}), steps=4)
    assert (tmp_path / "run" / "samples" / "step-00000004-1.mp4").is_file()


def test_weights_and_averages_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, mean = nn.Linear(3, 2), {"weight": torch.randn(2, 3)}
    held, before = dict(net.named_parameters()), net.weight.detach().clone()
    average = mean["weight"].clone()
    with pytest.raises(RequestError), _exchanged(held, mean):
        assert torch.equal(net.weight, average) and torch.equal(mean["weight"], before)
        raise RequestError("stopped")
    assert torch.equal(net.weight, before) and torch.equal(mean["weight"], average)


@pytest.mark.slow
def test_shards_sample_what_one_process_does(tmp_path: Path, data: Path) -> None:
    """FSDP over two processes: losses with samples and without are equal, and the samples are those of one process."""
    samples = {"prompts": PROMPTS[:1], "every": 1, "steps": 2}
    ways: dict[str, dict[str, Any]] = {
        "plain": {"scale": {"fsdp": 2}}, "sampled": {"scale": {"fsdp": 2}, "samples": samples},
    }  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(kandinsky.__file__).parents[1])}
    for name, more in ways.items():
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]
        path = recipe(tmp_path / name, data, **more)
        done = subprocess.run(
            [*command, "kandinsky", "train", str(path)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "plain") == losses(tmp_path / "sampled")
    run_recipe(recipe(tmp_path / "alone", data, samples=samples))
    one, two = (  # the sheet: the codec of the clip makes 1 or 2 of what are 4e-4 here
        np.asarray(Image.open(tmp_path / name / "run" / "samples" / "step-00000003-1.png").convert("RGB")).astype(int)
        for name in ("alone", "sampled")
    )
    assert one.shape == two.shape and abs(one - two).mean() < 0.01  # sums in another order
