"""What is measured of a Nano, by ``kandinsky evaluate`` (``evaluate.py``) and of a run in training (``judge.py``).

A clip is made of a caption that says all of a scene, and compared with what the scene looks like: drawn of the real
images, or of the model's own portraits where it has some and no folder is given. For each kind of scenes: *as told*,
the share of clips that lie nearest to what was asked for among all that differs from it in that one thing (another
concept, motion, camera, number, order, place, size, tone of skin), so what a prompt's words did is counted whoever
understood them wrongly; the background's colour; how far the subject's middle lies from where it should be, and how far
its size is off, frame by frame; flicker. With the real images also fidelity (``fidelity.py``). Nothing here is learned.

Legend: T frames, H W rows and columns, K concepts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kandinsky.evaluate.clips import flicker
from kandinsky.families.nano.portraits import GRID, PortraitDecoder
from kandinsky.families.nano.reader import Understood
from kandinsky.families.nano.scene_words import SceneWords
from kandinsky.families.nano.scenes import (
    ARRANGEMENTS,
    CAMERAS,
    MOTIONS,
    PLACES,
    RGB,
    SIZES,
    TONES,
    WHITE,
    Scene,
    Subject,
    plain_scene,
)
from kandinsky.families.nano.spelling import words_of
from kandinsky.lab.nano.captions import held_colours
from kandinsky.lab.nano.concepts import LANGUAGES, Language, plain
from kandinsky.lab.nano.measure import SHRUNK, background_colour, rank_among, shrink
from kandinsky.lab.nano2.catalogue import Images, catalogue
from kandinsky.lab.nano2.describe import describe
from kandinsky.lab.nano2.fidelity import Clip, fidelity, jumps, reading
from kandinsky.lab.nano2.random_scenes import draw_scene, in_tones
from kandinsky.lab.nano2.render import render

CLIPS, SIDE, FRAMES = 48, 192, 25
SMALL, EVERY = 96, 4
"""Side of clips that are only compared at 24 × 24 pixels, and which of their frames all concepts are compared in."""
BLACK = min(range(len(RGB)), key=lambda number: sum(RGB[number]))
DIFFERS, FEWEST = 40, 12
"""How far a pixel is from the background to be the subject's, in 255, and how many of them are one."""
SENTENCES, NEGATED = 400, 50
NO: dict[Language, tuple[str, ...]] = {"en": ("no {}", "without {}"), "ru": ("не {}", "без {}")}
UNKNOWN: dict[Language, tuple[str, ...]] = {
    "en": (
        "asdfgh",
        "qwertz",
        "a blorptak",
        "democracy",
        "the square root of two",
        "tuesday",
        "an isotope",
        "tax form",
    ),
    "ru": ("ыфвапр", "йцукен", "бырзяк", "демократия", "квадратный корень", "вторник", "изотоп", "налоговый вычет"),
}
"""Texts with nothing in them that can be shown."""

Read = Callable[[str], Understood]
Draw = Callable[[Scene, int], Tensor]
"""A scene and a side to float32 [25, side, side, 3] in [-1, 1]."""
RoundTrip = Callable[[Clip], Clip]


class Make(Protocol):
    """Makes one clip of each text, beside an image where they are given."""

    def __call__(self, texts: Sequence[str], *, images: Sequence[Clip] | None = None, **fields: Any) -> list[Clip]: ...


def to_clip(video_THWC: Tensor) -> Clip:
    """Video in [-1, 1] as uint8."""
    return np.asarray(((video_THWC.float().clamp(-1, 1) + 1) * 127.5).round().byte())


class PortraitImages:
    """Images of all concepts as a model's own codes have them.

    Args:
        decoder: Of codes.
        words: The memory with the codes.
    """

    def __init__(self, decoder: PortraitDecoder, words: SceneWords) -> None:
        self.decoder, self.memory = decoder, words.memory

    def __len__(self) -> int:
        return len(self.memory.pooled) - 1

    @torch.no_grad()
    def frames(self, concept: int | None, row: int | None = None, *, count: int = FRAMES) -> Tensor:
        """Premultiplied RGBA in [0, 1], float32 [T, 4, 144, 144]."""
        places = GRID * GRID
        at = ((concept or 0) + 1) * places
        images: Tensor = self.decoder(self.memory.codes[at : at + places][None], count)[0]
        return images

    @torch.no_grad()
    def toned(self, concept: int, tone: int, *, count: int = FRAMES) -> Tensor | None:
        """The same in a tone of skin."""
        at = (concept + 1) * GRID**2
        images: Tensor = self.decoder(self.memory.codes[at : at + GRID**2][None], count, [tone])[0]
        return images


