"""How a server serves; declared once for `kandinsky serve` and Python."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.model.option import option
from kandinsky.runtime.budget import parse_bytes, parse_memory
from kandinsky.runtime.parallel.layout import AUTO, Layout, read
from kandinsky.serve.keys import Keys

if TYPE_CHECKING:
    from kandinsky.jobs.worker import WorkerSettings

# what only matters with `ray`
CLUSTER = ("min_workers", "worker_cpus", "longest_job")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What a server offers, to whom, and within which limits."""

    models: tuple[str, ...] = ()
    options: RunOptions = field(default_factory=RunOptions)
    host: str = option("127.0.0.1", "Address to listen on.", flags=("--host",))
    port: int = option(8000, "Port; 0 takes a free one.", flags=("--port",), least=0)
    store: str | None = option(
        None, "Folder of jobs and their files; default: in your data folder.", flags=("--store",), metavar="FOLDER"
    )
    keys: str | None = option(
        None, "File with API keys: one a line, or TOML with limits per key.", flags=("--keys",), metavar="FILE"
    )
    open_to_all: bool = option(False, "Listen beyond this machine without any key.", flags=("--open-to-all",))
    origins: str | None = option(
        None,
        "Origins of web pages elsewhere that may use it, as in https://a.example,https://b.example.",
        flags=("--origins",),
        metavar="LIST",
    )
    hosts: str | None = option(
        None, "Host names under which it is reached, for servers behind a proxy.", flags=("--hosts",), metavar="LIST"
    )
    workers: int | None = option(
        None,
        "Worker processes, with --ray at most; default: one per GPU, else one. 0: others run `kandinsky worker`.",
        flags=("--workers",),
        least=0,
        most=64,
    )
    warm_up: bool = option(False, "Load the models before the first request.", flags=("--warm-up",))
    memory: str | None = option(
        None, "Memory for weights in each worker, as in 12GB; the least recently used model goes.", flags=("--memory",)
    )
    loras: str | None = option(None, "Folder of LoRAs that requests may name.", flags=("--loras",), metavar="FOLDER")
    branches: str | None = option(
        None,
        "Folder of control and reference branches that requests may name.",
        flags=("--branches",),
        metavar="FOLDER",
    )
    studies: str | None = option(
        None,
        "Folder of sets of clips, each a folder, that may be compared at /compare.",
        flags=("--studies",),
        metavar="FOLDER",
    )
    batch: int = option(
        8,
        "Most requests that run as one batch, where it pays; 1 switches batches off.",
        flags=("--batch",),
        least=1,
        most=64,
    )
    preview_every: float = option(
        0.4, "Seconds between previews of a job; 0 switches them off.", flags=("--preview-every",), least=0
    )
    queue: int = option(256, "Most jobs that wait; further ones are refused.", flags=("--queue",), least=1)
    effort: float = option(
        8.0, "Largest job, in multiples of the model's default request.", flags=("--effort",), least=1
    )
    upload: str = option("100MB", "Largest request body, as in 100MB.", flags=("--upload",))
    keep_days: float = option(
        30.0, "Days that finished jobs and their files are kept.", flags=("--keep-days",), least=0
    )
    disk: str = option("1GB", "Free disk space below which no job is accepted.", flags=("--disk",))
    fetch: str | None = option(
        None, "Hosts from which images may be fetched by https URL; default: none.", flags=("--fetch",), metavar="LIST"
    )
    attempts: int = option(3, "How often a job is begun whose worker died.", flags=("--attempts",), least=1, most=20)
    live_limit: float = option(
        600.0,
        "Seconds after which a live session ends if jobs wait; 0: no live sessions.",
        flags=("--live-limit",),
        least=0,
    )
    drain: float = option(10.0, "Seconds for running jobs to finish when the server ends.", flags=("--drain",), least=0)
    mcp: bool = option(
        False,
        "Speak the Model Context Protocol on stdin and stdout: the tools of a server that is started, or of "
        "KANDINSKY_SERVER.",
        flags=("--mcp",),
    )
    results: str | None = option(
        None, "With --mcp: folder for results; default: in your data folder.", flags=("--results",), metavar="FOLDER"
    )
    ray: str | None = option(
        None,
        "Run the workers on a Ray cluster: local, auto, or HOST:PORT of the cluster this machine belongs to.",
        flags=("--ray",),
        metavar="ADDRESS",
    )
    min_workers: int = option(
        1,
        "With --ray: workers that stay while nothing is queued; 0: none.",
        flags=("--min-workers",),
        least=0,
        most=64,
    )
    worker_cpus: float | None = option(
        None, "With --ray and no GPUs: CPUs of each worker; default: up to 4.", flags=("--worker-cpus",), least=0.1
    )
    longest_job: float = option(
        3600.0,
        "With --ray: seconds of the longest job; so long an idle worker stays, and a leaving one may finish.",
        flags=("--longest-job",),
        least=1,
    )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    @property
    def upload_bytes(self) -> int:
        return parse_bytes(self.upload, "upload")

    @property
    def disk_bytes(self) -> int:
        return parse_bytes(self.disk, "disk")

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else parse_memory(self.memory)

    @property
    def lora_folder(self) -> Path | None:
        return None if self.loras is None else local_path(self.loras, "LoRA folder")

    @property
    def branch_folder(self) -> Path | None:
        return None if self.branches is None else local_path(self.branches, "branch folder")

    @property
    def studies_folder(self) -> Path | None:
        return None if self.studies is None else local_path(self.studies, "studies folder")

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        return _listed(self.origins)

    @property
    def allowed_hosts(self) -> tuple[str, ...]:
        """Host names that requests may carry; empty = any."""
        named = tuple(name.lower() for name in _listed(self.hosts))
        return (*LOOPBACK, *named) if self.is_local else (*named, *(LOOPBACK if named else ()))

    @property
    def fetch_hosts(self) -> tuple[str, ...]:
        return tuple(name.lower() for name in _listed(self.fetch))

    @property
    def retention_s(self) -> float:
        return self.keep_days * 86400

    def for_workers(self, models: Sequence[str], **facts: Any) -> WorkerSettings:
        """How a worker works.

        Args:
            models: The models it runs.
            facts: Further fields of ``WorkerSettings``.
        """
        from kandinsky.jobs.worker import WorkerSettings

        return WorkerSettings(
            options=self.options,
            models=tuple(models),
            warm=tuple(models) if self.warm_up else (),
            memory=self.memory_bytes,
            loras=self.lora_folder,
            branches=self.branch_folder,
            batch=self.batch,
            preview_s=self.preview_every or None,
            **facts,
        )

    def check(self, keys: Keys) -> None:
        """Refuse what would leave the server open, and values that are none.

        Args:
            keys: The keys that were read.

        Raises:
            RequestError: It would listen beyond this machine without a key, or a value is not valid.
        """
        # on a cluster the device is that of other machines
        (self.options if self.ray is None else self.options.changed(device=None)).check()
        _ = self.upload_bytes, self.disk_bytes, self.memory_bytes
        self._check_cluster()
        if (folder := self.lora_folder) is not None and not folder.is_dir():
            raise RequestError(f"LoRA folder `{folder}` is not there")
        if (folder := self.branch_folder) is not None and not folder.is_dir():
            raise RequestError(f"branch folder `{folder}` is not there")
        if (folder := self.studies_folder) is not None and not folder.is_dir():
            raise RequestError(f"studies folder `{folder}` is not there")
        for origin in self.allowed_origins:
            if not origin.startswith(("http://", "https://")) or origin.rstrip("/") != origin:
                raise RequestError(f"origin `{origin}` is none: write it as `https://example.org`")
        if not self.is_local and not keys and not self.open_to_all:
            raise RequestError(
                f"`{self.host}` can be reached from other machines, and no key is set: give `keys=…`, listen on "
                "127.0.0.1, or say `open_to_all=True`"
            )

    @property
    def team(self) -> int:
        """Processes, and GPUs, of each worker of a cluster: as many as the layout has.

        Raises:
            RequestError: The layout says no number.
        """
        asked = self.options.parallel
        if asked is None:
            return 1
        if asked == AUTO:
            raise RequestError('`parallel="auto"` says no number of GPUs for a worker: name a layout, as `cfg=2`')
        return (asked if isinstance(asked, Layout) else read(str(asked))).size

    def _check_cluster(self) -> None:
        """Refuse what does not suit a cluster, and what needs one.

        Raises:
            RequestError: See there.
        """
        if self.ray is None:
            for f in dataclasses.fields(self):
                if f.name in CLUSTER and getattr(self, f.name) != f.default:
                    raise RequestError(f"`{f.name}=…` is for workers on a cluster: name one with `ray=…`")
            return
        _ = self.team
        if self.ray.startswith("ray://"):
            raise RequestError(
                f"`{self.ray}` connects from outside, and workers write to the server's folder: let this machine join "
                'the cluster with `ray start --address HOST:6379 --num-cpus 0`, and use `ray="auto"`'
            )
        if self.workers is not None and self.workers < max(1, self.min_workers):
            raise RequestError(
                f"`workers={self.workers}` on a cluster is the most at once: use {max(1, self.min_workers)} or more"
            )
        device = self.options.device
        if device is not None and str(device) not in ("auto", "cpu", "cuda"):
            raise RequestError(f'`device="{device}"` is one of many on a cluster: use `auto`, `cpu` or `cuda`')


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(word for part in (text or "").split(",") if (word := part.strip()))
