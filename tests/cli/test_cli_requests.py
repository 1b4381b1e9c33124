"""The rules every door shares: a request held against its card."""

import dataclasses
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kandinsky import catalogue
from kandinsky.engine.request import frames_of, parse_size, resolve
from kandinsky.errors import RequestError
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
