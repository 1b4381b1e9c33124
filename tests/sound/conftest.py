"""A tiny model of sound with an encoder that brings its own code, and films for it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers.dynamic_module_utils as dynamic

from kandinsky.cli.main import main
from tiny import sound
from tiny.fixtures import *  # noqa: F403


@pytest.fixture(scope="session")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder, never changed."""
    return sound.write(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def model(sound_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder as if it had just been fetched: nothing of it ran before, and its code is kept nowhere else."""
    (sound_folder / "ran").unlink(missing_ok=True)
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return sound_folder


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Two seconds at eight frames a second."""
    return sound.film(tmp_path / "in.mp4")


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run
