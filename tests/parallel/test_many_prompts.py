"""`torchrun -m kandinsky generate --prompts`: as with one process, nothing is done twice and failures stop nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kandinsky.engine.latent_names import latent_path
from tiny import command_line

PROMPTS = """prompt,output,seconds,guidance,size
a panda,panda.png,0,3,
a dog,dog.png,0,3,17x17
a cat,cat.png,0,1,
"""


def generate(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    words = [sys.executable, *launcher, "-m", "kandinsky", "generate", "--steps", "2", *options]
    return command_line.run(words, cwd=folder, text=True)


def statuses(folder: Path) -> list[str]:
    lines = (folder / "prompts.summary.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["status"] for line in lines]


@pytest.mark.slow
def test_prompts_of_a_file_by_two_processes(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text(PROMPTS, encoding="utf-8")
    done = generate(tmp_path, "--prompts", "prompts.csv")
    assert done.returncode == 1, done.stderr  # one row is wrong
    assert statuses(tmp_path) == ["done", "failed", "done"], done.stderr
    assert done.stdout.split() == ["panda.png", "cat.png"]
    assert done.stderr.count("line 3 `a dog`: size `17x17` is not supported") == 1
    assert done.stderr.count("3 results: 2 made, 1 failed") == 1 and "2 processes, --parallel cfg=2" in done.stderr
    assert "process 0 of 2" not in done.stderr, done.stderr

    stamp = (tmp_path / "panda.png").stat().st_mtime_ns
    (tmp_path / "prompts.csv").write_text(PROMPTS.replace("17x17", ""), encoding="utf-8")
    (tmp_path / "cat.png").unlink()
    done = generate(tmp_path, "--prompts", "prompts.csv")
    assert done.returncode == 0, done.stderr
    assert statuses(tmp_path) == ["skipped", "done", "done"]
    assert (tmp_path / "panda.png").stat().st_mtime_ns == stamp
    assert not latent_path(tmp_path / "cat.png").exists()


def test_clips_of_a_file_are_no_batch(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a panda\na dog\n", encoding="utf-8")
    done = generate(tmp_path, "--prompts", "prompts.txt", "--parallel", "data=2")
    assert done.returncode != 0 and "`data` must divide the number of clips, 1" in done.stderr
