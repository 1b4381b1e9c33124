"""Makes a long clip of nano in processes that are killed at random instants; run by ``test_long_clips.py``.

    python killed_long_clips.py FOLDER KILLS SEED

Each life is a process of its own, forked from this one, which has imported everything and computed nothing. Then the
clip is made without interruption, with the peak of memory noted, and a short one beside it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

import kandinsky
import kandinsky.engine.pipeline  # else every life imports it
from kandinsky.media.video import read_video

SECONDS = 14


def live(out: Path, seconds: float) -> None:
    import torch

    torch.set_num_threads(1)
    pipe = kandinsky.load("nano-t2v", device="cpu")
    asked = kandinsky.Request("nano-t2v", "a panda", steps=1, guidance=1.0, seed=3, seconds=seconds)
    (stream,) = pipe.stream_batch([pipe.resolve(asked)], keep_latents=[out / "windows"])
    stream.save(out / "clip.mp4")
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    (out / "peak").write_text(peak.split()[1])


def spawn(out: Path, seconds: float) -> int:
    out.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            live(out, seconds)
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def main() -> None:
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    whole, short, killed = folder / "whole", folder / "short", folder / "killed"
    for out, seconds in ((whole, SECONDS), (short, 5)):
        assert os.waitstatus_to_exitcode(os.waitpid(spawn(out, seconds), 0)[1]) == 0
    total = len(list((whole / "windows").iterdir()))
    seen = 0
    for _ in range(kills):
        pid = spawn(killed, SECONDS)
        until = min(total - 1, seen + 1 + rng.randrange(max(1, total // (kills + 1))))
        while len(list((killed / "windows").glob("0*"))) < until:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        seen = len(list((killed / "windows").glob("0*")))
        print(f"killed with {seen} of {total} windows", *sorted(path.name for path in killed.iterdir()))
        assert not (killed / "clip.mp4").exists()
    assert os.waitstatus_to_exitcode(os.waitpid(spawn(killed, SECONDS), 0)[1]) == 0
    a, b = (read_video(out / "clip.mp4") for out in (whole, killed))
    assert len(a) == SECONDS * 12 + 1 and np.array_equal(a.frames, b.frames)
    assert (whole / "clip.mp4").read_bytes() == (killed / "clip.mp4").read_bytes()
    for file in (whole / "windows").iterdir():
        assert file.read_bytes() == (killed / "windows" / file.name).read_bytes()
    peaks = [int((out / "peak").read_text()) for out in (short, whole)]
    print(f"peak of 5 s: {peaks[0]} kB, of {SECONDS} s: {peaks[1]} kB")
    assert peaks[1] <= 1.1 * peaks[0]


if __name__ == "__main__":
    main()
