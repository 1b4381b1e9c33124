"""Clips of six seconds for a causal Nano: emoji that play their loop again and again, at rest or moved by actions.

An animated emoji is a loop, so what comes next is known for as long as wanted, at any place of it. ``encode_streams``
composites every concept over some of its training colours and encodes the clips as one, so that later latent frames
carry what the causal autoencoder carries in a stream. Clips of the second kind are a small world: the subject begins in
the middle, and in every latent frame one action moves it (``World``).

Legend: M clips; T frames; K latent frames.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from kandinsky.families.nano.autoencoder import NanoAutoencoder
from kandinsky.families.nano.world import ACTIONS, COLUMNS, STEP
from kandinsky.lab.nano import captions
from kandinsky.lab.nano.concepts import Concept, load_concepts
from kandinsky.lab.nano.emoji import POSITIONS, SCALES, decode_one, window
from kandinsky.lab.nano.train_autoencoder import to_unit
from kandinsky.runtime.devices import mixed_precision

log = logging.getLogger(__name__)
LATENTS, TEMPORAL, SIDE = 19, 4, 96
"""Latent frames of a clip, frames of each but the first, and pixels."""
FRAMES = 1 + TEMPORAL * (LATENTS - 1)
INHABITANTS = (
    *("panda", "cat face", "dog face", "robot", "snowman", "octopus", "fox", "pig face", "frog", "ghost", "koala"),
    *("lion", "penguin", "monkey face", "jack-o-lantern", "unicorn"),
)
"""Concepts of the small world, by their English names."""
SOURCE = 112  # pixels of the pictures that are composited


@dataclass(frozen=True, slots=True)
class Place:
    """Where a subject stands in a frame: its centre as a share of the frame from the middle, and its size."""

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class State:
    """What a latent frame of the world ends with: the subject's column from the middle, in the air or not, grown."""

    column: int = 0
    air: int = 0
    grown: int = 0


@dataclass(frozen=True, slots=True)
class World:
    """The rules by which actions move a subject; each action holds for one latent frame, a third of a second.

    Left and right move it by a column, as far as the last ones. A jump ends in the air, and whatever is done next, it
    falls. It is grown for as long as it is told to grow.

    Attributes:
        scale: Size at rest, of what a plain clip shows; that of the word "small".
        grown: Size when it is grown.
    """

    scale: float = SCALES["small"]
    grown: float = 1.0

    def after(self, state: State, action: str) -> State:
        """What an action leads to."""
        most = COLUMNS // 2
        column = state.column + {"left": -1, "right": 1}.get(action, 0)
        air = int(action == "jump" and not state.air)
        return State(min(most, max(-most, column)), air, int(action == "grow"))

    def states(self, actions: Sequence[str]) -> list[State]:
        """Of every latent frame; the first one is at rest in the middle."""
        made = [State()]
        for action in actions:
            made.append(self.after(made[-1], action))
        return made

    def place(self, state: State) -> Place:
        """Where the subject stands."""
        return Place(state.column * STEP, -state.air * STEP, self.grown if state.grown else self.scale)

    def places(self, actions: Sequence[str]) -> list[Place]:
        """Of every frame: the first one, and ``TEMPORAL`` that lead to each state."""
        states = [self.place(state) for state in self.states(actions)]
        made = [states[0]]
        for old, new in pairwise(states):
            for part in range(1, TEMPORAL + 1):
                share = part / TEMPORAL
                between = ((1 - share) * a + share * b for a, b in zip(astuple(old), astuple(new), strict=True))
                made.append(Place(*between))
        return made


def drawn_actions(rng: np.random.Generator, count: int) -> list[str]:
    """Actions as a player gives them: keys are held for some time, and all are used."""
    made: list[str] = []
    while len(made) < count:
        action = str(rng.choice(ACTIONS))
        made += [action] * int(rng.integers(1, 3 if action == "jump" else 5))
    return made[:count]


