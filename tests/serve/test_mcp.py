"""The Model Context Protocol, spoken by its official client: over stdio to a real process, and at `/mcp`."""

import asyncio
import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from kandinsky.media.video import read_video
from kandinsky.serve.app import create_app, guarded
from kandinsky.serve.settings import ServeSettings
from serve.conftest import Server

mcp = pytest.importorskip("mcp", reason="the package `mcp` is not installed")
NAMES = {"generate", "status", "result", "list_models", "cancel"}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


async def called(client: Any, name: str, **arguments: Any) -> Any:
    answer = await client.call_tool(name, arguments)
    assert not answer.is_error, answer.content[0].text
    return answer


async def finished(client: Any, **arguments: Any) -> tuple[dict[str, Any], Any]:
    """A job from `generate` to `result`: what is told, and the thumbnail."""
    job = (await called(client, "generate", **arguments)).structured_content
    assert job["status"] == "queued" and job["job"].startswith("job_")
    for _ in range(10):
        now = (await called(client, "status", job=job["job"], wait_s=20)).structured_content
        if now["status"] not in ("queued", "in_progress"):
            break
    assert now["status"] == "completed", now
    answer = await called(client, "result", job=job["job"])
    assert json.loads(answer.content[0].text) == answer.structured_content
    (thumbnail,) = answer.content[1:]
    assert thumbnail.mime_type == "image/webp"
    return answer.structured_content, Image.open(io.BytesIO(base64.b64decode(thumbnail.data)))


async def refused(client: Any, name: str, **arguments: Any) -> str:
    answer = await client.call_tool(name, arguments)
    assert answer.is_error
    text: str = answer.content[0].text
    return text


@pytest.mark.slow
def test_stdio_against_a_server_of_its_own(tmp_path: Path) -> None:
    """The process starts its server, has no torch, and takes the server with it when the client goes."""

    async def run() -> list[psutil.Process]:
        words = ["-m", "kandinsky", "serve", "nano-t2v", "--mcp", "--store", str(tmp_path / "jobs")]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "KANDINSKY_SERVER": ""}
        how = mcp.StdioServerParameters(
            command=sys.executable, args=[*words, "--results", str(tmp_path / "made")], env=env
        )
        with (tmp_path / "log").open("w") as log:
            async with mcp.Client(mcp.stdio_client(how, errlog=log)) as client:
                assert {tool.name for tool in (await client.list_tools()).tools} == NAMES
                models = (await called(client, "list_models")).structured_content["models"]
                assert [model["id"] for model in models] == ["nano-t2v"] and models[0]["sizes"] == ["96x96"]
                told, thumbnail = await finished(client, prompt="a panda waves", seconds=0.5, steps=1, seed=7)
                assert len(read_video(told["file"])) == 5 and Path(told["file"]).parent == tmp_path / "made"
                assert told["seed"] == 7 and thumbnail.size == (96, 96)
                still, _ = await finished(client, prompt="a star", kind="image", steps=1)
                with Image.open(still["file"]) as image:
                    assert image.size == (96, 96)
                long = (await called(client, "generate", prompt="a fox", steps=190)).structured_content
                assert (await called(client, "cancel", job=long["job"])).structured_content["job"] == long["job"]
                ended = (await called(client, "status", job=long["job"], wait_s=30)).structured_content
                assert ended["status"] == "cancelled"
                assert "has no result" in await refused(client, "result", job=long["job"])
                assert "is empty" in await refused(client, "generate", prompt="")
                assert "`stepz`" in await refused(client, "generate", prompt="x", stepz=3)
                assert "neither a file" in await refused(client, "generate", prompt="x", image="/nowhere.png")
                assert "there is no tool" in await refused(client, "destroy")
                assert "there is no job" in await refused(client, "status", job="job_" + "0" * 32)
                (own,) = (one for one in psutil.Process().children() if "--mcp" in one.cmdline())
                below = own.children(recursive=True)
                assert not any("torch" in Path(one.path).name for one in own.memory_maps())
                assert any("worker" in one.cmdline() for one in below)
        return [own, *below]

    _, alive = psutil.wait_procs(asyncio.run(run()), timeout=30)
    assert not alive


def test_http_at_the_server(server: Server) -> None:
    async def run() -> None:
        async with mcp.Client(f"{server.url}/mcp") as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == NAMES
            told, _ = await finished(client, prompt="a panda waves", seconds=0.5, steps=1)
            assert told["url"].startswith(server.url) and "file" not in told
            assert httpx.get(told["url"]).content[4:8] == b"ftyp"
            heard = await called(client, "generate", kind="audio", video=told["job"], prompt="a drum", steps=1)
            assert heard.structured_content["model"] == "nano-v2a"
            longer = await called(client, "generate", video=told["job"], seconds=0.5, steps=1)
            assert longer.structured_content["model"] == "nano-i2v"  # which needs no prompt
            known = [{"frames": told["job"], "at": 0, "cut": "0:1"}, {"frames": told["job"], "at": "end", "cut": "0:1"}]
            between = await called(client, "generate", prompt="x", conditions=known, seconds=1, steps=1)
            retake = await called(client, "generate", prompt="x", video=told["job"], strength=0.9, steps=1)
            asked = [one.structured_content for one in (between, retake)]
            assert all(one["model"] == "nano-t2v" for one in asked), asked
            moving = await called(client, "generate", image=told["job"], prompt="a cat", seconds=0.5, steps=1)
            for one in (heard, longer, moving, between, retake):
                await called(client, "cancel", job=one.structured_content["job"])
            path = str(Path(__file__))
            assert "name of a finished job" in await refused(client, "generate", prompt="x", image=path)
            hidden = [{"frames": path}]
            assert "name of a finished job" in await refused(client, "generate", prompt="x", conditions=hidden)

    asyncio.run(run())


def test_a_key_is_needed_where_the_server_has_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_API_KEY", "a-key-of-sixteen-characters")
    app = guarded(create_app(ServeSettings(models=("nano-t2v",), workers=0, store=str(tmp_path / "jobs"))))
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list_models", "arguments": {}}}
    headers = {"accept": "application/json, text/event-stream"}

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            bare = await client.post("/mcp", json=call, headers=headers)
            assert bare.status_code == 401 and bare.json()["error"]["code"] == "invalid_api_key"
            foreign = await client.post("/mcp", json=call, headers={**headers, "origin": "https://evil.example"})
            assert foreign.status_code == 403
            key = {"authorization": "Bearer a-key-of-sixteen-characters"}
            answer = await client.post("/mcp", json=call, headers={**headers, **key})
            assert answer.status_code == 200
            (model,) = answer.json()["result"]["structuredContent"]["models"]
            assert model["id"] == "nano-t2v"

    asyncio.run(run())
