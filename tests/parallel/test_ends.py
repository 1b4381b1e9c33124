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

SLOW = pytest.mark.slow  # further cases of what a first one shows
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


AT_WORK = """
import os, sys
import kandinsky
from kandinsky.runtime.parallel import launch

def on_step(step, total, preview):
    if step == 2:
        os.write(1, b"at work\\n")

with launch.together(lambda text: print(text, file=sys.stderr, flush=True)) as world:
    pipe = kandinsky.load("nano-t2v", device="cpu", parallel="auto")
    video = pipe("a panda", seconds=2, steps=1000, seed=1, on_step=on_step)
    if world.is_first:
        video.save("out.mp4")
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
        [*command, *arguments],
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


def ended(job: subprocess.Popen[str]) -> tuple[str, str]:
    """What a job said; one that does not end, on a machine that is not ten times too slow, is killed and shown."""
    try:
        return job.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        for pid in (*children(job.pid), job.pid):
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"the job hangs: {job.communicate()}") from None


@pytest.mark.slow
def test_a_job_writes_once_and_says_once(tmp_path: Path) -> None:
    options = ("--steps", "1", "--seconds", "0.4", "--guidance", "3", "-o", "out.webp")
    job = torchrun("-m", "kandinsky", "generate", "a panda", *options, folder=tmp_path)
    out, talk = ended(job)
    assert job.returncode == 0, talk
    assert out.split() == ["out.webp"], talk
    assert [path.name for path in tmp_path.iterdir()] == ["out.webp"], talk
    lines = talk.splitlines()
    assert len([line for line in lines if line.startswith("2 processes, --parallel cfg=2")]) == 1, talk
    assert len([line for line in lines if line.startswith("seed ")]) == 1, talk


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


@pytest.mark.parametrize(
    ("rank", "how", "said"),
    [
        (1, signal.SIGKILL, ("error: process 0 of 2 ends", "error: process 1 ")),
        pytest.param(
            1, signal.SIGSTOP, ("error: process 1 (", "does not answer: no sign of life for 15 s"), marks=SLOW
        ),
    ],
    ids=["killed", "frozen"],
)
def test_a_process_that_is_gone_ends_the_job(
    rank: int, how: signal.Signals, said: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "job.py").write_text(AT_WORK, encoding="utf-8")
    job = torchrun("job.py", folder=tmp_path)
    assert job.stdout is not None
    assert [job.stdout.readline() for _ in range(2)] == ["at work\n"] * 2
    os.kill(children(job.pid)[rank], how)
    begun = time.monotonic()
    talk = ended(job)[1]
    assert time.monotonic() - begun < LIMIT_S, talk
    assert job.returncode != 0
    assert any(words in talk for words in said) if how is signal.SIGKILL else all(words in talk for words in said), talk
    assert [path.name for path in tmp_path.iterdir()] == ["job.py"]


WAITING = """
import sys, time
from kandinsky.runtime.parallel import launch
launch.SILENCE_S = 4
with launch.together(lambda text: print(text, file=sys.stderr, flush=True)) as world:
    launch.meet("cpu")
    print("met", flush=True)
    import torch, torch.distributed as dist
    if world.rank == world.size - 1 or sys.argv[1] == "all":
        time.sleep(1000)
    dist.all_reduce(torch.ones(1))
"""


@pytest.mark.parametrize(
    ("rank", "how", "said"),
    [
        (1, signal.SIGKILL, "has gone: it was killed"),
        pytest.param(1, signal.SIGSTOP, "process 1 (", marks=SLOW),
        pytest.param(0, signal.SIGSTOP, "that holds the others together does not answer", marks=SLOW),
    ],
    ids=["killed", "frozen", "the first frozen"],
)
def test_without_a_launcher_the_others_miss_it(rank: int, how: signal.Signals, said: str, port: int) -> None:
    """The second and the third also wait for each other, where no Python runs."""
    command = [sys.executable, "-c", WAITING, "all" if how is signal.SIGKILL else "some"]
    jobs = [
        subprocess.Popen(
            command, env=environment(rank, 3, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]
    for job in jobs:
        assert job.stdout is not None and job.stdout.readline() == "met\n"
    time.sleep(2.5)  # a sign of life each
    os.kill(jobs[rank].pid, how)
    others = [job for place, job in enumerate(jobs) if place != rank]
    talks = "".join(job.communicate(timeout=120)[1] for job in others)
    jobs[rank].kill()
    jobs[rank].communicate()
    assert all(job.returncode for job in others) and "error: " in talks and said in talks, talks
    assert "Traceback" not in talks, talks


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=SLOW)])
def test_a_process_that_is_told_to_end_says_so_and_ends_all(how: signal.Signals, port: int) -> None:
    """Also one that waits for another, where no Python runs."""
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, "some"],
            env=environment(rank, 2, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for job in jobs:
        assert job.stdout is not None and job.stdout.readline() == "met\n"
    jobs[0].send_signal(how)
    talks = [job.communicate(timeout=120)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [1, 1], talks
    assert "error: process 0 of 2 ends: the launcher ended it" in talks[0] and "Traceback" not in "".join(talks)


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
    results = [job.communicate(timeout=300) for job in jobs]
    assert [job.returncode for job in jobs][1] == 2 and all(job.returncode for job in jobs)
    assert "error: process 1 of 3: shard 7 is broken" in results[1][1]
    assert all("never reached" not in out for out, _ in results)
    assert not any("Traceback" in talk for _, talk in results), results
