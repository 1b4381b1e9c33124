"""A live session as its viewer sees it, and what each stage of a chunk takes.

`python -m kandinsky.bench.live --minutes 3` prints the first frame after the request on a warm worker, frames a second,
prompt → pixels (the median of prompts that change every few seconds), gaps between chunks, memory of the server and of
the worker at the beginning and at the end, and for each stage the seconds of a chunk, on the clock and of the
processor, with the real-time factor that these would allow alone.

With `--judge nano-t2v`, each switch is judged: the frame that is seen three seconds after the request, and the last one
of the second chunk of the new prompt, are compared with images of all prompts by that model, and the nearest one should
be of the prompt that was asked for. How often the judge is right about images of its own model stands beside it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kandinsky.bench.serve import percentile, resident, served
from kandinsky.media.packets import FORMATS, JPEG
from kandinsky.runtime.speed import at_hand

PROMPTS = ("a panda on a blue background", "a tractor", "a snowman", "a rocket on a black background", "a red heart",
           "a birthday cake", "a robot on a pink background", "a star on a purple background")  # fmt: skip
HEAD = 16  # bytes before each packet
WITHIN_S = 3.0
SIDE, SEEDS, STEPS = 16, 3, 8  # of the judge: pixels of what is compared; images of each prompt, and their steps


class Stage:
    """Times that something took, a chunk each."""

    def __init__(self) -> None:
        self.clock: list[float] = []
        self.processor: list[float] = []

    @contextmanager
    def timed(self) -> Iterator[None]:
        clock, processor = time.monotonic(), time.process_time()
        yield
        self.clock.append(time.monotonic() - clock)
        self.processor.append(time.process_time() - processor)

    def less(self, other: Stage) -> Stage:
        """Without what another stage took meanwhile."""
        rest = Stage()
        rest.clock = [a - b for a, b in zip(self.clock, other.clock, strict=True)]
        rest.processor = [a - b for a, b in zip(self.processor, other.processor, strict=True)]
        return rest

    def told(self, chunk_s: float) -> dict[str, float]:
        """Medians, without the first chunk, which is a frame shorter or longer and warms up."""
        clock, processor = statistics.median(self.clock[1:]), statistics.median(self.processor[1:])
        return {
            "s": round(clock, 4),
            "processor_s": round(processor, 4),
            "real_time_factor": round(chunk_s / max(clock, 1e-6), 2),
            "of_a_free_core": round(chunk_s / max(processor, 1e-6), 2),
        }


def stages(model: str, chunks: int, threads: int) -> dict[str, Any]:
    """What a chunk takes, stage by stage, in this process.

    Args:
        model: An autoregressive model.
        chunks: How many are made.
        threads: Threads of torch.
    """
    import torch
    from PIL import Image

    from kandinsky import catalogue

    torch.set_num_threads(threads)
    pipe: Any = catalogue.load(model, device="cpu")
    whole, decode, jpeg = Stage(), Stage(), Stage()
    with pipe.placement.hold("vae") as vae:
        inner = vae.decode_more

        def timed(*values: Any) -> Any:
            with decode.timed():
                return inner(*values)

        vae.decode_more = timed
        pieces = pipe.stream(lambda at: PROMPTS[0], seed=1)
        frames = 0
        for _ in range(chunks):
            with whole.timed():
                piece = next(pieces)
            frames = len(piece)
            with jpeg.timed():
                for frame in piece:
                    Image.fromarray(frame).save(io.BytesIO(), "JPEG", quality=85)
        pieces.close()
        del vae.decode_more
    chunk_s = frames / pipe.card.clip.fps
    told = {"denoise": whole.less(decode), "decode": decode, "jpeg": jpeg}
    return {"chunk_s": round(chunk_s, 4), "threads": threads} | {
        name: stage.told(chunk_s) for name, stage in told.items()
    }


class Viewer:
    """One client that acknowledges what it gets, and notes when.

    Args:
        url: Address of the server.
        format: How frames are sent.
    """

    def __init__(self, url: str, format: str = JPEG) -> None:
        self.url = url.replace("http", "ws", 1) + "/v1/live"
        self.format = format
        self.sizes: list[int] = []  # of packets, in bytes
        self.first_s: float | None = None
        self.at: list[float] = []  # when each frame had come and was decoded
        self.chunks: list[float] = []
        self.delays: list[float] = []
        self.dropped = 0
        self.soon: list[tuple[str, Any]] = []  # prompts, and what was seen some seconds after they were asked for
        self.settled: dict[int, tuple[str, Any]] = {}  # by request: what the second chunk ended with
        self._sent: dict[int, tuple[float, str]] = {}
        self._judged: dict[int, tuple[float, str]] = {}
        self._applied: dict[int, int] = {}
        self._shown = ""

    def watch(self, model: str, seconds: float, every_s: float) -> None:
        """Look for some time, and ask for something else every few seconds."""
        from websockets.sync.client import connect

        with connect(self.url, max_size=2**24) as socket:
            self._watch(socket, model, seconds, every_s)

    def _watch(self, socket: Any, model: str, seconds: float, every_s: float) -> None:
        decoded = _decoder(self.format)

        def say(**word: Any) -> None:
            socket.send(json.dumps(word))

        begun = time.monotonic()
        say(type="start", model=model, prompt=PROMPTS[0], seed=1, format=self.format)
        number, due = 0, float("inf")
        while self.first_s is None or time.monotonic() < self.at[0] + seconds:
            told = socket.recv(timeout=600)
            now = time.monotonic()
            if isinstance(told, bytes):
                frame = decoded(told[HEAD:])
                self.sizes.append(len(told) - HEAD)
                say(type="ack", frame=int.from_bytes(told[:4], "big"))
                if self.first_s is None:
                    self.first_s, due = now - begun, now + every_s
                self.at.append(now)
                self._note(now, int.from_bytes(told[4:8], "big"), frame)
            elif (word := json.loads(told))["type"] == "chunk":
                if word["format"] != self.format:
                    raise RuntimeError(f"the worker cannot encode {self.format}")
                self._shown, self.dropped = word["prompt"], word["dropped"]
                self.chunks.append(now)
            elif word["type"] == "applied":
                self._applied[word["id"]] = word["chunk"]
            elif word["type"] in ("error", "end"):
                raise RuntimeError(told)
            if now >= due:
                number, due = number + 1, now + every_s
                prompt = PROMPTS[number % len(PROMPTS)]
                self._sent[number] = self._judged[number] = now, prompt
                say(type="prompt", prompt=prompt, id=number)
        say(type="stop")

    def _note(self, now: float, chunk: int, frame: Any) -> None:
        """Whether this frame is the first one of a prompt that was asked for, or one by which that is judged."""
        for number, (asked, prompt) in list(self._judged.items()):
            if now - asked >= WITHIN_S:
                self.soon.append((prompt, frame))
                del self._judged[number]
        for number, begin in self._applied.items():
            if chunk == begin + 1:
                self.settled[number] = PROMPTS[number % len(PROMPTS)], frame
        for number, (asked, prompt) in list(self._sent.items()):
            if prompt == self._shown:
                self.delays.append(now - asked)
                del self._sent[number]


def _decoder(format: str) -> Callable[[bytes], Any]:
    """What turns a packet into a frame [H, W, 3]."""
    import numpy as np

    if format == JPEG:
        from PIL import Image

        return lambda data: np.asarray(Image.open(io.BytesIO(data)))
    import av

    context: Any = av.CodecContext.create(format, "r")
    context.thread_count = 1
    context.flags |= av.codec.context.Flags.low_delay
    kept: list[Any] = []  # the newest, where a decoder is a frame late

    def decoded(data: bytes) -> Any:
        kept[:] = [one.to_ndarray(format="rgb24") for one in context.decode(av.Packet(data))][-1:] or kept
        return kept[0] if kept else None

    return decoded


class Judge:
    """Says which prompt an image is of: that whose images by a model are nearest.

    Args:
        model: The model.
    """

    def __init__(self, model: str) -> None:
        from kandinsky import catalogue

        pipe: Any = catalogue.load(model, device="cpu")
        self._known = {prompt: [_still(pipe, prompt, seed) for seed in range(SEEDS)] for prompt in PROMPTS}

    def prompt_of(self, small: Any, *, but: int | None = None) -> str:
        """The prompt of an image; ``but`` leaves the images of a seed out."""

        def nearness(prompt: str) -> float:
            return max(float(one @ small) for seed, one in enumerate(self._known[prompt]) if seed != but)

        return max(PROMPTS, key=nearness)

    def share(self, seen: Sequence[tuple[str, Any]]) -> float | None:
        """How much of what was seen is what was asked for."""
        found = [self.prompt_of(_small(frame)) == prompt for prompt, frame in seen]
        return round(sum(found) / len(found), 3) if found else None

    def own(self) -> float:
        """How often it is right about an image of its own model that it has not seen."""
        right = [
            self.prompt_of(one, but=seed) == prompt
            for prompt, known in self._known.items()
            for seed, one in enumerate(known)
        ]
        return round(sum(right) / len(right), 3)


def _still(pipe: Any, prompt: str, seed: int) -> Any:
    return _small(pipe(prompt, seconds=0, steps=STEPS, seed=seed, progress=False).frames[0])


def _small(frame_HWC: Any) -> Any:
    """A frame as a vector of length 1, without its mean."""
    import numpy as np
    from PIL import Image

    small = np.asarray(Image.fromarray(frame_HWC).resize((SIDE, SIDE)), float).ravel()
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-9)


def measure(arguments: argparse.Namespace, tell: Callable[[str], object]) -> dict[str, Any]:
    """Run the benchmark; returns its figures."""
    load = os.getloadavg()[0]
    found: dict[str, Any] = {"processor": at_hand("cpu", "float32")[0].name, "load_before": round(load, 1)}
    with tempfile.TemporaryDirectory() as place, served(arguments.model, Path(place)) as (url, pid):
        viewer, worker = Viewer(url, arguments.format), _worker(pid)
        viewer.watch(arguments.model, min(10.0, arguments.minutes * 60), arguments.every)  # warms up
        warm = {"server_mb": resident(pid), "worker_mb": resident(worker)}
        viewer = Viewer(url, arguments.format)
        viewer.watch(arguments.model, arguments.minutes * 60, arguments.every)
        after = {"server_mb": resident(pid), "worker_mb": resident(worker)}
    shown = viewer.at[-1] - viewer.at[0]
    gaps = [b - a for a, b in zip(viewer.chunks, viewer.chunks[1:], strict=False)]
    found |= {
        "minutes": arguments.minutes,
        "first_frame_s": round(viewer.first_s or 0.0, 3),
        "frames_per_s": round((len(viewer.at) - 1) / shown, 2),
        "dropped": viewer.dropped,
        "format": arguments.format,
        "bytes_per_frame": round(statistics.mean(viewer.sizes)),
        "chunk_gap_p50_s": round(statistics.median(gaps), 3),
        "chunk_gap_p95_s": round(percentile(gaps, 0.95), 3),
        "switches": len(viewer.delays),
        "prompt_to_pixels_p50_s": round(statistics.median(viewer.delays), 3) if viewer.delays else None,
        "memory_before": {name: round(value, 1) for name, value in warm.items()},
        "memory_after": {name: round(value, 1) for name, value in after.items()},
    }
    tell(json.dumps(found))
    if arguments.judge:
        judge = Judge(arguments.judge)
        settled = list(viewer.settled.values())
        found["judge"] = {
            "right_about_itself": judge.own(),
            f"within_{WITHIN_S:g}_s": judge.share(viewer.soon),
            "second_chunk": judge.share(settled),
            "switches": len(settled),
        }
        tell(json.dumps(found["judge"]))
    found["stages"] = stages(arguments.model, arguments.chunks, arguments.threads)
    return found | {"load_after": round(os.getloadavg()[0], 1)}


def _worker(server: int) -> int:
    """The process of the server's worker."""
    children = Path(f"/proc/{server}/task").glob("*/children")
    for pid in " ".join(path.read_text() for path in children).split():
        if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return int(pid)
    raise RuntimeError("the server has no worker")


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m kandinsky.bench.live", description=__doc__)
    parser.add_argument("--model", default="nano-live", help="an autoregressive model")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long is looked at")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between prompts")
    parser.add_argument("--chunks", type=int, default=12, help="chunks whose stages are timed")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch when stages are timed")
    parser.add_argument("--format", choices=FORMATS, default=JPEG, help="how frames are sent")
    parser.add_argument("--judge", default="", help="a model whose images say what is seen")
    arguments = parser.parse_args(words)
    found = measure(arguments, lambda line: sys.stderr.write(f"{line}\n"))
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
