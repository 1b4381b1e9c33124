"""Program code that comes with a model's encoder runs only if that was allowed. No torch here."""

from __future__ import annotations

from collections.abc import Collection

from kandinsky.errors import RequestError
from kandinsky.model.card import Card


def check_trust(card: Card, trusted: bool, *, only: Collection[str]) -> None:
    """Refuse to run program code from a repository unless that was allowed.

    Args:
        card: The model.
        trusted: Whether it was allowed.
        only: Networks that will be used.

    Raises:
        RequestError: A network needs code from its repository, and that was not allowed.
    """
    if "text" in only and card.part("text").remote_code and not trusted:
        raise RequestError(
            f"the encoder of `{card.id}` brings program code of its own, in `{card.text.parts[0].repo}`, and that is "
            "not run unasked: add `trust_remote_code=True` if you trust it",
            hint="precomputed embeddings of the input video do as well: `states=…`",
        )
