"""Loading ahead: the same results with any number of workers and from any step on, and no process that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch

import kandinsky
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.train.data.batches import Buckets, Packing
from kandinsky.train.data.captions import CaptionChoice
from kandinsky.train.data.dataset import EncodedDataset
from kandinsky.train.data.encode import encode
from kandinsky.train.data.feed import EncodedExamples, Feed, Loaded
from kandinsky.train.data.prefetch import Ahead, prefetched

CHOICE = CaptionChoice(drop=0.3)


def squared(number: int) -> torch.Tensor:
    if number < 0:
        raise RequestError(f"no {number}", hint="none")
    if number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.tensor(number) ** 2


def numbers(step: int, place: int) -> torch.Generator:
    return torch.Generator().manual_seed(step * 1000 + place)


@dataclass(frozen=True)
class Part:
    index: int
    total: int

    def of(self, items):  # type: ignore[no-untyped-def]
        return items[self.index :: self.total]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(7):
        pixels = np.random.default_rng(i).integers(0, 255, (5 + 4 * (i % 3), 96, 100, 3), dtype=np.uint8)
        kandinsky.Video(pixels, fps=12.0, seed=0).save(folder / f"{i}.mp4")
        (folder / f"{i}.txt").write_text(f"clip {i}")
        (folder / f"{i}.ru.txt").write_text(f"ролик {i}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoded(source: Path, tmp_path_factory: pytest.TempPathFactory) -> EncodedExamples:
    encode(source, "nano-t2v", out := tmp_path_factory.mktemp("encoded") / "set")
    return EncodedExamples(EncodedDataset(out))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_results_come_in_order_and_leave_the_callers_random_numbers(workers: int) -> None:
    state = torch.get_rng_state()
    assert [int(x) for x in prefetched(squared, range(20), workers=workers)] == [i * i for i in range(20)]
    assert list(prefetched(squared, [], workers=workers)) == []
    endless = prefetched(squared, count(), workers=workers)
    assert [int(x) for x in islice(endless, 5)] == [0, 1, 4, 9, 16]
    endless.close()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_in_the_place_of_its_item_and_is_the_same(workers: int) -> None:
    results = prefetched(squared, [1, 2, -3, 4], workers=workers)
    assert [int(next(results)), int(next(results))] == [1, 4]
    with pytest.raises(RequestError, match="no -3") as failure:
        next(results)
    assert failure.value.hint == "none"


def test_a_worker_that_is_killed_is_told() -> None:
    with pytest.raises(KandinskyError, match="worker process was killed"):
        list(prefetched(squared, [1, 99, 2], workers=1))


@pytest.mark.slow
def test_no_worker_outlives_what_began_it(tmp_path: Path) -> None:
    """Ctrl-C, a kill, and an end in the middle: all processes are gone, and nothing hangs."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, os, time, itertools\n"
        "from kandinsky.train.data.prefetch import prefetched\n"
        "def pid(n):\n    return os.getpid(), bytes(10**7 if n > 1 else 0)\n"  # more than a pipe holds
        "if __name__ == '__main__':\n"
        "    results = prefetched(pid, itertools.count(), workers=2)\n"
        "    print(next(results)[0], next(results)[0], flush=True)\n"
        "    if sys.argv[1] == 'end':\n        sys.exit(3)\n"
        "    for _ in results:\n        time.sleep(0.01)\n"
    )
    for way, code in (("end", 3), ("int", -signal.SIGINT), ("kill", -signal.SIGKILL)):
        process = subprocess.Popen(
            [sys.executable, str(script), way], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(set(workers)) == 2
        if way == "int":
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
        elif way == "kill":
            process.kill()
        _, told = process.communicate(timeout=120)
        assert process.returncode in (code, 130 if way == "int" else code), told.decode()
        assert told.decode().count("Traceback") <= (way == "int"), told.decode()  # none of a worker's
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{one}").exists() for one in workers):
            assert time.monotonic() < deadline, "a worker stays"
            time.sleep(0.05)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_any_item_may_be_asked_for(workers: int) -> None:
    with Ahead(squared, lambda n: n + 1, workers=workers) as ahead:
        assert [int(ahead(n)) for n in (3, 4, 5, 9, 10, 3)] == [9, 16, 25, 81, 100, 9]


def told(loaded: list[Loaded]) -> list[object]:
    return [(one.place, one.index, one.caption, {k: x.tolist() for k, x in one.tensors.items()}) for one in loaded]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_is_the_same_however_it_is_shared_and_from_where_it_is_resumed(
    encoded: EncodedExamples, workers: int
) -> None:
    plan = Packing(encoded.shapes, frames=6, seed=1)
    steps = range(plan.steps_per_epoch + 2)
    whole = Part(0, 1)
    with Feed(encoded, plan, CHOICE, numbers, [whole]) as feed:
        wanted = [told(feed(step, whole)) for step in steps]
    seen = [one for step in wanted for one in step]
    assert {caption is None for _, _, caption, _ in seen} == {True, False}  # type: ignore[misc]
    parts = [Part(0, 3), Part(1, 3), Part(2, 3)]
    feeds = [Feed(encoded, plan, CHOICE, numbers, own, workers=workers) for own in (parts[:1], parts[1:])]
    for step in (1, 2, 3):
        loaded = [*feeds[0](step, parts[0]), *feeds[1](step, parts[1]), *feeds[1](step, parts[2])]
        assert told(sorted(loaded, key=lambda one: one.place)) == wanted[step]
    for one in feeds:
        one.close()


def test_examples_bring_the_embeddings_of_their_caption(encoded: EncodedExamples) -> None:
    data, part = encoded.dataset, Part(0, 1)
    for drop in (0.0, 1.0):
        with Feed(encoded, Buckets(data.shapes, batch=2), CaptionChoice(drop=drop), numbers, [part]) as feed:
            for one in feed(0, part):
                assert (one.caption is None) == (drop == 1)
                assert one.latent.shape == (1, *data.shapes[one.index]) and one.text is not None
                wanted = data.text("" if one.caption is None else one.caption.text, still=False)
                assert torch.equal(one.text.tokens_BLC, wanted.tokens_BLC)
