"""How a job of several processes ends: well, by a bad request, by one that fails, by one that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

LIMIT_S = 30
FAILING = """
import sys, time
from kandinsky.errors import WeightsError
from kandinsky.runtime.parallel import launch
say = lambda text: print(text, file=sys.stderr, flush=True)
with launch.together(say) as world:
    launch.meet("cpu")
    if world.rank == 1:
        raise WeightsError("shard 7 is broken")
    import torch, torch.distributed as dist
    dist.all_reduce(torch.ones(1))
    print("never reached")
"""


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in names.items()}


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        number = s.getsockname()[1]
    yield number


def torchrun(*arguments: str, folder: Path, size: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), "--standalone"]
    return subprocess.Popen(
        [*command, "-m", "kandinsky", *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    """Processes of a launcher, by their place in the job."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            settings = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if parent == pid:
            rank = next((int(value[5:]) for value in settings if value.startswith(b"RANK=")), None)
            if rank is not None:
                found[rank] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


def test_a_job_writes_once_and_says_once(tmp_path: Path) -> None:
    options = ("--steps", "1", "--seconds", "0.4", "--guidance", "3", "-o", "out.webp")
    job = torchrun("generate", "a panda", *options, folder=tmp_path)
    out, talk = job.communicate(timeout=120)
    assert job.returncode == 0, talk
    assert out.split() == ["out.webp"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.webp"]
    assert talk.count("2 processes, --parallel cfg=2") == 1 and talk.count("seed ") == 1


def test_a_bad_request_is_said_once(tmp_path: Path, port: int) -> None:
    command = [sys.executable, "-m", "kandinsky", "generate", "a panda", "--parallel", "cfg=2,ulysses=2"]
    jobs = [
        subprocess.Popen(command, cwd=tmp_path, env=environment(rank, 2, port), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    talks = [job.communicate(timeout=60)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [2, 2]
    assert "needs 4 processes, and 2 processes were started" in talks[0] and "--parallel cfg=2" in talks[0]
    assert talks[1] == ""


def test_a_killed_process_ends_the_job(tmp_path: Path) -> None:
    job = torchrun("generate", "a panda", "--steps", "100", "-o", "out.mp4", folder=tmp_path)
    assert job.stderr is not None
    talk = ""
    while "2 processes, --parallel" not in talk:
        line = job.stderr.readline()
        assert line, talk
        talk += line
    time.sleep(6)  # loading
    os.kill(children(job.pid)[1], signal.SIGKILL)
    begun = time.monotonic()
    talk += job.communicate(timeout=60)[1]
    assert time.monotonic() - begun < LIMIT_S
    assert job.returncode != 0
    assert "error: process 0 of 2 ends" in talk or "error: process 1 has gone" in talk, talk
    assert list(tmp_path.iterdir()) == []


def test_a_failing_process_ends_the_others_with_its_message(port: int) -> None:
    """Without a launcher that would look after them."""
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", FAILING],
            env=environment(rank, 3, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    begun = time.monotonic()
    results = [job.communicate(timeout=90) for job in jobs]
    assert time.monotonic() - begun < 60
    assert [job.returncode for job in jobs][1] == 2 and all(job.returncode for job in jobs)
    assert "error: process 1 of 3: shard 7 is broken" in results[1][1]
    assert all("never reached" not in out for out, _ in results)
    assert not any("Traceback" in talk for _, talk in results), results
