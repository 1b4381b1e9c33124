"""The rules every door shares: a request held against its card."""

import dataclasses
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kandinsky import catalogue
from kandinsky.cli import notes
from kandinsky.engine.request import frames_of, parse_size, resolve
from kandinsky.errors import RequestError
from kandinsky.model.given import moment
from kandinsky.model.values import Request

CARD = catalogue.find("kandinsky5-lite-t2v-sft-5s")
ASK = Request(model=CARD.id, prompt="a panda")


def test_blanks_are_filled_from_the_card() -> None:
    resolved = resolve(ASK, CARD)
    assert (resolved.shape.width, resolved.shape.height, resolved.shape.frames) == (768, 512, 121)
    assert resolved.latent.as_tuple() == (31, 64, 96, 16)
    assert (resolved.steps, resolved.guidance, resolved.shift, resolved.fps) == (50, 5.0, 5.0, 24.0)
    assert resolved.negative_prompt == CARD.sampling.negative_prompt
    assert 0 <= resolved.seed < 2**32
    assert len({resolve(ASK, CARD).seed for _ in range(20)}) > 10, "a drawn seed is a new one each time"
    assert resolve(ASK.with_values(negative_prompt=""), CARD).negative_prompt == ""


@pytest.mark.parametrize("seconds", range(11))
def test_whole_seconds_give_the_official_number_of_frames(seconds: int) -> None:
    official = 1 if seconds == 0 else seconds * 24 // 4 + 1
    assert (frames_of(seconds, CARD) - 1) // 4 + 1 == official


@pytest.mark.parametrize(
    ("model", "asked", "made", "shown"),
    [
        ("nano2-t2v", {"seconds": 5}, 65, 60),
        ("nano2-t2v", {"seconds": 1}, 17, 12),
        ("nano2-t2v", {"seconds": 2}, 25, 25),
        ("nano2-t2v", {"seconds": 0}, 1, 1),
        ("nano2-t2v", {"seconds": 3, "prompt_at": [("a cat", 1.5)]}, 41, 36),
        ("nano2-t2v", {"seconds": 5, "loop": True}, 57, 57),  # the nearest: the end leads to the beginning
        ("nano2-t2v", {"seconds": 5.2, "loop": True}, 65, 65),
        ("nano-t2v", {"seconds": 1.9}, 21, 21),  # whose grid is fine enough
        ("nano-t2v", {"seconds": 1.8, "upscale": 2}, 21, 21),
        (CARD.id, {"seconds": 4.9}, 117, 117),  # as the official code counts
        (CARD.id, {"seconds": 5}, 121, 121),
        (CARD.id, {"seconds": 121 / 24}, 121, 121),  # as a clip's own length is told
        ("nano2-t2v", {"seconds": 60 / 12}, 65, 60),
    ],
)
def test_a_clip_is_as_long_as_was_asked_for(model: str, asked: dict[str, object], made: int, shown: int) -> None:
    card = catalogue.find(model)
    job = resolve(Request(model, "a panda", **asked), card)  # type: ignore[arg-type]
    assert (job.shape.frames, job.frames) == (made, shown)
    assert job.settings()["frames"] == shown and job.settings()["seconds"] == asked["seconds"]
    noted = [note for note in notes.before(job) if "were asked for" in note]
    assert bool(noted) == (abs(shown / job.fps - float(str(asked["seconds"]))) > 1.01 / job.fps), noted
    if "loop" not in asked:  # what is learned has whole groups of frames, and no more than an example has
        whole = resolve(Request(model, "a panda", seconds=min(float(str(asked["seconds"])), 2)), card.of_whole_clips())
        assert whole.cut is None and whole.shape.frames <= whole.seconds * whole.fps + 1


@given(
    seconds=st.floats(0, 60), fps=st.sampled_from([8.0, 12.0, 24.0, 29.97, 30.0]), temporal=st.sampled_from([1, 4, 8])
)
def test_frames_fall_on_the_grid_and_fill_the_time(seconds: float, fps: float, temporal: int) -> None:
    card = dataclasses.replace(CARD, clip=dataclasses.replace(CARD.clip, fps=fps, temporal=temporal))
    frames = frames_of(seconds, card)
    assert frames >= 1 and (frames - 1) % temporal == 0
    assert frames - 1 <= seconds * fps + 1e-5 and seconds * fps < frames - 1 + temporal + 1e-5


