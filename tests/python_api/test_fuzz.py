"""Whatever is passed to the Python API is taken and right, or refused by a ``KandinskyError``: nothing else, ever.

Hypothesis draws the same values each time. Nothing is read but headers: results are made by a pipeline that makes none.
Each test prints what became of its values: `pytest -s tests/python_api/test_fuzz.py`.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import kandinsky
from kandinsky import catalogue
from kandinsky.diffusion.caching import TaylorCache
from kandinsky.engine.options import PlanOptions, RunOptions
from kandinsky.engine.pipeline import ClipOptions, GenerationPipeline
from kandinsky.engine.request import Job, parse_size, resolve
from kandinsky.errors import KandinskyError
from kandinsky.model.diffusers_words import CALL, LOAD
from kandinsky.model.values import Audio, Request, Video
from kandinsky.printing import escaped
from kandinsky.runtime.budget import OFFLOADS

DRAWN = settings(suppress_health_check=list(HealthCheck), print_blob=False)
MODELS = (
    "nano-t2v", "nano-i2v", "nano-v2a", "kandinsky5-lite-t2v-sft-10s", "kandinsky5-lite-i2i", "kandinsky4-t2v-flash",
    "kandinsky3.0-inpaint", "kandinsky-video-1.1",
)  # fmt: skip

# -- what is drawn -----------------------------------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from([
        "", " ", "\x1b[31m", "a\0b", "\ud800", "..", "/", "~", "none", "auto", "9" * 5000, "9" * 5000 + "x1",
        "x" * 5000, "1e400", "nan", "-1", "cuda:" + "9" * 30, "int8", "dit=int8,text=nf4", "nabla:P=0.5",
        "nabla:wT=" + "9" * 4000,
        "taylor:interval=" + "9" * 400, "first-block:threshold=1e-400", "magcache:K=0", "cfg=2", "tp=" + "9" * 5000,
        "96x96", "512×512", "low", "block", "bfloat16", "12GB", "9" * 400 + "GB", "nano-t2v", "no/such", "a dot",
        "a\nb", "\u202e", "🐼" * 50,
    ]),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 130),
    st.floats(),
    st.sampled_from([
        10**400, -(10**400), 2**63, 2**63 - 1, 1e308, 1e-320, 5e-324, -0.0, np.int64(3), np.float32(1.5), np.uint8(7),
        np.float64("nan"), True, 0, 1, 1.0, 12.5,
    ]),
)  # fmt: skip
ARRAYS = st.sampled_from([
    np.zeros((16, 24, 3), np.uint8), np.zeros((16, 24, 4), np.uint8), np.ones((16, 24), bool),
    np.zeros((0, 4, 3), np.uint8), np.array(["a"]),
    np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3)), np.array(5), np.full((16, 24), np.nan),
])  # fmt: skip


class Odd:
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


THINGS = st.sampled_from([
    None, [], [1], (), {}, {"a": 1}, {1: 2}, {"dit": "cpu"}, {"dit": "int8"}, set(), object(), Odd(), b"bytes", 1j,
    print, Path("x" * 300), Path("gone.png"), Path(), Path("a\0b"), torch.float16, torch.int8, torch.device("cpu"),
    torch.device("meta"), torch.zeros(2), torch.Generator().manual_seed(3), TaylorCache(), Image.new("RGB", (24, 16)),
    Image.new("L", (24, 16), 255), ["a", "b"], ["a", 5], [None], range(3), iter("ab"), ..., int, Video,
])  # fmt: skip
ANYTHING = st.one_of(TEXTS, NUMBERS, ARRAYS, THINGS, st.booleans())


def often(good: list[Any]) -> st.SearchStrategy[Any]:
    """A good value in three of four cases, else anything."""
    return st.integers(0, 3).flatmap(lambda n: st.sampled_from(good) if n and good else ANYTHING)


def words(names: Any, good: Mapping[str, list[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """A few arguments by name; now and then one that nothing has."""
    one = st.sampled_from([*names, *(name for name in names if name in good), "stepz"])
    return st.lists(one.flatmap(lambda name: st.tuples(st.just(name), often(good.get(name, [])))), max_size=4).map(dict)


GOOD: dict[str, list[Any]] = {
    "prompt": ["a dot", "a panda waves"], "negative_prompt": ["dark"], "seconds": [0, 0.5, 1, np.float32(1)],
    "seed": [0, 7],
    "steps": [1, 4, np.int32(4)], "guidance": [1, 2.0, 0], "shift": [1, 5.0], "width": [96, 512, 768],
    "height": [96, 512],
    "size": ["96x96", "512x512"], "image": [np.zeros((16, 24, 3), np.uint8), Image.new("RGB", (24, 16))],
    "mask": [np.ones((16, 24), bool)], "mask_grow": [0, 2], "cache": ["none", "taylor", TaylorCache()], "fps": ["low"],
    "motion": ["high"], "image_guidance": [2.0], "interpolation_guidance": [1], "expand": [True, False],
    "video": [Video(np.zeros((9, 8, 8, 3), np.uint8), 8.0)], "num_inference_steps": [3], "guidance_scale": [0.0, 2],
    "num_frames": [1, 13], "generator": [torch.Generator().manual_seed(5)], "progress": [False],
    "on_step": [lambda *_: True], "keep_latent": ["kept.safetensors"], "device": ["cpu", "auto"], "dtype": ["float32"],
    "torch_dtype": [torch.float32], "offload": list(OFFLOADS), "attention": ["auto", "sdpa"], "quantize": ["int8"],
    "text_cache": [False], "only": [["dit", "text", "vae"]], "memory": ["24GB", "80GB"], "gpus": [1, 4],
    "tiling": ["auto"], "backends": ["default", "linear=torch"],
    "trust_remote_code": [True],
}  # fmt: skip


FLAG, COMMAND = re.compile(r"--[a-z]"), re.compile(r"`(kandinsky|torchrun) [^`]*`")


# -- what becomes of it ------------------------------------------------------------------------------------------------


class Count:
    """What became of the values of one test."""

    def __init__(self, name: str) -> None:
        self.name, self.found = name, Counter[str]()

    def of(self, call: Callable[[], Any], is_right: Callable[[Any], bool]) -> None:
        """Make one call. Anything but a right result or a refusal in one line fails the test."""
        self.found["tried"] += 1
        try:
            made = call()
        except KandinskyError as error:
            self.found["refused"] += 1
            text = str(error)
            assert text and text == escaped(text) and len(text) <= 2100, text
            assert not FLAG.search(COMMAND.sub("", f"{text} {error.hint}")), text
            return
        assert is_right(made), made
        self.found["accepted"] += 1

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(f'{what} {n}' for what, n in self.found.items())}, anything else 0"


@pytest.fixture
def count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Count]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.chdir(tmp_path)
    counted = Count(request.node.name)
    yield counted
    print(counted)
    assert counted.found["refused"] and counted.found["accepted"], "both were drawn"


class Dry(GenerationPipeline):
    """Everything of a call but the work."""

    def _each(self, jobs: Any, keep: Any, on_step: Any, tell: Any) -> list[Video]:
        assert len(jobs) == len(keep) and all(is_legal(job) for job in jobs)
        return [Video(np.zeros((1, 8, 8, 3), np.uint8), 1.0, job.seed) for job in jobs]


@cache
def dry(model: str) -> Dry:
    return Dry(kandinsky.load(model, device="cpu", text_cache=False).context)


def is_legal(job: Job) -> bool:
    """Whether a job's numbers are those of its card."""
    card, clip = job.card, job.card.clip
    numbers = (job.seconds, job.fps, job.guidance, job.shift)
    return (
        all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
        and type(job.steps) is int and 1 <= job.steps <= job.sampling.max_steps
        and type(job.seed) is int and 0 <= job.seed < 2**63
        and 0 <= job.guidance <= job.sampling.max_guidance
        and job.shape.frames >= 1 and job.shape.width % clip.spatial == 0 and job.shape.height % clip.spatial == 0
        and job.prompt.encode() is not None and card.id in catalogue.cards()
    )  # fmt: skip


