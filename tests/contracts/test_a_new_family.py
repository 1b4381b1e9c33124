"""A family of one's own: one folder and one card, and no other file is touched.

What is written here is what `docs/guides/own-models.md` shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import kandinsky
from tiny import command_line

FAMILY = '''
"""Pebble: a small denoiser beside Nano's text encoder and autoencoder."""

from kandinsky.families.nano.family import FAMILY as NANO
from kandinsky.model.family import Family, Part
from kandinsky.model.lazy import Lazy
from kandinsky.model.task import TEXT_TO_VIDEO

FAMILY = Family(
    "pebble",
    parts={
        "pebble.net": Part(network=Lazy("pebble.network:build"), bind=Lazy("pebble.network:bind")),
        "nano.text": NANO.parts["nano.text"],
        "nano.vae": NANO.parts["nano.vae"],
    },
    tasks={"text-to-video": TEXT_TO_VIDEO},
)
'''
NETWORK = '''
"""The network of Pebble: every latent pixel by itself, told the time and the prompt."""

from dataclasses import dataclass

import torch
from torch import nn

from kandinsky.model.denoiser import VIDEO, OnTrack
from kandinsky.model.params import read_params


@dataclass(frozen=True, slots=True)
class PebbleParams:
    channels: int = 48
    text: int = 256
    width: int = 32
    blocks: int = 2


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.inner(x)


class PebbleNetwork(nn.Module):
    def __init__(self, params):
        super().__init__()
        self.into = nn.Linear(params.channels, params.width)
        self.time = nn.Linear(1, params.width)
        self.text = nn.Linear(params.text, params.width)
        self.blocks = nn.ModuleList(Block(params.width) for _ in range(params.blocks))
        self.out = nn.Linear(params.width, params.channels)

    def forward(self, x_BTHWC, t_B, pooled_BC):
        told = self.time(t_B[:, None]) + self.text(pooled_BC)
        x = self.into(x_BTHWC) + told[:, None, None, None]
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def build(component, path):
    return PebbleNetwork(read_params(PebbleParams, component.params, "Pebble parameter"))


def bind(net, known, run):
    def velocity(x_BTHWC, t):
        dtype = net.into.weight.dtype
        pooled = run.text.expand(len(x_BTHWC)).pooled_BC
        return net(x_BTHWC.to(dtype), t.to(dtype).expand(len(x_BTHWC)), pooled.to(dtype))

    return OnTrack(VIDEO, velocity, "velocity")
