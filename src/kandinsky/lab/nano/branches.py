"""How well Nano's branches are followed, on emoji that they never saw and over backgrounds held out for those they did.

    kandinsky evaluate nano-t2v --branches --folder .cache/nano

Edges: of the result against those of the control clip, as F-score of edge pixels that have one of the other within two
pixels. References: retrieval of the emoji that was shown, as Nano's own results are judged (``measure.NanoJudge``).
Both beside the same model, prompts and seeds without a branch.

Four groups. ``… unseen``: emoji that no training saw, and prompts that say the background alone. ``edges named``: the
prompt names a concept in the middle, over a colour held out for it, and the control shows it mirrored and elsewhere.
``reference shown``: concepts over colours held out for them, which the prompt does not name.

Legend: M N clips; T H W frames, rows, columns of pixels; K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kandinsky.errors import RequestError
from kandinsky.lab.nano import captions
from kandinsky.lab.nano.branch_data import SIDE, reference_of, unnamed
from kandinsky.lab.nano.emoji import FPS, Clips, Scene, composite
from kandinsky.lab.nano.measure import NanoJudge, rank_among, shrink
from kandinsky.lab.nano.splits import autoencoder_rows
from kandinsky.media.signals import edges_of
from kandinsky.model.given import Control, Given, Reference
from kandinsky.model.values import Video
from kandinsky.weights.branch_files import CONTROL, REFERENCE

SHOWN = 3  # cases of a group on the sheet
NEAR = 2  # pixels by which an edge may be off
SCENES = ({"scale": "small"}, {"position": "left"}, {"position": "right"}, {"scale": "large"})

# prompts, seeds, conditions of each → uint8 clips [M, T, H, W, 3]
Follow = Callable[[Sequence[str], Sequence[int], Sequence[tuple[Given, ...]]], np.ndarray]


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt, and what is to be followed.

    Attributes:
        prompt: Says less than what is shown.
        told: The control clip [T, H, W, 3] or the reference [H, W, 3], uint8.
        colour: Of the background, among ``captions.COLOURS``.
        subject: Of a reference, its place among the candidates.
    """

    prompt: str
    told: np.ndarray
    colour: int
    subject: int = 0


@dataclass(frozen=True, slots=True)
class BranchFigures:
    """One row of the table; ``…_alone`` is the same model without the branch.

    Attributes:
        prompts: How many results there are of each kind.
        candidates: Emoji among which a reference is looked for.
        edges: Mean F-score.
        retrieval_1: Share of the results to which the emoji that was shown is the nearest.
        retrieval_5: Share of those among whose five nearest it is.
    """

    prompts: int
    edges: float | None = None
    edges_alone: float | None = None
    candidates: int | None = None
    retrieval_1: float | None = None
    retrieval_1_alone: float | None = None
    retrieval_5: float | None = None
    retrieval_5_alone: float | None = None


class Candidates:
    """Emoji among which that of a result is looked for, over any colour."""

    def __init__(self, rgba: Sequence[np.ndarray]) -> None:
        self.rgba = rgba
        self._over: dict[int, torch.Tensor] = {}

    def over(self, colour: int) -> torch.Tensor:
        """All of them over a colour, shrunk: [K, …]."""
        if colour not in self._over:
            scene = Scene(captions.COLOURS[colour].rgb)
            self._over[colour] = torch.stack([shrink(composite(one, scene, side=SIDE)) for one in self.rgba])
        return self._over[colour]


def edge_score(made_THWC: np.ndarray, wanted_THWC: np.ndarray, near: int = NEAR) -> float:
    """F-score of the edges of one clip against those of another, the mean over its frames; 1 where neither has any.

    Args:
        made_THWC: uint8.
        wanted_THWC: Of the same shape.
        near: Pixels by which an edge may be off.

    Returns:
        0 to 1.
    """
    made, wanted = edges_of(made_THWC), edges_of(wanted_THWC)
    scores = []
    for own, other in zip(made, wanted, strict=True):
        if not own.any() and not other.any():
            scores.append(1.0)
            continue
        precise = (own & _grown(other, near)).sum() / max(own.sum(), 1)
        whole = (other & _grown(own, near)).sum() / max(other.sum(), 1)
        scores.append(2 * precise * whole / max(precise + whole, 1e-9))
    return float(np.mean(scores))


def _grown(found_HW: np.ndarray, near: int) -> np.ndarray:
    """True within a square of so many pixels around what is true."""
    H, W = found_HW.shape
    padded = np.pad(found_HW, near)
    shifts = range(2 * near + 1)
    out: np.ndarray = np.any([padded[r : r + H, c : c + W] for r in shifts for c in shifts], axis=0)
    return out


