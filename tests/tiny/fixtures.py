"""Fixtures shared by the tests of the whole path; a test folder imports them in its conftest.py."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tiny import family


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `config.yaml` and the official `weights/`."""
    folder = tmp_path_factory.mktemp("official")
    family.write_official(folder)
    return folder


@pytest.fixture(scope="session")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same family in the Diffusers layout."""
    return family.write_diffusers(tmp_path_factory.mktemp("diffusers"))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """(kind of ``family.KINDS``, layout) → its folder, in the layout `official` or `diffusers`; written once."""
    write = {"official": family.write_official, "diffusers": family.write_diffusers}
    made: dict[tuple[str, str], Path] = {}

    def folder(kind: str, layout: str = "official") -> Path:
        if (kind, layout) not in made:
            made[kind, layout] = tmp_path_factory.mktemp(f"{kind}-{layout}")
            write[layout](made[kind, layout], kind)
        return made[kind, layout]

    return folder


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Whatever is asked of the hub fails at once, and no cache of this machine is read."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-cache"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("KANDINSKY_WEIGHTS", raising=False)
    monkeypatch.delenv("KANDINSKY_CARDS", raising=False)
    yield


__all__ = ["diffusers_folder", "folder_of", "no_hub", "official"]
