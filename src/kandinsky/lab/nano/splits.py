"""Which clips are trained on and which are held out, decided by order alone, so every run agrees."""

from __future__ import annotations

from pathlib import Path

from kandinsky.lab.nano.concepts import load_concepts
from kandinsky.lab.nano.emoji import Clips


def autoencoder_rows(cache: Path, held_every: int = 6) -> tuple[list[int], list[int]]:
    """(trained, held out): every ``held_every``-th clip that is no concept is held out.

    The concepts themselves are all trained on, since the denoiser makes exactly these.
    """
    clips = Clips(cache)
    concepts = set(clips.rows(concept.file for concept in load_concepts()))
    others = [row for row in range(len(clips)) if row not in concepts]
    held = others[::held_every]
    return sorted(set(range(len(clips))) - set(held)), held