class Reference:
    """The clips that scenes mean, and how far others are from them.

    Args:
        draw: Draws a scene as the model was trained to show it.
        concepts: How many concepts the model knows, the first of all.
        are_real: Whether scenes are drawn of the real images, and not of what a model has of them.
        side: Of the model's clips.
    """

    def __init__(self, draw: Draw, concepts: int, *, are_real: bool, side: int = SIDE) -> None:
        self.draw, self.concepts, self.are_real, self.side = draw, concepts, are_real, side
        self._plain: Tensor | None = None

    @classmethod
    def of(cls, images: Images, *, are_real: bool) -> Reference:
        """Scenes of these images, as the second Nano shows them."""
        return cls(lambda scene, side: render(scene, images, side=side, frames=FRAMES), len(images), are_real=are_real)

    def clip(self, scene: Scene, *, side: int | None = None) -> Clip:
        """The clip, uint8 [25, side, side, 3]; at the model's own side if none is given."""
        return to_clip(self.draw(scene, side or self.side))

    def plain(self, colour: int) -> Tensor:
        """All concepts over a colour, some of their frames, in [0, 1]: [K, T·3·24·24]."""
        if self._plain is None:
            black, white = (
                torch.stack([self._shrunk(plain_scene(number, ground)) for number in range(self.concepts)])
                for ground in (BLACK, WHITE)
            )
            self._plain = torch.stack([black, white])
        black, white = self._plain
        low, high, own = (torch.tensor(RGB[number]).div(255).view(3, 1, 1) for number in (BLACK, WHITE, colour))
        over: Tensor = black + (white - black) * (own - low) / (high - low)
        return over.flatten(1)

    def _shrunk(self, scene: Scene) -> Tensor:
        frames = self.draw(scene, 2 * SHRUNK)[::EVERY].permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(frames.add(1).div(2), SHRUNK)

    def is_as_told(self, kind: str, clip: Clip, scene: Scene) -> bool:
        """Whether a clip is nearest to its own scene among those it could have been."""
        if kind == "plain":
            return rank_among(self.plain(scene.colours[0]), clip[::EVERY], scene.subjects[0].concept or 0) == 0
        others = OTHERS[kind](scene)
        return rank_among(torch.stack([shrink(self.clip(one, side=SMALL)) for one in others]), clip, 0) == 0


# -- scenes and their captions -----------------------------------------------------------------------------------------


