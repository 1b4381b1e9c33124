"""What annotators are asked when they compare two clips, and what each answer is worth.

The Kandinsky 5 questionnaire has two phases: visual quality without the prompt, then prompt following with it. Its
criteria, answers and points are those of the technical report (arXiv 2511.14993, side-by-side evaluation); the
questions themselves are worded here, in English and Russian. ``SIMPLE`` asks the three questions of the published bar
charts, one verdict each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kandinsky.errors import RequestError

Side = Literal["left", "right"]
MIRRORED = {"left": "right", "left-unsure": "right-unsure", "right": "left", "right-unsure": "left-unsure"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and its worth.

    Attributes:
        left: Points for the clip on the left, 0 to 1.
        right: Points for the clip on the right, 0 to 1.
    """

    left: float
    right: float

    @property
    def verdict(self) -> int:
        """1 where the left clip is preferred, -1 where the right one is, 0 for a tie."""
        return (self.left > self.right) - (self.left < self.right)


# Answers by scale, in the order in which a form shows them.
SCALES: Mapping[str, Mapping[str, Answer]] = {
    # prompt following: both may be right, both may be wrong
    "correctness": {
        "left": Answer(1, 0),
        "both-correct": Answer(1, 1),
        "equal": Answer(0.5, 0.5),
        "both-wrong": Answer(0, 0),
        "right": Answer(0, 1),
    },
    # visual quality: an unsure preference counts half
    "confidence": {
        "left": Answer(1, 0),
        "left-unsure": Answer(0.5, 0),
        "equal": Answer(0.5, 0.5),
        "right-unsure": Answer(0, 0.5),
        "right": Answer(0, 1),
    },
    # number of defects: neither clip may have any
    "defects": {
        "left": Answer(1, 0),
        "both-correct": Answer(1, 1),
        "equal": Answer(0.5, 0.5),
        "right": Answer(0, 1),
    },
    "verdict": {"left": Answer(1, 0), "equal": Answer(0.5, 0.5), "right": Answer(0, 1)},
}


@dataclass(frozen=True, slots=True)
class Criterion:
    """One question.

    Attributes:
        name: Key in votes and reports.
        scale: Key of ``SCALES``.
        text: The question, English and Russian by language code.
        skippable: The question may not apply to a pair, as faces do not to a clip without any.
    """

    name: str
    scale: str
    text: Mapping[str, str]
    skippable: bool = False

    @property
    def answers(self) -> Mapping[str, Answer]:
        """Allowed answers, in the order in which a form shows them."""
        return SCALES[self.scale]

    def answer(self, choice: str) -> Answer:
        """The worth of a choice.

        Raises:
            RequestError: The choice is none of this criterion's.
        """
        if (found := self.answers.get(choice)) is None:
            raise RequestError(
                f"choice `{choice}` does not answer `{self.name}`: use {', '.join(f'`{one}`' for one in self.answers)}"
            )
        return found


@dataclass(frozen=True, slots=True)
class Phase:
    """Questions that are asked together.

    Attributes:
        name: Key of the phase.
        shows_prompt: Whether annotators read the prompt while they answer.
        criteria: The questions, in order.
    """

    name: str
    shows_prompt: bool
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True)
class Questionnaire:
    """Phases, and the groups of criteria that reports average.

    Attributes:
        name: Key of the questionnaire.
        phases: In the order in which they are asked.
        groups: Names of criteria by name of the group.
    """

    name: str
    phases: tuple[Phase, ...]
    groups: Mapping[str, tuple[str, ...]]

    @property
    def criteria(self) -> Mapping[str, Criterion]:
        """All questions by name."""
        return {one.name: one for phase in self.phases for one in phase.criteria}

    def criterion(self, name: str) -> Criterion:
        """The question of this name.

        Raises:
            RequestError: There is none.
        """
        if (found := self.criteria.get(name)) is None:
            raise RequestError(
                f"criterion `{name}` is none of questionnaire `{self.name}`: use "
                f"{', '.join(f'`{one}`' for one in self.criteria)}"
            )
        return found


