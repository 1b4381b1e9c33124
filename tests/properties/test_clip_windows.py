"""Windows of long clips, prompts by time, and noise by frame: rules that hold for all of them."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky import catalogue
from kandinsky.diffusion.noise import draw_along
from kandinsky.engine.long import mixed
from kandinsky.engine.request import resolve
from kandinsky.engine.windows import Window, windows
from kandinsky.errors import RequestError
from kandinsky.model.timeline import PromptAt, PromptSchedule, prompts_at, timeline
from kandinsky.model.values import LatentShape, Request, TextEmbeddings


@given(st.data())
@settings(max_examples=300)
def test_windows_cover_a_clip_once_and_know_what_was_made(data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from([1, 1, 2, 4]))
    longest = 1 + unit * data.draw(st.integers(4, 12))
    loops = data.draw(st.booleans())
    overlap = data.draw(st.integers(1, (longest - 2) // 2 if loops else longest - 2))
    total = 1 + unit * data.draw(st.integers(3, 60))
    tail = overlap if loops else 0
    breaks = data.draw(st.lists(st.integers(1, total - 1), max_size=5))
    made = windows(total, longest=longest, overlap=overlap, tail=tail, breaks=breaks, unit=unit)
    assert [one.number for one in made] == list(range(len(made)))
    assert made[0].start == made[0].known == 0 and made[-1].stop == total + tail
    for one in made:
        assert 0 < one.frames <= longest and (one.frames - 1) % unit == 0
        assert one.makes.start < one.makes.stop and one.tail == (tail if one is made[-1] else 0)
    for a, b in itertools.pairwise(made):
        assert b.known == a.stop and a.start <= b.start < b.known  # what it knows is all in the one before
        assert b.known - b.start >= min(overlap, a.frames - unit + 1)
        assert b.frames == min(longest, (b.stop - a.start - 1) // unit * unit + 1)  # as long as can be
    if loops:
        assert len(made) > 1
    for mark in breaks:
        if mark > max(unit, 1) and not (mark < made[0].stop):
            assert mark == total or any(one.makes.start == mark for one in made[1:])


def test_a_clip_of_the_longest_length_is_one_window() -> None:
    assert windows(7, longest=7, overlap=2) == [Window(0, 0, 0, 7)]
    assert windows(8, longest=7, overlap=2) == [Window(0, 0, 0, 7), Window(1, 1, 7, 8)]
    assert windows(7, longest=7, overlap=2, tail=2) == [Window(0, 0, 0, 4), Window(1, 2, 4, 9, 2)]


def test_the_noise_of_a_frame_depends_on_the_seed_and_its_place_alone() -> None:
    shape = LatentShape(6, 2, 3, 4)
    whole = draw_along(shape, [3, 8], begin=0, count=2)
    part = draw_along(LatentShape(3, 2, 3, 4), [8], begin=2, count=1)
    assert whole.shape == (2, 2, 6, 2, 3, 4)
    assert torch.equal(part[0, 0], whole[0, 1, 2:5])
    frames = whole[0, 0].flatten(1)
    assert len({tuple(frame.tolist()) for frame in frames}) == 6
    assert not torch.equal(whole[0, 0], whole[1, 0]) and not torch.equal(whole[0, 0], whole[0, 1])
    assert abs(float(draw_along(LatentShape(50, 8, 8, 4), [1], begin=0, count=1).std()) - 1) < 0.03


def test_prompts_hold_from_their_time_and_fade() -> None:
    made = timeline("a", prompts_at([("b", 2), {"prompt": "c", "at": "4s", "until": 6}]), length=10, fps=10, fade=1.0)
    assert made.changes == ((0.0, "a"), (2.0, "b"), (4.0, "c"), (6.0, "a")) and made.prompts == ("a", "b", "c")
    assert made.at(0) == {"a": 1} and made.at(2.5) == pytest.approx({"a": 0.5, "b": 0.5}) and made.at(3.5) == {"b": 1}
    assert made.over(2, 3, 10) == pytest.approx({"a": 0.55, "b": 0.45})
    assert PromptSchedule(((0.0, "a"), (2.0, "b"))).at(2) == {"b": 1.0}
    assert timeline("a", prompts_at(["0:12 b"]), length=2, fps=6).changes == ((0.0, "b"),)


@given(st.floats(0, 10), st.floats(0, 3))
def test_shares_are_one_together(second: float, fade: float) -> None:
    made = PromptSchedule(((0.0, "a"), (2.0, "b"), (2.5, "c"), (7.0, "a")), fade)
    assert sum(made.at(second).values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ([("b", 12)], "`b` is asked for at 12 s, outside of a clip of 10 s"),
        ([("b", 2, 11)], "2 to 11 s, outside"),
        ([("b", 2, 5), ("c", 4)], "`b` and `c` are both asked for at 4 s"),
        ([("b", 2), ("c", "2s")], "both asked for at 2 s"),
        ([("b", 5, 5)], "from 5 to 5 s: nothing"),
        ([("b", -1)], "use seconds from 0 on"),
        ([("b", "-1s")], "use seconds from 0 on"),
        ([("b", "soon")], "no place in time"),
        ([(" ", 1)], "says nothing"),
        (["b"], "is no prompt with a time"),
        (["5s: b"], "is no prompt with a time"),
        ([("b",)], "is no prompt with its time"),
        ([{"prompt": "b", "when": 3}], "is no prompt with its time"),
        ([("b", i) for i in range(65)], "lists 65 prompts: 64 are allowed"),
        (7, "must be a list"),
    ],
)
def test_wrong_times_are_one_clear_line(later: object, message: str) -> None:
    with pytest.raises(RequestError, match=message) as raised:
        timeline("a", prompts_at(later), length=10, fps=10)
    assert "\n" not in str(raised.value)


def test_texts_are_read_as_they_are_written() -> None:
    for one in (PromptAt("a cat", 5), PromptAt("a cat", 2.5, 4), PromptAt("a cat", "30", "60")):
        again = PromptAt.parse(one.written())
        assert again.prompt == one.prompt
        assert timeline("x", [again], length=9, fps=12) == timeline("x", [one], length=9, fps=12)


def test_embeddings_between_prompts_are_their_mean_and_a_lone_prompt_is_itself() -> None:
    tokens = torch.arange(12.0).view(2, 3, 2)
    text = TextEmbeddings(tokens, tokens[:, 0], torch.tensor([[True, False, False], [True, True, False]]))
    alone = mixed(text, [0.0, 1.0])
    assert torch.equal(alone.tokens_BLC, tokens[1:]) and alone.mask_BL.tolist() == [[True, True, False]]
    both = mixed(text, [0.25, 0.75])
    torch.testing.assert_close(both.tokens_BLC, (0.25 * tokens[0] + 0.75 * tokens[1])[None])
    assert both.mask_BL.tolist() == [[True, True, False]]


@pytest.mark.parametrize("name", ["nano-t2v", "kandinsky5-lite-t2v-sft-5s", "kandinsky4-t2v"])
def test_the_beginning_is_made_before_it_is_the_end_of_a_loop(name: str) -> None:
    card, loops = catalogue.find(name), 0
    for tenths in range(2, 70):
        try:
            job = resolve(Request(name, "x", seconds=tenths / 10, loop=True), card)
        except RequestError as error:
            assert "too short" in str(error)
            continue
        assert job.long is not None
        last = job.long.windows[-1]
        assert 0 < last.tail < last.start + last.known
        loops += 1
    assert loops > 40


@pytest.mark.parametrize("at", ["23", "24", "25", "26"])
def test_the_window_before_a_prompt_is_told_nothing_of_it(at: str) -> None:
    card = catalogue.find("nano-t2v")
    job = resolve(Request(card.id, "a panda", seconds=4, prompt_at=[("a cat", at)]), card)
    assert job.long is not None
    for window in job.long.windows:
        assert len(job.long.prompts_of(window, card.clip.fps, card.clip.temporal)) == 1
