"""The official launch line of Kandinsky 4.0, with a tiny model of the same shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kandinsky.media import recipe as recipes
from tiny import kandinsky4

EXAMPLE = Path(__file__).parents[2] / "examples" / "run_inference_distil.py"


def test_the_official_line(tmp_path: Path) -> None:
    kandinsky4.write(tmp_path)
    width, _, height = kandinsky4.SIZE.partition("x")
    launcher = ["-m", "torch.distributed.launch", "--nnodes", "1", "--nproc-per-node", "2"]
    options = ["--cache_dir", "weights", "--time_length", "1", "--width", width, "--height", height]
    done = subprocess.run(
        [sys.executable, *launcher, "--standalone", str(EXAMPLE), *options, "--save_path", "made.mp4"],
        cwd=tmp_path,
        env=os.environ | {"KANDINSKY_CARDS": str(tmp_path / "cards"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["made.mp4"]
    assert recipes.read(tmp_path / "made.mp4")["seed"] == 42
