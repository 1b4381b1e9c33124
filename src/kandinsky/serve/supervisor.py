"""Starts the workers of a server, starts those again that die, and ends them with it."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kandinsky.jobs.records import WorkerRecord
from kandinsky.jobs.sqlite_store import SqliteStore
from kandinsky.runtime import threads
from kandinsky.serve.settings import ServeSettings
from kandinsky.serve.worker_command import worker_command
from kandinsky.serve.workers import LOOK_S, Workers

log = logging.getLogger(__name__)
END_S = 20.0  # for a worker that is to stop within a step
FIRST_PAUSE_S, LONGEST_PAUSE_S, STEADY_S = 0.2, 30.0, 30.0


def count_gpus() -> int:
    """GPUs of this machine that this process may use, asked without torch; 0 where there are none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([one for one in visible.split(",") if one.strip() and one.strip() != "-1"])
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


class Supervisor(Workers):
    """Worker processes on this machine; see ``Workers``."""

    def __init__(
        self,
        settings: ServeSettings,
        store: SqliteStore,
        *,
        names: Sequence[str],
        restarted: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(settings, store, names=names, restarted=restarted)
        self._threads: list[threading.Thread] = []
        self.environment: dict[str, str] = {}
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def devices(self) -> list[str | None]:
        """The device of each worker; None = its own choice."""
        options = self.settings.options
        given = None if options.device is None else str(options.device)
        gpus = count_gpus() if given in (None, "auto", "cuda") else 0
        count = self.settings.workers if self.settings.workers is not None else max(1, gpus)
        if gpus > 1 and count > 1:
            return [f"cuda:{index % gpus}" for index in range(count)]
        return [given] * count

    def start(self) -> None:
        """Start the workers, each with a thread that watches over it."""
        places = self.devices()
        gpus = count_gpus()
        on_processor = [one for one in places if not (str(one)[:4] == "cuda" or (one in (None, "auto") and gpus))]
        self.environment = threads.of_workers(len(on_processor))
        for index, device in enumerate(places):
            thread = threading.Thread(target=self._tend, args=(index, device), name=f"worker {index}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def leave(self) -> None:
        with self._lock:
            if not self._leaving.is_set():
                self._leaving.set()
                for process in self.processes.values():
                    process.send_signal(signal.SIGUSR1)

    def _is_busy(self) -> bool:
        # one that is ready may have taken a job at this moment, and ends if not
        return any(one.state != "starting" for one in self._mine())

    def _end(self) -> None:
        with self._lock:
            for process in self.processes.values():
                process.terminate()
        for thread in self._threads:
            thread.join()

    def _mine(self) -> list[WorkerRecord]:
        with self._lock:
            pids = {process.pid for process in self.processes.values() if process.poll() is None}
        return [one for one in self.store.workers() if one.pid in pids]

    def _tend(self, index: int, device: str | None) -> None:
        pause_s, is_first = FIRST_PAUSE_S, True
        while not self._leaving.is_set():
            name = f"{os.getpid()}-{index}-{secrets.token_hex(4)}"
            begun = time.monotonic()
            with self._lock:
                if self._leaving.is_set():
                    return
                command = worker_command(self.settings, name=name, models=self.names, device=device)
                try:
                    process = self.processes[index] = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=sys.stderr,
                        close_fds=True,
                        start_new_session=True,  # an interrupt at the terminal is the server's to answer
                        env={**os.environ, **self.environment},
                    )
                except OSError as error:  # too many processes or files, or no memory: perhaps not for long
                    log.warning("a worker cannot be started: %s", error)
                    process = None
            if process is None:
                self._over.wait(pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                continue
            if not is_first:
                self._restarted()
            is_first = False
            while process.poll() is None:
                if self._over.wait(LOOK_S):
                    self._end_of(process)
                    break
            try:
                lost = self.store.bury(name, on_purpose=self._over.is_set())
            except Exception:
                log.warning("the jobs of a dead worker cannot be given back yet", exc_info=True)
                lost = []
            if not self._leaving.is_set():
                if time.monotonic() - begun > STEADY_S:
                    pause_s = FIRST_PAUSE_S
                log.warning("worker %s ended with %s; its jobs: %d", name, process.returncode, len(lost))
                self._leaving.wait(pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
        self.store.close()

    def _end_of(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        end = time.monotonic() + END_S
        while process.poll() is None and time.monotonic() < end and not self._hurried.is_set():
            time.sleep(LOOK_S)
        process.kill()
        process.wait()
