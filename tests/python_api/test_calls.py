"""Calls of a pipeline: words of Diffusers, lists of prompts, previews, bars, cancelling, numbers out of range."""

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kandinsky
from kandinsky.engine import pipeline, progress, stages
from kandinsky.engine.options import RunOptions
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.preview import Preview, draw, fit
from kandinsky.errors import Cancelled, KandinskyError, NotFinite, OutOfMemory, RequestError
from kandinsky.model.card import LatentRGB
from kandinsky.model.option import in_fields, in_flags
from kandinsky.model.values import Request, Video

STILL: dict[str, Any] = {"seconds": 0, "steps": 2, "guidance": 1.0}


@pytest.fixture(scope="module")
def loaded() -> GenerationPipeline:
    return kandinsky.load("nano-t2v", device="cpu")


@pytest.fixture
def pipe(loaded: GenerationPipeline) -> Iterator[GenerationPipeline]:
    card = loaded.card
    yield loaded
    loaded.card = card


@pytest.fixture
def asked(pipe: GenerationPipeline, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The jobs of calls that make nothing."""
    jobs: list[Any] = []

    def instead(batch: Any, keep: Any, *_: Any) -> list[Video]:
        jobs.append((list(batch), list(keep)))
        return [Video(np.zeros((1, 8, 8, 3), np.uint8), 1.0, job.seed) for job in batch]

    monkeypatch.setattr(pipe, "_batch", instead)
    return jobs


# -- words of Diffusers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"num_inference_steps": 3}, {"steps": 3}),
        ({"guidance_scale": 4.5}, {"guidance": 4.5}),
        ({"guidance_scale": 0.0}, {"guidance": 1.0}),
        ({"num_frames": 1}, {"seconds": 0}),
        ({"num_frames": 25}, {"seconds": 2}),
        ({"num_frames": 15}, {"seconds": 1}),  # rounded to 13, as Diffusers does
        ({"generator": torch.Generator().manual_seed(12)}, {"seed": 12}),
        ({"num_inference_steps": None}, {}),
    ],
)
def test_words_that_mean_the_same(pipe: GenerationPipeline, asked: list[Any], theirs: Any, ours: Any) -> None:
    pipe("a dot", **({"seed": 5} | theirs if "generator" not in theirs else theirs))
    pipe("a dot", **({"seed": 5} | ours))
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"output_type": "pil"}, r"`video.images` are Pillow images"),
        ({"callback_on_step_end": print}, "did you mean `on_step`"),
        ({"num_videos_per_prompt": 2}, "pass a list of prompts"),
        ({"latents": torch.zeros(1)}, "`pipe.sample`"),
        ({"num_inference_step": 4}, "did you mean `num_inference_steps`"),
        ({"promt": 4}, "did you mean `prompt`"),
        ({"steps": 4, "num_inference_steps": 4}, "is Diffusers' word for `steps`, and both were given"),
        ({"num_inference_steps": "4"}, '`num_inference_steps` must be a whole number, not `"4"`'),
        ({"generator": 5}, "`generator` must be a `torch.Generator` or a list of `torch.Generator`"),
    ],
)
def test_words_that_do_not(pipe: GenerationPipeline, given: Any, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        pipe("a dot", **given)
    assert said.replace("`video", "`video") in str(caught.value)


def test_a_generator_that_has_drawn_says_nothing(pipe: GenerationPipeline) -> None:
    used = torch.Generator().manual_seed(3)
    torch.rand(1, generator=used)
    with pytest.raises(RequestError, match="has drawn numbers before"):
        pipe("a dot", generator=used)


def test_the_number_type_by_either_name() -> None:
    assert kandinsky.load("nano-t2v", device="cpu", torch_dtype=torch.bfloat16).precision.name == "bfloat16"  # type: ignore[call-overload]
    with pytest.raises(RequestError, match="did you mean `device`"):
        kandinsky.load("nano-t2v", device_map="auto")  # type: ignore[call-overload]


# -- lists of prompts --------------------------------------------------------------------------------------------------


def test_several_prompts_equal_single_ones(pipe: GenerationPipeline) -> None:
    prompts = ["a panda", "a red heart", "a frog"]
    many = pipe(prompts, seed=[1, 2, 3], **STILL)
    assert [video.seed for video in many] == [1, 2, 3]
    for prompt, seed, video in zip(prompts, (1, 2, 3), many, strict=True):
        alone = pipe(prompt, seed=seed, **STILL)
        assert isinstance(alone, Video) and alone.recipe["prompt"] == prompt
        assert np.abs(alone.frames.astype(int) - video.frames).max() <= 1


def test_steps_of_several_batches_are_counted_over_all(pipe: GenerationPipeline) -> None:
    seen: list[tuple[int, int]] = []
    videos = pipe(
        ["a dot"] * (pipeline.AT_ONCE + 1), seed=4, on_step=lambda step, total, _: seen.append((step, total)), **STILL
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(videos) == pipeline.AT_ONCE + 1 and all(video.seed == 4 for video in videos)


def test_values_that_may_differ_are_lists(pipe: GenerationPipeline, asked: list[Any], tmp_path: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    pipe(("x", "y"), negative_prompt=["", "dark"], seed=9, keep_latent=files)
    (jobs, kept), *_ = asked
    assert (
        [job.negative_prompt for job in jobs] == ["", "dark"] and [job.seed for job in jobs] == [9, 9] and kept == files
    )
    for given in ({"seed": [1]}, {"negative_prompt": ["a", "b", "c"]}, {"keep_latent": tmp_path / "one"}):
        with pytest.raises(RequestError, match="list"):
            pipe(["x", "y"], **given)
    with pytest.raises(RequestError, match="is a list of 2, for 1 prompt"):
        pipe("x", seed=[1, 2])


def test_memory_that_runs_out_makes_it_one_by_one(pipe: GenerationPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    batch = GenerationPipeline._batch

    def small(self: GenerationPipeline, jobs: Any, *rest: Any) -> list[Video]:
        sizes.append(len(jobs))
        if len(jobs) > 1:
            raise OutOfMemory("too many")
        return batch(self, jobs, *rest)

    monkeypatch.setattr(GenerationPipeline, "_batch", small)
    assert len(pipe(["a dot", "a cat"], seed=1, **STILL)) == 2 and sizes == [2, 1, 1]


# -- previews ----------------------------------------------------------------------------------------------------------


def test_a_preview_is_the_latents_and_an_image(pipe: GenerationPipeline) -> None:
    seen: list[Preview] = []
    video = pipe("a red heart", seed=3, seconds=1, steps=4, on_step=lambda _step, _total, preview: seen.append(preview))
    assert all(isinstance(one, torch.Tensor) and one.shape == (1, 4, 12, 12, 48) for one in seen)
    assert type(seen[0] + 1) is torch.Tensor and torch.isfinite(seen[0]).all() and torch.stack(seen).shape[0] == 4
    last = np.asarray(seen[-1].image.resize((12, 12), Image.Resampling.BOX)).astype(float)
    # what the middle latent frame stands for
    frames = video.frames[5:9].reshape(4, 12, 8, 12, 8, 3).mean((0, 2, 4))
    assert np.sqrt(np.mean((last - frames) ** 2)) < 16, "of 255"
    assert max(seen[-1].image.size) <= 300


def test_events_carry_the_image(pipe: GenerationPipeline) -> None:
    from kandinsky.engine.events import Step

    job = pipe.resolve(Request("nano-t2v", "a dot", seed=1, **STILL))
    steps = [event for event in pipe.engine.run([job]) if isinstance(event, Step)]
    assert len(steps) == 2 and steps[1].image().size == (252, 252)


def test_colours_are_fitted_and_grey_stands_in() -> None:
    latents, weights = torch.randn(500, 6), torch.rand(6, 3) - 0.5
    rows, bias = fit(latents, latents @ weights + torch.tensor([0.2, 0.4, 0.6]))
    torch.testing.assert_close(torch.tensor(rows), weights, atol=1e-5, rtol=0)
    assert bias == pytest.approx([0.2, 0.4, 0.6])
    frame = torch.randn(4, 5, 6)
    coloured = np.asarray(draw(frame, LatentRGB(tuple(map(tuple, rows)), (0.2, 0.4, 0.6))))
    grey = np.asarray(draw(frame, None))
    assert (grey[..., 0] == grey[..., 1]).all() and grey.std() > 10 and (coloured[..., 0] != coloured[..., 1]).any()
    assert (np.asarray(draw(frame * float("nan"), None)) >= 0).all()


# -- bars --------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Timer:
    """A second passes at once, or never."""

    passes = True

    def __init__(self, _seconds: float, call: Callable[[], None]) -> None:
        self.call = call

    def start(self) -> None:
        if self.passes:
            self.call()

    def cancel(self) -> None: ...
    def join(self) -> None: ...


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(progress, "Timer", Timer)
    monkeypatch.delenv(progress.VARIABLE, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=screen, modules=sys.modules))
    yield screen
    kandinsky.progress(None)


def test_a_call_shows_a_bar_in_a_terminal(pipe: GenerationPipeline, terminal: Terminal) -> None:
    pipe("a dot [red]", seed=1, **STILL)
    assert "a dot [red]" in terminal.getvalue() and "2/2" in terminal.getvalue() and "decoding" in terminal.getvalue()


@pytest.mark.parametrize("how", ["switch", "variable", "argument", "on_step", "no terminal", "quick"])
def test_and_none_where_it_is_not_wanted(
    how: str, pipe: GenerationPipeline, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    if how == "switch":
        kandinsky.progress(False)
    elif how == "variable":
        monkeypatch.setenv("KANDINSKY_PROGRESS", "off")
    elif how == "argument":
        given = {"progress": False}
    elif how == "on_step":
        given = {"on_step": lambda *_: None}
    elif how == "no terminal":
        monkeypatch.setattr(Terminal, "isatty", lambda _self: False)
    else:
        monkeypatch.setattr(Timer, "passes", False)
    pipe("a dot", seed=1, **STILL, **given)
    assert not terminal.getvalue()


def test_an_argument_wins_over_the_switch(pipe: GenerationPipeline, terminal: Terminal) -> None:
    kandinsky.progress(False)
    pipe("a dot", seed=1, **STILL, progress=True, on_step=lambda *_: None)
    assert "2/2" in terminal.getvalue()
    with pytest.raises(RequestError, match="`on` must be True or False"):
        kandinsky.progress("no")  # type: ignore[arg-type]


def test_a_notebook_shows_one_below_the_cell(pipe: GenerationPipeline, terminal: Terminal, monkeypatch: Any) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, page: str) -> None:
            shown.append(page)

    class Display:
        HTML = staticmethod(str)

        @staticmethod
        def display(page: str, *, display_id: bool) -> Handle:
            shown.append(page)
            return Handle()

    class Shell:
        kernel = object()

    monkeypatch.setitem(
        sys.modules, "IPython", type("IPython", (), {"get_ipython": staticmethod(Shell), "display": Display})
    )
    pipe("a <b>dot", seed=1, **STILL)
    assert any('value="2"' in page and "a &lt;b&gt;dot" in page for page in shown) and shown[-1] == ""
    assert not terminal.getvalue()


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_another_thread_stops_a_run_within_a_step(pipe: GenerationPipeline) -> None:
    steps: list[int] = []

    def look(step: int, _total: int, _preview: Preview) -> None:
        steps.append(step)
        if step == 2:
            threading.Thread(target=pipe.cancel).start()
            while not pipe.context.cancelling.is_set():
                time.sleep(0.001)

    with pytest.raises(Cancelled, match="cancelled after step 2 of 9"):
        pipe("a dot", seed=1, seconds=0, steps=9, guidance=1.0, on_step=look)
    assert steps == [1, 2]
    assert len(pipe("a dot", seed=1, **STILL)) == 1, "the next run is not meant"


def test_another_thread_stops_decoding(pipe: GenerationPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_pieces(_vae: Any, latents: torch.Tensor, _chunk: int | None) -> Iterator[torch.Tensor]:
        for _ in range(5):
            yield torch.zeros(1, 2, 8, 8, 3)

    monkeypatch.setattr(stages, "decoded", in_pieces)
    (stream,) = pipe.stream_batch([pipe.resolve(Request("nano-t2v", "a dot", seconds=1, steps=1, seed=1))])
    assert len(next(stream.pieces)) == 2
    pipe.cancel()
    with pytest.raises(Cancelled, match="while decoding, after 2 frames"):
        next(stream.pieces)
    assert not any(pipe.placement._held.values())


def test_cancelling_while_nothing_runs_means_nothing(pipe: GenerationPipeline) -> None:
    pipe.cancel()
    assert len(pipe("a dot", seed=1, **STILL)) == 1


# -- numbers out of range ----------------------------------------------------------------------------------------------


def poisoned(pipe: GenerationPipeline, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The network's ``at``-th pass gives a value that is not finite."""
    steps, passes = stages.steps, 0

    def some(denoiser: Any, state: Any, *rest: Any, **more: Any) -> Any:
        def bad(x: Any, t: Any) -> Any:
            nonlocal passes
            passes += 1
            made = denoiser(x, t)
            return (
                {name: one.index_fill(1, torch.tensor([0]), torch.inf) for name, one in made.items()}
                if passes == at
                else made
            )

        return steps(bad, state, *rest, **more)

    monkeypatch.setattr(stages, "steps", some)


@pytest.mark.parametrize("at", [1, 3, 6])
def test_latents_that_are_not_finite_name_their_step(
    at: int, pipe: GenerationPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    poisoned(pipe, monkeypatch, at)
    taken: list[int] = []
    with pytest.raises(NotFinite, match=f"not finite from step {at} on") as caught:
        pipe("a dot", seed=1, seconds=0, steps=6, guidance=1.0, keep_latent=tmp_path / "x.latent.safetensors",
             on_step=lambda step, *_: taken.append(step))  # fmt: skip
    assert isinstance(caught.value, KandinskyError) and caught.value.hint
    assert taken[-1] <= at + 2, "the rest is not computed"
    assert not list(tmp_path.iterdir()), "nothing was kept"


def test_pixels_that_are_not_finite_are_no_black_video(
    pipe: GenerationPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = pipe.resolve(Request("nano-t2v", "a dot", seed=1, **STILL))
    latents = pipe.sample(pipe.noise([job]), *pipe.encode([job]), job)
    latents[0, 0, 3, 3] = float("nan")
    with pytest.raises(NotFinite, match="decoded values are not finite from frame 0 on"):
        pipe.decode(latents)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"guidance": 101}, "use 0 to 100 (1 disables it), the default is 2"), ({"shift": 0.009}, "use 0.01 to 100"),
     ({"shift": 1e20}, "use 0.01 to 100"), ({"guidance": -0.1}, "use 0 to 100"),
     ({"guidance": float("inf")}, "finite")],
)  # fmt: skip
def test_numbers_have_bounds(pipe: GenerationPipeline, given: Any, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        pipe("a dot", **given)
    assert said in str(caught.value)


def test_a_card_says_other_bounds(pipe: GenerationPipeline) -> None:
    pipe.card = replace(pipe.card, sampling=replace(pipe.card.sampling, max_guidance=3.0))
    with pytest.raises(RequestError, match="use 0 to 3"):
        pipe("a dot", guidance=3.5)


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_a_pipeline_says_what_it_is(pipe: GenerationPipeline) -> None:
    assert repr(pipe) == "GenerationPipeline('nano-t2v', device='cpu', dtype='float32', offload='none')"
    assert repr(kandinsky.load("nano-v2a", device="cpu", offload="module")) == (
        "VideoToAudioPipeline('nano-v2a', device='cpu', dtype='float32', offload='module')"
    )


@pytest.mark.parametrize("offload", ["none", "module", "block"])
def test_moving_changes_no_result(offload: str) -> None:
    pipe = kandinsky.load("nano-t2v", device="cpu", offload=offload)
    first = pipe("a dot", seed=1, **STILL)
    assert pipe.to("cpu") is pipe and pipe.to(torch.device("cpu"))("a dot", seed=1, **STILL) == first
    with pytest.raises(KandinskyError, match="device `cuda:99"):
        pipe.to("cuda:99")
    with pytest.raises(RequestError, match="`device` must be"):
        pipe.to(5)  # type: ignore[arg-type]


def test_quantised_weights_stay_where_they_are() -> None:
    pytest.importorskip("torchao")
    with pytest.raises(RequestError, match="its weights are quantised"):
        kandinsky.load("nano-t2v", device="cpu", quantize="int8").to("cpu")


def test_messages_name_options_in_the_words_of_their_door(pipe: GenerationPipeline) -> None:
    with pytest.raises(RequestError) as caught:
        pipe("a dot", size="100x96")
    assert caught.value.hint == 'the nearest is `size="96x96"`'
    told = in_flags(f"{caught.value.hint}; `image=…`, `trust_remote_code=True`, `steps=4`, `cfg=2`", (
        Request, RunOptions), {"size": "--size"})  # fmt: skip
    assert told == "the nearest is `--size 96x96`; `--image FILE`, `--trust-remote-code`, `--steps 4`, `cfg=2`"


def test_what_a_request_brings_along_reaches_no_terminal() -> None:
    with pytest.raises(RequestError) as caught:
        kandinsky.load("x\x1b[31m\n" + "y" * 100)
    assert str(caught.value).isprintable() and "\\x1b" in str(caught.value) and "…" in str(caught.value)


def test_options_are_named_as_the_fields_of_a_body() -> None:
    said = "leave `expand=True` out, or give `image=…`, `steps=4`; `a = b`, `x=1 y` and `loop` stay"
    told = "leave `expand: true` out, or give `image`, `steps: 4`; `a = b`, `x=1 y` and `loop` stay"
    assert in_fields(said) == told
