"""Live sessions in this process: what becomes of them when something is late, wrong, gone, or somebody else's."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from kandinsky.errors import RequestError
from kandinsky.files import beside, is_left_over
from kandinsky.jobs import live_line
from kandinsky.jobs.live import Prompter
from kandinsky.jobs.live import Session as WorkersSession
from kandinsky.jobs.records import NewJob, State
from kandinsky.jobs.sqlite_store import HELD_S
from kandinsky.serve import live
from kandinsky.serve.app import create_app, guarded
from kandinsky.serve.guard import Guard
from kandinsky.serve.keys import Owner
from kandinsky.serve.live import Lives
from kandinsky.serve.settings import ServeSettings
from serve.test_live import CARD

HOST = "ws://127.0.0.1"
LIVE = f"{HOST}/v1/live"
KEY, START = "the-key-of-alice", {"type": "start", "prompt": "a cat"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("live-faults")
    (folder / "cards").mkdir()
    (folder / "cards" / "nano-causal.toml").write_text(CARD)
    (folder / "keys.toml").write_text(f'[alice]\nkey = "{KEY}"\nper_minute = 600\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KANDINSKY_CARDS", str(folder / "cards"))
        settings = ServeSettings(
            models=("nano-causal",), store=str(folder / "jobs"), workers=0, keys=str(folder / "keys.toml")
        )
        yield create_app(settings)


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(guarded(app), base_url="http://127.0.0.1", headers={"X-API-Key": KEY}) as made:
        yield made


@pytest.fixture
def lives(app: Any, client: TestClient) -> Lives:
    found: Lives = app.state.lives
    return found


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        yield Path(folder)


def until(seen: Any, kind: str) -> dict[str, Any]:
    for _ in range(50):
        word: dict[str, Any] = seen.receive_json()
        if word["type"] == kind:
            return word
    raise AssertionError(kind)


def rest(seen: Any) -> tuple[list[dict[str, Any]], int, str]:
    """All words to the end, and the code and reason of the closing."""
    words = []
    try:
        while True:
            words.append(seen.receive_json())
    except WebSocketDisconnect as closed:
        return words, closed.code, closed.reason


def no_jobs(lives: Lives) -> bool:
    """Whether sessions leave no jobs that wait or run, within a few seconds."""
    end = time.monotonic() + 10
    while lives.store.list(states=(State.QUEUED, State.RUNNING), source=live_line.KIND).jobs:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Worker:
    """The worker of a session, who says what it is told to."""

    def __init__(self, lives: Lives, job_id: str) -> None:
        job = lives.store.get(job_id)
        assert job is not None
        self.line = live_line.Line(job.order["address"])
        self.line.send({"type": "hello", "job": job_id, "secret": job.order["secret"]})

    def hear(self) -> dict[str, Any]:
        told = self.line.receive()
        assert told is not None
        return told


# -- beginning ---------------------------------------------------------------------------------------------------------


def test_who_says_nothing_is_closed_with_a_reason(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "START_S", 0.1)
    with client.websocket_connect(LIVE) as seen:
        _, code, reason = rest(seen)
    assert code == 1008 and "`start`" in reason


def test_a_start_that_takes_long_still_begins(
    client: TestClient, lives: Lives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "START_S", 0.2)
    begin = lives.begin

    def slow(owner: Owner, values: Any) -> Any:
        time.sleep(0.5)
        return begin(owner, values)

    monkeypatch.setattr(lives, "begin", slow)
    with client.websocket_connect(LIVE) as seen:
        seen.send_json(START)
        until(seen, "session")
        seen.send_json({"type": "stop"})
        assert rest(seen)[1:] == (1000, "stopped")
    assert no_jobs(lives)


def test_a_start_that_nobody_waits_for_leaves_no_job(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = lives.begin

    def slow(owner: Owner, values: Any) -> Any:
        time.sleep(0.3)
        return begin(owner, values)

    monkeypatch.setattr(lives, "begin", slow)

    async def run() -> None:
        waiting = asyncio.create_task(lives._begun(Owner("alice"), START))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0.6)
        await asyncio.gather(*lives._closing)

    asyncio.run(run())
    assert no_jobs(lives)


# -- several servers ---------------------------------------------------------------------------------------------------


def test_another_server_leaves_sessions_alone_and_sweeps_what_dead_ones_left(
    client: TestClient, lives: Lives, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    mine = beside(short / "kandinsky-live")
    host = mine.name.split("-")[-2]
    dead = short / f".kandinsky-live.part-4194304-7-{host}-0"
    elsewhere = short / ".kandinsky-live.part-4194304-7-00000000-0"
    for folder in (mine, dead, elsewhere):
        folder.mkdir()
    left = {"kind": live_line.KIND, "model": "nano-causal", "source": live_line.KIND}
    ids = [
        lives.store.add(NewJob(order={"address": str(folder / "line")}, **left))[0].id  # type: ignore[arg-type]
        for folder in (dead, elsewhere)
    ]
    with client.websocket_connect(LIVE) as seen:
        seen.send_json(START)
        session = until(seen, "session")["id"]
        other = Lives(lives.store, lives.offers, lives.settings, lives.intake)

        async def run() -> None:
            await other.start()
            assert Path(other.address).exists() and Path(other.address).parent.stat().st_mode & 0o077 == 0
            await other.stop()

        asyncio.run(run())
        states = [found.state for one in (session, *ids) if (found := lives.store.get(one))]
        assert states == [State.QUEUED, State.CANCELLED, State.QUEUED]
        assert not dead.exists() and mine.exists() and elsewhere.exists() and not Path(other.address).parent.exists()
        seen.send_json({"type": "stop"})
        rest(seen)
    elsewhere.rmdir()
    monkeypatch.setattr(lives.store, "clock", lambda: time.time() + 2 * HELD_S)  # a container of another name, gone
    asyncio.run(run())
    found = lives.store.get(ids[1])
    assert found is not None and found.state == State.CANCELLED
    assert is_left_over(dead) and not is_left_over(mine) and not is_left_over(elsewhere) and not is_left_over(short)


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_every_prompt_that_begins_is_told() -> None:
    """Whatever number a client gives it: none, the one before again; and if it is the prompt of before."""
    told: list[dict[str, Any]] = []
    prompter = Prompter("a panda", 12.0)
    begin = threading.Event()
    begin.set()
    session = SimpleNamespace(_prompter=prompter, _begin=begin, fps=12.0, line=SimpleNamespace(send=told.append))
    asked = (None, ("a cat", 0), None, ("a dog", 0), ("a dog", 5), ("a cat", 5), ("a panda", 5), None)
    for at, new in enumerate(asked):
        if new is not None:
            prompter.take(*new)
        WorkersSession._ask(session, float(at))  # type: ignore[arg-type]
    assert [(one["id"], one["prompt"], one["chunk"]) for one in told] == [
        (0, "a cat", 1), (0, "a dog", 3), (5, "a dog", 4), (5, "a cat", 5), (5, "a panda", 6),
    ]  # fmt: skip
    assert all(one["type"] == "applied" for one in told)


def test_what_is_typed_before_the_worker_comes_reaches_it(client: TestClient, lives: Lives) -> None:
    with client.websocket_connect(LIVE) as seen:
        seen.send_json(START)
        session = until(seen, "session")["id"]
        for number, prompt in ((1, "a dog"), (0, "a cat")):  # and back to what was asked for first
            seen.send_json({"type": "prompt", "prompt": prompt, "id": number})
            assert until(seen, "accepted")["id"] == number
        worker = Worker(lives, session)
        assert worker.hear() == {"type": "prompt", "prompt": "a cat", "id": 0}
        seen.send_json({"type": "prompt", "prompt": "a dog", "id": 3})  # while the worker loads
        until(seen, "accepted")
        worker.line.send({"type": "ready"})
        assert worker.hear() == {"type": "prompt", "prompt": "a dog", "id": 3}
        assert worker.hear() == {"type": "begin"}  # behind all that was said before the first chunk
        worker.line.send({"type": "applied", "id": 0, "prompt": "a cat", "chunk": 0, "frame": 0})
        assert until(seen, "applied")["id"] == 0
        seen.send_json({"type": "stop"})
        rest(seen)
        worker.line.close()


def test_what_builds_on_a_dropped_frame_is_dropped_too() -> None:
    outbox = live.Outbox(12.0)

    def take(begin: int, *keys: int) -> bool:
        return outbox.add({"frame": begin, "chunk": begin // 4, "keys": list(keys)}, [b"x"] * 4)

    def waits() -> list[int]:
        return [frame.number for frame in outbox.frames]

    assert not take(0, 0) and not take(4) and waits() == list(range(8))
    assert take(8) and not outbox.frames and outbox.dropped == 12  # nothing left that stands by itself: ask for a key
    assert take(12) and not outbox.frames
    assert not take(16, 16) and waits() == [16, 17, 18, 19] and outbox.dropped == 16
    assert not take(20, 22) and not take(24) and waits() == [22, 23, 24, 25, 26, 27]  # from a key on, all of them
    outbox.frames.clear()  # they were sent
    assert not take(28) and waits() == [28, 29, 30, 31]
    # frames that stand by themselves: as many as a chunk has wait
    for begin in (32, 36, 40):
        assert not outbox.add({"frame": begin, "chunk": 0}, [b"x"] * 4)
    assert waits() == list(range(36, 44))


# -- limits and faults -------------------------------------------------------------------------------------------------


def test_saving_counts_as_asking(client: TestClient, lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    with client.websocket_connect(LIVE) as seen:
        seen.send_json(START)
        session = lives.sessions[until(seen, "session")["id"]]
        worker = Worker(lives, session.job.id)
        worker.line.send({"type": "phase", "phase": "encode"})
        while until(seen, "phase")["phase"] != "encode":
            pass
        session.owner = Owner("alice", per_minute=2)
        lives.intake.buckets._levels.clear()
        for number in range(3):
            seen.send_json({"type": "save", "seconds": 1, "id": number})
        error = until(seen, "error")["error"]
        assert error["code"] == "rate_limit_exceeded" and "2 times a minute" in error["message"]
        assert [worker.hear()["id"] for _ in range(2)] == [0, 1]
        lives.intake.buckets._levels.clear()
        seen.send_json({"type": "stop"})
        rest(seen)
        worker.line.close()


def test_a_fault_of_the_server_is_told_as_one(
    client: TestClient, lives: Lives, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(self: Any) -> None:
        await asyncio.sleep(0.2)
        raise ValueError("a secret of the program")

    with monkeypatch.context() as patch:
        patch.setattr(live.Session, "tend", broken)
        with client.websocket_connect(LIVE) as seen:
            seen.send_json(START)
            words, code, reason = rest(seen)
    assert (code, reason) == (1011, "internal error") and words[-1] == {"type": "end", "reason": "internal_error"}
    assert [word["error"]["code"] for word in words if word["type"] == "error"] == ["internal_error"]
    assert "secret" not in json.dumps(words) and "a secret of the program" in caplog.text
    with client.websocket_connect(LIVE) as seen:  # what a worker says that cannot be read
        seen.send_json(START)
        worker = Worker(lives, until(seen, "session")["id"])
        worker.line.send({"type": "chunk"})
        words, code, reason = rest(seen)
        assert (code, reason) == (1011, "internal error")
        worker.line.close()
    assert no_jobs(lives)


def test_a_worker_that_fails_says_why(client: TestClient, lives: Lives) -> None:
    with client.websocket_connect(LIVE) as seen:
        seen.send_json(START)
        worker = Worker(lives, until(seen, "session")["id"])
        worker.line.send({"type": "failed", "error": {"code": "out_of_memory", "message": "no room", "hint": "less"}})
        words, code, reason = rest(seen)
        worker.line.close()
    assert code == 1011 and "failed" in reason and words[-2]["error"]["message"] == "no room; less"


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/v1/live", {"X-API-Key": "a-key-of-nobody-"}, 401, "invalid_api_key"),
        ("/v1/live", {"origin": "https://elsewhere.example"}, 403, "bad_origin"),
        ("/v1/live", {"host": "elsewhere.example"}, 403, "bad_host"),
        ("/v1/nothing", {}, 404, "not_found"),
    ],
)
def test_a_refused_socket_says_why(
    client: TestClient, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(f"{HOST}{path}", headers=headers):
        pass
    assert refused.value.status_code == status and refused.value.json()["error"]["code"] == code
    assert refused.value.json()["error"]["message"]


def test_where_no_answer_is_possible_the_closing_says_why() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError("it is refused before")

    scope: Any = {"type": "websocket", "path": "/v1/live", "headers": [(b"host", b"evil.example")], "extensions": {}}
    asyncio.run(Guard(app, settings=ServeSettings())(scope, receive, send))
    assert [one["type"] for one in sent] == ["websocket.accept", "websocket.close"]
    assert sent[1]["code"] == 4403 and "host name" in sent[1]["reason"] and len(sent[1]["reason"].encode()) <= 123


def test_where_the_line_lies(lives: Lives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(lives.address).is_socket()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(lives.address)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    with pytest.raises(RequestError, match="too long for a socket"):
        asyncio.run(Lives(lives.store, lives.offers, lives.settings, lives.intake).start())