@settings(DRAWN, max_examples=300)
@given(data=st.data())
def _requests(data: st.DataObject, count: Count) -> None:
    model = data.draw(st.sampled_from(MODELS))
    values = data.draw(words([name for name in Request.__dataclass_fields__ if name != "model"], GOOD))
    if data.draw(st.booleans()):  # what the model cannot do without
        values = {"prompt": "a dot"} | {k: GOOD[k][0] for k in ("image", "mask") if k in needed(model)} | values
        values |= {"video": GOOD["video"][0]} if model == "nano-v2a" else {}
    count.of(lambda: resolve(Request.from_dict({"model": model, **values}), catalogue.find(model)), is_legal)


def needed(model: str) -> set[str]:
    task = catalogue.find(model).does
    return ({"image"} if task.image == "required" else set()) | ({"mask"} if task.mask else set())


def test_requests(count: Count) -> None:
    _requests(count=count)


@settings(DRAWN, max_examples=200)
@given(data=st.data())
def _calls(data: st.DataObject, count: Count) -> None:
    prompt = data.draw(often(["a dot", ["a dot", "a cat"]]))
    values = data.draw(words([*ClipOptions.__annotations__, *CALL], GOOD))
    many = isinstance(prompt, list | tuple)
    count.of(
        lambda: dry("nano-t2v")(prompt, **values),
        lambda made: len(made) == len(prompt) if many else isinstance(made, Video),
    )


