"""How a job of several processes ends: well, by a bad request, by one that fails, by one that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tiny import command_line

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
        os.write(1, b"%d %d\\n" % (world.rank, os.getpid()))

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


def torchrun(
    *arguments: str, folder: Path, size: int = 2, start: type[subprocess.Popen[str]] = subprocess.Popen
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), "--standalone"]
    return start(
        [*command, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(job: subprocess.Popen[str], *processes: int) -> tuple[str, str]:
    """What a job said; one that does not end, on a machine that is not ten times too slow, is killed and shown."""
    try:
        return job.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        for pid in (*processes, job.pid):
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"the job hangs: {job.communicate()}") from None


@pytest.mark.slow
def test_a_job_writes_once_and_says_once(tmp_path: Path) -> None:
    options = ("--steps", "1", "--seconds", "0.4", "--guidance", "3", "-o", "out.webp")
    job = torchrun("-m", "kandinsky", "generate", "a panda", "-m", "nano-t2v", *options, folder=tmp_path)
    out, talk = ended(job)
    assert job.returncode == 0, talk
    assert out.split() == ["out.webp"], talk
    assert [path.name for path in tmp_path.iterdir()] == ["out.webp"], talk
    lines = talk.splitlines()
    assert len([line for line in lines if line.startswith("2 processes, --parallel cfg=2")]) == 1, talk
    assert len([line for line in lines if line.startswith("seed ")]) == 1, talk


def test_a_bad_request_is_said_once(tmp_path: Path, port: int) -> None:
    command = [
        sys.executable,
        "-m",
        "kandinsky",
        "generate",
        "a panda",
        "-m",
        "nano-t2v",
        "--parallel",
        "cfg=2,ulysses=2",
    ]
    jobs = [
        subprocess.Popen(command, cwd=tmp_path, env=environment(rank, 2, port), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    talks = [jobs[0].communicate(timeout=60)[1]]
    jobs[1].terminate()  # as a launcher does
    talks.append(jobs[1].communicate(timeout=60)[1])
    assert [job.returncode for job in jobs] == [2, 2]
    assert "needs 4 processes, and 2 processes were started" in talks[0] and "--parallel cfg=2" in talks[0]
    assert talks[1] == ""


ALONE = """
import sys, time
from kandinsky.errors import RequestError
from kandinsky.runtime.parallel import launch
launch.ALONE_S = float(sys.argv[1])
sleep = time.sleep
time.sleep = lambda seconds: (print("waits", flush=True), sleep(seconds))
with launch.together(lambda text: print(text, file=sys.stderr, flush=True)):
    raise RequestError("there is no `a.png`")
"""


def test_a_bad_request_waits_for_the_first_to_say_it_and_is_said_where_the_first_is_content(port: int) -> None:
    def started(alone_s: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", ALONE, alone_s], env=environment(1, 2, port),
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip

    ended, alone = started("100"), started("0.5")
    assert ended.stdout is not None and ended.stdout.readline() == "waits\n"
    ended.terminate()
    assert ended.communicate(timeout=30)[1] == "" and ended.returncode == 2
    assert alone.communicate(timeout=30)[1] == "error: process 1 of 2: there is no `a.png`\n"
    assert alone.returncode == 2


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
    job = torchrun("job.py", folder=tmp_path, start=command_line.Forked)
    assert job.stdout is not None
    at_work = dict(tuple(map(int, job.stdout.readline().split())) for _ in range(2))
    os.kill(at_work[rank], how)
    begun = time.monotonic()
    talk = ended(job, *at_work.values())[1]
    assert time.monotonic() - begun < LIMIT_S, talk
    assert job.returncode != 0
    assert any(words in talk for words in said) if how is signal.SIGKILL else all(words in talk for words in said), talk
    assert [path.name for path in tmp_path.iterdir()] == ["job.py"]


WAITING = """
import sys, time
from kandinsky.runtime.parallel import launch
if sys.argv[2] == "lost":
    launch.SILENCE_S = 4
with launch.together(lambda text: print(text, file=sys.stderr, flush=True)) as world:
    launch.meet("cpu")
    print("met", flush=True)
    import torch, torch.distributed as dist
    if world.rank == world.size - 1 or sys.argv[1] == "all":
        time.sleep(1000)
    dist.all_reduce(torch.ones(1))
"""


@dataclass(frozen=True)
class Ends:
    """How the processes of a job ended, by their place: exit codes, and what they said on stderr."""

    codes: list[int]
    talks: list[str]


def befallen(size: int, kind: str, rank: int, how: signal.Signals) -> Ends:
    """Jobs of processes that nobody looks after; one of them gets a signal."""
    is_lost = how in (signal.SIGKILL, signal.SIGSTOP)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    jobs = [
        command_line.Forked(
            [sys.executable, "-c", WAITING, kind, "lost" if is_lost else "told"],
            env=environment(place, size, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place in range(size)
    ]
    for job in jobs:
        assert job.stdout is not None and job.stdout.readline() == "met\n"
    if is_lost:
        time.sleep(2.5)  # a sign of life each
    os.kill(jobs[rank].pid, how)
    talks = {place: job.communicate(timeout=120)[1] for place, job in enumerate(jobs) if place != rank}
    if is_lost:
        jobs[rank].kill()
    talks[rank] = jobs[rank].communicate(timeout=120)[1]
    return Ends([job.returncode for job in jobs], [talks[place] for place in range(size)])


LOST = {  # the second and the third of three also wait for each other, where no Python runs
    "killed": (3, "all", 1, signal.SIGKILL),
    "frozen": (3, "some", 1, signal.SIGSTOP),
    "the first frozen": (3, "some", 0, signal.SIGSTOP),
    "SIGTERM": (2, "some", 0, signal.SIGTERM),
    "SIGHUP": (2, "some", 0, signal.SIGHUP),
}


@pytest.fixture(scope="module")
def ends() -> dict[str, Ends]:
    """All of them at once, since they only wait."""
    command_line.place()
    with ThreadPoolExecutor(len(LOST)) as pool:
        asked = {name: pool.submit(befallen, *case) for name, case in LOST.items()}
        return {name: one.result() for name, one in asked.items()}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("killed", "has gone: it was killed"),
        ("frozen", "process 1 ("),
        ("the first frozen", "that holds the others together does not answer"),
    ],
)
def test_without_a_launcher_the_others_miss_it(name: str, said: str, ends: dict[str, Ends]) -> None:
    rank, found = LOST[name][2], ends[name]
    talks = "".join(talk for place, talk in enumerate(found.talks) if place != rank)
    assert all(code for place, code in enumerate(found.codes) if place != rank), talks
    assert "error: " in talks and said in talks and "Traceback" not in talks, talks


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_process_that_is_told_to_end_says_so_and_ends_all(name: str, ends: dict[str, Ends]) -> None:
    """Also one that waits for another, where no Python runs."""
    codes, talks = ends[name].codes, ends[name].talks
    assert codes == [1, 1], talks
    assert "error: process 0 of 2 ends: the launcher ended it" in talks[0] and "Traceback" not in "".join(talks)


def test_a_failing_process_ends_the_others_with_its_message(port: int) -> None:
    """Without a launcher that would look after them."""
    jobs = [
        command_line.Forked(
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
