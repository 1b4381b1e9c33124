"""The official script of Kandinsky 5.0 by several processes; `tests/official` runs the documents' launch lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kandinsky.media import recipe as recipes
from tiny.fixtures import official  # noqa: F401 - a fixture

SCRIPT = Path(__file__).parents[2] / "official" / "kandinsky-5" / "test.py"


@pytest.mark.slow
def test_the_official_script_of_5_0(official: Path, tmp_path: Path) -> None:  # noqa: F811 - the fixture's value
    """Its door as well: `get_T2V_pipeline(conf_path=…)` by two processes; a wrong size is said once."""
    options = ("--config", str(official / "config.yaml"), "--video_duration", "0", "--sample_steps", "1")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += [str(SCRIPT), *options, "--expand_prompt", "0", "--output_filename", "made.png"]

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
