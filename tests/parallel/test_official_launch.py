"""The official launch lines of Kandinsky 4.0 and 5.0, with tiny models of the same shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kandinsky.media import recipe as recipes
from tiny import kandinsky4
from tiny.fixtures import official  # noqa: F401 - a fixture

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "run_inference_distil.py"


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


def test_the_official_script_of_5_0(official: Path, tmp_path: Path) -> None:  # noqa: F811 - the fixture's value
    """Its door as well: `get_T2V_pipeline(conf_path=…)` by two processes; a wrong size is said once."""
    options = ("--config", str(official / "config.yaml"), "--video_duration", "0", "--sample_steps", "1")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += [str(EXAMPLES / "test.py"), *options, "--expand_prompt", "0", "--output_filename", "made.png"]

    def run(*size: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *size],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    done = run("--width", "512", "--height", "512")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["made.png"] and recipes.read(tmp_path / "made.png")["seed"] == 1137
    (tmp_path / "made.png").unlink()
    done = run("--width", "100", "--height", "64")
    assert done.returncode != 0 and done.stderr.count("size `100x64` is not supported") == 1
    assert done.stdout == "" and list(tmp_path.iterdir()) == []
