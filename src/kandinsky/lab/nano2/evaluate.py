"""``kandinsky evaluate`` for the shipped Nano of scenes: ``measures.py`` on its pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kandinsky.catalogue import load
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import RequestError
from kandinsky.lab.nano.train_autoencoder import to_unit
from kandinsky.lab.nano2.catalogue import open_sources
from kandinsky.lab.nano2.fidelity import Clip
from kandinsky.lab.nano2.measure import Made
from kandinsky.lab.nano2.measures import (
    CLIPS,
    GROUPS,
    MEASURES,
    PortraitImages,
    Read,
    Reference,
    RoundTrip,
    Session,
    planned,
)

REFERENCES = {True: "the real images", False: "the model's own portraits"}


def inside(pipe: GenerationPipeline) -> tuple[Read, RoundTrip, PortraitImages]:
    """What measures need of a pipeline beside its clips: its reader, its autoencoder's round trip, its portraits."""
    with pipe.placement.hold("text") as text, pipe.placement.hold("dit") as dit:
        read, portraits = text.reader.read, PortraitImages(dit.portraits, text.network)

    @torch.no_grad()
    def round_trip(clip: Clip) -> Clip:
        with pipe.placement.hold("vae") as vae:
            dtype = next(vae.parameters()).dtype
            out = vae.decode(vae.encode(to_unit(clip)[None].to(dtype))).float()
        return np.asarray(((out[0].clamp(-1, 1) + 1) * 127.5).round().byte())

    return read, round_trip, portraits


def evaluate_scenes(
    model: str,
    *,
    data: Path | None = None,
    prompts: int | None = None,
    groups: Sequence[str] | None = None,
    batch: int = 8,
    dtype: str | None = None,
    shown: list[np.ndarray] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a model by its task.

    Args:
        model: Its id.
        data: Folder of the real images; None to compare with the model's own portraits, without fidelity.
        prompts: Of every group; None for 48 plain ones and 16 of every other kind.
        groups: Only these; None for all.
        batch: Clips made at once.
        dtype: As ``load`` takes it.
        shown: Gets a clip of every batch.
        on_batch: Is told how many clips of how many are made.

    Returns:
        As ``lab.nano.evaluate.evaluate``.

    Raises:
        RequestError: There is no such group, or the folder has no images.
    """
    pipe = load(model, dtype=dtype)
    task = pipe.card.task
    if unknown := [name for name in groups or () if name not in GROUPS[task]]:
        known = ", ".join(f"`{name}`" for name in GROUPS[task])
        raise RequestError(f"there is no group `{unknown[0]}`: use {known}")
    read, round_trip, portraits = inside(pipe)
    reference = Reference(portraits if data is None else open_sources(data), are_real=data is not None)
    made, done, seconds = Made(pipe, batch), 0, 0.0

    def make(texts: Sequence[str], *, images: Sequence[Clip] | None = None, **fields: Any) -> list[Clip]:
        nonlocal done, seconds
        clips: list[Clip] = []
        for at in range(0, len(texts), batch):
            part = slice(at, at + batch)
            began = time.monotonic()
            clips += made(texts[part], images=None if images is None else images[part], first_seed=at, **fields)
            seconds += time.monotonic() - began
            done = done + len(texts[part])
            if shown is not None:
                shown.append(clips[at])
            if on_batch is not None:
                on_batch(done, planned(session, task))
        return clips

    session = Session(make, reference, read, prompts or CLIPS, prompts, round_trip, groups)
    figures = MEASURES[task](session)
    sampling = pipe.card.sampling
    settings = {
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "shift": sampling.shift,
        "dtype": pipe.precision.name,
        "threads": torch.get_num_threads(),
        "size": pipe.card.clip.default_size,
        "compared with": REFERENCES[data is not None],
    }
    return {"model": model, **figures, "seconds_a_clip": seconds / max(done, 1), "settings": settings}
