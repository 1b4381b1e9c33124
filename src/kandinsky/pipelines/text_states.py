"""Which text states are kept on disk: opens a model's store by the rule of ``text/store.py``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kandinsky.cards import Component
from kandinsky.media.recipe import versions
from kandinsky.text.store import WORTH_IT, TextStore, cache_folder, fingerprint
from kandinsky.weights.read import weight_files

WORDS = (".json", ".txt", ".model")  # what tokenizers and configurations are made of


def open_store(
    component: Component,
    files: Mapping[str, Path],
    weights: Iterable[Path],
    settings: Mapping[str, Any],
    text_cache: bool | str | Path | None,
) -> TextStore | None:
    """The store of a text encoder, or None where its states are not kept.

    Args:   component: of the card.   files: where its parts lie.   weights: those of them that hold tensors.
            settings: what else decides the numbers, such as the compute type.
            text_cache: a folder, True, False, or None for the rule of ``text/store.py``.
    """
    if isinstance(text_cache, str | Path):
        folder: Path | None = Path(text_cache).expanduser()
    else:
        folder = cache_folder()
        folder = folder / "text" if folder is not None else None
    tensors = [file for path in weights for file in weight_files(path)]
    if text_cache is None and sum(file.stat().st_size for file in tensors) < WORTH_IT:
        return None
    if folder is None or text_cache is False:
        return None
    everything = {"kind": component.kind, "params": dict(component.params), "versions": versions()} | dict(settings)
    others = {file for path in files.values() for file in _words(path) if file not in tensors}
    return TextStore(folder, partial(fingerprint, tensors, others, everything))


def _words(path: Path) -> Iterable[Path]:
    return [file for file in path.iterdir() if file.suffix in WORDS] if path.is_dir() else [path]