def scene_groups(
    count: int = CLIPS, others: int | None = None, *, concepts: int | None = None
) -> dict[str, list[Scene]]:
    """Scenes to be measured by kind, before colours that are held out for their concept; the same on every machine.

    Args:
        count: Plain ones.
        others: Of every other kind; None for a third as many.
        concepts: Of the first so many concepts; None for all.
    """
    rng = np.random.default_rng(48)
    entries = catalogue()[:concepts]

    def drawn() -> tuple[int, int]:
        concept = int(rng.integers(len(entries)))
        return concept, int(rng.choice(held_colours(entries[concept])))

    def several(arrangement: str, *, same: bool) -> Scene:
        concept, colour = drawn()
        numbers = [concept if same else (concept + 131 * i) % len(entries) for i in range(3)]
        return _arranged(numbers, arrangement, colour)

    def placed() -> Scene:
        concept, colour = drawn()
        word = str(rng.choice(list(PLACES)[1:]))
        return _placed(plain_scene(concept, colour), word)

    def in_tone(concept: int) -> Scene:
        return plain_scene(concept, int(rng.choice(held_colours(entries[concept]))))

    numbers, people = [int(i * len(entries) / count) for i in range(count)], [n for n in in_tones() if n < len(entries)]
    few = others or max(1, count // 3)
    return {
        "plain": [plain_scene(n, int(rng.choice(held_colours(entries[n])))) for n in numbers],
        "motions": [replace(plain_scene(*drawn()), motion=MOTIONS[i % len(MOTIONS)]) for i in range(few)],
        "cameras": [replace(plain_scene(*drawn()), camera=CAMERAS[i % len(CAMERAS)]) for i in range(few)],
        "counts": [several(("side by side", "three in a row")[i % 2], same=True) for i in range(few)],
        "two subjects": [several(("side by side", "one above the other")[i % 2], same=False) for i in range(few)],
        "places": [placed() for _ in range(few)],
        "sizes": [_sized(plain_scene(*drawn()), list(SIZES)[i % len(SIZES)]) for i in range(few)],
        "tones": [
            _toned(in_tone(people[i * len(people) // few]), 1 + i % len(TONES)) for i in range(few if people else 0)
        ],
    }


def _arranged(numbers: Sequence[int], arrangement: str, colour: int) -> Scene:
    subjects = tuple(Subject(n, *at) for n, at in zip(numbers, ARRANGEMENTS[arrangement], strict=False))
    return Scene(subjects, colours=(colour, None), arrangement=arrangement)


def _placed(scene: Scene, word: str) -> Scene:
    return replace(scene, subjects=(Subject(scene.subjects[0].concept, *PLACES[word]),), place=word)


def _sized(scene: Scene, word: str | None) -> Scene:
    side = SIZES[word] if word is not None else PLACES["middle"][2]
    return replace(scene, subjects=(replace(scene.subjects[0], size=side),), size=word)


def _toned(scene: Scene, tone: int) -> Scene:
    return replace(scene, subjects=(replace(scene.subjects[0], tone=tone),))


def _of_one(scene: Scene) -> tuple[int, int]:
    return scene.subjects[0].concept or 0, scene.colours[0]


def _numbers(scene: Scene) -> list[Scene]:
    concept, colour = _of_one(scene)
    return [_arranged([concept] * 3, name, colour) for name in ("one", "side by side", "three in a row")]


def _pairs(scene: Scene) -> list[Scene]:
    (a, b), colour = (one.concept or 0 for one in scene.subjects), scene.colours[0]
    ways = ("side by side", "one above the other")
    return [_arranged(pair, name, colour) for name in ways for pair in ((a, b), (b, a), (a, a), (b, b))]


def _first(scene: Scene, others: Sequence[Scene]) -> list[Scene]:
    """The scene itself, and the others that differ from it."""
    return [scene, *(one for one in others if one != scene)]


OTHERS: dict[str, Callable[[Scene], list[Scene]]] = {
    "motions": lambda scene: _first(scene, [replace(scene, motion=one) for one in (None, *MOTIONS)]),
    "cameras": lambda scene: _first(scene, [replace(scene, camera=one) for one in (None, *CAMERAS)]),
    "counts": lambda scene: _first(scene, _numbers(scene)),
    "two subjects": lambda scene: _first(scene, _pairs(scene)),
    "places": lambda scene: _first(scene, [_placed(scene, word) for word in PLACES]),
    "sizes": lambda scene: _first(scene, [_sized(scene, word) for word in (None, *SIZES)]),
    "tones": lambda scene: _first(scene, [_toned(scene, tone) for tone in range(len(TONES) + 1)]),
}
"""What a clip of each kind could have been taken for, itself first; a plain one is compared with all concepts."""


def caption_of(scene: Scene, number: int) -> str:
    """A caption that says all of a scene, English and Russian by turns."""
    lang = LANGUAGES[number % len(LANGUAGES)]
    rng = random.Random(number)
    while "backdrop" in (caption := describe(scene, lang=lang, rng=rng)).left_open:
        pass
    return caption.text


# -- clips -------------------------------------------------------------------------------------------------------------


def tracked(clip_THWC: Clip, rgb: tuple[int, int, int]) -> np.ndarray:
    """Where what differs from one colour is in every frame.

    Returns:
        float64 [T, 3]: its middle, right and down, and the root of its area, as shares of the side; NaN where there is
        nothing.
    """
    differs = np.abs(clip_THWC.astype(np.int16) - np.array(rgb, np.int16)).max(-1) > DIFFERS
    found = np.full((len(clip_THWC), 3), np.nan)
    for row, mask in zip(found, differs, strict=True):
        down, across = np.nonzero(mask)
        if len(down) >= FEWEST:
            row[:] = across.mean() / mask.shape[1], down.mean() / mask.shape[0], np.sqrt(len(down) / mask.size)
    return found


def clip_figures(
    kind: str, made: Sequence[Clip], scenes: Sequence[Scene], reference: Reference, round_trip: RoundTrip | None = None
) -> dict[str, Any]:
    """Figures of clips of one kind; see the module."""
    meant = [reference.clip(scene) for scene in scenes]
    told, colours, middles, sizes, trembling = [], [], [], [], []
    for clip, scene, truth in zip(made, scenes, meant, strict=True):
        told.append(reference.is_as_told(kind, clip, scene))
        colours.append(background_colour(clip) == scene.colours[0])
        mine, its = (tracked(one, RGB[scene.colours[0]]) for one in (clip, truth))
        both = ~np.isnan(mine[:, 0]) & ~np.isnan(its[:, 0])
        if both.any():
            middles.append(np.hypot(*(mine - its)[both, :2].T).mean())
            sizes.append(np.abs(mine[both, 2] / its[both, 2] - 1).mean())
        trembling.append((flicker(clip), flicker(truth)))
    tremble = np.array(trembling).sum(0)
    row: dict[str, Any] = {
        "clips": len(made),
        "candidates": reference.concepts if kind == "plain" else len(OTHERS[kind](scenes[0])),
        "as_told": float(np.mean(told)),
        "colour": float(np.mean(colours)),
        "middle_off": float(np.mean(middles)) if middles else None,
        "size_off": float(np.mean(sizes)) if sizes else None,
        "flicker": float(tremble[0] / max(tremble[1], 1e-9)),
    }
    if reference.are_real:
        names = [" + ".join(catalogue()[s.concept or 0].en for s in scene.subjects) for scene in scenes]
        near = asdict(fidelity(made, meant, names, round_trip=round_trip))
        row |= {key: None if value != value else value for key, value in near.items() if key not in row}
    return row


IMAGE_KINDS = ("words that fit", "only the subject", "another subject", "no words")


def image_texts(kind: str, scenes: Sequence[Scene]) -> list[str]:
    """What is said beside the first frames of plain scenes."""

    def label(scene: Scene, number: int) -> str:
        return catalogue()[scene.subjects[0].concept or 0].label(LANGUAGES[number % len(LANGUAGES)])

    match kind:
        case "words that fit":
            return [caption_of(scene, number) for number, scene in enumerate(scenes)]
        case "only the subject":
            return [label(scene, number) for number, scene in enumerate(scenes)]
        case "another subject":
            return [label(scene, number) for number, scene in enumerate([*scenes[1:], scenes[0]])]
    return [""] * len(scenes)


def fixed_prompts() -> list[dict[str, str]]:
    """The 48 prompts written down beforehand: ``text``, and what a person must name from its clip."""
    text = resources.files("kandinsky.lab.nano2").joinpath("fixed_prompts.json").read_text("utf-8")
    return list(json.loads(text))


# -- words -------------------------------------------------------------------------------------------------------------


def measure_words(read: Read, known: int | None = None) -> dict[str, dict[str, Any]]:
    """How texts are understood: single synonyms that the first Nano never trained on, captions, what is unknown.

    Args:
        read: Reads one.
        known: How many concepts the reader knows, the first of all; None for all.

    Of captions: all subjects are read; no known word is named as ignored; a word with no meaning that is put into one
    is. Of texts with nothing known: nothing is read. Of "no X": X is not read.
    """
    entries = catalogue()[:known]

    def concepts(text: str) -> list[int]:
        scene = read(text).scene
        return [] if scene is None else [-1 if one.concept is None else one.concept for one in scene.subjects]

    rows: dict[str, dict[str, Any]] = {}
    for lang in LANGUAGES:
        pairs = [(plain(tag), number) for number, entry in enumerate(entries) for tag in entry.tags(lang).held]
        found = [concepts(tag) for tag, _ in pairs]
        rows[f"{lang} single synonyms"] = asdict(
            reading([one[0] if one else None for one in found], [number for _, number in pairs])
        )
        scenes = [draw_scene(np.random.default_rng((7, n)), concepts=len(entries)) for n in range(SENTENCES)]
        captions = [describe(one, lang=lang, rng=random.Random(f"7 {n}")).text for n, one in enumerate(scenes)]
        right, silent, reported = [], [], []
        for number, (scene, text) in enumerate(zip(scenes, captions, strict=True)):
            right.append(concepts(text) == [one.concept for one in scene.subjects])
            silent.append(not read(text).ignored)
            word = words_of(UNKNOWN[lang][number % 3])[-1]
            reported.append(word in read(f"{text} {word}").ignored)
        rows[f"{lang} captions"] = {"texts": SENTENCES, "right": float(np.mean(right))}
        rows[f"{lang} captions, no word reported"] = {"texts": SENTENCES, "right": float(np.mean(silent))}
        rows[f"{lang} captions and a word of no meaning, reported"] = {
            "texts": SENTENCES,
            "right": float(np.mean(reported)),
        }
        unknown = [not concepts(text) for text in UNKNOWN[lang]]
        rows[f"{lang} unknown, refused"] = {"texts": len(unknown), "right": float(np.mean(unknown))}
        step = len(entries) // NEGATED
        labels = [(n, entries[n * step].label(lang)) for n in range(NEGATED)]
        absent = [n * step not in concepts(NO[lang][n % 2].format(label)) for n, label in labels]
        rows[f"{lang} negation"] = {"texts": len(absent), "right": float(np.mean(absent))}
    return rows


# -- whole models ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Session:
    """What every measure works with.

    Args:
        make: The model.
        reference: What its clips are compared with.
        read: Its reader of prompts.
        count: Plain clips; see ``scene_groups``.
        others: Clips of every other kind; None for a third as many.
        round_trip: Encodes and decodes a clip, to measure what the autoencoder costs.
        groups: Only these; None for all.
        seen: Is shown the clips of each group beside the scenes' own.
    """

    make: Make
    reference: Reference
    read: Read
    count: int = CLIPS
    others: int | None = None
    round_trip: RoundTrip | None = None
    groups: Sequence[str] | None = None
    seen: Callable[[str, list[Clip], list[Clip]], None] | None = None

    def wants(self, name: str) -> bool:
        return self.groups is None or name in self.groups

    def scenes(self) -> dict[str, list[Scene]]:
        """The kinds of scenes that are wanted."""
        return {kind: scenes for kind, scenes in self._groups().items() if self.wants(kind)}

    def pictured(self) -> list[Scene]:
        """The scenes whose first frames are given: half of the plain ones."""
        return self._groups()["plain"][::2]

    def _groups(self) -> dict[str, list[Scene]]:
        return scene_groups(self.count, self.others, concepts=self.reference.concepts)


WORDS = "words"


def text_to_video(session: Session) -> dict[str, Any]:
    """Figures by kind of scene, and of the words alone."""
    rows: dict[str, Any] = {}
    for kind, scenes in session.scenes().items():
        made = session.make([caption_of(scene, number) for number, scene in enumerate(scenes)])
        rows[kind] = clip_figures(kind, made, scenes, session.reference, session.round_trip)
        if session.seen is not None:
            session.seen(kind, made, [session.reference.clip(scene) for scene in scenes])
    words = measure_words(session.read, session.reference.concepts) if session.wants(WORDS) else None
    return {"groups": rows} if words is None else {"groups": rows, "words": words}


def image_to_video(session: Session) -> dict[str, Any]:
    """What happens after given first frames, by what is said beside them."""
    scenes = session.pictured()
    meant = [session.reference.clip(scene) for scene in scenes]
    rows: dict[str, Any] = {}
    for kind in IMAGE_KINDS:
        if session.wants(kind):
            made = session.make(image_texts(kind, scenes), images=[clip[0] for clip in meant])
            rows[kind] = asdict(jumps(made, meant))
            if session.seen is not None:
                session.seen(kind, made, meant)
    return {"groups": rows}


MEASURES: dict[str, Callable[[Session], dict[str, Any]]] = {
    "text-to-video": text_to_video,
    "image-to-video": image_to_video,
}
"""By the card's task."""
GROUPS: dict[str, tuple[str, ...]] = {
    "text-to-video": ("plain", *OTHERS, WORDS),
    "image-to-video": IMAGE_KINDS,
}


def planned(session: Session, task: str) -> int:
    """How many clips a session will make."""
    if task == "image-to-video":
        return len(session.pictured()) * sum(session.wants(kind) for kind in IMAGE_KINDS)
    return sum(map(len, session.scenes().values()))
