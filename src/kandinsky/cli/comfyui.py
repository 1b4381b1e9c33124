"""`kandinsky comfyui …`: the pack of nodes for ComfyUI."""

from __future__ import annotations

import re
import shutil
import site
import sys
import sysconfig
from pathlib import Path
from typing import Annotated

import typer

import kandinsky
from kandinsky.cli.streams import emit, say
from kandinsky.errors import BackendError, RequestError
from kandinsky.files import beside, local_path, not_writable, remove

FOLDER = "kandinsky"  # of the pack, below custom_nodes
NAME = "kandinsky-video-nodes"  # in the pack's own pyproject.toml
OLDEST = (0, 3, 75)
_VERSION = re.compile(r"__version__ = \"(\d+)\.(\d+)\.(\d+)")
_COMPILED = shutil.ignore_patterns("__pycache__")


def install(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of ComfyUI, which holds custom_nodes.")],
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the nodes instead of linking to them; for moving the folder elsewhere.")
    ] = False,
) -> None:
    """Install the nodes into ComfyUI, or bring them up to date. The last line on stdout is their folder."""
    folder, pack = checked(path), pack_folder()
    target = folder / "custom_nodes" / FOLDER
    if target.exists() and not is_ours(target):
        raise RequestError(f"`{target}` is something else than these nodes: move it away, and install again")
    linked = not copy and place_link(pack, target)
    if not linked:
        if not copy:
            say("links are not allowed here: the nodes are copied; install again after an update")
        place_copy(pack, target)
    if (found := version_of(folder)) is not None and found < OLDEST:
        say(f"this ComfyUI is {_dotted(found)}, and the nodes need {_dotted(OLDEST)} or newer: update it")
    say(f"ComfyUI must run with a Python that has kandinsky-video; this one is {sys.executable}")
    say("start ComfyUI again to see the nodes, in the menu Kandinsky; examples are among its templates")
    emit(target)


def checked(path: Path) -> Path:
    """A folder of ComfyUI: its program, or the folder that its desktop program keeps files in.

    Raises:
        RequestError: It is none.
    """
    folder = local_path(path, "PATH").absolute()
    if folder.name == "custom_nodes":
        folder = folder.parent
    is_program = (folder / "main.py").is_file() and (folder / "comfy").is_dir()
    is_base = (folder / "models").is_dir() and ((folder / "user").is_dir() or (folder / "output").is_dir())
    if not (folder / "custom_nodes").is_dir() or not (is_program or is_base):
        raise RequestError(
            f"`{path}` is not a folder of ComfyUI: give the one that holds `custom_nodes`, beside `main.py` or `models`"
        )
    return folder


def pack_folder() -> Path:
    """Where the nodes are: beside the sources, or where the package was installed.

    Raises:
        BackendError: They are nowhere.
    """
    shared = Path("share", "kandinsky", "comfyui")
    roots = [Path(kandinsky.__file__).resolve().parents[2] / "comfyui", Path(sysconfig.get_path("data")) / shared]
    if site.ENABLE_USER_SITE:
        roots.append(Path(site.getuserbase()) / shared)
    for root in roots:
        if is_ours(root):
            return root
    raise BackendError("the nodes for ComfyUI are not installed with this package: install `kandinsky-video` again")


def is_ours(folder: Path) -> bool:
    """Whether a folder holds these nodes, of any version; a link that leads nowhere was one to them."""
    if folder.is_symlink() and not folder.exists():
        return True
    try:
        return f'name = "{NAME}"' in (folder / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def place_link(pack: Path, target: Path) -> bool:
    """Link to the nodes; False where the system does not allow links."""
    part = beside(target)
    try:
        part.symlink_to(pack, target_is_directory=True)
    except (OSError, NotImplementedError):
        return False
    try:
        if target.is_dir() and not target.is_symlink():
            remove(target)
        part.replace(target)
    except OSError as error:
        raise not_writable(target, error) from error
    finally:
        remove(part)
    return True


def place_copy(pack: Path, target: Path) -> None:
    """Copy the nodes; a folder of theirs that is there is replaced once the copy is whole.

    Raises:
        RequestError: Nothing can be written there.
    """
    part = beside(target)
    try:
        shutil.copytree(pack, part, ignore=_COMPILED)
        remove(target)
        part.replace(target)
    except OSError as error:
        raise not_writable(target, error) from error
    finally:
        remove(part)


def version_of(folder: Path) -> tuple[int, ...] | None:
    """The version that a ComfyUI says it has; None if it does not say."""
    try:
        found = _VERSION.search((folder / "comfyui_version.py").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return None if found is None else tuple(map(int, found.groups()))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
