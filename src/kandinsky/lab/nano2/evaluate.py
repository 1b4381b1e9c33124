"""What ``measures.py`` needs of a model of the package: its clips, its reader, and what they are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.lab.nano.train_autoencoder import to_unit
from kandinsky.lab.nano2.catalogue import open_sources
from kandinsky.lab.nano2.fidelity import Clip
from kandinsky.lab.nano2.measures import GROUPS, PortraitImages, Read, Reference, RoundTrip, to_clip
from kandinsky.model.values import Request

REFERENCES = {True: "the real images", False: "the model's own portraits"}


@dataclass(slots=True)
class Made:
    """Clips of batches of requests.

    Args:
        pipe: The model.
        batch: Clips made at once.
        seed: Of the first clip of every call; the next has the next one.
        fields: Further fields of all requests, such as ``steps``.
        on_batch: Is given the clips of every batch, and the seconds they took.
    """

    pipe: GenerationPipeline
    batch: int = 8
    seed: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    on_batch: Callable[[list[Clip], float], None] | None = None

    def __call__(self, texts: Sequence[str], *, images: Sequence[Clip] | None = None, **fields: Any) -> list[Clip]:
        """One clip a text, beside an image where they are given."""
        clips: list[Clip] = []
        for at in range(0, len(texts), self.batch):
            part = range(at, min(at + self.batch, len(texts)))
            requests = [
                Request(
                    self.pipe.card.id, texts[i], seed=self.seed + i, image=None if images is None else images[i]
                ).with_values(**self.fields | fields)
                for i in part
            ]
            began = time.monotonic()
            videos = self.pipe.run_batch([self.pipe.resolve(request) for request in requests])
            made = [video.frames_THWC for video in videos]
            clips += made
            if self.on_batch is not None:
                self.on_batch(made, time.monotonic() - began)
        return clips


@dataclass(frozen=True, slots=True)
class Measured:
    """What measures need of a model beside its clips.

    Args:
        reference: What the clips are compared with.
        read: How the model reads a prompt.
        round_trip: Encodes and decodes a clip.
        groups: Those of ``measures.GROUPS`` that say anything of the model.
    """

    reference: Reference
    read: Read
    round_trip: RoundTrip
    groups: tuple[str, ...]


def round_trip_of(pipe: GenerationPipeline) -> RoundTrip:
    """The round trip of a clip through a pipeline's autoencoder."""

    @torch.no_grad()
    def round_trip(clip: Clip) -> Clip:
        with pipe.placement.hold("vae") as vae:
            dtype = next(vae.parameters()).dtype
            return to_clip(vae.decode(vae.encode(to_unit(clip)[None].to(dtype)))[0])

    return round_trip


def inside(pipe: GenerationPipeline) -> tuple[Read, RoundTrip, PortraitImages]:
    """Of a model of scenes: its reader, its autoencoder's round trip, its portraits."""
    with pipe.placement.hold("text") as text, pipe.placement.hold("dit") as dit:
        read, portraits = text.reader.read, PortraitImages(dit.portraits, text.network)
    return read, round_trip_of(pipe), portraits


def of_scenes(pipe: GenerationPipeline, data: Path | None) -> Measured:
    """What measures need of a model of scenes.

    Args:
        pipe: The model.
        data: Folder of the real images; None to compare with the model's own portraits, without fidelity.

    Raises:
        RequestError: The folder has no images.
    """
    read, round_trip, portraits = inside(pipe)
    reference = Reference.of(portraits if data is None else open_sources(data), are_real=data is not None)
    return Measured(reference, read, round_trip, GROUPS[pipe.card.task])
