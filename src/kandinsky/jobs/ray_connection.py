"""The connection to a Ray cluster, and what the cluster has; for batches and for servers. Ray is imported late."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky.engine.options import RunOptions
from kandinsky.errors import BackendError
from kandinsky.weights.lora_files import parse_spec

WORKER_CPUS = 4  # without GPUs: threads of one worker, as far as its machine has them
REACH_S = 10.0  # for a connection to the head of a cluster
_COLOURS = re.compile("\x1b\\[[0-9;]*m")


def import_ray() -> Any:
    """The package.

    Raises:
        BackendError: It is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise BackendError("ray is not installed: run `pip install 'kandinsky-video[ray]'`") from error
    return ray


@contextlib.contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Within the block, this process is connected to a cluster; a connection that it has already is used as it is.

    Args:
        ray: The package.
        address: `local` starts a cluster on this machine, which ends with the block; else as ``ray.init`` takes it.

    Raises:
        BackendError: No cluster answers.
    """
    if ray.is_initialized():
        yield
        return
    # no usage report, unless it was asked for
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    before = signal.getsignal(signal.SIGTERM)
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises the base class where its own processes do not start
        reason = " ".join(str(error).split())[:200]
        raise BackendError(
            f"no ray cluster answers at `{address}`: {reason}",
            hint='`address="local"` starts one on this machine, `ray start --head` one that others can join',
        ) from error
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own handler would exit silently
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """See whether anybody listens at `HOST:PORT`: Ray itself tries for many minutes, and says nothing meanwhile.

    Raises:
        OSError: Nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()


@dataclass(frozen=True, slots=True)
class Resources:
    """What the machines of a cluster have.

    Attributes:
        machines: How many there are.
        cpus: CPUs of all.
        gpus: GPUs of all.
        per_machine: CPUs of each machine that has one.
    """

    machines: int
    cpus: int
    gpus: int
    per_machine: tuple[int, ...]

    @classmethod
    def of(cls, ray: Any) -> Resources:
        """Those of the cluster that this process is connected to."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        return cls(len(nodes), sum(cpus), gpus, tuple(count for count in cpus if count >= 1))

    def __str__(self) -> str:
        machines = f"{self.machines} {'machine' if self.machines == 1 else 'machines'}"
        return f"{machines}, {self.cpus} CPUs, {self.gpus} GPUs"

    def worker_cpus(self, workers: int | None = None) -> int:
        """CPUs of a worker without GPUs, such that it fits on every machine, and as many as asked for fit on all.

        Raises:
            BackendError: No machine has one.
        """
        if not self.per_machine:
            raise BackendError(f"the ray cluster has no CPU to work with ({self})")
        cpus = min(WORKER_CPUS, *self.per_machine)
        while workers is not None and cpus > 1 and self.fitting(cpus) < workers:
            cpus -= 1
        return cpus

    def fitting(self, cpus: float) -> int:
        """Workers of so many CPUs that fit on the machines."""
        return sum(int(count // cpus) for count in self.per_machine)


def anywhere(options: RunOptions) -> RunOptions:
    """The same with absolute paths, since a worker has another current folder."""
    lora = []
    for spec in options.loras:
        source, scale = parse_spec(spec)
        there = Path(source).expanduser()
        lora.append(f"{there.absolute() if there.exists() else source}:{scale}")
    cache = options.text_cache
    kept = str(Path(cache).absolute()) if isinstance(cache, str) else cache
    return dataclasses.replace(options, lora=tuple(lora), text_cache=kept)


def reason_of(error: Exception | None) -> str:
    """What Ray says of an error, in one line."""
    return " ".join(_COLOURS.sub("", str(error)).split())[:300] if error else "it gave no reason"
