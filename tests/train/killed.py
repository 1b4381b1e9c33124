"""Trains in processes that are killed at random instants, until one comes to its end; run by ``test_scale_kills.py``.

    python killed.py FOLDER KILLS SEED STEPS

Each life is a process of its own, forked from this one, which has imported everything and computed nothing. Written at
the end: of each kill, the last checkpoint that there was before this life and at its end, and what the kill hit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # else every life imports it
from safetensors.torch import save_file

from kandinsky.train import loop
from tiny import clips

LOOP = {"lr": 3e-3, "warmup": 2, "bf16": False, "log_every": 1, "checkpoint_steps": 2, "seed": 1}


def live(out: Path, steps: int) -> None:
    objective, _ = clips.objective("kandinsky5 dense", heads=2, blocks=1)
    weights = loop.run(objective, loop.LoopSettings.from_dict({**LOOP, "steps": steps}), out)["network"]
    save_file({name: t.contiguous() for name, t in weights.items()}, out / "averaged.safetensors")


def spawn(out: Path, steps: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            live(out, steps)
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def written(out: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in out.glob("checkpoint-*"))


def logged(out: Path) -> int:
    """Steps in the log."""
    path = out / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill(out: Path, rng: random.Random, way: str, steps: int) -> dict[str, Any]:
    """One life: it is killed soon, at some instant of some step, or while it writes some checkpoint."""
    before = written(out)
    seen: set[Path] = set(out.glob(".checkpoint-*"))  # what the last life was writing may still lie there
    left = set(seen)
    # what is logged beyond the last checkpoint is taken away first
    wanted, parts = max(before, default=0) + rng.randrange(1, 12), rng.randrange(1, 4)
    pid = spawn(out, steps)

    def is_time() -> bool:
        if way == "step":
            return logged(out) >= wanted
        seen.update(out.glob(".checkpoint-*"))
        return way == "soon" or len(seen - left) >= parts

    while not is_time():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before it was killed"
    time.sleep(rng.uniform(0.0, {"soon": 0.2, "step": 0.02, "writing": 0.004}[way]))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), f"it ended before it was killed, with {status}"
    return {"way": way, "before": before, "after": written(out), "hit": bool(set(out.glob(".checkpoint-*")) - left)}


def main(folder: Path, kills: int, seed: int, steps: int) -> None:
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)], fused=True)  # imports what it needs
    rng, out = random.Random(seed), folder / "killed"
    for path in (folder / "whole", folder / "again"):
        assert os.waitpid(spawn(path, steps), 0)[1] == 0
    lives = [kill(out, rng, ("soon", "step", "writing")[number % 3], steps) for number in range(kills)]
    assert os.waitpid(spawn(out, steps), 0)[1] == 0
    (folder / "lives.json").write_text(json.dumps(lives))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
