"""A stand-in for what the pack's functions talk to: ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Interrupted(Exception):  # noqa: N818 - ComfyUI's is none either
    """What ComfyUI raises for a node that was stopped."""


class Host:
    """ComfyUI as the functions see it; ``told`` are its progress calls."""

    def __init__(self, folders: Mapping[str, Path] | None = None, *, stop_after: int | None = None) -> None:
        self._folders, self.stop_after = dict(folders or {}), stop_after
        self.told: list[tuple[int, int, Any]] = []
        self.lent: list[tuple[int, Any]] = []
        self.room: list[int] = []
        self.ended: list[int] = []

    def folders(self, kind: str) -> list[Path]:
        return [self._folders[kind]] if kind in self._folders else []

    def device(self) -> str:
        return "cpu"

    def progress(self, done: int, total: int, preview: Any) -> None:
        self.told.append((done, total, preview))

    def is_interrupted(self) -> bool:
        return self.stop_after is not None and len(self.told) >= self.stop_after

    def stop(self) -> None:
        if self.is_interrupted():
            raise Interrupted

    def make_room(self, size: int) -> None:
        self.room.append(size)

    def lend(self, size: int, release: Any) -> Any:
        self.lent.append((size, release))
        return SimpleNamespace(end=lambda: self.ended.append(size))
