"""A study: which clips people compare, in which order each of them sees which pair, and what they have answered.

Annotators join one after the other and take the next free place of the deal (``assign``); when a deal's places are
taken, the next one begins with another seed. An annotator goes through all pairs once for each phase, so that nobody
has read a prompt who is asked about looks alone.

A set of clips is a folder: that of a run of `kandinsky evaluate`, or any folder of clips. Clips of different sets are
about the same prompt if their files have the same name.

Attention checks are pairs of a clip and a coarse copy of itself, between the others and shown like them: whoever
prefers the copy did not look. Their votes stand in no comparison.
"""

from __future__ import annotations

import functools
import math
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.evaluate import results
from kandinsky.evaluate.agreement import agreements
from kandinsky.evaluate.assign import Pair, assign
from kandinsky.evaluate.clip_files import CLIPS, clips_of
from kandinsky.evaluate.questions import Phase, Questionnaire, questionnaire
from kandinsky.evaluate.ranking import ranks, running_elo
from kandinsky.evaluate.scores import compare
from kandinsky.evaluate.votes import Vote, latest
from kandinsky.media import recipe as recipes
from kandinsky.printing import escaped, shortened

MOST_PROMPTS, MOST_SETS, LONGEST_NAME = 10_000, 20, 100
DAMAGED = "damaged copy"  # what stands in the place of a model in attention checks
MOST_CHECKS, EVERY = 100, 10  # prompts that have one; pairs between two
MOST_SHOWN = 250_000  # pairs that all annotators of a deal see together


@dataclass(frozen=True, slots=True)
class ClipSet:
    """Clips of one model.

    Attributes:
        name: The model, as reports name it.
        clips: Clip by name of the prompt.
        texts: Prompt by its name, where it is known.
    """

    name: str
    clips: Mapping[str, Path]
    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Study:
    """What is compared.

    Attributes:
        id: Its name in addresses.
        name: What people call it.
        questions: Key of the questionnaire.
        models: Names of the sets.
        prompts: Names of the prompts, in order.
        texts: The prompts' texts.
        overlap: Annotators per pair in a deal.
        seats: Annotators of a deal.
        seed: Of sides and orders.
        owner: Whose key reads its report; empty: everybody on a server without keys.
        created: Seconds since 1970.
        count: Pairs that the first annotator sees in each phase.
        checks: Prompts of attention checks, whose clip is the first model's.
    """

    id: str
    name: str
    questions: str
    models: tuple[str, ...]
    prompts: tuple[str, ...]
    texts: Mapping[str, str]
    overlap: int
    seats: int
    seed: int
    owner: str = ""
    created: float = 0.0
    count: int = 0
    checks: tuple[str, ...] = ()

    @property
    def questionnaire(self) -> Questionnaire:
        return questionnaire(self.questions)

    def pairs(self, seat: int) -> Sequence[Pair]:
        """What an annotator sees, in order.

        Args:
            seat: Which annotator, from 0, in the order in which they came.
        """
        deal, place = divmod(seat, self.seats)
        return _dealt(self.prompts, self.models, self.seats, self.overlap, self.seed + deal, self.checks)[place]

    def phase(self, name: str) -> Phase:
        """The phase of this name.

        Raises:
            RequestError: There is none.
        """
        for one in self.questionnaire.phases:
            if one.name == name:
                return one
        raise RequestError(f"phase `{shortened(name)}` does not exist")


