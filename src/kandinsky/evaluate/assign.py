"""Which annotator compares which clips: balanced, blind, and the same for the same seed.

Every pair of clips gets the same number of annotators, every annotator nearly the same number of pairs; sides and order
are random, and an annotator never meets a pair twice. Attention checks are pairs whose answer is known: a clip beside a
damaged copy of itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from kandinsky.errors import RequestError


@dataclass(frozen=True, slots=True)
class Pair:
    """Two clips of one prompt, made by two models.

    Attributes:
        prompt: Key of the prompt.
        left: Model shown on the left.
        right: Model shown on the right.
        expected: The answer that shows attention, ``left`` or ``right``; None for a real comparison.
    """

    prompt: str
    left: str
    right: str
    expected: str | None = None


def assign(
    prompts: Sequence[str],
    models: Sequence[str],
    annotators: Sequence[str],
    *,
    overlap: int = 5,
    checks: Sequence[Pair] = (),
    every: int = 20,
    seed: int = 0,
) -> dict[str, list[Pair]]:
    """Deal all pairs of models on all prompts out to annotators.

    Args:
        prompts: Keys of the prompts.
        models: At least two models, each with a clip of every prompt.
        annotators: Their names.
        overlap: Annotators per pair.
        checks: Pairs with a known answer; each annotator gets one after every ``every`` others.
        every: See ``checks``.
        seed: Of sides, order and who gets what.

    Returns:
        Pairs in the order in which they are shown, by annotator.

    Raises:
        RequestError: Names repeat, there are fewer than two models, or fewer annotators than ``overlap``.
    """
    for what, names in (("prompt", prompts), ("model", models), ("annotator", annotators)):
        if len(set(names)) != len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise RequestError(f"{what} `{twice}` is given twice")
    if not prompts:
        raise RequestError("no prompts: a comparison needs at least one")
    if len(models) < 2:
        raise RequestError(f"{len(models)} models: a comparison needs at least two")
    if not 1 <= overlap <= len(annotators):
        raise RequestError(f"overlap {overlap} with {len(annotators)} annotators: use 1 to the number of annotators")
    if every < 1:
        raise RequestError(f"an attention check after every {every} pairs is not possible: use 1 or more")
    draw = random.Random(seed)
    pairs = [
        Pair(prompt, one, other) for prompt in prompts for i, one in enumerate(models) for other in models[i + 1 :]
    ]
    draw.shuffle(pairs)
    # each model is on the left in half of its comparisons with each other one, up to an odd one
    sides = _balanced_sides(pairs, draw)
    order = list(annotators)
    draw.shuffle(order)
    dealt: dict[str, list[Pair]] = {name: [] for name in annotators}
    turn = 0
    for pair, is_turned in zip(pairs, sides, strict=True):
        # consecutive annotators: nobody gets a pair twice, and numbers of pairs differ by one at most
        for k in range(overlap):
            name = order[(turn + k) % len(order)]
            turned = is_turned ^ (k % 2 == 1)
            dealt[name].append(Pair(pair.prompt, pair.right, pair.left) if turned else pair)
        turn += overlap
    for name in annotators:
        draw.shuffle(dealt[name])
        dealt[name] = _with_checks(dealt[name], checks, every, draw)
    return dealt


def _balanced_sides(pairs: Sequence[Pair], draw: random.Random) -> list[bool]:
    """Whether each pair is turned round: half of the pairs of the same two models."""
    of_models: dict[tuple[str, str], list[int]] = {}
    for i, pair in enumerate(pairs):
        of_models.setdefault((pair.left, pair.right), []).append(i)
    turned = [False] * len(pairs)
    for places in of_models.values():
        flags = [k % 2 == 0 for k in range(len(places))]
        draw.shuffle(flags)
        for place, flag in zip(places, flags, strict=True):
            turned[place] = flag
    return turned


def _with_checks(pairs: list[Pair], checks: Sequence[Pair], every: int, draw: random.Random) -> list[Pair]:
    if not checks:
        return pairs
    made: list[Pair] = []
    for i, pair in enumerate(pairs, 1):
        made.append(pair)
        if i % every == 0:
            made.append(draw.choice(checks))
    return made
