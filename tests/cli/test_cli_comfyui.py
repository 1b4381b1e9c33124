"""`kandinsky comfyui install`: by link, by copy, again, and into what is no ComfyUI."""

from pathlib import Path

import pytest

from kandinsky.cli import comfyui
from kandinsky.cli.main import main

PACK = Path(__file__).parents[2] / "comfyui"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "ComfyUI"
    (root / "custom_nodes").mkdir(parents=True)
    (root / "comfy").mkdir()
    (root / "main.py").touch()
    return root


def test_the_nodes_are_linked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["comfyui", "install", str(folder)]) == 0
    target = folder / "custom_nodes" / "kandinsky"
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(target) and "start ComfyUI again" in said.err
    assert target.is_symlink() and target.resolve() == PACK
    assert main(["comfyui", "install", str(folder / "custom_nodes")]) == 0
    assert [path.name for path in target.parent.iterdir()] == ["kandinsky"]


def test_a_copy_replaces_a_link_and_the_other_way_round(folder: Path) -> None:
    target = folder / "custom_nodes" / "kandinsky"
    for arguments, is_link in (([], True), (["--copy"], False), (["--copy"], False), ([], True)):
        assert main(["comfyui", "install", str(folder), *arguments]) == 0
        assert target.is_symlink() == is_link and (target / "nodes.py").is_file()
        assert len(list(target.parent.iterdir())) == 1
    assert (PACK / "nodes.py").is_file()  # what a link leads to stays


def test_where_links_are_not_allowed_the_nodes_are_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Path, *given: object, **more: object) -> None:
        raise OSError("a required privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert main(["comfyui", "install", str(folder)]) == 0
    target = folder / "custom_nodes" / "kandinsky"
    assert not target.is_symlink() and (target / "__init__.py").is_file() and "copied" in capsys.readouterr().err


def test_a_folder_that_keeps_files_for_the_desktop_program_will_do(tmp_path: Path) -> None:
    for name in ("custom_nodes", "models", "user"):
        (tmp_path / name).mkdir()
    assert main(["comfyui", "install", str(tmp_path)]) == 0


@pytest.mark.parametrize("what", ["gone", "empty", "file"])
def test_what_is_no_comfyui_is_refused(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert main(["comfyui", "install", str(tmp_path / what)]) == 2
    assert "is not a folder of ComfyUI" in capsys.readouterr().err


def test_what_somebody_else_put_there_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = folder / "custom_nodes" / "kandinsky"
    own.mkdir()
    (own / "theirs.py").touch()
    assert main(["comfyui", "install", str(folder)]) == 2
    assert (own / "theirs.py").is_file() and "move it away" in capsys.readouterr().err


def test_an_old_comfyui_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "comfyui_version.py").write_text('# by hand\n__version__ = "0.3.10"\n')
    assert main(["comfyui", "install", str(folder)]) == 0
    assert "this ComfyUI is 0.3.10, and the nodes need 0.3.75 or newer" in capsys.readouterr().err
    assert comfyui.version_of(folder) == (0, 3, 10)
