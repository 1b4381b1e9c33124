"""A ComfyUI that runs beside the tests as a program of its own, and what a page does with it.

`COMFYUI_FOLDER` names its folder, the one with `main.py`, and `COMFYUI_PYTHON` a Python that has its
packages and this library. `docs/guides/comfyui.md` says how to get both from packages alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START = Path(__file__).with_name("start.py")
SOURCE = Path(__file__).parents[2] / "src"
FOLDER, PYTHON = "COMFYUI_FOLDER", "COMFYUI_PYTHON"
UP_S, RUN_S = 300.0, 900.0  # of a machine that does much else besides
ENDS = ("execution_success", "execution_error", "execution_interrupted")
PREVIEWS, TEXT = (1, 4), 3  # kinds of binary messages


@dataclass
class Run:
    """What came of a workflow.

    Attributes:
        status: 200, or 400 where it was refused.
        answer: What the server said when it was given.
        end: `execution_success`, `execution_error` or `execution_interrupted`.
        error: The message of an error.
        executed: Numbers of the nodes that ran; the others' results were kept from before.
        previews: Images that came while it ran.
        progress: (node, done, total) of each message of progress.
        texts: Texts that nodes showed.
        stopped_s: Time from the request to interrupt to the end.
        outputs: Results by node.
    """

    status: int = 0
    answer: dict[str, Any] = field(default_factory=dict)
    end: str = ""
    error: str = ""
    executed: list[str] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    stopped_s: float = 0.0
    outputs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Program:
    """A running ComfyUI: its address and its folder for files."""

    address: str
    base: Path

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        told = {"content-type": "application/json"}
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), told)
        urllib.request.urlopen(request, timeout=60).close()

    def files(self, run: Run, node: str) -> list[Path]:
        """Files that a node wrote."""
        listed = [one for entries in run.outputs[node].values() if isinstance(entries, list) for one in entries]
        return [self.base / "output" / one["subfolder"] / one["filename"] for one in listed if isinstance(one, dict)]

    def run(self, graph: Mapping[str, Any], *, interrupt_at: int | None = None) -> Run:
        """Run a workflow as the page does, to its end, or interrupt it after so many messages of progress."""
        return asyncio.run(self._run(graph, interrupt_at))

    async def _run(self, graph: Mapping[str, Any], interrupt_at: int | None) -> Run:
        import aiohttp

        made, asked = Run(), 0.0
        timeout = aiohttp.ClientTimeout(total=RUN_S)
        async with aiohttp.ClientSession(self.address, timeout=timeout) as page:
            async with page.ws_connect("/ws?clientId=tests", max_msg_size=0) as socket_:
                await socket_.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
                async with page.post("/prompt", json={"prompt": graph, "client_id": "tests"}) as answer:
                    made.status, made.answer = answer.status, await answer.json()
                if made.status != 200:
                    return made
                async for message in socket_:
                    if message.type is aiohttp.WSMsgType.BINARY:
                        (kind,) = struct.unpack(">I", message.data[:4])
                        if kind in PREVIEWS:
                            made.previews.append(message.data)
                        elif kind == TEXT:
                            (length,) = struct.unpack(">I", message.data[4:8])  # of the node's number
                            made.texts.append(message.data[8 + length :].decode())
                        continue
                    told = json.loads(message.data)
                    data = told.get("data", {})
                    if told["type"] == "executing" and data.get("node"):
                        made.executed.append(data["node"])
                    elif told["type"] == "progress":
                        made.progress.append((data["node"], data["value"], data["max"]))
                        if len(made.progress) == interrupt_at:
                            asked = time.monotonic()
                            async with page.post("/interrupt", json={}) as stopped:
                                assert stopped.status == 200
                    elif told["type"] in ENDS:
                        made.end, made.error = told["type"], data.get("exception_message", "")
                        made.stopped_s = time.monotonic() - asked if asked else 0.0
                        break
            for _ in range(100):  # the history is written after the last message
                async with page.get(f"/history/{made.answer['prompt_id']}") as answer:
                    entry = (await answer.json()).get(made.answer["prompt_id"])
                if entry is not None:
                    made.outputs = entry["outputs"]
                    break
                await asyncio.sleep(0.1)
        return made


@contextmanager
def running(base: Path, *, log: Path) -> Iterator[Program]:
    """Start ComfyUI with its files in ``base``, whose folder custom_nodes exists, until the block ends."""
    folder, python = os.environ[FOLDER], os.environ[PYTHON]
    for name in ("models", "input", "output", "user", "temp", "page"):
        (base / name).mkdir(parents=True, exist_ok=True)
    (base / "page" / "index.html").write_text("no page")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        python, str(START), folder, "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--disable-api-nodes",
        "--base-directory", str(base), "--front-end-root", str(base / "page"),
        "--database-url", f"sqlite:///{base}/user/comfyui.db",
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(SOURCE)}
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        try:
            made = Program(f"http://127.0.0.1:{port}", base)
            _until_up(made, process, log)
            yield made
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until_up(program: Program, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + UP_S
    while time.monotonic() < until and process.poll() is None:
        try:
            program.get("/system_stats")
        except (urllib.error.URLError, OSError, ValueError):
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"ComfyUI did not start:\n{log.read_text(errors='replace')[-3000:]}")
