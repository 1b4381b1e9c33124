"""Votes on disk: what is written is read, and a wrong row is named by its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kandinsky.errors import RequestError
from kandinsky.evaluate.questions import MIRRORED, SCALES, SIMPLE, questionnaire
from kandinsky.evaluate.votes import Vote, between, latest, read_votes, write_votes

A_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\r\n\0"), min_size=1, max_size=9
)
VOTES = st.builds(
    Vote,
    prompt=A_TEXT,
    left=A_TEXT.map("l".__add__),
    right=A_TEXT.map("r".__add__),
    annotator=A_TEXT,
    criterion=st.sampled_from(["motion", "visual quality"]),
    choice=st.sampled_from(["left", "right", "equal"]),
    seconds=st.none() | st.floats(0, 1e6),
)


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_what_is_written_is_read(ending: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("votes")

    @given(st.lists(VOTES, max_size=5))
    def check(votes: list[Vote]) -> None:
        assert read_votes(write_votes(votes, folder / f"v{ending}")) == votes

    check()


def test_a_vote_can_be_seen_from_either_side() -> None:
    vote = Vote("p", "a", "b", "ann", "overall", "left-unsure")
    assert vote.seen_from("a") is vote
    assert vote.seen_from("b") == Vote("p", "b", "a", "ann", "overall", "right-unsure")
    assert between([vote], "b", "a")[0].left == "b" and between([vote], "b", "c") == []
    with pytest.raises(ValueError, match="nothing about c"):
        vote.seen_from("c")


def test_turning_a_vote_round_turns_its_points() -> None:
    for scale in SCALES.values():
        for choice, answer in scale.items():
            mirrored = scale[MIRRORED.get(choice, choice)]
            assert (mirrored.left, mirrored.right) == (answer.right, answer.left)


def test_the_last_answer_counts_whichever_side_the_clips_were_on() -> None:
    first, other = Vote("p", "a", "b", "x", "motion", "left"), Vote("p", "a", "b", "y", "motion", "left")
    changed = Vote("p", "b", "a", "x", "motion", "equal")
    assert latest([first, other, changed]) == [changed, other]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "line 1 is no vote: use an object with `prompt`"),
        ("{", "line 1 is not JSON"),
        ("\n{}", "line 2: `prompt` is missing"),
        ('{"prompt": "p", "left": "a", "right": "a", "annotator": "x", "criterion": "c", "choice": "left"}', "itself"),
        ('{"prompt": "p", "colour": 1}', "column `colour` is unknown"),
        (
            '{"prompt": "p", "left": "a", "right": "b", "annotator": "x", "criterion": "c", "choice": "e", '
            '"seconds": -1}',
            "`seconds` is `-1`: use a number from 0 on",
        ),
        (
            '{"prompt": "p", "left": "a", "right": "b", "annotator": "x", "criterion": "c", "choice": "e", '
            '"seconds": NaN}',
            "`seconds` is `nan`",
        ),
        (
            '{"prompt": "p", "left": "a", "right": "b", "annotator": "x", "criterion": "c", "choice": "e", '
            f'"seconds": {"9" * 400}}}',
            "…`: use a number from 0 on",
        ),
    ],
)
def test_a_wrong_row_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as error:
        read_votes(path)
    assert said in str(error.value) and str(path) in str(error.value)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for name in ("votes.xlsx", "votes"):
        with pytest.raises(RequestError, match=r"use \.jsonl or \.csv"):
            read_votes(tmp_path / name)
        with pytest.raises(RequestError, match=r"use \.jsonl or \.csv"):
            write_votes([], tmp_path / name)
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        read_votes(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="not UTF-8"):
        read_votes(tmp_path / "bytes.csv")


def test_names_of_questionnaires_and_questions_are_checked() -> None:
    with pytest.raises(RequestError, match="use `simple` or `kandinsky-5`"):
        questionnaire("sora")
    with pytest.raises(RequestError, match="criterion `taste` is none of questionnaire `simple`: use `visual quality`"):
        SIMPLE.criterion("taste")
    with pytest.raises(
        RequestError, match="choice `both-correct` does not answer `motion`: use `left`, `equal`, `right`"
    ):
        SIMPLE.criterion("motion").answer("both-correct")
    for one in (SIMPLE, questionnaire("kandinsky-5")):
        assert all(name in one.criteria for names in one.groups.values() for name in names)
        assert all(set(question.text) == {"en", "ru"} for question in one.criteria.values())
