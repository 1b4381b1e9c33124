"""`kandinsky serve --mcp`: the tools of ``mcp_tools`` over standard input and output.

The tools ask the server that KANDINSKY_SERVER names; without one, this process starts a server of its own, on a free
port of this machine, and ends it when its input ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kandinsky.client import AsyncClient, Job
from kandinsky.client.calls import ADDRESS
from kandinsky.errors import BackendError, RequestError
from kandinsky.files import local_path
from kandinsky.jobs.job_files import ID
from kandinsky.jobs.order import MEDIA_TYPES
from kandinsky.jobs.sqlite_store import default_folder
from kandinsky.serve.mcp_tools import server_of
from kandinsky.serve.settings import ServeSettings
from kandinsky.serve.worker_command import flags_of

END_S = 20.0


class McpOverStdio:
    """Tools for a program that started this process.

    Args:
        folder: Where results are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._client: AsyncClient | None = None
        self._own: subprocess.Popen[str] | None = None

    def start(self, settings: ServeSettings) -> None:
        """Start a server, unless the environment names one."""
        if not os.environ.get(ADDRESS):
            self._own = subprocess.Popen(
                server_command(settings),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                close_fds=True,
                start_new_session=True,  # ended by this process alone, so that it drains
            )

    def stop(self) -> None:
        """End the server that was started, with its running jobs given back to the queue."""
        if self._own is None:
            return
        self._own.terminate()
        try:
            self._own.wait(END_S)
        except subprocess.TimeoutExpired:
            self._own.kill()
            self._own.wait()
        assert self._own.stdout is not None
        self._own.stdout.close()

    @asynccontextmanager
    async def client(self, request: Any) -> AsyncIterator[AsyncClient]:
        """See ``Door``."""
        if self._client is None:
            self._client = AsyncClient(None if self._own is None else await asyncio.to_thread(self._address))
        yield self._client

    def _address(self) -> str:
        """Address of the server that was started; waits until it listens."""
        assert self._own is not None and self._own.stdout is not None
        line = self._own.stdout.readline().strip()
        if not line:
            raise BackendError("the server did not start: what it says is on standard error")
        return line

    def file(self, given: str) -> Any:
        """See ``Door``: results of jobs, files of this machine, `data:` URLs."""
        if ID.fullmatch(given):
            return {"id": given}
        if given.startswith("data:"):
            return {"image_url": given}
        path = Path(given).expanduser()
        if not path.is_file():
            raise RequestError(f"`{given[:200]}` is neither a file of this machine nor the name of a job")
        return path

    async def place(self, request: Any, client: AsyncClient, job: Job) -> dict[str, str]:
        """See ``Door``: the result as a file."""
        endings = {kind: ending for ending, kind in MEDIA_TYPES.items()}
        ending = endings.get(str(job.data.get("media_type")), "bin")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{job.kind}-{job.id[4:12]}.{ending}"
        if not path.is_file():
            await client.save(job, path)
        return {"file": str(path), "url": f"{client.url}/v1/jobs/{job.id}/content"}


def server_command(settings: ServeSettings) -> list[str]:
    """The command of a server with these settings, on a free port where none was chosen."""
    default = next(f.default for f in dataclasses.fields(ServeSettings) if f.name == "port")
    own = dataclasses.replace(settings, mcp=False, results=None, port=0 if settings.port == default else settings.port)
    words: Sequence[str] = (*settings.models, *flags_of(own), *flags_of(own.options))
    return [sys.executable, "-P", "-m", "kandinsky", "serve", *words, "--quiet", "--parent", str(os.getpid())]


def serve_stdio(settings: ServeSettings) -> None:
    """Answer tools on standard input and output until the input ends.

    Args:
        settings: Of the server that is started if the environment names none.

    Raises:
        BackendError: The package `mcp` is not installed.
        RequestError: The folder for results cannot be one.
    """
    folder = default_folder().parent / "results"
    door = McpOverStdio(folder if settings.results is None else local_path(settings.results, "results"))
    server = server_of(door)
    from mcp.server.stdio import stdio_server

    async def answer() -> None:
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    door.start(settings)
    try:
        asyncio.run(answer())
    finally:
        door.stop()
