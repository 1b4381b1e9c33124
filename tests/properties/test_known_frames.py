"""Known frames, sources and masks: places, texts, and what a sampling run makes of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kandinsky import Frames, Request, Source, catalogue
from kandinsky.diffusion.flowedit import FlowEdit
from kandinsky.diffusion.following import Following, first_step
from kandinsky.diffusion.noise import draw_again
from kandinsky.diffusion.sample import steps
from kandinsky.diffusion.samplers import SAMPLERS, sampler
from kandinsky.engine.conditions import pixels_of, whole
from kandinsky.engine.request import resolve
from kandinsky.engine.stages import with_frames
from kandinsky.errors import RequestError
from kandinsky.model.condition import Span
from kandinsky.model.denoiser import VIDEO, Known
from kandinsky.model.given import conditions_of, part_of, plain
from kandinsky.model.values import LatentShape

SHAPE = LatentShape(5, 2, 3, 4)
# every sampler of models that take conditions, and some more: the rule is one
RULES = ("flow", "cogvideox-renoise", "cogvideox-ddim", "ddim", "kandinsky3", "kandinsky3-flash")


def drawn(seed: int, count: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, *SHAPE.as_tuple(), generator=generator)


def run(name: str, known: Known, *, number: int = 6, resample: int = 0, strength: float = 1.0):
    """A run of a sampler under a network that answers nonsense; the result, and the states it was asked about."""
    rules, shift = sampler(name), 3.0
    times = rules.times(number, shift)
    draws = drawn(1, rules.draws(len(times) - 1))
    follows = Following(known, {VIDEO: rules.start(draws, times)}, rules.noising(shift).noised, times[-1])
    seen: list[tuple[float, torch.Tensor]] = []

    def denoiser(x, t):
        seen.append((float(t), x[VIDEO].clone()))
        return {VIDEO: (3 * x[VIDEO]).sin()}

    start = first_step(known, times, strength)
    walk = steps(
        denoiser,
        follows.begin(times[start]),
        times,
        step={VIDEO: rules.step(times, shift, draws[rules.unused + 1 :] if rules.fresh else None)},
        start=start,
        pin=follows.pin,
        again=lambda clean, t, n: {VIDEO: follows.noised(clean[VIDEO], drawn(50 + n)[0], t)},
        resample=resample,
    )
    shown = []
    while True:
        try:
            shown.append(next(walk).clean()[VIDEO])
        except StopIteration as end:
            return end.value[VIDEO], seen, shown, follows, times


@given(st.sampled_from(RULES), st.integers(0, 4), st.integers(1, 4), st.integers(0, 2), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_span_is_exact_at_the_end_and_noised_on_the_way(
    name: str, start: int, length: int, resample: int, follow: bool
) -> None:
    length = min(length, SHAPE.frames - start)
    latents = drawn(7)[0][:, :length] + 2
    known = with_frames(Known(), VIDEO, latents, start, SHAPE.frames, follow=follow)
    result, seen, shown, follows, times = run(name, known, resample=resample)
    span = slice(start, start + length)
    assert torch.equal(result[:, span], latents)
    for clean in shown:
        assert torch.equal(clean[:, span], latents)
    noise = follows.noise[VIDEO][:, span]
    for t, x in seen:
        expected = follows.noised(latents, noise, torch.tensor(t)) if follow else latents
        assert torch.equal(x[:, span], expected)
    again = sum(float(t) < 1 for t in times[:-1])
    assert len(seen) == len(times) - 1 + resample * again


@given(st.integers(0, 2**24 - 1))
@settings(max_examples=20, deadline=None)
def test_any_mask_keeps_its_places(bits: int) -> None:
    keep = torch.tensor([bool(bits >> (i % 24) & 1) for i in range(SHAPE.frames * 6)]).reshape(1, SHAPE.frames, 2, 3, 1)
    clean = drawn(3)[0]
    known = Known(clean={VIDEO: clean}, follow={VIDEO: keep})
    result = run("flow", known)[0]
    kept = keep.expand_as(result)
    assert torch.equal(result[kept], clean[kept])
    assert not (result[~kept] == clean[~kept]).any()


@given(st.sampled_from(RULES), st.floats(0.01, 1))
@settings(max_examples=30, deadline=None)
def test_a_source_begins_at_the_step_of_its_strength(name: str, strength: float) -> None:
    known = Known(begin={VIDEO: drawn(9)[0]})
    _, seen, shown, follows, times = run(name, known, strength=strength)
    first = seen[0][0]
    assert first <= strength + 1e-5 or len(seen) == 1
    assert len(seen) == len(shown) == int((times[:-1] <= first + 1e-7).sum())
    expected = follows.noised(known.begin[VIDEO], follows.noise[VIDEO], torch.tensor(first))
    assert torch.equal(seen[0][1], expected)


def test_every_sampler_has_a_rule_for_known_latents() -> None:
    known = with_frames(Known(), VIDEO, drawn(1)[0][:, :2], 1, SHAPE.frames, follow=True)
    for name in SAMPLERS:
        assert torch.equal(run(name, known, number=4)[0][:, 1:3], drawn(1)[0][:, :2]), name


def test_the_same_prompt_twice_edits_nothing_and_another_does() -> None:
    clean = {VIDEO: drawn(1)[0]}
    times = sampler("flow").times(5, 3.0)

    def edited(target) -> torch.Tensor:
        edit = FlowEdit(target, lambda x, t: {VIDEO: x[VIDEO].cos()}, clean, lambda n: drawn(n + 5)[0], lambda x: x)
        walk = steps(edit, clean, times, start=1)
        while True:
            try:
                next(walk)
            except StopIteration as end:
                return end.value[VIDEO]

    assert torch.equal(edited(lambda x, t: {VIDEO: x[VIDEO].cos()}), clean[VIDEO])
    assert not torch.allclose(edited(lambda x, t: {VIDEO: x[VIDEO].sin()}), clean[VIDEO], atol=0.1)


def test_noise_of_steps_taken_again_is_of_its_own() -> None:
    made = [draw_again(SHAPE, [seed], "float32", number=n) for seed in (1, 2, 3) for n in range(4)]
    assert all(not torch.equal(a, b) for i, a in enumerate(made) for b in made[:i])
    both = draw_again(SHAPE, [1, 3], "float32", number=2)
    assert torch.equal(both[:1], made[2]) and torch.equal(both[1:], made[10])


@given(st.integers(0, 200), st.integers(1, 200), st.integers(1, 8))
@settings(max_examples=200, deadline=None)
def test_fragments_are_known_in_whole_latent_frames(start: int, length: int, step: int) -> None:
    span = whole(start, start + length, step)
    first, end = pixels_of(span, step)
    assert span.start < span.stop and (first == 0) == (span.start == 0)
    if first >= start and end <= start + length:  # cut inwards, by less than a group at either end
        assert first - start < step and start + length - end < step
    else:  # nothing whole lies within: the group of its first frame
        assert span.stop == span.start + 1 and first <= start < end and length < 2 * step


FILES = st.text(st.characters(exclude_characters="@[]\0", exclude_categories=("Cs", "Cc")), min_size=1).map(
    lambda text: f"x{text}.mp4"
)


@given(FILES, st.integers(-500, 500), st.sampled_from([None, "0:9", ":2s", "1.5s:", "-4:"]))
@settings(max_examples=60, deadline=None)
def test_known_frames_are_read_as_they_are_written(file: str, at: int, cut: str | None) -> None:
    one = Frames.parse(f"{file}{'' if cut is None else f'[{cut}]'}@{at}")
    assert (one.data, one.at, one.cut) == (file, at, cut)
    (again,) = conditions_of([plain(one)])
    assert plain(again) == plain(one)


def test_texts_without_a_place_begin_the_clip() -> None:
    for text, data, at, cut in (
        ("a.png", "a.png", 0, None),
        ("a.png@end", "a.png", "end", None),
        ("me@home.png", "me@home.png", 0, None),
        ("a.mp4[2s:3s]", "a.mp4", 0, "2s:3s"),
        ("a[1].mp4@1.5s", "a[1].mp4", "1.5s", None),
    ):
        one = Frames.parse(text)
        assert (one.data, one.at, one.cut) == (data, at, cut)


@given(st.integers(1, 300), st.integers(-400, 400), st.integers(-400, 400))
@settings(max_examples=100, deadline=None)
def test_parts_lie_within_the_clip_or_are_refused(frames: int, start: int, stop: int) -> None:
    try:
        begin, end = part_of(f"{start}:{stop}", "span", fps=12, frames=frames)
    except RequestError as error:
        assert "\n" not in str(error)
    else:
        assert 0 <= begin < end <= frames
        assert list(range(frames))[start:stop] == list(range(begin, end))


def test_requests_are_written_down_and_read_again() -> None:
    request = Request(
        "nano-t2v",
        "a cat",
        conditions=["end.png@-1", {"source": "a.mp4", "strength": 0.5, "span": "1s:2s"}, Frames("b.mp4", at="1s")],
        last_image="last.png",
        resample=2,
    )
    assert isinstance(request.conditions[1], Source) and request.conditions[1].strength == 0.5
    values = request.to_dict()
    assert Request.from_dict(values).to_dict() == values
    assert values["conditions"][0] == {"frames": "end.png", "at": -1}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["frames", "source", "at", "cut", "mask", "strength", "span", "place", "x"]), inner, max_size=4
    ),
    max_leaves=8,
)  # fmt: skip


@given(ANYTHING)
@settings(max_examples=150, deadline=None)
def test_anything_else_is_one_line(value: object) -> None:
    try:
        made = conditions_of(value)
    except RequestError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        assert all(isinstance(one, Frames | Source) for one in made)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Frames("a.png", at="soon"), "no place in time"),
        (lambda: Frames("a.png", at=1.5), "must be a whole number or text"),
        (lambda: Frames("a.mp4", cut="3"), "not of the form START:STOP"),
        (lambda: Source("a.mp4", strength=0), "above 0, up to 1"),
        (lambda: Source("a.mp4", strength=1.2), "above 0, up to 1"),
        (lambda: Source("a.mp4", place="64x64"), "WIDTHxHEIGHT"),
        (lambda: Source("a.mp4", grow=3), "none was given"),
        (lambda: Frames(np.zeros((2, 2)), at=0, cut=3), "`cut` must be"),
    ],
)
def test_wrong_values_are_refused_when_they_are_made(make, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make()


@pytest.mark.parametrize(("at", "is_first"), [(0, True), ("0.0s", True), (" 0 ", True), ("1s", False), ("end", False)])
def test_a_first_frame_is_one_however_it_is_spelled(at: int | str, is_first: bool) -> None:
    card, image = catalogue.find("nano-i2v"), np.zeros((96, 96, 3), np.uint8)
    request = Request(card.id, "a star", conditions=[Frames(image, at=at)])
    if is_first:
        assert resolve(request, card).conditions[0].at == Span(0, 1)
    else:
        with pytest.raises(RequestError, match="none was given"):
            resolve(request, card)
