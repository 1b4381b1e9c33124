"""What stands in for the nodes where the library, or a ComfyUI that is new enough, is missing."""

from __future__ import annotations

import sys
from typing import Any

from .names import CATEGORY, NODES

OLDEST_COMFYUI = "0.3.75"


def explained(error: Exception) -> str:
    """What is wrong, and what to do about it, in one line."""
    lacking = (getattr(error, "name", None) or "").partition(".")[0]
    if lacking == "kandinsky" and isinstance(error, ModuleNotFoundError) and error.name == "kandinsky":
        return (
            "Kandinsky's nodes cannot run: the package `kandinsky-video` is not installed in ComfyUI's Python: "
            f"install it with `{sys.executable} -m pip install kandinsky-video`, then start ComfyUI again"
        )
    if lacking.startswith("comfy"):
        return (
            f"Kandinsky's nodes cannot run: this ComfyUI has no nodes of the third form ({error}): "
            f"update it to {OLDEST_COMFYUI} or newer"
        )
    if lacking == "kandinsky":
        return (
            f"Kandinsky's nodes cannot run: they and the installed library differ in version ({error}): "
            "update `kandinsky-video`, run `kandinsky comfyui install` again, then start ComfyUI again"
        )
    return f"Kandinsky's nodes cannot run: {type(error).__name__}: {error}"


def stand_ins(error: Exception) -> tuple[dict[str, type], dict[str, str]]:
    """Nodes of the same names, of the old form, that keep saved workflows whole and say what is missing when run.

    Args:
        error: Why the real ones could not be imported.

    Returns:
        ComfyUI's two mappings: classes and names in menus.
    """
    message = explained(error)
    classes: dict[str, type] = {name: _stand_in(name, message) for name in NODES}
    return classes, {name: f"{title} (cannot run)" for name, title in NODES.items()}


def _stand_in(name: str, message: str) -> type:
    def run(self: object, **given: Any) -> None:
        raise RuntimeError(message)

    members = {
        "INPUT_TYPES": classmethod(lambda cls: {"required": {}}),
        "RETURN_TYPES": ("*",) * 4,  # as many as any of the real ones has
        "FUNCTION": "run",
        "CATEGORY": CATEGORY,
        "DESCRIPTION": message,
        "OUTPUT_NODE": True,
        "run": run,
    }
    return type(name, (), members)
