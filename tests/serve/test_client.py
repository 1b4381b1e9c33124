"""`kandinsky.client`, synchronous and asynchronous, against a real server."""

import asyncio
import inspect
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from kandinsky.client import ApiError, AsyncClient, Client, Event, JobFailed, calls
from kandinsky.client.values import Job, Lines
from kandinsky.errors import RequestError
from serve.conftest import TINY, Server


def test_from_prompt_to_file(server: Server, tmp_path: Path) -> None:
    seen: list[Event] = []
    with Client(server.url) as client:
        assert client.is_ready() and client.models()[0].id == "nano-t2v"
        job = client.create("a panda waves", seed=3, **TINY)
        done = client.wait(job, on_event=seen.append)
        path = client.save(done, tmp_path / "x.mp4")
        assert path.read_bytes()[4:8] == b"ftyp" and done.recipe["seed"] == 3 == done.seed
        assert client.content(done, variant="thumbnail").startswith(b"RIFF")
        again = client.wait(client.create(**{k: v for k, v in done.settings.items()}))
        assert client.content(again) == path.read_bytes()
        remix = client.remix(done, "a red heart")
        assert client.get(remix).id in {one.id for one in client.list(limit=5)}
        client.delete(remix)
        (image,) = client.images("a star", steps=1)
        assert image.startswith(b"\x89PNG")
        (tmp_path / "x.png").write_bytes(image)
        moving = client.create("a star", model="nano-i2v", image=tmp_path / "x.png", **TINY)
        longer = client.extend({"id": done.id}, "a panda", **TINY)
        heard = client.sound(path, "a drum", steps=1)
        assert [client.wait(one).status for one in (moving, longer, heard)] == ["completed"] * 3
        assert list(client.events(done, after=seen[-1].id)) == []  # nothing comes any more
        assert client.wait(client.remix(longer, "a red heart")).status == "completed"  # from the same clip
    assert seen[0].kind == "queued" and seen[-1].kind == "completed"
    assert all(event.job == job.id for event in seen)


def test_errors(server: Server, tmp_path: Path) -> None:
    with Client(server.url) as client:
        with pytest.raises(ApiError, match=r"`prompt`|empty") as caught:
            client.create("", **TINY)
        assert caught.value.status == 400 and caught.value.request_id
        with pytest.raises(RequestError, match="not a file"):
            client.create("x", image=tmp_path / "absent.png")
        with pytest.raises(ApiError) as caught:
            list(client.events("job_" + "0" * 32))
        assert caught.value.status == 404
        job = client.create("x", seconds=1, steps=190)
        client.cancel(job)
        with pytest.raises(JobFailed) as failed:
            client.wait(job)
        assert failed.value.job.status == "cancelled"


def test_the_asynchronous_client(server: Server, tmp_path: Path) -> None:
    async def run() -> None:
        async with AsyncClient(server.url) as client:
            jobs = await asyncio.gather(*(client.create("a cat", seed=seed, **TINY) for seed in range(3)))
            done = await asyncio.gather(*(client.wait(job) for job in jobs))
            assert [job.status for job in done] == ["completed"] * 3 and [job.seed for job in done] == [0, 1, 2]
            assert (await client.save(done[0], tmp_path / "x.mp4")).is_file()
            with pytest.raises(ApiError):
                await client.get("job_x")

    asyncio.run(run())


def test_both_clients_have_the_same_calls() -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(kind, callable)
            if not name.startswith("_")
        }

    assert calls(Client) == calls(AsyncClient)


def test_a_stream_waits_for_a_server_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"id": "job_1", "object": "video", "model": "m", "status": "completed", "progress": 100}
    event = 'id: 4\nevent: completed\ndata: {"job": "job_1", "type": "completed"}\n\n'
    monkeypatch.setattr(calls, "PAUSE_S", 0.0)
    with Client("http://nowhere") as client:
        monkeypatch.setattr(Client, "get", lambda *_: Job.of(job | {"status": "in_progress"}))
        answers = iter([httpx.Response(503, json={}), httpx.Response(200, text=""), httpx.Response(200, text=event)])
        client._http = httpx.Client(base_url="http://nowhere", transport=httpx.MockTransport(lambda _: next(answers)))
        assert [one.kind for one in client.events("job_1")] == ["completed"]


def test_lines_of_a_stream() -> None:
    lines = Lines()
    text = 'id: 7\nevent: step\ndata: {"job": "j", "step": 1}\n\n: ping\n\ndata: {}\n\n'
    found = [event for line in text.split("\n") for event in lines.take(line)]
    assert found[0] == Event("step", "j", {"job": "j", "step": 1}, 7) and found[1].id is None


def test_it_needs_httpx_alone() -> None:
    heavy = "{'torch', 'numpy', 'fastapi', 'httpx'}"
    code = f"import sys, kandinsky.client; print(sorted({{n.partition('.')[0] for n in sys.modules}} & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