def test_calls(count: Count) -> None:
    _calls(count=count)


@settings(DRAWN, max_examples=120)
@given(data=st.data())
def _options(data: st.DataObject, count: Count) -> None:
    values = data.draw(words([*RunOptions.__dataclass_fields__, *LOAD], GOOD))

    def load() -> Any:
        RunOptions.from_dict(values).check()
        return kandinsky.load("nano-t2v", **({"device": "cpu", "text_cache": False} | values))

    count.of(load, lambda pipe: isinstance(pipe, GenerationPipeline) and "nano-t2v" in repr(pipe))


def test_options(count: Count) -> None:
    _options(count=count)


@settings(DRAWN, max_examples=150)
@given(model=often(["nano-t2v"]))
def _models(model: Any, count: Count) -> None:
    count.of(lambda: kandinsky.load(model, device="cpu"), lambda pipe: isinstance(pipe, GenerationPipeline))


def test_models(count: Count) -> None:
    _models(count=count)


@settings(DRAWN, max_examples=250)
@given(data=st.data())
def _plans(data: st.DataObject, count: Count) -> None:
    model = data.draw(st.sampled_from(MODELS))
    values = data.draw(words(PlanOptions.__dataclass_fields__, GOOD))
    count.of(
        lambda: kandinsky.plan(model, **values),
        lambda plan: plan.peak_host_bytes > 0 and math.isfinite(plan.seconds) and plan.seconds > 0,
    )


def test_plans(count: Count) -> None:
    _plans(count=count)


@settings(DRAWN, max_examples=400)
@given(data=st.data())
def _values(data: st.DataObject, count: Count) -> None:
    frames, fps = data.draw(often([np.zeros((3, 8, 8, 3), np.uint8)])), data.draw(often([8, 12.5]))
    target, seed = data.draw(often(["a.png", "b.gif", "%02d.png"])), data.draw(often([0]))

    def made() -> Any:
        video = Video(frames, fps, seed)
        assert video == video and len(video) == len(np.asarray(video)) and repr(video).isprintable()
        return video, video.save(target)

    count.of(made, lambda both: both[0].fps > 0 and all(frame.shape == both[0][0].shape for frame in both[0]))


def test_values(count: Count) -> None:
    _values(count=count)


@settings(DRAWN, max_examples=200)
@given(first=often(["96x96", {"model": "nano-t2v"}, {}, "cpu", np.zeros((5, 1), np.int16)]), second=often([8000, 1.0]))
def _small_doors(first: Any, second: Any, count: Count) -> None:
    pipe = dry("nano-t2v")
    count.of(lambda: parse_size(first), lambda size: min(size) >= 0)
    count.of(lambda: Request.from_dict(first), lambda request: isinstance(request, Request))
    count.of(lambda: pipe.finish(first), lambda _: False)
    count.of(lambda: pipe.load_lora(first, scale=second), lambda _: False)
    count.of(lambda: pipe.set_lora(first), lambda _: not first)
    count.of(lambda: pipe.to(first), lambda moved: moved is pipe)
    count.of(lambda: pipe.resolve(first), lambda _: False)
    count.of(lambda: Audio(first, second), lambda audio: len(audio) == len(first))


def test_small_doors(count: Count) -> None:
    _small_doors(count=count)