def test_round_numbers_lose_nothing_to_binary() -> None:
    card = dataclasses.replace(CARD, clip=dataclasses.replace(CARD.clip, fps=30.0, temporal=1))
    assert frames_of(0.7, card) == 22  # 0.7 · 30 is 20.999… in binary


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 768}, "only the width was given"),
        ({"height": 512}, "only the height was given"),
        ({"width": -768, "height": 512}, "size `-768x512`"),
        ({"width": 768.5, "height": 512}, "`width` must be a whole number, not `768.5`"),
        ({"steps": True}, "`steps` must be a whole number, not `True`"),
        ({"steps": 2.5}, "`steps` must be a whole number, not `2.5`"),
        ({"steps": "9"}, '`steps` must be a whole number, not `"9"`'),
        ({"guidance": "5"}, '`guidance` must be a finite number, not `"5"`'),
        ({"seed": 1.5}, "`seed` must be a whole number, not `1.5`"),
        ({"seed": False}, "`seed` must be a whole number, not `False`"),
        ({"prompt": None}, "`prompt` must be text, not `None`"),
        ({"prompt": ["a"]}, "`prompt` must be text, not `list`"),
        ({"negative_prompt": 5}, "`negative_prompt` must be text, not `5`"),
    ],
)
def test_values_of_the_wrong_kind(changes: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        resolve(ASK.with_values(**changes), CARD)
    assert said in str(caught.value)


def test_a_negative_prompt_that_cannot_act_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    resolve(ASK.with_values(guidance=1.0), CARD)
    assert not caplog.text
    resolve(ASK.with_values(guidance=1.0, negative_prompt="dark"), CARD)
    assert "no effect at guidance 1" in caplog.text


@pytest.mark.parametrize("text", ["512", "512x", "x512", "5.5x5", "-5x5", "axb", "", "512x512x512"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="not of the form WIDTHxHEIGHT"):
        parse_size(text)


def test_sizes() -> None:
    assert parse_size("768x512") == parse_size("768X512") == parse_size("768×512") == (768, 512)
    for size in CARD.clip.sizes:
        width, height = parse_size(size)
        assert resolve(ASK.with_values(width=width, height=height), CARD).shape.width == width


def test_request_survives_json() -> None:
    assert Request.from_dict(ASK.to_dict()) == ASK
    with pytest.raises(RequestError, match="unknown request field `sede`"):
        Request.from_dict({"model": "x", "prompt": "y", "sede": 1})


def test_a_length_that_is_not_allowed_is_told_the_same_both_ways() -> None:
    card = catalogue.find("nano2-t2v")
    for seconds in (-1, 1e9):
        with pytest.raises(RequestError, match="use 0 to 3600"):
            resolve(Request(card.id, "a panda", seconds=seconds), card)
    with pytest.raises(RequestError, match="use 0 to 5 "):
        resolve(ASK.with_values(seconds=-1), CARD.of_whole_clips())


def test_what_burns_or_gains_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    card = catalogue.find("nano2-t2v")
    for asked, said in (({"guidance": 4}, "guidance 4 burns colours"), ({"steps": 50}, "50 steps gain nothing over 4")):
        caplog.clear()
        resolve(Request(card.id, "a panda", **asked), card)  # type: ignore[arg-type]
        assert said in caplog.text
    caplog.clear()
    resolve(Request(card.id, "a panda", guidance=1, steps=4), card)
    resolve(ASK.with_values(guidance=8, steps=80), CARD)  # nothing is known of these
    assert not caplog.text


@pytest.mark.parametrize("text", ["1.5s", "1.5с", "1.5 с"])
def test_an_s_of_either_alphabet_is_seconds(text: str) -> None:
    assert moment(text, "it") == (1.5, True)