def cases_of(judge: NanoJudge, clips: Clips, cache: Path, count: int | None = None) -> dict[str, list[Case]]:
    """The cases by group, evenly thinned to a number, the same on every machine."""
    palette = captions.COLOURS
    groups: dict[str, list[Case]] = {"edges unseen": [], "edges named": []}
    groups |= {"reference unseen": [], "reference shown": []}
    for place, row in enumerate(autoencoder_rows(cache)[1]):
        rgba = np.asarray(clips.rgba_NTHWC[row])
        colour = (5 * place + 1) % len(palette)
        scene = Scene(palette[colour].rgb, scale=(None, "small")[place % 2])
        groups["edges unseen"].append(Case(unnamed(colour), composite(rgba, scene, side=SIDE), colour))
        groups["reference unseen"].append(Case(unnamed(colour), reference_of(rgba), colour, place))
    for number, concept in enumerate(judge.entries):
        held = captions.held_colours(concept)
        colour, rgba = held[number % len(held)], judge.rgba[number]
        scene = Scene(palette[colour].rgb, **SCENES[number % len(SCENES)])
        moved = composite(np.ascontiguousarray(rgba[:, :, ::-1]), scene, side=SIDE)
        prompt = f"{concept.label('en')} {captions.background(colour, 'en')}"
        groups["edges named"].append(Case(prompt, moved, colour))
        groups["reference shown"].append(Case(unnamed(colour), reference_of(rgba), colour, number))
    return {name: thinned(cases, count) for name, cases in groups.items()}


def thinned(cases: list[Case], count: int | None) -> list[Case]:
    """So many of them, evenly; all where none is said."""
    keep = min(count or len(cases), len(cases))
    return [cases[int(i * len(cases) / keep)] for i in range(keep)]


def judge_branches(
    follow: Follow,
    groups: dict[str, list[Case]],
    candidates: dict[str, Candidates],
    *,
    branches: Sequence[str] = (),
    batch: int = 16,
    seed: int = 0,
    sheet: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, BranchFigures]:
    """Generate with and without the branches, and judge.

    Args:
        follow: Makes clips.
        groups: Cases by group; those of a reference are of the groups in ``candidates``.
        candidates: By group.
        branches: Files in the place of the model's own.
        batch: Clips that are made together.
        seed: Of the first case of a group; each has the next one.
        sheet: Receives what is followed and the results of some cases: what is told, without, with the branch.
        on_batch: Told how many clips are made, of how many.

    Returns:
        Figures by group.
    """
    done, total = 0, 2 * sum(map(len, groups.values()))
    figures, shown = {}, list[list[np.ndarray]]()
    for name, cases in groups.items():
        kind = REFERENCE if name in candidates else CONTROL
        made: list[list[np.ndarray]] = []
        for is_told in (False, True):
            clips: list[np.ndarray] = []
            for at in range(0, len(cases), batch):
                part = cases[at : at + batch]
                told = [(_given(one, kind, branches),) if is_told else () for one in part]
                clips += list(follow([one.prompt for one in part], [seed + at + i for i in range(len(part))], told))
                done += len(part)
                if on_batch:
                    on_batch(done, total)
            made.append(clips)
        figures[name] = _figures(cases, made, candidates.get(name))
        shown += [_row(*one) for one in zip(cases[:SHOWN], made[0], made[1], strict=False)]
    if sheet is not None:
        _write_sheet(shown, sheet)
    return figures


def _write_sheet(rows: Sequence[Sequence[np.ndarray]], path: Path) -> None:
    """Rows of frames in two columns, the first half of them on the left."""
    half, blank = -(-len(rows) // 2), [np.full_like(one, 255) for one in rows[0]]
    right = [*rows[half:], *[blank] * (2 * half - len(rows))]
    wide = [np.concatenate([*a, *b], axis=1) for a, b in zip(rows[:half], right, strict=True)]
    image = Image.fromarray(np.concatenate(wide))
    if path.suffix == ".webp":
        image.save(path, quality=75, method=6)
    else:
        image.quantize(256).save(path, optimize=True)


def _given(case: Case, kind: str, files: Sequence[str]) -> Given:
    from kandinsky.weights.branch_files import read_branch

    own = next((one for one in files if read_branch(one).kind == kind), None)
    return Control(Video(case.told, FPS), branch=own) if kind == CONTROL else Reference(case.told, branch=own)


def _figures(cases: Sequence[Case], made: Sequence[Sequence[np.ndarray]], among: Candidates | None) -> BranchFigures:
    if not cases:
        raise RequestError("there is nothing to measure: ask for at least one prompt")
    alone, told = made
    if among is None:
        scores = [
            float(np.mean([edge_score(clip, one.told) for clip, one in zip(clips, cases, strict=True)]))
            for clips in (told, alone)
        ]
        return BranchFigures(len(cases), edges=scores[0], edges_alone=scores[1])
    ranks = [
        np.array([rank_among(among.over(c.colour), clip, c.subject) for clip, c in zip(clips, cases, strict=True)])
        for clips in (told, alone)
    ]
    shares = [float((one < first).mean()) for first in (1, 5) for one in ranks]
    return BranchFigures(len(cases), None, None, len(among.rgba), *shares)


def _row(case: Case, alone: np.ndarray, told: np.ndarray) -> list[np.ndarray]:
    """Frames of a case, side by side."""
    if case.told.ndim == 3:
        first = [case.told]
    else:
        lines = np.repeat((edges_of(case.told[12:13])[0] * np.uint8(255))[..., None], 3, axis=-1)
        first = [lines]
    return [*first, alone[12], *(told[at] for at in (0, 12, 24))]
