"""A worker on a machine of a Ray cluster: a replica of a Ray Serve deployment.

A request to a replica means: take the next job of the store, and run it. What the job tells goes to the store, as from
any worker; what the request streams back is who took which jobs, so that the server knows at once what a replica that
dies leaves. A model split over several GPUs is run by a team: the replica and further actors of its placement group.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kandinsky
from kandinsky.errors import BackendError
from kandinsky.jobs.records import Claim
from kandinsky.jobs.remote_store import RemoteStore, UnheardStore, check_shared
from kandinsky.jobs.worker import Worker, WorkerSettings
from kandinsky.runtime import threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a replica is told about its server.

    Attributes:
        folder: Folder of the store, as the server names it.
        sign: Name of a file in it by which it is recognised.
        version: Version of this library at the server.
        threads: Threads of a replica without a GPU; None = with one.
        team: Processes that make one result together.
    """

    folder: str
    sign: str
    version: str
    threads: int | None = None
    team: int = 1

    def enter(self) -> str:
        """Check that this machine suits the server, and prepare the process.

        Returns:
            A name for the worker.

        Raises:
            BackendError: Another version is installed, or the folder of files is not shared.
        """
        where = f"machine `{socket.gethostname()}`"
        if kandinsky.__version__ != self.version:
            raise BackendError(
                f"version {kandinsky.__version__} is installed on {where}, and {self.version} at the server: install "
                "the same"
            )
        check_shared(Path(self.folder), self.sign, where=where)
        if self.threads is not None:
            threads.use(self.threads)
        return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Replica:
    """Runs jobs of the server's store.

    Args:
        place: The server.
        settings: How to work.
        desk: Handle of the actor that answers for the store.
    """

    def __init__(self, place: Place, settings: WorkerSettings, desk: Any) -> None:
        name = place.enter()
        store = RemoteStore(desk, Path(place.folder))
        self._members = _gather(place, settings) if place.team > 1 else []
        self._worker = Worker(store, settings, name=name)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="turn")
        self._held = ExitStack()
        self._held.enter_context(self._worker.working())

    async def turn(self) -> AsyncIterator[dict[str, Any]]:
        """Take the next job or batch, if there is one, and run it.

        Yields:
            `worker`, the name under which it works; then `jobs`, the names of those that it took.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[list[str] | None] = asyncio.Queue()

        def run() -> None:
            try:
                self._turn(lambda jobs: loop.call_soon_threadsafe(told.put_nowait, jobs))
            finally:
                loop.call_soon_threadsafe(told.put_nowait, None)

        running = loop.run_in_executor(self._thread, run)
        try:
            yield {"worker": self._worker.name}
            while (jobs := await told.get()) is not None:
                yield {"worker": self._worker.name, "jobs": jobs}
            await asyncio.wait([running])
        except (asyncio.CancelledError, GeneratorExit):
            self._worker.stop()  # within a step; what it was doing goes back to the queue
            raise
        finally:
            await asyncio.wait([running])
            self._worker.stopping.clear()
        running.result()

    def _turn(self, tell: Any) -> None:
        import ray

        following: list[Any] = []

        def taken(claims: list[Claim]) -> None:
            tell([claim.job.id for claim in claims])
            following.extend(member.follow.remote(claims) for member in self._members)

        self._worker.turn(taken)
        if self._worker.is_broken:
            os._exit(1)  # the others of the team wait for this one, or it for them
        ray.get(following)

    def check_health(self) -> None:
        """Called by Ray now and then.

        Raises:
            RuntimeError: The worker has ended, and Ray is to start another replica.
        """
        if not self._worker.is_watched:
            raise RuntimeError("the worker has ended")

    def __del__(self) -> None:
        if (held := getattr(self, "_held", None)) is not None:
            held.close()


class Member:
    """One of the further processes of a team."""

    def __init__(self, place: Place, settings: WorkerSettings, rank: int, port: int) -> None:
        name = place.enter()
        _join(rank, place.team, port)
        self._worker = Worker(UnheardStore(Path(place.folder)), settings, name=name, follows=True)

    def start(self) -> None:
        """Load what is to be ready."""
        self._held = ExitStack()
        self._held.enter_context(self._worker.working())

    def follow(self, claims: list[Claim]) -> None:
        """Take part in what the replica has taken."""
        self._worker.follow(claims)
        if self._worker.is_broken:
            os._exit(1)


def _gather(place: Place, settings: WorkerSettings) -> list[Any]:
    """Start the further processes of a team, one in each further bundle of the placement group."""
    import ray
    from ray.util import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = get_current_placement_group()
    assert group is not None  # the deployment asks for one
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = dataclasses.replace(settings, preview_s=None)
    members: list[Any] = []
    for rank in range(1, place.team):
        bundle = group.bundle_specs[rank]
        kind = ray.remote(Member).options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        )
        member: Any = kind.remote(place, quiet, rank, port)
        member.start.remote()
        members.append(member)
    _join(0, place.team, port)
    return members


def _join(rank: int, size: int, port: int) -> None:
    """Say what `torchrun` would; every process sees its own GPU only, as the first."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK="0"
    )
