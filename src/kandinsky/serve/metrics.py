"""Figures for Prometheus: what the jobs' events tell, and how the queue stands when somebody asks.

No label holds a prompt, an id or a path.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import Scope

import kandinsky
from kandinsky.jobs.records import State, StoredEvent
from kandinsky.jobs.store import JobStore

LONG_S = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")  # others are the client's words
QUICK_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30)


class Metrics:
    """The figures of one server.

    Args:
        store: The store.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._models: dict[str, tuple[str, str]] = {}
        at = self.registry = CollectorRegistry()
        self.jobs = Gauge("kandinsky_jobs", "Jobs by state", ["state"], registry=at)
        self.ended = Counter("kandinsky_jobs_ended", "Jobs that ended", ["model", "task", "outcome"], registry=at)
        self.queue_s = Histogram("kandinsky_job_queue_seconds", "From arrival to start", buckets=LONG_S, registry=at)
        self.run_s = Histogram("kandinsky_job_run_seconds", "Of a job", ["model"], buckets=LONG_S, registry=at)
        self.step_s = Histogram("kandinsky_step_seconds", "Of a sampling step", ["model"], buckets=LONG_S, registry=at)
        self.stage_s = Histogram("kandinsky_stage_seconds", "Of a stage", ["stage"], buckets=LONG_S, registry=at)
        self.cancel_s = Histogram("kandinsky_cancel_seconds", "From wish to end", buckets=QUICK_S, registry=at)
        self.workers = Gauge("kandinsky_worker_up", "Workers that report", registry=at)
        self.restarts = Counter("kandinsky_worker_restarts", "Workers that were started again", registry=at)
        self.memory = Gauge("kandinsky_device_memory_bytes", "Memory of workers", ["kind"], registry=at)
        self.requests = Histogram(
            "kandinsky_http_request_seconds", "HTTP", ["route", "method", "status"], buckets=QUICK_S, registry=at
        )
        self.build = Gauge("kandinsky_build_info", "Version", ["version"], registry=at)
        self.build.labels(kandinsky.__version__).set(1)

    def event(self, event: StoredEvent) -> None:
        """Count an event; called from one thread."""
        if event.kind in ("step", "preview", "decoding", "phase"):
            if event.kind == "step" and event.job in self._models:
                self.step_s.labels(self._models[event.job][0]).observe(event.data.get("step_s", 0))
            return
        if event.kind == "started":
            job = self._store.get(event.job)
            if job is not None:
                self._models[event.job] = (job.model, job.kind)
            self.queue_s.observe(event.data.get("waited_s", 0))
        elif event.kind in ("completed", "failed", "cancelled"):
            job = self._store.get(event.job)
            model, kind = self._models.pop(event.job, ("", "")) if job is None else (job.model, job.kind)
            self._models.pop(event.job, None)
            self.ended.labels(model, kind, event.kind).inc()
            if event.kind == "completed":
                self.run_s.labels(model).observe(event.data.get("run_s", 0))
                for stage, taken_s in dict(((job and job.result) or {}).get("stages") or {}).items():
                    self.stage_s.labels(stage).observe(taken_s)
            elif event.kind == "cancelled" and event.data.get("after_s") is not None:
                self.cancel_s.observe(event.data["after_s"])

    def seen(self, scope: Scope, status: int, taken_s: float) -> None:
        """Count an HTTP request."""
        route = scope.get("route")
        path = getattr(route, "path", "") or "other"
        method = scope.get("method", "")
        self.requests.labels(path, method if method in METHODS else "other", str(status)).observe(taken_s)

    def answer(self) -> tuple[bytes, str]:
        """All figures as text, and its type."""
        for state, count in self._store.counts().items():
            self.jobs.labels(str(State(state))).set(count)
        workers = self._store.workers()
        self.workers.set(len(workers))
        for kind, name in (("host", "rss_bytes"), ("weights", "weights_bytes"), ("device", "device_bytes")):
            self.memory.labels(kind).set(sum(float(one.facts.get(name, 0)) for one in workers))
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
