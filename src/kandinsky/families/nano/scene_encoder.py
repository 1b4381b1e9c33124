"""The second Nano's text encoder: rules read a prompt into a scene, and a memory says it to the denoiser.

Where the scene's subjects stand in each frame, and before what, travels behind the channels of the pooled vector, as
``geometry.py`` lays it out: the denoiser is told what it would otherwise have to learn from words.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.nano.geometry import packed
from kandinsky.families.nano.params import NanoSceneParams
from kandinsky.families.nano.reader import SceneReader, Span, Understood
from kandinsky.families.nano.scene_words import NOTHING, Said, SceneWords, said_of, unsaid
from kandinsky.families.nano.scenes import Scene
from kandinsky.families.nano.spelling import spelt, words_of
from kandinsky.families.nano.unknown import refused
from kandinsky.model.values import TextEmbeddings
from kandinsky.printing import escaped
from kandinsky.weights.read import load_into

log = logging.getLogger(__name__)
APPEARS = "fades in"


class NanoSceneEncoder:
    """English or Russian prompts to the states that the denoiser attends to; runs where the memory's weights are."""

    def __init__(self, network: SceneWords, reader: SceneReader) -> None:
        self.network = network.eval()
        self.reader = reader

    def encode(self, prompts: Sequence[str], *, still: bool = False) -> TextEmbeddings:
        """Embeddings of B ≥ 1 prompts: tokens [B, L, C], pooled [B, C + PACKED] and the mask.

        An empty prompt gives the unconditional embedding.

        Args:
            prompts: The prompts.
            still: Whether the result will be one image, which has a state of its own.

        Returns:
            The embeddings.

        Raises:
            RequestError: Nothing is known of what a prompt asks for; the message names the nearest concepts.
        """
        if isinstance(prompts, str) or not prompts:
            raise RequestError("prompts must be a list of at least one string: write `encode([prompt])`")
        scenes = [self._scene(prompt) for prompt in prompts]
        return self._states([NOTHING if one is None else said_of(one, still=still) for one in scenes], scenes)

    def encode_with_images(self, prompts: Sequence[str], images: Sequence[Image]) -> TextEmbeddings:
        """Embeddings of B ≥ 1 prompts, each beside the picture that the clip begins with.

        The picture decides what the words leave open; a scene of words that it does not show goes no further than
        ``draft.tell``. Where they name nothing that can be shown, it decides alone.
        """
        read = [self._read(prompt, beside_image=True) for prompt, _ in zip(prompts, images, strict=True)]
        return self._states([said_beside_image(one) for one in read], [one.scene for one in read])

    def encode_against(self, negative: str, prompt: str) -> TextEmbeddings:
        """Embeddings of one negative prompt, which matter above guidance 1 alone.

        One in which nothing is known is as an empty one: what it wants left out would not be shown anyway.
        """
        scene = self.reader.read(negative).scene
        if scene is None and negative.strip():
            log.warning("the negative prompt names nothing that this model shows, and is not used")
        return self._states([NOTHING if scene is None else said_of(scene, still=False)], [scene])

    def unused(self, prompt: str, *, beside_image: bool = False) -> tuple[str, ...]:
        """Words of a prompt that have no influence on what is shown, as they are spelt there, each once.

        Words of which something else is shown, as near as can be, are told with it: "five (shown: three)".

        Beside an image, that shows the subject from the first frame on and stands before its own background, those are
        words for a background too, and "fades in".
        """
        understood = self._read(prompt, beside_image=beside_image)
        words, spelling = words_of(prompt), spelt(prompt)
        found = _placed(words, understood.ignored)
        if beside_image and understood.scene is None:  # then the picture decides alone
            found = _placed(words, [word for word in words if word not in self.reader.silent])
        elif beside_image:
            found |= _placed(words, [span.text for span in understood.spans if _is_of_image(span)])
        told = {at: " ".join(spelling[at : at + length]) for at, length in found.items()}
        places = _placed(words, [word for word, _ in understood.instead])
        for (at, length), (_, shown) in zip(sorted(places.items()), understood.instead, strict=False):
            told[at] = f"{' '.join(spelling[at : at + length])} (shown: {shown})"
        return tuple(dict.fromkeys(told[at] for at in sorted(told)))

    def _read(self, prompt: str, *, beside_image: bool) -> Understood:
        """What a prompt says; beside an image, a motion alone ("jumps") is that of what the image shows."""
        understood = self.reader.read(prompt)
        if beside_image and understood.scene is None and {one.role for one in understood.spans} & {"motion", "camera"}:
            understood = self.reader.read(f"something {prompt}")
        if beside_image and understood.scene is not None and understood.scene.motion == APPEARS:
            understood = replace(understood, scene=replace(understood.scene, motion=None))  # it is there already
        return understood

    def _scene(self, prompt: str) -> Scene | None:
        if not prompt.strip():
            return None
        understood = self.reader.read(prompt)
        if understood.scene is None:
            raise refused(self.reader, prompt, understood)
        return understood.scene

    def _states(self, said: Sequence[Said], scenes: Sequence[Scene | None]) -> TextEmbeddings:
        with torch.inference_mode(False), torch.no_grad():
            text = self.network(said)
        pooled = torch.cat([text.pooled_BC.float(), packed(scenes).to(text.pooled_BC.device)], dim=1)
        return TextEmbeddings(text.tokens_BLC, pooled, text.mask_BL)

    @classmethod
    def from_files(cls, rows: Path, words: Path, params: Mapping[str, Any]) -> NanoSceneEncoder:
        """Read the encoder.

        Args:
            rows: Weights of the memory.
            words: Its `words.json`; see ``reader.py``.
            params: Fields of ``NanoSceneParams`` that differ from its defaults.

        Raises:
            WeightsError: A file is missing or does not fit.
            RequestError: A parameter is unknown.
        """
        sizes, reader = NanoSceneParams.from_dict(params), SceneReader.of(words)
        if len(reader.names) != sizes.concepts:
            raise WeightsError(
                f"`{escaped(words)}` has the words of {len(reader.names)} concepts, and the memory {sizes.concepts}"
            )
        with torch.device("meta"):
            network = SceneWords(sizes.concepts, codes=sizes.codes, pooled=sizes.pooled)
        load_into(network, rows, dtype=torch.float32)
        return cls(network, reader)


def _placed(words: Sequence[str], phrases: Iterable[str]) -> dict[int, int]:
    """Where phrases begin among words, which have them in this order, and how many words each has."""
    found: dict[int, int] = {}
    at = 0
    for phrase in phrases:
        length = len(words_of(phrase))
        while " ".join(words[at : at + length]) != phrase and at < len(words):
            at += 1
        if at < len(words):
            found[at] = length
        at += length
    return found


def _is_of_image(span: Span) -> bool:
    """Whether the image decides what a phrase speaks of."""
    return span.role in ("colour", "backdrop") or (span.role == "motion" and span.meaning == APPEARS)


def said_beside_image(understood: Understood) -> Said:
    """What is said beside an image: what the words leave open stays open, for the image decides it."""
    if understood.scene is None:
        return NOTHING
    silent = ("arrangement",) if len(understood.scene.subjects) == 1 else ()
    return unsaid(said_of(understood.scene, still=False), [*understood.left_open, *silent])
