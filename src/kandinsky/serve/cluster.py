"""Places the work of a server on a Ray cluster, where ``supervisor.py`` starts processes of its own.

Each request to the deployment is one turn of a worker: as many are open as there are jobs that nobody has taken, up to
the most workers. Ray Serve starts and ends replicas by the number of open requests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import kandinsky
from kandinsky.errors import BackendError, needs_extra
from kandinsky.jobs.ray_connection import Resources, anywhere, connected, import_ray, reason_of
from kandinsky.jobs.remote_store import CALLS, Desk, mark
from kandinsky.jobs.sqlite_store import SqliteStore
from kandinsky.serve.settings import ServeSettings
from kandinsky.serve.workers import LOOK_S, Workers

log = logging.getLogger(__name__)
END_S = 20.0  # for a worker that is to stop within a step
AGAIN_S = 1.0  # until the next request, after one that failed
DEPLOY_AGAIN_S = 30.0
# of the deployment: how often load is measured, over how long, and how soon a replica is added
MEASURE_S, OVER_S, UPSCALE_S = 1.0, 2.0, 1.0


@dataclass(frozen=True, slots=True)
class Share:
    """What one replica takes of the cluster.

    Attributes:
        cpus: CPUs of each of its processes.
        gpus: GPUs of each.
        most: How many replicas there may be.
    """

    cpus: float
    gpus: int
    most: int

    @classmethod
    def of(cls, settings: ServeSettings, size: Resources) -> Share:
        """The share that settings and cluster give.

        Raises:
            BackendError: The cluster lacks what is asked for.
        """
        device = None if settings.options.device in (None, "auto") else str(settings.options.device)
        team = settings.team
        if device == "cuda" or (device is None and size.gpus):
            most = settings.workers or max(settings.min_workers, size.gpus // team)
            if most < 1:
                raise BackendError(
                    f"a worker needs {team} GPUs, and the ray cluster has {size.gpus} ({size}): if machines join when "
                    "they are needed, say how many `workers=…` at most"
                )
            return cls(0, 1, most)
        cpus = settings.worker_cpus or size.worker_cpus((settings.workers or 1) * team)
        most = settings.workers or max(settings.min_workers, size.fitting(cpus) // team, 1)
        return cls(cpus, 0, most)


class Cluster(Workers):
    """Workers on a Ray cluster; see ``Workers``. The store's file stays with this process and its desk.

    Raises:
        BackendError: No cluster answers, or it lacks what is asked for.
    """

    def __init__(
        self,
        settings: ServeSettings,
        store: SqliteStore,
        *,
        names: Sequence[str],
        restarted: Callable[[], None] = lambda: None,
    ) -> None:
        assert settings.ray is not None
        super().__init__(settings, store, names=names, restarted=restarted)
        self._turns: dict[threading.Thread, _Turn] = {}
        self._is_deployed = False
        where = hashlib.sha256(f"{socket.gethostname()}:{store.folder}".encode()).hexdigest()
        self.name = f"kandinsky-{where[:8]}"  # one application for each store, so that servers share a cluster
        self._ray = import_ray()
        with needs_extra("ray.serve", "ray", "`--ray`"):
            from ray import serve
        self._serve = serve
        self._held = ExitStack()
        self._held.enter_context(connected(self._ray, settings.ray))
        try:
            size = Resources.of(self._ray)
            self.share = Share.of(settings, size)
        except BaseException:
            self._held.close()
            raise
        log.info("ray cluster of %s; workers: %d to %d", size, settings.min_workers, self.share.most)
        self._thread = threading.Thread(target=self._run, name="cluster", daemon=True)

    @property
    def is_enough(self) -> bool:
        # the first job starts a worker
        return self._is_deployed and self.settings.min_workers == 0

    def start(self) -> None:
        """Deploy, and place work from then on."""
        self._thread.start()

    def leave(self) -> None:
        """See ``Workers``; a turn that waits for a replica would take a job when its time comes."""
        super().leave()
        for turn in self._open():
            if not turn.jobs:
                turn.cancel()

    def _is_busy(self) -> bool:
        return any(turn.jobs for turn in self._open())

    def _end(self) -> None:
        with self._lock:
            turns = dict(self._turns)
        for turn in turns.values():
            turn.cancel()
        for thread in turns:
            thread.join(END_S)
        if self._thread.is_alive():
            self._thread.join(END_S)
        with suppress(Exception):  # the cluster may be gone
            self._serve.delete(self.name)
        self._held.close()

    def _open(self) -> list[_Turn]:
        with self._lock:
            return list(self._turns.values())

    # -- deploying ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        handle = None
        while handle is None and not self._over.is_set():
            try:
                handle = self._deploy()
            except Exception as error:
                log.error("workers cannot be started: %s", _told(error))
                self._over.wait(DEPLOY_AGAIN_S)
        self._is_deployed = True
        while not self._over.wait(LOOK_S):
            try:
                self._place(handle)
            except Exception:
                log.warning("work cannot be placed", exc_info=True)
        self.store.close()

    def _deploy(self) -> Any:
        """Start the deployment, in place of one that an earlier server left.

        Returns:
            Its handle.
        """
        from kandinsky.serve.replica import Place, Replica

        ray, serve, settings, share = self._ray, self._serve, self.settings, self.share
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})  # the server is the proxy
        if self.name in serve.status().applications:
            serve.delete(self.name)
        here = ray.get_runtime_context().get_node_id()
        at_home = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        desk = ray.remote(Desk).options(
            num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=CALLS, scheduling_strategy=at_home
        )
        self._desk = desk.remote(str(self.store.folder), settings.retention_s)
        threads = None if share.gpus else max(1, int(share.cpus))
        place = Place(
            folder=str(self.store.folder),
            sign=mark(self.store.folder),
            version=kandinsky.__version__,
            threads=threads,
            team=settings.team,
        )
        how = settings.for_workers(self.names)
        how = dataclasses.replace(
            how,
            options=anywhere(settings.options),  # a worker sees the GPUs of its share, and none without
            loras=None if how.loras is None else how.loras.absolute(),
            branches=None if how.branches is None else how.branches.absolute(),
        )
        deployment = serve.deployment(Replica, name="Worker").options(**self._shape())
        application = deployment.bind(place, how, self._desk)
        serve.run(application, name=self.name, route_prefix=None)
        return serve.get_app_handle(self.name).options(stream=True)

    def _shape(self) -> dict[str, Any]:
        """Options of the deployment."""
        settings, share = self.settings, self.share
        bundle = {name: count for name, count in (("CPU", share.cpus), ("GPU", share.gpus)) if count}
        options: dict[str, Any] = {
            "ray_actor_options": {"num_cpus": share.cpus, "num_gpus": share.gpus},
            "max_ongoing_requests": 1,
            "graceful_shutdown_timeout_s": settings.longest_job,
            "graceful_shutdown_wait_loop_s": 0.5,
        }
        if settings.team > 1:
            options |= {
                "placement_group_bundles": [bundle] * settings.team,
                "placement_group_strategy": "STRICT_PACK",
            }
        least = min(settings.min_workers, share.most)
        if least == share.most:
            return options | {"num_replicas": least}
        return options | {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": share.most,
                "target_ongoing_requests": 1,
                "metrics_interval_s": MEASURE_S,
                "look_back_period_s": OVER_S,
                "upscale_delay_s": UPSCALE_S,
                "downscale_delay_s": settings.longest_job,
            }
        }

    # -- placing -----------------------------------------------------------------------------------------------------

    def _place(self, handle: Any) -> None:
        """Open a turn for each job that waits and has none."""
        turns = self._open()
        free = self.share.most - len(turns)
        if free < 1:
            return
        idle = sum(not turn.jobs for turn in turns)
        for _ in range(min(free, self.store.waiting(self.names) - idle)):
            turn = _Turn(handle)
            thread = threading.Thread(target=self._take, args=(turn,), name="turn", daemon=True)
            with self._lock:
                if self._leaving.is_set():
                    return
                self._turns[thread] = turn
            thread.start()

    def _take(self, turn: _Turn) -> None:
        """Follow a turn to its end; jobs of a replica that died begin again."""
        try:
            turn.run()
        except Exception as error:
            lost = self._bury(turn.worker)
            if not self._over.is_set():
                log.warning("worker %s is gone: %s; its jobs: %d", turn.worker or "(none)", _told(error), lost)
                self._restarted()
                self._over.wait(0 if turn.jobs else AGAIN_S)
        finally:
            with self._lock:
                self._turns.pop(threading.current_thread(), None)
            self.store.close()

    def _bury(self, worker: str) -> int:
        try:
            return len(self.store.bury(worker, on_purpose=self._over.is_set())) if worker else 0
        except Exception:
            log.warning("the jobs of a dead worker cannot be given back yet", exc_info=True)
            return 0


class _Turn:
    """A request to the deployment."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._response: Any = None
        self._is_cancelled = False
        self.worker = ""
        self.jobs: tuple[str, ...] = ()

    def run(self) -> None:
        """Follow it until it ends.

        Raises:
            Exception: The replica died, or could not be reached.
        """
        self._response = self._handle.turn.remote()
        if self._is_cancelled:
            self._response.cancel()
        for told in self._response:
            self.worker = told["worker"]
            self.jobs = tuple(told.get("jobs", ()))

    def cancel(self) -> None:
        """Have the replica stop within a step, and give its jobs back."""
        self._is_cancelled = True
        if self._response is not None:
            self._response.cancel()


def _told(error: Exception) -> str:
    """What is worth telling of an error of Ray, which may hold a whole traceback: our own words, if it has some."""
    text = str(error)
    ours = [line for line in text.splitlines() if "kandinsky.errors." in line]
    return reason_of(Exception(ours[-1].partition(": ")[2])) if ours else reason_of(error)
