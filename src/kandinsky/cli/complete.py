"""Shell completion: model ids, and the words that options accept. `kandinsky --install-completion` switches it on."""

from __future__ import annotations

from collections.abc import Callable

from kandinsky.ops.attention_spec import DENSE_BACKENDS, TYPES
from kandinsky.runtime.budget import OFFLOADS

# For options whose values are words; by the name of the field.
WORDS: dict[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "dtype": ("float32", "bfloat16", "float16"),
    "offload": OFFLOADS,
    "attention": ("auto", *TYPES, *DENSE_BACKENDS),
    "cache": ("none", "magcache", "first-block", "taylor"),
    "quantize": ("int8", "fp8", "nf4"),
    "tiling": ("none", "auto", "official"),
    "text_cache": ("on", "off"),
    "parallel": ("auto",),
    "fps": ("low", "medium", "high"),
    "motion": ("low", "medium", "high", "extreme"),
}


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
