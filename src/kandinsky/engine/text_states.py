"""Text embeddings that may lie on disk: opens a model's store by the rule of ``text/store.py``, and tries it first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from kandinsky.files import cache_folder
from kandinsky.media.recipe import versions
from kandinsky.model.card import Component
from kandinsky.model.values import TextEmbeddings
from kandinsky.runtime.placement import Placement
from kandinsky.text.protocol import ContrastingTextEncoder, TextEncoder
from kandinsky.text.store import WORTH_IT, TextStore, encode_each, fingerprint
from kandinsky.weights.read import weight_files

WORDS = (".json", ".txt", ".model")  # endings of tokenizer and configuration files


def open_store(
    component: Component,
    files: Mapping[str, Path],
    weights: Iterable[Path],
    settings: Mapping[str, Any],
    text_cache: bool | str | Path | None,
) -> TextStore | None:
    """Open the store of a text encoder.

    Args:
        component: The encoder's entry in the card.
        files: Where its parts lie.
        weights: Those of them that hold tensors.
        settings: What else determines the numbers, such as the compute type.
        text_cache: A folder, True, False, or None for the rule of ``text/store.py``.

    Returns:
        The store; None if embeddings are not kept.

    Raises:
        WeightsError: A file of the encoder is missing.
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


class Asked:
    """A text encoder for the duration of a `with` block: read when an embedding is not in the store, and then held."""

    def __init__(self, placement: Placement, store: TextStore | None) -> None:
        self._placement = placement
        self._store = store
        self._held = ExitStack()
        self._encoder: TextEncoder | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: Any) -> None:
        self._encoder = None
        self._held.__exit__(*failure)

    def states(
        self, prompt: str, *, way: str = "", ask: Callable[[TextEncoder, str], TextEmbeddings] | None = None
    ) -> TextEmbeddings:
        """Embeddings of one prompt.

        Args:
            prompt: The prompt.
            way: Name of the way in which it is encoded, since each gives other embeddings of the same prompt.
            ask: Calls the encoder; None for its plain call.

        Returns:
            The embeddings.
        """
        store = self._store if self._store is None or not way else self._store.beside(way)
        return encode_each([prompt], still=False, encoder=lambda: nullcontext(_Way(self._hold(), ask)), store=store)[0]

    def against(self, negative: str, prompt: str) -> TextEmbeddings:
        """Embeddings of a negative prompt, for encoders that take the prompt into account (``Part.contrasting``)."""
        if not negative.strip():
            return self.states("")

        def ask(encoder: TextEncoder, text: str) -> TextEmbeddings:
            assert isinstance(encoder, ContrastingTextEncoder)
            return encoder.encode_against(text, prompt)

        return self.states(negative, way=f"against {prompt}", ask=ask)

    def _hold(self) -> TextEncoder:
        if self._encoder is None:
            self._encoder = self._held.enter_context(self._placement.hold("text"))
        assert self._encoder is not None
        return self._encoder


@dataclass(frozen=True, slots=True)
class _Way:
    encoder: TextEncoder
    ask: Callable[[TextEncoder, str], TextEmbeddings] | None

    def encode(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        if self.ask is None:
            return self.encoder.encode(prompts, still=still)
        (prompt,) = prompts
        return self.ask(self.encoder, prompt)


def _words(path: Path) -> Iterable[Path]:
    return [file for file in path.iterdir() if file.suffix in WORDS] if path.is_dir() else [path]
