"""Shell completion: model ids, and the words that options accept. `kandinsky --install-completion` switches it on."""

from __future__ import annotations

from collections.abc import Callable

from kandinsky.engine.words import WORDS


def model_ids(incomplete: str) -> list[tuple[str, str]]:
    """Ids of the catalogue, each with its title."""
    from kandinsky import catalogue

    return [(card.id, card.title) for card in catalogue.all_cards() if card.id.startswith(incomplete)]


def words_of(name: str) -> Callable[[str], list[str]] | None:
    """The completion for a field's values; None if they are free."""
    words = WORDS.get(name)
    if words is None:
        return None

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete
