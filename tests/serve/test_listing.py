"""A batch of a prompt file is listed in the store, beside the requests to servers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kandinsky.jobs.records import State
from kandinsky.jobs.sqlite_store import open_store
from tiny import command_line


def kandinsky(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kandinsky", *words]
    env = {**os.environ, "XDG_DATA_HOME": str(folder / "data"), "OMP_NUM_THREADS": "1"}
    return command_line.run(command, text=True, cwd=folder, env=env)


@pytest.mark.slow
def test_yesterdays_batch_is_listed(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,steps\na cat,1\na dog,1\nbad,99999\n")
    done = kandinsky("generate", "--prompts", "p.csv", "--seconds", "0", folder=tmp_path)
    assert done.returncode == 1, done.stderr  # the third
    store = open_store(tmp_path / "data" / "kandinsky" / "jobs")
    jobs = store.list().jobs
    store.close()
    assert [(job.state, job.prompt, job.source) for job in jobs] == [
        (State.COMPLETED, "a dog", "cli"),
        (State.COMPLETED, "a cat", "cli"),
    ]
    listed = kandinsky("jobs", "list", folder=tmp_path)
    assert "a cat" in listed.stdout and "completed" in listed.stdout and "cli" in listed.stdout
    shown = json.loads(kandinsky("jobs", "show", jobs[0].id, "--json", folder=tmp_path).stdout)
    (path,) = shown["files"]
    assert Path(path).is_file() and Path(path).parent == tmp_path and shown["result"]["recipe"]["prompt"] == "a dog"
    assert "prompt file" in kandinsky("jobs", "retry", jobs[0].id, folder=tmp_path).stderr
    pruned = kandinsky("jobs", "prune", "--days", "0", folder=tmp_path)
    assert "2 jobs removed" in pruned.stderr and Path(path).is_file()  # the files are the user's
    again = kandinsky("generate", "--prompts", "p.csv", "--seconds", "0", "--store", "off", folder=tmp_path)
    assert "finished before" in again.stderr and kandinsky("jobs", "list", folder=tmp_path).stdout.count("\n") == 1


def test_a_store_that_cannot_be_used_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    (tmp_path / "data").write_text("in the way")
    done = kandinsky("generate", "--prompts", "p.txt", "--seconds", "0", "--steps", "1", folder=tmp_path)
    assert done.returncode == 0 and "not listed" in done.stderr
    (tmp_path / "q.txt").write_text("a dog\n")
    done = kandinsky(
        "generate", "--prompts", "q.txt", "--seconds", "0", "--steps", "1", "--store", "data", folder=tmp_path
    )
    assert done.returncode == 2 and "cannot be used" in done.stderr
