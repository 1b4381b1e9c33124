"""`kandinsky generate` beside a server of the same user: handed over where the result is the same, else made here."""

import dataclasses
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from kandinsky import files
from kandinsky.catalogue import source_of
from kandinsky.cli import handed
from kandinsky.cli.main import main
from kandinsky.client import Client, JobFailed
from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import resolve
from kandinsky.errors import RequestError
from kandinsky.model.values import Request
from kandinsky.serve import announced
from serve.conftest import LIMIT_S, Server

STILL = ("generate", "a panda", "-m", "nano-t2v", "--seconds", "0", "--steps", "1", "--seed", "3")
CLIP = (
    "generate",
    "a panda waves",
    "-m",
    "nano-t2v",
    "--seconds",
    "0.5",
    "--steps",
    "1",
    "--seed",
    "4",
    "--negative",
    "rain",
)


@pytest.fixture
def beside(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """The server, where the command line finds it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(server.folder / "runtime"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    with Client(server.wait_ready().url) as client:
        end = time.monotonic() + LIMIT_S
        while not client.is_free():  # of what other tests have left
            assert time.monotonic() < end
            time.sleep(0.05)
    return server


@pytest.mark.parametrize(("words", "ending"), [(STILL, "png"), (STILL, "webp"), (CLIP, "mp4")])
def test_a_server_makes_the_same_bytes(
    beside: Server, words: tuple[str, ...], ending: str, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = beside.client.get("/v1/jobs").json()["data"]
    assert main([*words, "-o", f"there.{ending}", "--json"]) == 0
    out, err = capfd.readouterr()
    assert f"made by the server at {beside.url} (process {beside.process.pid}); --no-server makes it here" in err
    there = json.loads(out)
    assert main([*words, "-o", f"here.{ending}", "--json", "--no-server"]) == 0
    out, err = capfd.readouterr()
    assert "made by the server" not in err
    here = json.loads(out)
    assert there["recipe"] == here["recipe"] and there.keys() == here.keys()
    assert Path(there["path"]).read_bytes() == Path(here["path"]).read_bytes()
    assert beside.client.get("/v1/jobs").json()["data"] == jobs, "the job is not kept"


def test_a_request_that_is_handed_over_loads_no_torch(beside: Server) -> None:
    code = (
        "import sys; from kandinsky.cli.main import main; code = main(sys.argv[1:]); "
        "print(sorted({'torch', 'numpy', 'av', 'PIL'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *STILL, "-o", "x.png"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "made by the server" in done.stderr and done.stdout.splitlines() == ["x.png", "[]"]


def test_the_announcement_is_the_users_alone(beside: Server) -> None:
    place = announced.folder()
    assert place is not None
    (path,) = place.glob("server-*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(place.stat().st_mode) == 0o700
    assert "key" not in {name for name in json.loads(path.read_text()) if name != "needs_key"}


def test_what_a_server_does_otherwise_is_made_here(beside: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of("nano-t2v")
    found = announced.find(source, RunOptions())
    assert found is not None and found.url == beside.url
    assert announced.find(source, RunOptions(attention="sdpa")) is not None  # a request may choose it
    for other in (RunOptions(dtype="bfloat16"), RunOptions(offload="module"), RunOptions(tiling="official")):
        assert announced.find(source, other) is None
    assert announced.find(source_of("kandinsky3.0"), RunOptions()) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert announced.find(source, RunOptions()) is None


def announce(folder: Path, *, mode: int = 0o600, **facts: Any) -> Path:
    made = announced.announcement("http://127.0.0.1:9", {}, RunOptions(), {}, needs_key=False)
    place = folder / "kandinsky"
    place.mkdir(exist_ok=True)
    path = place / f"server-{facts.get('host', made.host)}-{len(list(place.iterdir()))}.json"
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)} | facts
    path.write_text(json.dumps(values))
    path.chmod(mode)
    return path


def test_stale_and_foreign_files_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    alive = announce(tmp_path, url="http://127.0.0.1:1")
    reused = announce(tmp_path, started="1")  # another process has the number now
    gone = announce(tmp_path, pid=2**22 + 1)
    readable = announce(tmp_path, mode=0o644)
    broken = announce(tmp_path, more="of a newer version")
    empty = alive.with_name(f"server-{files.host()}-9.json")
    empty.touch(0o600)
    assert [one.url for one in announced.running()] == ["http://127.0.0.1:1"]
    assert not reused.exists() and not gone.exists() and readable.exists() and broken.exists()


def test_servers_of_other_machines_are_not_asked_and_their_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announced, "folder", lambda: tmp_path / "kandinsky")  # as in a home that machines share
    alive = announce(tmp_path, host="0a1b2c3d")  # its number and start are those of a process here
    gone = announce(tmp_path, host="0a1b2c3d", pid=2**22 + 1)
    renamed = gone.with_name(f"server-{files.host()}-1.json")
    renamed.write_bytes(gone.read_bytes())
    renamed.chmod(0o600)
    assert list(announced.running()) == []
    assert alive.exists() and gone.exists() and renamed.exists()
    made = announced.announcement("http://127.0.0.1:1", {}, RunOptions(), {}, needs_key=False)
    with announced.announced(made):
        assert [one.url for one in announced.running()] == [made.url]
        assert (tmp_path / "kandinsky" / f"server-{files.host()}-{os.getpid()}.json").exists()


def test_a_server_that_does_not_answer_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("kandinsky.client.calls.PAUSE_S", 0.0)
    source = source_of("nano-t2v")
    announce(tmp_path, models={source.name: announced.digest(source)})
    request = Request("nano-t2v", "a panda", seconds=0, seed=1)
    job = resolve(request, source.card)
    assert handed.handed(source, RunOptions(), request, job, tmp_path / "x.png", quiet=True) is None
    assert "does not make it, this process does" in caplog.text


class Answers:
    """A server of one worker by its answers: it makes one image, and notes what it is asked."""

    def __init__(self, *, running: int = 0, ends: str = "completed", keeps: bool = False) -> None:
        self.running, self.ends, self.keeps = running, ends, keeps
        self.state = "queued"
        self.asked: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        call = f"{request.method} {request.url.path}"
        self.asked.append(call)
        if call == "GET /ready":
            return httpx.Response(200, json={"status": "ready", "workers": 1, "queued": 0, "running": self.running})
        if call.endswith("/events"):
            self.state = self.ends
            event = {"completed": "completed", "failed": "failed"}.get(self.ends)
            return httpx.Response(200, text=f"id: 1\nevent: {event}\ndata: {{}}\n\n") if event else self.broken()
        if call.endswith("/cancel") and self.state == "queued":
            self.state = "cancelled"
        if call.startswith("DELETE") and self.keeps:
            return httpx.Response(404, json={"error": {"message": "gone", "code": "not_found", "param": None}})
        if call.endswith("/content"):
            return httpx.Response(200, content=b"bytes")
        job = {"id": "job_1", "object": "image", "model": "nano-t2v", "status": self.state, "progress": 0}
        job |= {"recipe": {"seed": 1}, "error": {"message": "no memory"} if self.state == "failed" else None}
        return httpx.Response(200, json={"data": [job]} if request.url.path.startswith("/v1/images") else job)

    @staticmethod
    def broken() -> httpx.Response:
        raise KeyboardInterrupt


def hand(answers: Answers, folder: Path, monkeypatch: pytest.MonkeyPatch, *, target: str = "x.png") -> Any:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    source = source_of("nano-t2v")
    announce(folder, models={source.name: announced.digest(source)})
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # is not asked: the key and the prompt stay here
    monkeypatch.setattr(httpx, "HTTPTransport", lambda: httpx.MockTransport(answers))
    request = Request("nano-t2v", "a panda", seconds=0, seed=1)
    return handed.handed(source, RunOptions(), request, resolve(request, source.card), folder / target, quiet=True)


def test_a_result_is_made_once_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Answers(running=1)
    assert hand(busy, tmp_path, monkeypatch) is None and busy.asked == ["GET /ready"]
    made = Answers()
    assert hand(made, tmp_path, monkeypatch) == {"seed": 1} and made.asked[-1] == "DELETE /v1/jobs/job_1"
    assert not any(call.endswith("/cancel") for call in made.asked)
    assert hand(Answers(keeps=True), tmp_path, monkeypatch) == {"seed": 1}  # not made again: the file is here
    assert (tmp_path / "x.png").read_bytes() == b"bytes"


@pytest.mark.parametrize(
    ("ends", "target", "error"),
    [("failed", "x.png", JobFailed), ("queued", "x.png", KeyboardInterrupt), ("completed", "no/x.png", RequestError)],
)
def test_what_ends_without_a_file_is_deleted_too(
    ends: str, target: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no").touch()  # no folder
    answers = Answers(ends=ends)
    with pytest.raises(error):
        hand(answers, tmp_path, monkeypatch, target=target)
    assert answers.state != "queued" and answers.asked[-1] == "DELETE /v1/jobs/job_1"


@pytest.mark.parametrize(
    ("values", "options", "target"),
    [
        ({"prompt_at": ("0.5s a cat",)}, {}, "x.mp4"),
        ({"seconds": 10.0}, {}, "x.mp4"),  # in windows
        ({}, {"lora": ("x.safetensors",)}, "x.mp4"),
        ({}, {"parallel": "cfg=2"}, "x.mp4"),
        ({}, {}, "%03d.png"),
        ({}, {}, "x.mkv"),
    ],
)
def test_what_the_api_cannot_say_is_made_here(values: dict[str, Any], options: dict[str, Any], target: str) -> None:
    request = Request("nano-t2v", "a panda", seed=1, **values)
    job = resolve(request, source_of("nano-t2v").card)
    assert handed._fields(request, job, RunOptions(**options), Path(target)) is None


def test_nobody_is_asked_without_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("KANDINSKY_CACHE", "off")
    assert announced.folder() is None and list(announced.running()) == []
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.devnull)
    assert list(announced.running()) == []
    with announced.announced(announced.announcement("http://x", {}, RunOptions(), {}, needs_key=False)):
        assert list(announced.running()) == []
