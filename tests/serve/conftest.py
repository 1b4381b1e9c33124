"""A real server process, with Nano, for the tests of this folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kandinsky.jobs.records import State

LIMIT_S = 180.0
QUICK = {"steps": 2, "seconds": 1}
TINY = {"steps": 1, "seconds": 0.5}
MODELS = ("nano-t2v", "nano-i2v", "nano-v2a")
BROWSER = Path(__file__).parent / "browser"


@pytest.fixture
def house(client: Any) -> Iterator[Any]:
    """The state of a module's own application, behind its ``client``; its queue is emptied at the end."""
    found = client.app.state.house
    yield found
    for job in found.store.list(states=(State.QUEUED,), limit=100).jobs:
        found.store.cancel(job.id)


def browser() -> str:
    """The path of Chromium; skips the test without it, Node.js, or the two npm packages that drive and check pages."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None or shutil.which("node") is None:
        pytest.skip("needs Chromium and Node.js (Debian's packages chromium and nodejs)")
    if not all((BROWSER / "node_modules" / name).is_dir() for name in ("playwright-core", "axe-core")):
        pytest.skip("needs `npm install --prefix tests/serve/browser`")
    return chromium


class Server:
    """A server process; ``client`` talks to it."""

    def __init__(self, folder: Path, *options: str, models: tuple[str, ...] = MODELS, **environment: str) -> None:
        self.folder = folder
        self.options = options
        self.models = models
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self.client = httpx.Client(timeout=LIMIT_S)

    def start(self) -> Server:
        env = {name: value for name, value in os.environ.items() if not name.startswith("KANDINSKY_")}
        env |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "XDG_RUNTIME_DIR": str(self.folder / "runtime")}
        env |= self.environment
        command = [
            sys.executable,
            "-m",
            "kandinsky",
            "serve",
            *self.models,
            "--port",
            "0",
            "--store",
            str(self.folder / "jobs"),
            *self.options,
        ]
        self.log = (self.folder / "server.log").open("a")
        self.process = subprocess.Popen(  # in a group of its own, as a shell starts it
            command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=env, process_group=0
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line.startswith("http://"), (self.folder / "server.log").read_text()
        self.url = line
        self.client.base_url = line
        return self

    def wait_ready(self) -> Server:
        end = time.monotonic() + LIMIT_S
        while self.client.get("/ready").status_code != 200:
            assert time.monotonic() < end, (self.folder / "server.log").read_text()
            time.sleep(0.05)
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        return self.process.returncode

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.stop()

    # -- short ways --------------------------------------------------------------------------------------------------

    def create(self, prompt: str = "a panda waves", **values: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/videos", json={"prompt": prompt, **TINY, **values})
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def get(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/v1/videos/{job_id}").raise_for_status().json()
        return found

    def wait(self, job_id: str, *statuses: str) -> dict[str, Any]:
        wanted = statuses or ("completed", "failed", "cancelled")
        end = time.monotonic() + LIMIT_S
        while (job := self.get(job_id))["status"] not in wanted:
            assert time.monotonic() < end, (job, (self.folder / "server.log").read_text()[-3000:])
            time.sleep(0.05)
        return job

    def worker_pids(self) -> list[int]:
        import psutil

        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return [
                child.pid
                for child in psutil.Process(self.process.pid).children()
                if "worker" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE
            ]
        return []


TINY_MODELS = ("tiny-t2v", "tiny-i2v", "tiny-i2i", "kandinsky3.0-inpaint")


def tiny_server(folder: Path, *options: str) -> Server:
    """A server of networks of tiny size, for what Nano cannot do: LoRAs `one` and `other`, edits, masks, expansion."""
    from safetensors.torch import load_file, save_file

    from tiny import catalogue

    catalogue.write(folder / "made")
    loras = folder / "loras"
    loras.mkdir()
    one = catalogue.lora(loras / "one.safetensors")
    save_file(
        {name: tensor.flip(0).contiguous() for name, tensor in load_file(one).items()}, loras / "other.safetensors"
    )
    return Server(
        folder, "--loras", str(loras), *options, models=TINY_MODELS,
        KANDINSKY_CARDS=str(folder / "made" / "cards"), KANDINSKY_WEIGHTS=str(folder / "made" / "unets" / "weights"),
    )  # fmt: skip


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that do not end it; no keys, on loopback."""
    with Server(tmp_path_factory.mktemp("server"), "--queue", "500") as made:
        yield made.wait_ready()


@pytest.fixture(scope="session")
def finished(server: Server) -> dict[str, Any]:
    """A finished clip."""
    return server.wait(server.create(seed=7, seconds=1, steps=2)["id"])
