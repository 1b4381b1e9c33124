"""Studies as they are planned and stored: sides that nobody can compute, bounds, answers that are counted once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kandinsky.errors import RequestError
from kandinsky.evaluate import studies
from kandinsky.evaluate.studies import ClipSet, plan_study, read_set
from kandinsky.evaluate.study_store import StudyStore
from kandinsky.evaluate.votes import Vote
from kandinsky.media import recipe as recipes
from kandinsky.media.bare import copy_bare
from kandinsky.media.video import read_video
from kandinsky.model.values import Video


def sets(prompts: int, models: int = 2) -> list[ClipSet]:
    clips = {f"{i:05d}": Path("x.mp4") for i in range(prompts)}
    return [ClipSet(f"model {j}", clips, {}) for j in range(models)]


def test_sides_are_drawn_unless_a_seed_is_given() -> None:
    drawn = {plan_study("s", "x", sets(4))[0].seed for _ in range(4)}
    assert len(drawn) == 4 and drawn != {0}
    one, other = (plan_study("s", "x", sets(4), seed=7)[0] for _ in range(2))
    assert one.pairs(0) == other.pairs(0) and one.count == len(one.pairs(0)) == 4


def test_a_study_that_is_too_large_is_refused_at_once() -> None:
    with pytest.raises(RequestError, match="2000 prompts, 190 pairs of models and an overlap of 5 make 1900000"):
        plan_study("s", "x", sets(2000, 20))


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".mov", ".mkv", ".gif", ".webp"])
def test_copies_hold_the_streams_and_nothing_else(ending: str, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    source, target = tmp_path / f"given{ending}", tmp_path / f"made{ending}"
    written = source.with_suffix({".mov": ".mp4", ".mkv": ".webm"}.get(ending, ending))
    Video(frames, fps=10, recipe={"kandinsky": "1", "prompt": "a secret prompt", "seed": 1}).save(written)
    written.rename(source)
    assert recipes.read_if_any(source)["prompt"] == "a secret prompt"
    copy_bare(source, target)
    assert recipes.read_if_any(target) == {} and b"secret" not in target.read_bytes()
    given, made = read_video(source), read_video(target)
    assert np.array_equal(given.frames_THWC, made.frames_THWC) and made.fps == pytest.approx(given.fps, rel=1e-3)
    target.unlink()
    source.write_bytes(source.read_bytes()[:20])
    with pytest.raises(RequestError, match="cannot be read"):
        copy_bare(source, target)


@pytest.fixture
def store(tmp_path: Path) -> StudyStore:
    """Two prompts of two models, in study `s`."""
    for model in ("a", "b"):
        (tmp_path / model).mkdir()
        for name in ("1", "2"):
            Video(np.zeros((2, 32, 32, 3), dtype=np.uint8), fps=8).save(tmp_path / model / f"{name}.mp4")
    made = StudyStore(tmp_path)
    study, clips, _ = plan_study("s", "x", [read_set(tmp_path / "a"), read_set(tmp_path / "b")], seed=1)
    made.add(study, clips)
    return made


def test_listing_deals_nothing(store: StudyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "assign", None)
    studies._dealt.cache_clear()
    assert [one.count for one in store.all()] == [2]


def test_copies_are_readable_by_the_stores_owner_alone(store: StudyStore, tmp_path: Path) -> None:
    assert (tmp_path / "study-clips").stat().st_mode & 0o077 == 0


def test_imported_votes_count_once_and_undo_nothing(store: StudyStore) -> None:
    vote = Vote("1", "a", "b", "ann", "motion", "left")
    turned = dataclasses.replace(vote, left="b", right="a")
    store.answer("s", "ann", 0, "visual", [vote])
    assert store.add_votes("s", [turned, dataclasses.replace(vote, annotator="ben")]) == 1
    assert store.add_votes("s", [dataclasses.replace(vote, annotator="ben")] * 2) == 0
    assert [(one.annotator, one.choice) for one in store.votes("s")] == [("ann", "left"), ("ben", "left")]
    # who has imported answers may still change them
    store.answer("s", "ben", 0, "visual", [dataclasses.replace(turned, annotator="ben", choice="equal")])
    assert [(one.annotator, one.choice) for one in store.votes("s")] == [("ann", "left"), ("ben", "equal")]


def test_a_study_of_a_clip_that_cannot_be_read_leaves_nothing(store: StudyStore, tmp_path: Path) -> None:
    (tmp_path / "a" / "2.mp4").write_bytes(b"no clip")
    paths = {("2", "a"): tmp_path / "a" / "2.mp4"}
    study = dataclasses.replace(store.all()[0], id="other")
    with pytest.raises(RequestError, match=r"2\.mp4` cannot be read"):
        store.add(study, paths)
    assert store.get("other") is None and [one.name for one in (tmp_path / "study-clips").iterdir()] == ["s"]