@functools.lru_cache(maxsize=2)  # a deal may be large
def _dealt(
    prompts: tuple[str, ...], models: tuple[str, ...], seats: int, overlap: int, seed: int, checked: tuple[str, ...]
) -> tuple[tuple[Pair, ...], ...]:
    names = [str(i) for i in range(seats)]
    checks = [
        pair
        for prompt in checked
        for pair in (Pair(prompt, models[0], DAMAGED, "left"), Pair(prompt, DAMAGED, models[0], "right"))
    ]
    every = min(EVERY, max(1, len(prompts) * math.comb(len(models), 2) * overlap // seats))
    dealt = assign(prompts, models, names, overlap=overlap, checks=checks, every=every, seed=seed)
    return tuple(tuple(dealt[name]) for name in names)


def read_set(folder: Path, name: str | None = None) -> ClipSet:
    """Read a set of clips.

    Args:
        folder: A run of `kandinsky evaluate`, or a folder of clips.
        name: What it is called; default: the folder's name.

    Returns:
        The set; prompts are those of the run's result, else of the clips' recipes.

    Raises:
        RequestError: There are no clips.
    """
    clips = clips_of(folder)
    texts: dict[str, str] = {}
    if (folder / results.FILE).is_file():
        for one in results.read(folder).clips:
            texts[Path(str(one.get("file"))).stem] = str(one.get("prompt") or "")
    for stem, path in clips.items():
        if not texts.get(stem):
            texts[stem] = recipes.read_if_any(path).get("prompt") or ""
    return ClipSet(name or folder.resolve().name, {stem: path.resolve() for stem, path in clips.items()}, texts)


def folders_in(root: Path) -> dict[str, Path]:
    """Sets of clips in a folder, by their names: its folders that hold clips."""
    made: dict[str, Path] = {}
    try:
        inner = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise RequestError(f"studies folder `{root}` cannot be read: {error.strerror}") from error
    for path in inner:
        if path.name == CLIPS:
            continue
        try:
            clips_of(path)
        except RequestError:
            continue
        made[path.name] = path
    return made


def plan_study(
    study_id: str, name: str, sets: Sequence[ClipSet], *, questions: str = "simple", overlap: int = 5,
    seats: int | None = None, seed: int | None = None, limit: int | None = None, owner: str = "", created: float = 0.0,
    checks: int = 0,
) -> tuple[Study, dict[tuple[str, str], Path], int]:  # fmt: skip
    """Plan a study of the prompts that all sets have.

    Args:
        study_id: Its name in addresses.
        name: What people call it.
        sets: Two or more.
        questions: Key of the questionnaire.
        overlap: Annotators per pair.
        seats: Annotators among whom pairs are dealt; default: as many as the overlap, so that each sees all pairs.
        seed: Of sides and orders; default: drawn, so that nobody can compute which side is whose.
        limit: Only so many prompts, the first by name.
        owner: Whose key reads the report.
        created: Seconds since 1970.
        checks: Prompts of attention checks, drawn from those of the study; 0 for none.

    Returns:
        The study; its clips by prompt and model; how many prompts were left out since a set lacks them.

    Raises:
        RequestError: Sets share a name or no prompt, or there are too many or too few.
    """
    questionnaire(questions)
    if not name.strip() or len(name) > LONGEST_NAME or escaped(name) != name:
        raise RequestError(f"name `{shortened(name)}` is none: use 1 to {LONGEST_NAME} letters of plain text")
    if not 2 <= len(sets) <= MOST_SETS:
        raise RequestError(f"{len(sets)} sets of clips: compare 2 to {MOST_SETS}")
    names = [one.name for one in sets]
    if DAMAGED in names:
        raise RequestError(f"a set of clips is called `{DAMAGED}`, as attention checks are: give it another name")
    if isinstance(checks, bool) or not isinstance(checks, int) or not 0 <= checks <= MOST_CHECKS:
        raise RequestError(f"`{checks}` attention checks are not possible: use 0 to {MOST_CHECKS}")
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise RequestError(f"two sets of clips are called `{twice}`: give one another name, as in NAME=FOLDER")
    common = sorted(set.intersection(*(set(one.clips) for one in sets)))
    if not common:
        raise RequestError(
            f"`{names[0]}` and `{names[1]}` have no clip of the same name: files of one prompt share one"
        )
    left_out = len(set.union(*(set(one.clips) for one in sets))) - len(common)
    common = common[: limit or MOST_PROMPTS]
    texts = {key: next((one.texts[key] for one in sets if one.texts.get(key)), "") for key in common}
    places = overlap if seats is None else seats
    if not 1 <= overlap <= 100 or not overlap <= places <= 1000:
        raise RequestError(f"overlap {overlap} of {places} annotators: use 1 to 100, and at least as many annotators")
    rivals = math.comb(len(sets), 2)
    if (shown := len(common) * rivals * overlap) > MOST_SHOWN:
        raise RequestError(
            f"{len(common)} prompts, {rivals} pairs of models and an overlap of {overlap} make {shown} "
            f"comparisons: use at most {MOST_SHOWN}, with fewer prompts, sets or annotators per pair"
        )
    if seed is None:
        seed = secrets.randbelow(2**31)
    study = Study(
        study_id, name.strip(), questions, tuple(names), tuple(common), texts, overlap, places, seed, owner, created,
        checks=tuple(random.Random(seed).sample(common, min(checks, len(common)))),
    )  # fmt: skip
    study = replace(study, count=len(study.pairs(0)))
    return study, {(key, one.name): one.clips[key] for one in sets for key in common}, left_out


def checked_answers(phase: Phase, answers: Mapping[str, str | None]) -> dict[str, str]:
    """Answers to all questions of a phase; None skips one that may not apply.

    Returns:
        Those that were given.

    Raises:
        RequestError: A question is unknown or unanswered, or an answer is none of its own.
    """
    known = {one.name: one for one in phase.criteria}
    for name in answers:
        if name not in known:
            raise RequestError(f"question `{shortened(name)}` is none of phase `{phase.name}`")
    made = {}
    for name, one in known.items():
        if (choice := answers.get(name)) is not None:
            one.answer(choice)
            made[name] = choice
        elif not (one.skippable and name in answers):
            raise RequestError(f"`{name}` is not answered: use {', '.join(f'`{choice}`' for choice in one.answers)}")
    return made


def fitting_votes(study: Study, votes: Sequence[Vote]) -> list[Vote]:
    """Votes that came from elsewhere, if all of them are about this study.

    Raises:
        RequestError: A vote names another model, prompt, question or answer.
    """
    for i, one in enumerate(votes, 1):
        known = {*study.models, *([DAMAGED] if one.prompt in study.checks else [])}
        if not {one.left, one.right} <= known:
            odd = one.left if one.left not in known else one.right
            raise RequestError(f"vote {i} is about `{shortened(odd)}`, which is none of the study's models")
        if one.prompt not in study.texts:
            raise RequestError(f"vote {i} is about prompt `{shortened(one.prompt)}`, which is none of the study's")
        if len(one.annotator) > LONGEST_NAME * 2 or escaped(one.annotator) != one.annotator:
            raise RequestError(f"vote {i}: `{shortened(one.annotator)}` is no name of an annotator")
        study.questionnaire.criterion(one.criterion).answer(one.choice)
    return list(votes)


def report(study: Study, votes: Sequence[Vote]) -> dict[str, Any]:
    """What the votes of a study say; numbers that are not known are None.

    Args:
        study: The study.
        votes: Its votes.

    Returns:
        `votes`, `annotators`, `prompts`, `comparisons` (wins, ties, losses, net win rate with its interval, sign test),
        `agreement`, `ranking` (Bradley–Terry on Elo's scale, and running Elo), and `attention`: of each annotator who
        met attention checks, how many answers preferred the whole clip, and how many there were.
    """
    asked, every = study.questionnaire, latest(votes)
    counted = [one for one in every if DAMAGED not in (one.left, one.right)]
    comparisons = []
    for model, rival in combinations(study.models, 2):
        if any({one.left, one.right} == {model, rival} for one in counted):
            found = compare(counted, model, rival, asked)
            rows = {
                kind: [_known(asdict(row)) for row in some]
                for kind, some in (("criteria", found.criteria), ("groups", found.groups))
            }
            comparisons.append({"model": model, "rival": rival, **rows})
    agreed = {name: {"share": _or_none(share), "alpha": _or_none(alpha)}
              for name, (share, alpha) in agreements(counted, asked).items()}  # fmt: skip
    ranking: list[dict[str, Any]] = []
    problem = ""
    if counted:
        try:
            ranking = [_known(asdict(one)) for one in ranks(counted, asked)]
        except RequestError as error:
            problem = str(error)
    games = [(one.left, one.right, (1 + asked.criterion(one.criterion).answer(one.choice).verdict) / 2)
             for one in counted]  # fmt: skip
    running = running_elo(games)
    by_annotator: dict[str, int] = {}
    for one in counted:
        by_annotator[one.annotator] = by_annotator.get(one.annotator, 0) + 1
    return {
        "votes": len(counted),
        "annotators": by_annotator,
        "prompts": len({one.prompt for one in counted}),
        "comparisons": comparisons,
        "agreement": agreed,
        "ranking": [{**one, "elo": running[one["model"]]} for one in ranking],
        "problem": problem,
        "attention": attention(study, every),
    }


def attention(study: Study, votes: Sequence[Vote]) -> dict[str, dict[str, int]]:
    """Answers to attention checks: by annotator, `right` ones and `all`."""
    found: dict[str, dict[str, int]] = {}
    for one in votes:
        if DAMAGED in (one.left, one.right):
            verdict = study.questionnaire.criterion(one.criterion).answer(one.choice).verdict
            told = found.setdefault(one.annotator, {"right": 0, "all": 0})
            told["all"] += 1
            told["right"] += verdict > 0 if one.right == DAMAGED else verdict < 0
    return found


def report_table(study: Study, told: Mapping[str, Any]) -> str:
    """A report as text: a line for each question about each pair of models, then the order of the models."""
    lines = [
        f"{study.name}: {told['votes']} votes of {len(told['annotators'])} annotators on {told['prompts']} prompts"
    ]
    for one in told["comparisons"]:
        lines.append(f"{one['model']} against {one['rival']}")
        for row in (*one["criteria"], *one["groups"]):
            share = {name: "–" if row[name] is None else f"{row[name]:.0%}" for name in ("win", "tie", "loss")}
            low, high, net = ("–" if row[name] is None else f"{row[name]:+.2f}" for name in ("low", "high", "net"))
            lines.append(
                f"  {row['name']:22} {share['win']:>4} wins {share['tie']:>4} ties {share['loss']:>4} losses  "
                f"net {net} [{low}, {high}]"
            )
    lines += [f"{place}. {one['model']}" for place, one in enumerate(told["ranking"], 1)]
    lines += [
        f"attention checks of {name}: {one['right']} of {one['all']} answers preferred the whole clip"
        for name, one in told["attention"].items()
    ]
    return escaped("\n".join([*lines, *filter(None, [told["problem"]])]), keep="\n")


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {key: _or_none(value) if isinstance(value, float) else value for key, value in row.items()}
