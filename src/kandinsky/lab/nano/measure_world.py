"""Does the subject of Nano's small world move as it is told?

A script of actions is played, and what is seen of each is told from the frames alone: where the subject stands (its
centre, against the background's colour), how high it rose, and how large it is, in shares of what the rules of
``streams.World`` say. What is right is what the rules do, so a step against the wall is to stay. The same reading of
clips that were composited by the rules is the best that can be measured, and of clips to which nothing was told the
worst. Retrieval says whether the subject is still the one that was asked for.

Legend: T frames of a chunk; H W C rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kandinsky.families.nano.world import ACTIONS, STEP
from kandinsky.lab.nano import captions
from kandinsky.lab.nano.captions import Prompt, evaluation_prompts
from kandinsky.lab.nano.streams import INHABITANTS, TEMPORAL, Place, State, World, drawn_actions, placed
from kandinsky.model.timeline import Play

if TYPE_CHECKING:
    from kandinsky.engine.pipeline import GenerationPipeline
    from kandinsky.lab.nano.measure import NanoJudge

CHUNKS = 18
SUBJECT = 24.0  # a pixel of it is so far from the background, of 255
STAYS = ACTIONS[0]


@dataclass(frozen=True, slots=True)
class WorldFigures:
    """One row of the table: a group of clips that belong together.

    Attributes:
        prompts: How many scripts were played.
        chunks: How many actions were told.
        as_told: Share of them that are seen.
        left, right, jump, grow, stay: The same of each action.
        retrieval_1: Share of clips whose subject, moved as it was, is nearest to what was asked for.
    """

    prompts: int
    chunks: int
    as_told: float
    left: float
    right: float
    jump: float
    grow: float
    stay: float
    retrieval_1: float | None


def stands(frame_HWC: np.ndarray) -> Place:
    """Where the subject of a frame stands, and its size as a share of the frame; at rest in the middle if none is."""
    pixels = frame_HWC.astype(np.float32)
    edge = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    apart = np.abs(pixels - np.median(edge, axis=0)).max(axis=-1) > SUBJECT
    if not apart.any():
        return Place()
    rows, columns = (np.flatnonzero(apart.any(axis=axis)) for axis in (1, 0))
    height, width = apart.shape
    across, down = ((ends[0] + ends[-1] + 1) / 2 / size - 0.5 for ends, size in ((columns, width), (rows, height)))
    spans = (columns[-1] - columns[0] + 1) / width, (rows[-1] - rows[0] + 1) / height
    return Place(float(across), float(down), float(np.sqrt(spans[0] * spans[1])))


def seen(before: Place, during: Sequence[Place], world: World) -> str:
    """The action that a chunk shows: that of which most is seen, or none.

    Args:
        before: The last frame before the chunk.
        during: Its frames.
        world: Its rules.
    """
    moved = (during[-1].x - before.x) / STEP
    shares = {
        "left": -moved,
        "right": moved,
        "jump": (before.y - during[-1].y) / STEP,
        "grow": (during[-1].scale / before.scale - 1) / (world.grown / world.scale - 1),
    }
    most = max(shares, key=lambda action: shares[action])
    return most if shares[most] > 0.5 else STAYS


def done(actions: Sequence[str], world: World) -> list[str]:
    """What the rules do of each action: nothing of a step at the wall, a jump in the air, or growing when grown."""
    states = world.states(actions)

    def of(action: str, before: State, after: State) -> str:
        changed = {
            "left": after.column < before.column,
            "right": after.column > before.column,
            "jump": after.air > before.air,
            "grow": after.grown > before.grown,
        }.get(action, True)
        return action if changed else STAYS

    return [of(*step) for step in zip(actions, states, states[1:], strict=False)]


def judged(clips: Sequence[tuple[Sequence[str], np.ndarray]], world: World, right: int | None = None) -> WorldFigures:
    """Figures of clips that were played.

    Args:
        clips: Actions, and frames [1 + T · actions, H, W, C].
        world: Its rules.
        right: How many of them show the subject that was asked for.
    """
    hits: dict[str, list[bool]] = {action: [] for action in ACTIONS}
    for actions, frames in clips:
        places = [stands(frame) for frame in frames]
        for number, wanted in enumerate(done(actions, world)):
            begin = number * TEMPORAL
            found = seen(places[begin], places[begin + 1 : begin + 1 + TEMPORAL], world)
            hits[wanted].append(found == wanted)
    every = [hit for group in hits.values() for hit in group]
    shares = {action: float(np.mean(group)) if group else 1.0 for action, group in hits.items()}
    return WorldFigures(
        prompts=len(clips), chunks=len(every), as_told=float(np.mean(every)), **shares,
        retrieval_1=None if right is None else right / len(clips),
    )  # fmt: skip


def played(pipe: GenerationPipeline, prompt: str, actions: Sequence[str], seed: int) -> np.ndarray:
    """The frames of a script: one at rest, then a chunk of each action."""
    script = iter([STAYS, *actions])

    def shows(at: float) -> Play | None:
        action = next(script, None)
        return None if action is None else Play(prompt, action)

    return np.concatenate([piece.frames for piece in pipe.stream(shows, seed=seed)])


def measure_world(
    pipe: GenerationPipeline,
    judge: NanoJudge,
    *,
    prompts: int | None,
    seed: int,
    shown: list[np.ndarray],
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Play scripts over backgrounds that training never had behind their subjects.

    Args:
        pipe: The model.
        judge: The real clips.
        prompts: How many, evenly taken from all; all if None.
        seed: Of the scripts and the streams.
        shown: Gets the clips.
        on_batch: Told how many are done, and of how many.

    Returns:
        Figures by group: as told; the same scripts judged by clips to which nothing was told; real clips.
    """
    world, names = World(), [entry.en.lower() for entry in judge.entries]
    asked = [
        one
        for one in evaluation_prompts()
        if one.lang == "en" and one.kind == "label" and names[one.concept_index] in INHABITANTS
    ]
    asked = asked[:: max(1, len(asked) // prompts)][:prompts] if prompts else asked
    told, untold, real, right = list[Any](), list[Any](), list[Any](), 0
    for number, one in enumerate(asked):
        actions = drawn_actions(np.random.default_rng([seed, number]), CHUNKS)
        clip = played(pipe, one.text, actions, seed + number)
        still = played(pipe, one.text, [STAYS] * CHUNKS, seed + number)
        ideal = _ideal(judge, one, actions, world)
        told.append((actions, clip))
        untold.append((actions, still))
        real.append((actions, ideal))
        right += _nearest(judge, one, clip) == one.concept_index
        shown.append(clip)
        if on_batch:
            on_batch(number + 1, len(asked))
    return {"as told": judged(told, world, right), "nothing told": judged(untold, world), "real": judged(real, world)}


def _ideal(judge: NanoJudge, prompt: Prompt, actions: Sequence[str], world: World) -> np.ndarray:
    """The clip that the rules make of a script."""
    rgba = judge.rgba[prompt.concept_index]
    places = world.places(actions)
    looped = rgba[np.arange(len(places)) % (len(rgba) - 1)]
    return placed(looped, captions.COLOURS[prompt.colour].rgb, places, side=judge.side)


def _nearest(judge: NanoJudge, prompt: Prompt, clip: np.ndarray) -> int:
    """The concept that the subject of the last frames looks most like, wherever it stands."""
    from kandinsky.lab.nano.measure import shrink

    size = judge.side
    crops = []
    for frame in clip[-TEMPORAL:]:
        at = stands(frame)
        crops.append(_centred(frame, at, size))
    mine = shrink(np.stack(crops))
    others = [shrink(np.stack([_centred(f, stands(f), size) for f in judge.real(k, prompt.colour)[:TEMPORAL]]))
              for k in range(len(judge.entries))]  # fmt: skip
    return int(np.argmin([float((other - mine).pow(2).mean()) for other in others]))


def _centred(frame_HWC: np.ndarray, at: Place, size: int) -> np.ndarray:
    """The subject alone, moved to the middle and to one size."""
    from PIL import Image

    half = max(at.scale, 0.1) * size / 2
    x, y = (at.x + 1) * size, (at.y + 1) * size  # in a picture of twice the size, so that nothing is cut off
    picture = Image.fromarray(frame_HWC)
    edge = tuple(int(v) for v in np.median(frame_HWC[:2].reshape(-1, 3), axis=0))
    wide = Image.new("RGB", (2 * size, 2 * size), edge)
    wide.paste(picture, (size // 2, size // 2))
    box = (x - half, y - half, x + half, y + half)
    return np.asarray(wide.resize((size, size), Image.Resampling.BILINEAR, box=box))