'''
CARD = """
id = "pebble"
family = "pebble"
task = "text-to-video"
title = "Pebble, random weights"
licence = "Apache-2.0"
parameters = {parameters}
source = "tests"

[dit]
kind = "pebble.net"
params = {{ width = 32 }}
parts = [{{ repo = "./weights", files = ["pebble.safetensors"] }}]

[text]
kind = "nano.text"
params = {{ vocab_size = 33185, prototypes = 10 }}
[[text.parts]]
name = "network"
repo = "package"
files = ["nano-t2v/text.safetensors"]
[[text.parts]]
name = "tokenizer"
repo = "package"
files = ["nano-t2v/tokenizer.json.xz"]

[vae]
kind = "nano.vae"
params = {{ latent_channels = 48 }}
parts = [{{ repo = "package", files = ["nano-t2v/vae.safetensors"] }}]

[sampling]
steps = 3
guidance = 2.0
shift = 1.0

[clip]
fps = 12
seconds = 0.4
min_seconds = 0
max_seconds = 1
sizes = ["64x32"]
default_size = "64x32"
channels = 48
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`families/pebble/` and `cards/pebble.toml` with its weights, and a folder of examples."""
    room = tmp_path_factory.mktemp("own")
    code = room / "families" / "pebble"
    code.mkdir(parents=True)
    (code / "__init__.py").write_text("")
    (code / "family.py").write_text(FAMILY)
    (code / "network.py").write_text(NETWORK)
    (room / "cards").mkdir()
    state = _fresh_weights(room)
    (room / "cards" / "pebble.toml").write_text(CARD.format(parameters=sum(t.numel() for t in state.values())))
    data = room / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    for name, frames in (("still", 1), ("clip", 9), ("short", 5)):
        pixels = rng.integers(0, 255, (frames, 40, 70, 3), dtype=np.uint8)
        if frames == 1:
            Image.fromarray(pixels[0]).save(data / f"{name}.png")
        else:
            kandinsky.Video(pixels, fps=12.0, seed=0).save(data / f"{name}.mp4")
        (data / f"{name}.txt").write_text(f"a {name} of noise")
    return room


def _fresh_weights(room: Path) -> dict[str, torch.Tensor]:
    """Weights that a training left: made in a process that knows the family by its folder alone."""
    script = (
        "import torch; from safetensors.torch import save_file; from pebble.network import *;"
        "torch.manual_seed(1); state = PebbleNetwork(PebbleParams()).state_dict();"
        "save_file(state, 'cards/weights/pebble.safetensors')"
    )
    (room / "cards" / "weights").mkdir()
    done = subprocess.run([sys.executable, "-c", script], cwd=room, env=_env(room), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(room / "cards" / "weights" / "pebble.safetensors")


def _env(room: Path) -> dict[str, str]:
    return os.environ | {
        "KANDINSKY_FAMILIES": str(room / "families"),
        "KANDINSKY_CARDS": str(room / "cards"),
        "PYTHONPATH": os.pathsep.join([str(Path(kandinsky.__file__).parents[1]), str(room / "families")]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def run(room: Path, *arguments: str, launcher: tuple[str, ...] = ("-m", "kandinsky")) -> str:
    """What a command of a process of its own prints; the family's folder is on no path of Python's."""
    env = _env(room)
    env["PYTHONPATH"] = str(Path(kandinsky.__file__).parents[1])
    done = command_line.run([sys.executable, *launcher, *arguments], cwd=room, env=env, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_catalogue_lists_and_shows_it(room: Path) -> None:
    listed = {row["id"]: row for row in json.loads(run(room, "models", "--json"))}
    assert listed["pebble"]["local"] and listed["pebble"]["sizes"] == ["64x32"]
    card = json.loads(run(room, "show", "pebble", "--json"))
    assert card["family"] == "pebble" and card["dit"]["kind"] == "pebble.net"


@pytest.mark.slow
def test_it_generates_block_by_block_and_on_two_processes(room: Path) -> None:
    asked = ("generate", "a panda", "-m", "pebble", "--seed", "3", "--device", "cpu", "--json")
    told = [json.loads(run(room, *asked, "-o", "plain.png", "--seconds", "0"))]
    told.append(json.loads(run(room, *asked, "-o", "blocks.png", "--seconds", "0", "--offload", "block")))
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "kandinsky")
    told.append(json.loads(run(room, *asked, "-o", "two.png", "--seconds", "0", launcher=two).splitlines()[-1]))
    images = [np.asarray(Image.open(room / one["path"])).astype(int) for one in told]
    assert images[0].shape == (32, 64, 3) and images[0].std() > 1
    assert np.array_equal(images[0], images[1])
    assert np.abs(images[0] - images[2]).max() <= 1


@pytest.mark.slow
def test_it_is_planned_and_measured(room: Path) -> None:
    plan = json.loads(run(room, "plan", "-m", "pebble", "--device", "cpu", "--json"))
    assert plan["model"] == "pebble" and plan["download_bytes"] == 0
    assert set(plan["components"]) == {"dit", "text", "vae"} and plan["seconds"] > 0
    options = ("--device", "cpu", "--repeats", "1", "--seconds", "0", "--json")
    report = json.loads(run(room, "bench", "pebble", *options))
    assert {stage["name"] for stage in report["stages"]} >= {"text", "dit", "vae"}
    assert next(stage for stage in report["stages"] if stage["name"] == "dit")["flops"] > 0
    random = json.loads(run(room, "bench", "pebble", *options, "--random-weights", "--stages", "dit"))
    assert random["stages"][-1]["name"] == "dit"


@pytest.mark.slow
def test_it_is_trained(room: Path) -> None:
    recipe = room / "recipe.yaml"
    recipe.write_text(
        "kind: denoiser\nmodel: pebble\nout: run\ndata: {source: data, batch: 2}\n"
        "loop: {steps: 3, lr: 1e-3, log_every: 1, bf16: false}\n"
    )
    written = Path(run(room, "train", str(recipe)).splitlines()[-1])
    lines = [json.loads(line) for line in (room / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    before, after = load_file(room / "cards/weights/pebble.safetensors"), load_file(room / written)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # with random weights to begin from, none need be there
    recipe.write_text(recipe.read_text().replace("out: run", "out: again") + "start: random\n")
    again = load_file(room / run(room, "train", str(recipe)).splitlines()[-1])
    assert again.keys() == before.keys()
