"""Votes of a side-by-side comparison, as they were cast: rows of JSON Lines or CSV that any table program reads.

A vote names the clips by side, since that is what the annotator saw; ``Vote.seen_from`` turns it round so that it is
about a given model.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.evaluate.finite import finite
from kandinsky.evaluate.questions import MIRRORED
from kandinsky.files import replacing
from kandinsky.printing import shortened

ENDINGS = (".jsonl", ".csv")


@dataclass(frozen=True, slots=True)
class Vote:
    """One answer of one annotator.

    Attributes:
        prompt: Key of the prompt; what bootstraps resample, since votes on one prompt depend on each other.
        left: Model whose clip was shown on the left.
        right: Model whose clip was shown on the right.
        annotator: Who answered.
        criterion: Name of the question.
        choice: The answer, by side.
        seconds: Time to the answer; None if it was not taken.
    """

    prompt: str
    left: str
    right: str
    annotator: str
    criterion: str
    choice: str
    seconds: float | None = None

    @property
    def subject(self) -> tuple[str, frozenset[str], str, str]:
        """What the vote answers: the prompt, the two models, the annotator, the criterion."""
        return self.prompt, frozenset((self.left, self.right)), self.annotator, self.criterion

    def seen_from(self, model: str) -> Vote:
        """The same vote with this model on the left.

        Raises:
            ValueError: The model is neither of the two.
        """
        if model == self.left:
            return self
        if model != self.right:
            raise ValueError(f"vote between {self.left} and {self.right} says nothing about {model}")
        return dataclasses.replace(
            self, left=self.right, right=self.left, choice=MIRRORED.get(self.choice, self.choice)
        )


TEXTS = tuple(one.name for one in dataclasses.fields(Vote) if one.name != "seconds")


def latest(votes: Iterable[Vote]) -> list[Vote]:
    """The last answer of each annotator to each question about a pair, in the order in which those were first given."""
    kept: dict[tuple[object, ...], Vote] = {}
    for one in votes:
        kept[one.subject] = one
    return list(kept.values())


def between(votes: Iterable[Vote], model: str, rival: str) -> list[Vote]:
    """Votes about these two, seen from the first."""
    return [one.seen_from(model) for one in votes if {one.left, one.right} == {model, rival}]


def read_votes(path: str | Path) -> list[Vote]:
    """Read a table of votes; unknown columns are refused, ``seconds`` may be left out.

    Args:
        path: A ``.jsonl`` or ``.csv`` file.

    Returns:
        The votes, in the order of the file.

    Raises:
        RequestError: The file cannot be read, or a row is no vote; it is named by its line.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise RequestError(f"votes `{path}` are of an unknown kind: use {' or '.join(ENDINGS)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
        raise RequestError(f"votes `{path}` cannot be read: {reason}") from error
    if path.suffix == ".csv":
        # names may hold characters that ``splitlines`` takes for line breaks
        lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            return [_vote(row, f"`{path}` line {lines.line_num}") for row in lines]
        except csv.Error as error:
            raise RequestError(f"votes `{path}` line {lines.line_num}: {error}") from error
    return parse_votes(text, f"`{path}`")


def parse_votes(text: str, name: str = "votes") -> list[Vote]:
    """Read votes from JSON lines.

    Args:
        text: The lines.
        name: What to call them in messages.

    Returns:
        The votes, in their order.

    Raises:
        RequestError: A row is no vote; it is named by its line.
    """
    votes = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{name} line {number} is not JSON") from error
        votes.append(_vote(row, f"{name} line {number}"))
    return votes


def json_lines(votes: Iterable[Vote]) -> str:
    """Votes as JSON lines; the inverse of ``parse_votes``."""
    return "".join(json.dumps(dataclasses.asdict(one), ensure_ascii=False) + "\n" for one in votes)


def write_votes(votes: Sequence[Vote], path: str | Path) -> Path:
    """Write a table of votes, whole or not at all.

    Args:
        votes: The votes.
        path: A ``.jsonl`` or ``.csv`` file.

    Returns:
        The file.

    Raises:
        RequestError: The ending is another, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        text = json_lines(votes)
    elif path.suffix == ".csv":
        sink = io.StringIO()
        table = csv.DictWriter(sink, fieldnames=[one.name for one in dataclasses.fields(Vote)], lineterminator="\n")
        table.writeheader()
        table.writerows(
            {key: "" if value is None else value for key, value in row.items()}
            for row in map(dataclasses.asdict, votes)
        )
        text = sink.getvalue()
    else:
        raise RequestError(f"votes `{path}` are of an unknown kind: use {' or '.join(ENDINGS)}")
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")
    return path


def _vote(row: Any, where: str) -> Vote:
    if not isinstance(row, dict):
        raise RequestError(f"{where} is no vote: use an object with {', '.join(f'`{one}`' for one in TEXTS)}")
    unknown = sorted(str(key) for key in row if key not in (*TEXTS, "seconds"))
    if unknown:
        raise RequestError(f"{where}: column `{unknown[0]}` is unknown: use {', '.join((*TEXTS, 'seconds'))}")
    for name in TEXTS:
        if not isinstance(row.get(name), str) or not row[name]:
            raise RequestError(f"{where}: `{name}` is missing: it is a text")
    if row["left"] == row["right"]:
        raise RequestError(f"{where}: `{row['left']}` is compared with itself")
    seconds = row.get("seconds")
    if seconds in ("", None):
        return Vote(**{name: row[name] for name in TEXTS})
    try:
        taken = finite(float(seconds) if isinstance(seconds, str) else seconds)
    except ValueError:
        taken = None
    if taken is None or taken < 0:
        raise RequestError(f"{where}: `seconds` is `{shortened(seconds)}`: use a number from 0 on")
    return Vote(**{name: row[name] for name in TEXTS}, seconds=taken)