def placed(rgba_THWC: np.ndarray, rgb: Sequence[int], places: Sequence[Place], *, side: int = SIDE) -> np.ndarray:
    """Composite a premultiplied clip over a colour, each frame at a place of its own; uint8 [T, side, side, 3]."""
    ground, source = np.asarray(rgb, np.float32), rgba_THWC.shape[1]
    out = np.empty((len(places), side, side, 3), np.uint8)
    for t, at in enumerate(places):
        span = source / at.scale  # side of the window on the source that fills the frame
        left, top = (source / 2 - span / 2 - shift * span for shift in (at.x, at.y))
        rgba = np.asarray(window(rgba_THWC[t], left, top, span, side), np.float32)
        out[t] = np.clip(rgba[..., :3] + ground * (1 - rgba[..., 3:] / 255.0) + 0.5, 0, 255).astype(np.uint8)
    return out


@dataclass(frozen=True, slots=True)
class Stream:
    """What a clip shows, as slots of the text network name it; actions where it is one of the world."""

    concept: int
    colour: int
    position: str | None = None
    scale: str | None = None
    camera: str | None = None
    actions: tuple[str, ...] = ()

    def places(self, world: World) -> list[Place]:
        """Of all frames."""
        if self.actions:
            return world.places(self.actions)
        x, y = POSITIONS[self.position] if self.position else (0.0, 0.0)
        return [Place(x, y, SCALES[self.scale] if self.scale else 1.0)] * FRAMES


def at_rest(number: int, entry: Concept, colours: int) -> list[Stream]:
    """Clips of a concept: over so many of its training colours, and one more at another place or size."""
    rng = np.random.default_rng(70_000 + number)
    shown = captions.TRAIN_COLOURS(entry)
    made = [Stream(number, int(colour)) for colour in rng.permutation(shown)[:colours]]
    is_moved = bool(rng.integers(2) == 0)
    word = str(rng.choice(captions.POSITIONS if is_moved else captions.SCALES))
    colour = int(rng.choice(shown))
    return [*made, Stream(number, colour, position=word if is_moved else None, scale=None if is_moved else word)]


def in_world(number: int, entry: Concept, clips: int) -> list[Stream]:
    """Clips of a concept that actions move; none of those that do not live in the world."""
    if entry.en.lower() not in INHABITANTS:
        return []
    rng = np.random.default_rng(80_000 + number)
    colours = np.resize(rng.permutation(captions.TRAIN_COLOURS(entry)), clips)
    return [Stream(number, int(colour), actions=tuple(drawn_actions(rng, LATENTS - 1))) for colour in colours]


@torch.no_grad()
def encode_streams(
    cache: Path,
    autoencoder: NanoAutoencoder,
    target: Path,
    scenes: Callable[[int, Concept], Sequence[Stream]],
    world: World | None = None,
) -> None:
    """Composite and encode: float16 [M, K, H, W, C] and an index of what each clip shows.

    Args:
        cache: Folder of `kandinsky data nano`.
        autoencoder: Nano's.
        target: A file `.npy`; the index goes beside it.
        scenes: Clips of a concept.
        world: Rules of actions.
    """
    entries, rules = load_concepts(), world or World()
    plan = [scenes(number, entry) for number, entry in enumerate(entries)]
    part, out, at = target.with_suffix(".part.npy"), None, 0
    for entry, streams in zip(entries, plan, strict=True):
        if not streams:
            continue
        loop = decode_one(cache / "packages" / entry.file, SOURCE, FRAMES)
        for stream in streams:
            frames = placed(loop, captions.COLOURS[stream.colour].rgb, stream.places(rules))
            with mixed_precision("cpu"):
                latents = autoencoder.encode(to_unit(frames[None])).half().numpy()[0]
            if out is None:
                shape = (sum(map(len, plan)), *latents.shape)
                out = np.lib.format.open_memmap(part, "w+", np.float16, shape)
            out[at], at = latents, at + 1
        if entry.hexcode == entries[-1].hexcode or at % 300 < len(streams):
            log.info("encoded %d of %d clips", at, sum(map(len, plan)))
    assert out is not None
    out.flush()
    index = [asdict(stream) for streams in plan for stream in streams]
    target.with_suffix(".json").write_text(json.dumps(index))
    part.rename(target)
