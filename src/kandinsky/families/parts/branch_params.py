"""Hyper-parameters of the branches beside a transformer. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from kandinsky.errors import RequestError
from kandinsky.model.card import Component
from kandinsky.model.params import Readable
from kandinsky.weights.branch_files import BASE

Beside = TypeVar("Beside", bound=Readable)


@dataclass(frozen=True, slots=True)
class ControlParams(Readable):
    """Of a control branch.

    Attributes:
        blocks: Beside how many of the network's first visual blocks it stands.
        slim: Width of a branch of its own; 0 for one of copies of these blocks.
    """

    what = "control branch parameter"
    blocks: int = field(default=2, metadata={"least": 1})
    slim: int = field(default=0, metadata={"least": 0})


@dataclass(frozen=True, slots=True)
class ReferenceParams(Readable):
    """Of a reference branch.

    Attributes:
        inputs: Width of an image token; 0 for latents of the model's own autoencoder.
        width: Of the projected image tokens, and of the attention to them.
        head_dim: Of that attention.
        first: Number of the first visual block that attends to the image.
        rotary: Whether that attention is turned by places in the frame, so that what lies where a token does is found
            at once; the image then has the result's shape.
    """

    what = "reference branch parameter"
    inputs: int = field(default=0, metadata={"least": 0})
    width: int = field(default=128, metadata={"least": 1})
    head_dim: int = field(default=32, metadata={"least": 1})
    first: int = field(default=0, metadata={"least": 0})
    rotary: bool = False


def beneath(kind: type[Beside], component: Component) -> tuple[Beside, dict[str, Any]]:
    """The parameters of the network that a branch stands beside, and the branch's own."""
    own = dict(component.params)
    return kind.from_dict(own.pop(BASE)), own


def check_count(blocks: int, count: int) -> None:
    """Refuse a branch beside more blocks than there are. Raises: RequestError."""
    if blocks > count:
        raise RequestError(f"a control branch of {blocks} blocks: the network has {count}, so use {count} at most")
