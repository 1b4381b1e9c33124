"""What each task makes and what an image means to it. Imports no torch; the tensors are in ``conditioning.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kandinsky.errors import BackendError
from kandinsky.model.card import Card


@dataclass(frozen=True, slots=True)
class Task:
    """image: whether a request brings one.   makes: said to people.   text_sees_image: the text encoder is shown it.

    mask: a request brings one that lies over the image.
    """

    image: Literal["none", "required", "optional"]
    makes: Literal["video", "image", "sound"]
    text_sees_image: bool = False
    mask: bool = False


# By the card's `task`. Kandinsky 5's image-to-video text encoder gets no image tokens (FACTS section 10).
TASKS = {
    "text-to-video": Task("none", "video"),
    "image-to-video": Task("required", "video"),
    "text-or-image-to-video": Task("optional", "video"),
    "text-to-image": Task("none", "image"),
    "image-editing": Task("optional", "image", text_sees_image=True),
    "inpainting": Task("required", "image", mask=True),
    "video-to-audio": Task("none", "sound"),
}


def task_of(card: Card) -> Task:
    """The task of a card. Raises: BackendError for one this version does not do."""
    try:
        return TASKS[card.task]
    except KeyError:
        known = ", ".join(TASKS)
        raise BackendError(f"`{card.id}` is for `{card.task}`, which is not built yet: {known} are") from None
