"""Files of branches: one safetensors file each, whose header says what the branch is told and what it stands beside.

Reading a header imports no torch, so that a request is checked before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from kandinsky.errors import WeightsError
from kandinsky.files import local_path
from kandinsky.model.card import Component
from kandinsky.printing import escaped
from kandinsky.weights.header import read_header
from kandinsky.weights.untrusted import parse_table, shown

HEADER = "kandinsky_branch"  # key of the metadata
CONTROL, REFERENCE = "control", "reference"
KINDS = (CONTROL, REFERENCE)
LATENTS, STATES = "vae", "text"  # what a reference branch sees an image as
FEATURES = (LATENTS, STATES)
BASE = "base"  # of a branch's parameters, those of the network beside


@dataclass(frozen=True, slots=True)
class BranchFile:
    """A branch in a file.

    Attributes:
        path: The file.
        kind: `control` or `reference`.
        signal: What a control branch is shown, a name of ``media/signals.py``; empty for a reference.
        features: What a reference branch sees the image as: `vae`, its latent; `text`, the states of a text encoder
            that sees images. Empty for a control branch.
        network: Kind of the network that it stands beside.
        model: The model that it was trained with.
        params: Hyper-parameters of the branch.
        base: Those of the network beside.
        sha256: Digest of the file.
        numbers: How many numbers its tensors hold.
        is_own: Whether it belongs to the model, so that nobody has to name it.
    """

    path: Path
    kind: str
    signal: str
    features: str
    network: str
    model: str
    params: Mapping[str, Any]
    base: Mapping[str, Any]
    sha256: str = ""
    numbers: int = 0
    is_own: bool = False

    @property
    def component(self) -> Mapping[str, Any]:
        """The parameters from which the branch is built."""
        return {**self.params, BASE: dict(self.base)}

    def header(self) -> dict[str, str]:
        """The metadata of the file."""
        names = ("kind", "signal", "features", "network", "model", "params", "base")
        return {HEADER: json.dumps({name: getattr(self, name) for name in names}, sort_keys=True)}

    def told(self) -> dict[str, Any]:
        """What it is, for people."""
        found: dict[str, Any] = {
            "branch": self.kind,
            "signal": self.signal,
            "features": self.features,
            "network": self.network,
        }
        found |= {"model": self.model, **self.params, "bytes": self.path.stat().st_size, "sha256": self.sha256}
        return {name: value for name, value in found.items() if value != ""}

    def check_beside(self, component: Component, model: str) -> None:
        """Refuse a network that the branch was not made for.

        Args:
            component: The network.
            model: Its model, for the message.

        Raises:
            WeightsError: It is of another kind, or has other hyper-parameters.
        """
        where = f"branch `{escaped(self.path)}` was trained beside `{shown(self.model)}`"
        advice = f"use `{shown(self.model)}` or a model of the same network"
        if component.kind != self.network:
            raise WeightsError(
                f"{where}, a network `{shown(self.network)}`; `{model}` has a network `{component.kind}`: {advice}"
            )
        for name, value in self.base.items():
            other = component.params.get(name, value)
            if _plain(other) != _plain(value):
                raise WeightsError(
                    f"{where}, whose `{shown(name)}` is {shown(value)}; that of `{model}` is {shown(other)}: {advice}"
                )


def is_branch(path: Path) -> bool:
    """Whether a file holds a branch, by its header."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    return HEADER in (read_header(path).metadata or {})


def read_branch(source: str | Path) -> BranchFile:
    """What a file says of the branch in it, and the digest of the file.

    Args:
        source: The file.

    Returns:
        The branch.

    Raises:
        WeightsError: The file is missing, damaged, or holds no branch.
    """
    found = branch_of_header(source)
    return replace(found, sha256=digest_of(found.path))


def branch_of_header(source: str | Path) -> BranchFile:
    """The same without the digest, for which all of the file is read.

    Args:
        source: The file.

    Returns:
        The branch.

    Raises:
        WeightsError: As ``read_branch``.
    """
    path = local_path(source, "branch")
    if not path.is_file():
        raise WeightsError(f"branch `{escaped(path)}` is not there: give the file that a training wrote")
    header = read_header(path)
    stated = (header.metadata or {}).get(HEADER)
    if stated is None:
        raise WeightsError(
            f"`{escaped(path)}` holds no branch: its header says nothing of one; a LoRA is loaded as `lora`"
        )
    values = parse_table(stated.encode(), path)
    wanted = {"kind": str, "signal": str, "features": str, "network": str, "model": str, "params": dict, "base": dict}
    for name, kind in wanted.items():
        if not isinstance(values.get(name), kind):
            raise WeightsError(f"branch `{escaped(path)}` is damaged: its header has no valid `{name}`")
    for name, known in (("kind", KINDS), ("features", ("", *FEATURES))):
        if values[name] not in known:
            raise WeightsError(f"branch `{escaped(path)}` has {name} `{shown(values[name])}`: known are {known}")
    shapes = {name: entry.shape for name, entry in header.entries.items()}
    numbers = sum(_numbers(name, shapes) for name in shapes)
    return BranchFile(path, **{name: values[name] for name in wanted}, numbers=numbers)


def _numbers(name: str, shapes: Mapping[str, Sequence[int]]) -> int:
    """How many numbers of a network a tensor holds: bytes of packed rows hold more than one, their scales none."""
    if name.rpartition(".")[2].startswith("int") and name.endswith("_scale"):
        return 0
    packed = next((bits for bits in (6, 5, 4) if f"{name}.int{bits}_scale" in shapes), 8)
    return math.prod(shapes[name]) * 8 // packed


def digest_of(path: Path) -> str:
    """SHA-256 of a file; it is read again only where its time of change or its size is another."""
    state = path.stat()
    return _digest(path.absolute(), (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=64)
def _digest(path: Path, version: tuple[int, ...]) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
