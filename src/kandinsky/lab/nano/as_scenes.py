"""The first Nano, measured as the second is: its clips and words by ``lab/nano2/measures.py``.

A scene is drawn as this model was trained to show it: the image fills the frame, and words for places and sizes shift
it by other shares than those of the second Nano. Kinds of scenes that it was never trained to show (several subjects,
motions of the whole, tones of skin) are left out.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.families.nano import scenes
from kandinsky.families.nano.reader import Understood
from kandinsky.families.nano.scenes import plain_scene
from kandinsky.families.nano.text_encoder import NanoTextEncoder
from kandinsky.lab.nano.emoji import Scene, composite
from kandinsky.lab.nano.measure import NanoJudge
from kandinsky.lab.nano2.evaluate import Measured, round_trip_of
from kandinsky.lab.nano2.measures import IMAGE_KINDS, WORDS, Draw, Read, Reference

GROUPS = {"text-to-video": ("plain", "cameras", "places", "sizes", WORDS), "image-to-video": IMAGE_KINDS}
"""By the card's task."""


def measured(pipe: GenerationPipeline, judge: NanoJudge) -> Measured:
    """What measures need of the model."""
    reference = Reference(drawn(judge), len(judge.entries), are_real=True, side=judge.side)
    with pipe.placement.hold("text") as encoder:
        read = reader(encoder)
    return Measured(reference, read, round_trip_of(pipe), GROUPS[pipe.card.task])


def drawn(judge: NanoJudge) -> Draw:
    """Draws scenes of the real clips."""

    def draw(scene: scenes.Scene, side: int) -> Tensor:
        (subject,) = scene.subjects
        place = None if scene.place == "middle" else scene.place
        told = Scene(scenes.RGB[scene.colours[0]], place, scene.size, scene.camera)
        clip = composite(judge.rgba[subject.concept or 0], told, side=side)
        return torch.from_numpy(clip).float().div(127.5).sub(1)

    return draw


def reader(encoder: NanoTextEncoder) -> Read:
    """Reads prompts as the text network does: the concept that it finds surest, whatever was written."""

    @cache
    @torch.no_grad()
    def read(text: str) -> Understood:
        ids, mask, _ = encoder.tokenize([text])
        concept = int(encoder.network.read(ids, mask).logits["concept"][0].argmax())
        return Understood(plain_scene(concept, scenes.WHITE), (), encoder.unused(text))

    return read
