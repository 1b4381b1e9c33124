"""The words that options accept, for menus and shell completion. No torch."""

from __future__ import annotations

from kandinsky.ops.attention_spec import DENSE_BACKENDS, TYPES
from kandinsky.runtime.budget import OFFLOADS

# By the name of the field of ``RunOptions`` or ``Request``; other fields' values are free.
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
