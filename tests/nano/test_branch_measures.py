"""How branches are measured: edge agreement, retrieval of a reference, and that emoji held out are in no training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kandinsky.lab.nano import branch_data
from kandinsky.lab.nano.branches import Candidates, Case, edge_score, judge_branches
from kandinsky.model.given import Control, Given, Reference
from kandinsky.model.values import Video

SIDE = 96


def square(left: int, rgb: tuple[int, int, int] = (200, 30, 30), top: int = 30) -> np.ndarray:
    """Twenty-five frames of a square on white."""
    frames = np.full((25, SIDE, SIDE, 3), 255, np.uint8)
    frames[:, top : top + 30, left : left + 30] = rgb
    return frames


def cut_out(rgb: tuple[int, int, int]) -> np.ndarray:
    """A square of a colour as an emoji's source."""
    out = np.zeros((25, 128, 128, 4), np.uint8)
    out[:, 40:80, 40:80] = (*rgb, 255)
    return out


def test_the_score_of_edges_is_of_places_and_not_of_colours() -> None:
    assert edge_score(square(20, (20, 90, 30)), square(20)) == 1.0
    assert edge_score(square(22), square(20)) == 1.0  # within two pixels
    far = edge_score(square(60, top=60), square(5, top=5))
    assert far < 0.1
    assert far < edge_score(square(26), square(20)) < 0.9
    blank = np.full((25, SIDE, SIDE, 3), 255, np.uint8)
    assert edge_score(blank, blank) == 1.0 and edge_score(blank, square(20)) < 0.01


def test_a_model_that_follows_scores_higher_than_alone(tmp_path: Path) -> None:
    colours = [(200, 30, 30), (30, 160, 40), (30, 50, 200), (220, 200, 30), (20, 20, 20), (150, 60, 170)]
    among = Candidates([cut_out(rgb) for rgb in colours])
    shown = [branch_data.reference_of(rgba) for rgba in among.rgba]
    groups = {
        "edges": [Case("an emoji", square(left), 9) for left in (5, 35, 60)],
        "reference": [Case("an emoji", image, 9, number) for number, image in enumerate(shown)],
    }

    def follow(prompts: Sequence[str], seeds: Sequence[int], told: Sequence[tuple[Given, ...]]) -> np.ndarray:
        assert len(prompts) == len(seeds) == len(told) <= 2
        out = []
        for given in told:
            if not given:
                out.append(square(20, colours[0]))
            elif isinstance(given[0], Control):
                assert isinstance(given[0].data, Video)
                out.append(np.asarray(given[0].data.frames))
            else:
                assert isinstance(given[0], Reference) and isinstance(given[0].data, np.ndarray)
                out.append(np.repeat(given[0].data[None], 25, axis=0))
        return np.stack(out)

    told: list[tuple[int, int]] = []
    figures = judge_branches(
        follow,
        groups,
        {"reference": among},
        batch=2,
        sheet=tmp_path / "sheet.png",
        on_batch=lambda *at: told.append(at),
    )
    assert figures["edges"].edges == 1.0 and figures["edges"].edges_alone < 0.7  # type: ignore[operator]
    assert figures["edges"].candidates is None and figures["edges"].retrieval_1 is None
    one = figures["reference"]
    assert (one.prompts, one.candidates, one.retrieval_1, one.retrieval_5) == (6, 6, 1.0, 1.0)
    assert one.retrieval_1_alone == pytest.approx(1 / 6) and one.edges is None
    assert told[-1] == (18, 18) and (tmp_path / "sheet.png").is_file()


def test_still_emoji_of_held_out_ones_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "packages" / "3d" / "assets"
    folder.mkdir(parents=True)
    for name in ("1f43c", "1f916-fe0f", "1f44b-1f3fb", "1f41d"):
        (folder / f"{name}.webp").touch()
    monkeypatch.setattr(branch_data, "fetch", lambda *_: None)

    class Held:
        files = ("anim-1/assets/1f916.webp", "anim-2/assets/1f41d.webp")

    found = branch_data.still_files(tmp_path, Held(), [0])  # type: ignore[arg-type]
    assert [file.stem for file in found] == ["1f41d", "1f43c"]  # neither the robot nor a second colour of skin


def test_a_recoloured_subject_keeps_its_shape() -> None:
    rgba = cut_out((200, 30, 90))[:1]
    made = [branch_data.recoloured(rgba, np.random.default_rng(n)) for n in range(12)]
    assert all(sorted(one[0, 60, 60, :3] if one[0, 60, 60, 3] else one[0, 60, 67, :3]) == [30, 90, 200] for one in made)
    assert len({tuple(one[0, 60, 60]) for one in made}) > 3
    assert all(np.array_equal(one[..., 3].sum(), rgba[..., 3].sum()) for one in made)


def test_named_emoji_stand_before_the_colours_that_training_has_for_them() -> None:
    from kandinsky.lab.nano import captions
    from kandinsky.lab.nano.concepts import load_concepts

    concept = load_concepts()[3]
    colours = {branch_data.shown(3, number, 3).colour for number in range(60)}
    assert colours == set(captions.TRAIN_COLOURS(concept))
