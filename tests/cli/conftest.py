"""A tiny model in a folder of cards, and the command line, called in this process or in a fresh one."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kandinsky.cli.main import main
from tiny import family
from tiny.fixtures import *  # noqa: F403

CARD = """
id = "tiny"
family = "kandinsky5"
task = "text-to-video"
title = "Tiny, random weights"
licence = "Apache-2.0"
parameters = {parameters}
source = "tests"

[dit]
kind = "kandinsky5.dit"
params = {{ {params} }}
[[dit.parts]]
repo = "{weights}"
files = ["model/{checkpoint}"]

[text]
kind = "qwen-clip"
params = {{ qwen_max_length = 64, clip_max_length = 77 }}
[[text.parts]]
name = "qwen"
repo = "{weights}"
files = ["text_encoder/"]
[[text.parts]]
name = "clip"
repo = "{weights}"
files = ["text_encoder2/"]

[vae]
kind = "hunyuan"
[[vae.parts]]
repo = "{weights}"
files = ["vae/"]

[sampling]
steps = 2
guidance = 2.0
shift = 5.0
rope_scale = [1.0, 2.0, 2.0]
max_steps = 50
negative_prompt = "blurry"

[clip]
fps = 24
seconds = 0.5
min_seconds = 0
max_seconds = 2
sizes = ["64x64", "96x64"]
default_size = "64x64"
channels = 4
"""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def write_card(folder: Path, weights: Path) -> Path:
    def toml(value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    folder.mkdir(parents=True, exist_ok=True)
    params = ", ".join(f"{key} = {toml(value)}" for key, value in family.DIT_PARAMS.items())
    count = sum(p.numel() for p in family.dit().parameters())
    text = CARD.format(params=params, weights=weights, checkpoint=family.CHECKPOINT, parameters=count)
    tomllib.loads(text)
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def tiny(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The card's folder, in the environment; the current folder is an empty one."""
    folder = write_card(tmp_path / "cards", official / "weights")
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line in this process."""

    def run(*arguments: str) -> Done:
        capfd.readouterr()
        code = main(arguments)
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def fresh() -> Callable[..., Done]:
    """The command line in a process of its own; the last line of ``err`` says whether torch was loaded."""
    code = (
        "import sys\nfrom kandinsky.cli.main import main\ncode = main(sys.argv[1:])\n"
        "print('torch' in sys.modules, file=sys.stderr)\nsys.exit(code)"
    )

    def run(*arguments: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            env=os.environ,
            timeout=120,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run
