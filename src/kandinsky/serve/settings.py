"""How a server serves; declared once for `kandinsky serve` and Python."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.model.option import option
from kandinsky.runtime.budget import parse_bytes, parse_memory
from kandinsky.serve.keys import Keys

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
        "Worker processes; default: one per GPU, else one. 0: others run `kandinsky worker`.",
        flags=("--workers",),
        least=0,
        most=64,
    )
    warm_up: bool = option(False, "Load the models before the first request.", flags=("--warm-up",))
    memory: str | None = option(
        None, "Memory for weights in each worker, as in 12GB; the least recently used model goes.", flags=("--memory",)
    )
    loras: str | None = option(None, "Folder of LoRAs that requests may name.", flags=("--loras",), metavar="FOLDER")
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

    def check(self, keys: Keys) -> None:
        """Refuse what would leave the server open, and values that are none.

        Args:
            keys: The keys that were read.

        Raises:
            RequestError: It would listen beyond this machine without a key, or a value is not valid.
        """
        self.options.check()
        _ = self.upload_bytes, self.disk_bytes, self.memory_bytes
        if (folder := self.lora_folder) is not None and not folder.is_dir():
            raise RequestError(f"LoRA folder `{folder}` is not there")
        for origin in self.allowed_origins:
            if not origin.startswith(("http://", "https://")) or origin.rstrip("/") != origin:
                raise RequestError(f"origin `{origin}` is none: write it as `https://example.org`")
        if not self.is_local and not keys and not self.open_to_all:
            raise RequestError(
                f"`{self.host}` can be reached from other machines, and no key is set: give `keys=…`, listen on "
                "127.0.0.1, or say `open_to_all=True`"
            )


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
