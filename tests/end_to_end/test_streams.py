"""Autoregressive models: streams and clips of a causal Kandinsky 5 at tiny size, and of a causal Nano."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kandinsky
from kandinsky import catalogue
from kandinsky.diffusion.noise import chunk_seed
from kandinsky.diffusion.roll import CachedPast
from kandinsky.engine import rolling
from kandinsky.engine.latents import read_latent
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.errors import Cancelled, RequestError
from kandinsky.model import card as cards
from kandinsky.model.values import Video
from tiny import catalogue as tiny
from tiny import family

ROLL = """
[sampling]
steps = 2
guidance = 2.0
attention = { type = "causal", frames = 2, reach = 1, sink = 1 }
[roll]
context_noise = 0.1
"""


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, GenerationPipeline]]:
    folder = tmp_path_factory.mktemp("causal")
    family.write_official(folder / "t2v", "t2v")
    card = tiny.card5("tiny-live", "t2v", "kandinsky5-lite-t2v-sft-5s", f"[clip]\n{tiny.SMALL}", folder / "t2v/weights")
    (folder / "tiny-live.toml").write_text(card + ROLL)
    own = ROLL.replace("[roll]", "mag_ratios = []\n[roll]").replace("2.0", "1.0") + "[clip]\nmax_seconds = 30\n"
    for name, base in (("nano-causal", "nano-t2v"), ("nano-causal-i2v", "nano-i2v")):
        (folder / f"{name}.toml").write_text(f'id = "{name}"\nbase = "{base}"\n{own}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KANDINSKY_CARDS", str(folder))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield {name: kandinsky.load(name, device="cpu") for name in ("tiny-live", "nano-causal", "nano-causal-i2v")}


def frames(pieces: Iterator[Video] | list[Video]) -> np.ndarray:
    return np.concatenate([piece.frames for piece in pieces])


@pytest.mark.parametrize("model", ["tiny-live", "nano-causal"])
def test_a_stream_is_the_same_whatever_its_length(pipes: dict[str, GenerationPipeline], model: str) -> None:
    pipe = pipes[model]
    short = frames(list(pipe.stream("a cat", seconds=0.5, seed=5)))
    endless = pipe.stream("a cat", seed=5)
    pieces = list(itertools.islice(endless, 4))
    endless.close()  # type: ignore[attr-defined]
    long = frames(pieces)
    fps, first = pipe.card.clip.fps, 1 + pipe.card.clip.temporal
    assert [len(piece) for piece in pieces] == [first] + [2 * pipe.card.clip.temporal] * 3
    assert len(short) == round(0.5 * fps) and np.array_equal(short, long[: len(short)])
    assert not np.array_equal(long, frames(list(itertools.islice(pipe.stream("a cat", seed=6), 4))))
    recipe = pieces[2].recipe
    assert (recipe["chunk"], recipe["prompt"], recipe["seed"]) == (2, "a cat", 5)
    assert recipe["start"] == pytest.approx((first + 2 * pipe.card.clip.temporal) / fps)


def test_a_clip_is_the_beginning_of_the_stream(pipes: dict[str, GenerationPipeline], tmp_path: Path) -> None:
    pipe = pipes["nano-causal"]
    clip = pipe("a cat", seconds=1, seed=5, keep_latent=tmp_path / "latent.safetensors")
    assert np.array_equal(clip.frames, frames(list(pipe.stream("a cat", seconds=clip.seconds, seed=5))))
    assert pipe.finish(tmp_path / "latent.safetensors") == clip
    two = pipe(["a cat", "a dog"], seconds=1, seed=5)
    assert np.abs(two[0].frames.astype(int) - clip.frames).max() <= 1


def test_a_stream_begins_with_an_image(pipes: dict[str, GenerationPipeline], tmp_path: Path) -> None:
    pipe = pipes["nano-causal-i2v"]
    image = np.zeros((96, 96, 3), np.uint8)
    image[24:72, 24:72] = (250, 200, 30)
    kept = tmp_path / "latent.safetensors"
    clip = pipe("a star", image=image, seconds=0.5, seed=5, keep_latent=kept)
    known = pipe.known([pipe.resolve(kandinsky.Request("nano-causal-i2v", "a star", image=image, seed=5))])
    latent = read_latent(kept).latents_THWC
    torch.testing.assert_close(latent[:1], known.clean["video"][0, :1], atol=1e-6, rtol=0)
    assert np.array_equal(frames(list(pipe.stream("a star", image=image, seconds=clip.seconds, seed=5))), clip.frames)
    assert np.abs(clip.frames[0].astype(int) - image).mean() < 8


def test_prompts_change_over_time(pipes: dict[str, GenerationPipeline]) -> None:
    pipe = pipes["nano-causal"]
    pieces = list(pipe.stream([("a cat", 0), ("a tractor", 0.4)], seconds=1.75, seed=1))
    assert [piece.recipe["prompt"] for piece in pieces] == ["a cat", "a tractor", "a tractor"]
    # replayed from what the pieces say
    starts = [(piece.recipe["start"], piece.recipe["prompt"]) for piece in pieces]

    def replay(at: float) -> str | None:
        return next((said for start, said in starts if abs(start - at) < 1e-6), None)

    assert np.array_equal(frames(list(pipe.stream(replay, seed=1))), frames(pieces))
    same = frames(list(pipe.stream("a cat", seconds=1.5, seed=1)))
    count = len(pieces[0])
    assert np.array_equal(same[:count], pieces[0].frames) and not np.array_equal(same[count:], frames(pieces)[count:])
    more = list(pipe.stream([("a tractor", "0.4s"), ("a cat", 0)], seconds=2.5, seed=1))
    assert sum(map(len, more)) == 30 and more[-1].recipe["prompt"] == "a tractor"


def test_a_stream_remembers_what_showing_all_again_would_say(
    pipes: dict[str, GenerationPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents of the engine's roll-out, guidance and a switch included, against passes that remember nothing."""
    pipe = pipes["tiny-live"]
    job = pipe.resolve(kandinsky.Request("tiny-live", "a cat", seed=3))

    def made() -> torch.Tensor:
        told: list[Any] = []
        for text in ("a cat", "a panda"):
            states = pipe.encode([pipe.resolve(kandinsky.Request("tiny-live", text, seed=3))])
            told.append(rolling.Told((text,), *states))
        events = rolling.roll(pipe.context, [job], lambda begin: told[begin >= 6], chunks=5)
        parts = [event.latents_BTHWC for event in events if isinstance(event, rolling.Chunk)]
        return torch.cat(parts, dim=1)

    remembered = made()

    class Again(CachedPast):
        """Remembers frames alone: each question is preceded by all of them."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.inner, self.ask, self.done = self.ask, self.all_again, []  # type: ignore[method-assign]

        def keep(self, chunk: Any) -> None:
            self.done = self.memories[0].spec.kept([*self.done, chunk])

        def all_again(self, x: torch.Tensor, t: torch.Tensor, begin: int) -> torch.Tensor:
            self.fresh()
            return self.inner(x, t, begin)

        def fresh(self) -> None:
            for memory in self.memories:
                memory.__init__(memory.spec)  # type: ignore[misc]
            for chunk in self.done:
                frames = chunk.frames_BTHWC
                contexts = [memory.keeping(frames.shape[1]) for memory in self.memories]
                for context in contexts:
                    context.__enter__()
                self.inner(frames, torch.full((len(frames),), self.level), chunk.begin)
                for context in contexts:
                    context.__exit__(None, None, None)

    monkeypatch.setattr(rolling, "CachedPast", Again)
    again = made()
    # up to the switch no chunk has left the window, and at the switch the window is shown again; after that what left
    # it still shows in the keys that are remembered
    torch.testing.assert_close(remembered[:, :8], again[:, :8], atol=1e-5, rtol=1e-5)


def test_it_is_cancelled_and_refused_in_words(pipes: dict[str, GenerationPipeline]) -> None:
    pipe = pipes["nano-causal"]
    running = pipe.stream("a cat", seed=1)
    next(running)
    threading.Timer(0.0, pipe.cancel).start()
    with pytest.raises(Cancelled):
        list(running)
    for prompts, seconds, words in (
        ("a cat", -1, "above 0"),
        ([], None, "list of prompts is empty"),
        ([("a cat", 1)], None, "begin one at 0"),
        ([("a cat", 0), ("a dog", 0)], None, "use two times"),
        ([("a cat", 0), ("a dog", 3)], 2, "outside of a clip of 2 s"),
        ([("a cat", -1)], None, "seconds from 0 on"),
        ([3], None, "no prompt with its time"),
        ("", None, "prompt is empty"),
    ):
        with pytest.raises(RequestError, match=words):
            pipe.stream(prompts, seconds=seconds)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="is no prompt of a stream"):
        next(pipe.stream(lambda at: ""))
    with pytest.raises(RequestError, match="is not valid text"):
        next(pipe.stream(lambda at: "a \udcff cat"))
    with pytest.raises(RequestError, match="cannot be streamed: use an autoregressive model"):
        kandinsky.load("nano-t2v").stream("a cat")
    assert list(pipe.stream(lambda at: None)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampling": {"steps": 2, "guidance": 1.0, "shift": 1.0}}, "needs sampling.attention"),
        ({"roll": {"context_noise": 1.5}}, "from 0 to below 1"),
        ({"roll": {"times": [1.0]}}, "must be sampling.steps = 2"),
        ({"roll": {"times": [0.5, 0.9]}}, "falling"),
    ],
)
def test_cards_that_contradict_themselves_are_refused(change: dict[str, Any], words: str) -> None:
    values = cards.to_dict(catalogue.source_of("nano-t2v").card)
    attention = {"type": "causal", "frames": 2, "reach": 1}
    values["sampling"] |= {"steps": 2, "attention": attention}
    values |= {"roll": {}} | change
    with pytest.raises(RequestError, match=words):
        cards.parse(values, where="card", families=catalogue.family)


def test_noise_of_a_chunk_is_its_own() -> None:
    assert len({chunk_seed(seed, number) for seed in range(20) for number in range(20)}) == 400
    assert chunk_seed(1, 11) != chunk_seed(11, 1)
