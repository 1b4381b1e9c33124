"""A process waits for the threads of `gloo` before Python ends."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kandinsky.runtime.parallel import threads

pytestmark = pytest.mark.skipif(not threads.TASKS.exists(), reason="needs the threads of a process in /proc (Linux)")
WORK_S = 0.5


def named(name: str, work_s: float, begun: threading.Event, over: threading.Event) -> threading.Thread:
    """A thread that computes without Python's lock, then sleeps until the test is over."""

    def run() -> None:
        (threads.TASKS / str(threading.get_native_id()) / "comm").write_text(name, encoding="utf-8")
        begun.set()
        end = time.monotonic() + work_s
        while time.monotonic() < end:
            hashlib.sha256(bytes(2**20))
        over.wait()

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    return thread


@pytest.mark.parametrize(("name", "is_waited_for"), [("pt_gloo_runloop", True), ("other", False)])
def test_it_waits_until_threads_of_gloo_sleep(name: str, is_waited_for: bool) -> None:
    begun, over = threading.Event(), threading.Event()
    start = time.monotonic()
    thread = named(name, WORK_S, begun, over)
    threads.let_go()
    took = time.monotonic() - start
    over.set()
    thread.join()
    assert (took >= WORK_S) == is_waited_for, took


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PATIENCE_S", 0.1)
    begun, over = threading.Event(), threading.Event()
    thread = named("pt_gloo_runloop", WORK_S, begun, over)
    start = time.monotonic()
    threads.let_go()
    assert time.monotonic() - start < WORK_S
    over.set()
    thread.join()


def test_where_the_system_does_not_tell_it_waits_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "TASKS", Path("/nowhere"))
    start = time.monotonic()
    threads.let_go()
    assert time.monotonic() - start >= threads.LOOKS * threads.LOOK_S


def test_meeting_arranges_it() -> None:
    """As the last thing of a process, after it has parted."""
    code = (
        "from kandinsky.runtime.parallel import launch, threads\n"
        "threads.let_go = lambda: print('waited')\n"
        "launch.meet('cpu')\n"
        "launch.part()\n"
        "print('parted')\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    names = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in names.items()}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["parted", "waited"], done.stderr