def _ask(name: str, scale: str, en: str, ru: str, *, skippable: bool = False) -> Criterion:
    return Criterion(name, scale, {"en": en, "ru": ru}, skippable)


KANDINSKY_5 = Questionnaire(
    "kandinsky-5",
    phases=(
        Phase(
            "visual",
            shows_prompt=False,
            criteria=(
                _ask("composition", "confidence", "Which has the better composition?", "Где лучше композиция?"),
                _ask("lighting", "confidence", "Which has the better lighting?", "Где лучше свет?"),
                _ask("colour", "confidence", "Which has better colour and contrast?", "Где лучше цвет и контраст?"),
                _ask(
                    "distinctness",
                    "confidence",
                    "In which do objects stand out better from the background?",
                    "Где объекты лучше отделены от фона?",
                ),
                _ask("smoothness", "confidence", "Which runs more smoothly?", "Где кадры сменяются плавнее?"),
                _ask("dynamism", "confidence", "Which is more dynamic?", "Где больше динамики?"),
                _ask(
                    "realism of motion",
                    "confidence",
                    "In which do objects move more realistically?",
                    "Где объекты движутся реалистичнее?",
                ),
                _ask(
                    "faces",
                    "confidence",
                    "In which do faces stay the same more consistently?",
                    "Где лица сохраняются лучше?",
                    skippable=True,
                ),
                _ask("overall", "confidence", "Which is better overall?", "Что лучше в целом?"),
                _ask("artefacts", "defects", "Which has fewer visual artefacts?", "Где меньше визуальных дефектов?"),
                _ask(
                    "semantic breaks",
                    "defects",
                    "In which do fewer things change or vanish without reason?",
                    "Где реже что-то меняется или исчезает без причины?",
                ),
            ),
        ),
        Phase(
            "prompt",
            shows_prompt=True,
            criteria=(
                _ask(
                    "object presence",
                    "correctness",
                    "Which shows more of the objects that the prompt names?",
                    "Где больше объектов из описания?",
                ),
                _ask("object quantity", "correctness", "Which has the right numbers?", "Где верно количество?"),
                _ask("object properties", "correctness", "Which has the right properties?", "Где верны свойства?"),
                _ask("object placement", "correctness", "Which has things in the right place?", "Где верны места?"),
                _ask(
                    "action presence",
                    "correctness",
                    "Which shows more of the actions that the prompt names?",
                    "Где больше действий из описания?",
                ),
                _ask("action properties", "correctness", "Which has the right actions?", "Где действия верны?"),
            ),
        ),
    ),
    groups={
        "visual quality": (
            "composition", "lighting", "colour", "distinctness", "smoothness", "overall", "artefacts",
        ),
        "dynamism and motion": ("dynamism", "realism of motion", "faces", "semantic breaks"),
        "prompt following": (
            "object presence", "object quantity", "object properties", "object placement", "action presence",
            "action properties",
        ),
    },
)  # fmt: skip

SIMPLE = Questionnaire(
    "simple",
    phases=(
        Phase(
            "visual",
            shows_prompt=False,
            criteria=(
                _ask("visual quality", "verdict", "Which looks better?", "Что выглядит лучше?"),
                _ask("motion", "verdict", "Which moves better?", "Где движение лучше?"),
            ),
        ),
        Phase(
            "prompt",
            shows_prompt=True,
            criteria=(
                _ask(
                    "text alignment", "verdict", "Which follows the prompt better?", "Что лучше соответствует описанию?"
                ),
            ),
        ),
    ),
    groups={},
)
QUESTIONNAIRES: Mapping[str, Questionnaire] = {one.name: one for one in (SIMPLE, KANDINSKY_5)}


def questionnaire(name: str) -> Questionnaire:
    """The questionnaire of this name.

    Raises:
        RequestError: There is none.
    """
    if (found := QUESTIONNAIRES.get(name)) is None:
        raise RequestError(
            f"questionnaire `{name}` does not exist: use {' or '.join(f'`{one}`' for one in QUESTIONNAIRES)}"
        )
    return found
