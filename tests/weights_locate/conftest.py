"""A model of three repositories on a hub of our own, and a way to run the real command against it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hub_server import Hub, start

DIT, QWEN, CLIP, VAE = "acme/tiny-dit", "acme/tiny-qwen", "acme/tiny-clip", "acme/tiny-vae"
CARD = f"""
id = "tiny"
family = "kandinsky5"
task = "text-to-video"
title = "Tiny"
licence = "MIT"
parameters = 1000
source = "tests"

[dit]
kind = "kandinsky5.dit"
[[dit.parts]]
repo = "{DIT}"
files = ["model/tiny.safetensors"]
local = "model/tiny.safetensors"

[text]
kind = "qwen-clip"
[[text.parts]]
name = "qwen"
repo = "{QWEN}"
files = [
    "config.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
]
local = "text_encoder/"
[[text.parts]]
name = "clip"
repo = "{CLIP}"
files = ["config.json", "model.safetensors"]
local = "text_encoder2/"

[vae]
kind = "hunyuan"
[[vae.parts]]
repo = "{VAE}"
files = ["vae/"]
local = "vae/"

[sampling]
steps = 2
guidance = 1.0
shift = 5.0
rope_scale = [1.0, 2.0, 2.0]

[clip]
fps = 24
seconds = 1
min_seconds = 0
max_seconds = 5
sizes = ["512x512"]
default_size = "512x512"
"""
INDEX = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'


@cache
def content(size: int, seed: int) -> bytes:
    """Bytes that repeat nowhere near, so that a gap or an overlap changes the hash."""
    return b"".join((seed * 1_000_003 + i).to_bytes(8, "big") for i in range(size // 8))


@pytest.fixture
def cards_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "cards"
    folder.mkdir()
    (folder / "tiny.toml").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    hub.repos = {
        DIT: {
            "README.md": b"# tiny",
            "model/tiny.safetensors": content(24 << 20, 1),
            "model/other.safetensors": content(800, 2),
        },
        QWEN: {
            "config.json": b"{}",
            "model.safetensors.index.json": INDEX,
            "model-00001-of-00002.safetensors": content(4000, 3),
            "model-00002-of-00002.safetensors": content(4800, 4),
            "merges.txt": b"not listed by the card",
        },
        CLIP: {"config.json": b"{ }", "model.safetensors": content(1600, 5), "flax_model.msgpack": b"not listed"},
        VAE: {"vae/config.json": b"{  }", "vae/w.safetensors": content(2400, 6), "transformer/w.safetensors": b"no"},
    }
    server = start(hub)
    yield hub
    hub.stall.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def environment(hub: Hub, cards_folder: Path, tmp_path: Path) -> dict[str, str]:
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "KANDINSKY_", "HUGGINGFACE"))
    }
    return clean | {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "KANDINSKY_CARDS": str(cards_folder),
        "NO_PROXY": "*",
    }


@pytest.fixture
def kandinsky(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kandinsky", *arguments],
            capture_output=True,
            text=True,
            env=environment | changes,
            timeout=120,
            check=False,
        )

    run.environment = environment  # type: ignore[attr-defined]
    return run


@pytest.fixture
def command(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``kandinsky`` within this process, which is quick: for what does not depend on processes."""
    from huggingface_hub import constants

    from kandinsky.cli.main import main

    for name in list(os.environ):
        if name not in environment:
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path(environment["HF_HOME"]) / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def run(
        *arguments: str, endpoint: str = environment["HF_ENDPOINT"], **changes: str
    ) -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in changes.items():
                patch.setenv(name, value)
            code = main(arguments)
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, printed.out, printed.err)

    return run
