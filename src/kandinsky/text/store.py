"""Text embeddings cached on disk, so that a known prompt needs no text encoder, often the largest network.

One safetensors file a prompt, named by the hash of everything that decides its numbers: the encoder's files, its
settings, the compute type and kind of device, the versions of the libraries, the prompt. Prompts are encoded one by one
(`encode_each`), so a state does not depend on its neighbours in a batch; a stored state equals a new one bit for bit.

Where: the folder ``KANDINSKY_CACHE`` names, else `kandinsky` in the user's cache folder; in it `text/`.
When: on where the encoder's files are at least ``WORTH_IT`` bytes, else off (reading a small encoder is as quick).
``KANDINSKY_CACHE=off`` switches it off everywhere; the option `text_cache` decides otherwise, per pipeline.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kandinsky.errors import RequestError, WeightsError
from kandinsky.model.values import TextEmbeddings
from kandinsky.text.protocol import TextEncoder
from kandinsky.weights.read import PICKLED, read_ranges, read_state
from kandinsky.weights.write import write_state

log = logging.getLogger(__name__)
WORTH_IT = 1_000_000_000
KEPT_FILES = 2000  # of about 2 MB each at full size; the least recently used are removed
SAMPLE = 256  # bytes hashed of each tensor


class TextStore:
    """A cache on disk of one encoder's embeddings, by prompt.

    Args:
        folder: Where files lie; created when the first is written.
        encoder: Returns the ``fingerprint`` of what determines the embeddings, called at first use.
    """

    def __init__(self, folder: Path, encoder: Callable[[], str]) -> None:
        self.folder = folder
        self._encoder = encoder
        self._hash: str | None = None

    def beside(self, name: str) -> TextStore:
        """A store in the same folder for embeddings that the same encoder makes in another way."""
        return TextStore(self.folder, lambda: f"{self._named()} {name}")

    def path(self, prompt: str, *, still: bool) -> Path:
        """The file of one prompt."""
        text = json.dumps([self._named(), still, prompt])
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"

    def get(self, prompt: str, *, still: bool) -> TextEmbeddings | None:
        """The cached embeddings of a prompt; None if there are none, or the file is damaged (with a warning)."""
        path = self.path(prompt, still=still)
        if not path.is_file():
            return None
        try:
            tensors = read_state(path)
            states = TextEmbeddings(tensors["tokens"].clone(), tensors["pooled"].clone(), _mask(tensors))
        except (WeightsError, KeyError, OSError) as error:
            log.warning("text embeddings `%s` are damaged and will be computed again: %s", path, error)
            return None
        with suppress(OSError):  # the folder may be another's, or read-only
            path.touch()  # mark as recently used
        return states

    def put(self, prompt: str, states: TextEmbeddings, *, still: bool) -> None:
        """Keep the embeddings of one prompt. A folder that cannot be written is a warning, not a failure."""
        tensors = {"tokens": states.tokens_BLC, "pooled": states.pooled_BC}
        if states.mask_BL is not None:
            tensors["mask"] = states.mask_BL
        try:
            write_state(tensors, self.path(prompt, still=still))
            self._tidy()
        except (OSError, RequestError) as error:
            log.warning("text embeddings cannot be cached in `%s`: %s", self.folder, error)

    def _named(self) -> str:
        self._hash = self._hash or self._encoder()
        return self._hash

    def _tidy(self) -> None:
        files = sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in files[: max(0, len(files) - KEPT_FILES)]:
            path.unlink(missing_ok=True)


def encode_each(
    prompts: Sequence[str],
    *,
    still: bool,
    encoder: Callable[[], AbstractContextManager[TextEncoder]],
    store: TextStore | None = None,
) -> list[TextEmbeddings]:
    """Embeddings of each prompt, encoded separately or taken from the store; ``join`` makes a batch of them.

    Args:
        prompts: The prompts.
        still: As for the encoder.
        encoder: Holds the encoder while it is needed; not called if the store has every prompt.
        store: The store; None for none.

    Returns:
        One value per prompt; on the host if it came from the store.
    """
    found: dict[str, TextEmbeddings] = {}
    if store is not None:
        found = {p: states for p in prompts if (states := store.get(p, still=still)) is not None}
    if missing := [p for p in dict.fromkeys(prompts) if p not in found]:
        with encoder() as held:
            for prompt in missing:
                found[prompt] = held.encode([prompt], still=still)
                if store is not None:
                    store.put(prompt, found[prompt], still=still)
    return [found[prompt] for prompt in prompts]


def join(states: Sequence[TextEmbeddings]) -> TextEmbeddings:
    """Join embeddings of single prompts into a batch: shorter ones are padded with zeros, which the mask excludes."""
    devices = {one.tokens_BLC.device for one in states}
    if len(devices) > 1:  # some were stored, some are fresh
        states = [one.to(next(device for device in devices if device.type != "cpu")) for one in states]
    lengths = [one.tokens_BLC.shape[1] for one in states]
    if len(set(lengths)) == 1 and all(one.mask_BL is None for one in states):
        mask = None
    else:
        mask = torch.cat([_filled(_mask_of(one), max(lengths)) for one in states])
    return TextEmbeddings(
        torch.cat([_filled(one.tokens_BLC, max(lengths)) for one in states]),
        torch.cat([one.pooled_BC for one in states]),
        mask,
    )


def fingerprint(weights: Iterable[Path], others: Iterable[Path], settings: Mapping[str, Any]) -> str:
    """A hash of an encoder: of its weight files, other files (tokenizers), and settings.

    Sixteen gigabytes take long to read, so each tensor is represented by its name, type, shape and first bytes,
    together with the size and time of the file; other files are hashed whole.

    Raises:
        WeightsError: A file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for file in sorted(weights):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        if file.suffix not in PICKLED:
            header, starts = read_ranges(file)
            digest.update(header)
            with file.open("rb") as stream:
                for start, end in starts:
                    stream.seek(start)
                    digest.update(stream.read(min(SAMPLE, end - start)))
    for file in sorted(others):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _mask(tensors: Mapping[str, Tensor]) -> Tensor | None:
    return tensors["mask"].clone() if "mask" in tensors else None


def _mask_of(states: TextEmbeddings) -> Tensor:
    if states.mask_BL is not None:
        return states.mask_BL
    return torch.ones(states.tokens_BLC.shape[:2], dtype=torch.bool, device=states.tokens_BLC.device)


def _filled(x: Tensor, length: int) -> Tensor:
    """[B, L, …] padded at the end with zeros up to ``length``."""
    missing = length - x.shape[1]
    return x if missing == 0 else torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
