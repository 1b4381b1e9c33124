"""A training that is killed 30 times at random instants ends bit-equal to one that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import kandinsky
from kandinsky.train.checkpoint import name_of

HERE = Path(__file__).parent


@pytest.mark.parametrize(("kills", "seed", "steps"), [(5, 3, 60), pytest.param(30, 1, 240, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_training_killed_at_random_instants_ends_as_one_that_was_not(
    tmp_path: Path, kills: int, seed: int, steps: int
) -> None:
    source = Path(kandinsky.__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{source}{os.pathsep}{HERE.parent}"}
    command = [sys.executable, str(HERE / "killed.py"), str(tmp_path), *map(str, (kills, seed, steps))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lives = json.loads((tmp_path / "lives.json").read_text())
    print(json.dumps(lives))
    assert len(lives) == kills
    assert not lives[0]["before"]  # begun from initial weights, and killed soon after the start
    assert sum(life["hit"] for life in lives) >= kills // 4  # while a checkpoint was written
    assert len({max(life["after"], default=0) for life in lives}) > kills // 4  # resumed from many
    assert all(max(life["before"], default=0) <= max(life["after"], default=0) for life in lives)  # nothing was lost
    whole, again, killed = (tmp_path / name for name in ("whole", "again", "killed"))
    for other in (again, killed):
        for file in ("averaged.safetensors", f"{name_of(steps)}/process-00000.safetensors"):
            made, expected = load_file(other / file), load_file(whole / file)
            assert made.keys() == expected.keys() and all(torch.equal(made[key], expected[key]) for key in expected)
    lines = [json.loads(line)["step"] for line in (killed / "log.jsonl").read_text().splitlines()]
    assert lines == list(range(1, steps + 1))
    assert not list(killed.glob(".checkpoint*"))
