"""How a server ends: with the jobs that run, without those that wait, and at once when it is asked twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from kandinsky.jobs.records import Claim, NewJob, State
from kandinsky.jobs.sqlite_store import open_store
from kandinsky.jobs.worker import Worker, WorkerSettings
from serve.conftest import LIMIT_S, Server


class Interrupted(Server):
    """A server that is ended from its terminal."""

    def interrupt(self) -> None:
        """What Ctrl-C does: every process of the group gets it."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self) -> int:
        assert self.process is not None
        return self.process.wait(LIMIT_S)


def states(folder: Path) -> dict[str, tuple[State, int]]:
    store = open_store(folder / "jobs")
    found = {job.id: (job.state, job.attempts) for job in store.list().jobs}
    store.close()
    return found


@pytest.mark.slow
def test_an_interrupt_lets_the_running_job_end_and_a_second_one_does_not_wait(tmp_path: Path) -> None:
    server = Interrupted(tmp_path, "--drain", "600", "--batch", "1", models=("nano-t2v",)).start().wait_ready()
    try:
        running, waiting = (server.create(seed=1, steps=12)["id"], server.create(seed=2)["id"])
        server.wait(running, "in_progress")
        server.interrupt()
        server.ended()
        assert states(tmp_path) == {running: (State.COMPLETED, 1), waiting: (State.QUEUED, 0)}
        server.stop()  # closes what it wrote to

        server.start()  # takes the one that waits
        long = server.create(seed=3, seconds=1, steps=190)["id"]
        server.wait(long, "in_progress")
        (worker,) = server.worker_pids()
        server.interrupt()
        end = time.monotonic() + LIMIT_S
        while server.process is not None and any(one.status == "LISTEN" for one in connections(server.process.pid)):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert psutil.pid_exists(worker)
        server.interrupt()
        server.ended()
        assert states(tmp_path)[long] == (State.QUEUED, 0)
        assert not psutil.pid_exists(worker)
    finally:
        server.__exit__()


def connections(pid: int) -> list[Any]:
    try:
        return list(psutil.Process(pid).net_connections("tcp"))
    except psutil.NoSuchProcess:
        return []


def test_a_worker_that_leaves_takes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    for _ in range(2):
        store.add(NewJob(kind="video", model="nano-t2v", order={}))
    worker = Worker(store, WorkerSettings(models=("nano-t2v",)), name="w")

    def work(claims: list[Claim]) -> None:
        worker.leave()
        assert store.complete(claims[0], {}, run_s=1, size=0) == State.COMPLETED

    monkeypatch.setattr(worker, "_work", work)
    worker.run()
    assert not store.workers(), "it has said that it is gone"
    assert sorted(job.state for job in store.list().jobs) == ["completed", "queued"]
    store.close()


def test_a_worker_on_its_own_ends_with_its_job(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    command = [sys.executable, "-m", "kandinsky", "worker", "nano-t2v", "--store", str(tmp_path), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not any(one.state == "ready" for one in store.workers()):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(LIMIT_S) == 0
    store.close()
