"""Limits that hold before a request is understood, and names that become parts of addresses. No server process."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from kandinsky.client import calls
from kandinsky.errors import RequestError
from kandinsky.jobs.sqlite_store import new_id
from kandinsky.serve import fields
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.guard import Guard
from kandinsky.serve.keys import Keys, Owner, digest
from kandinsky.serve.mcp_tools import OfJob
from kandinsky.serve.metrics import Metrics
from kandinsky.serve.settings import ServeSettings


async def _reading(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads the whole body."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _status(path: str, pieces: list[bytes], **headers: str) -> int:
    """The status that the guard answers to a body in pieces."""
    told: list[Message] = []
    left = list(pieces)
    raw = [
        (name.replace("_", "-").encode(), value.encode()) for name, value in {"host": "127.0.0.1", **headers}.items()
    ]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": raw}

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        told.append(message)

    try:
        asyncio.run(Guard(_reading, settings=ServeSettings())(scope, receive, send))
    except ApiError as error:
        return error.status
    return int(told[0]["status"])


def test_logging_in_reads_a_small_body_only() -> None:
    large = [b"x" * 1024] * 5
    assert _status("/v1/session", large[:4]) == 200
    assert _status("/v1/session", large) == 413 == _status("/v1/session/", large)
    assert _status("/v1/session", [b""], content_length="4097") == 413
    assert _status("/v1/videos", large) == 200


@pytest.mark.parametrize("body", [b'{"a":[' + b"0," * 20_000 + b"0]}", b"[" * 20_000, b'{"a":' * 20_000])
def test_a_body_of_very_many_values_is_not_parsed(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("json.loads", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(ApiError, match="more than 10000 values") as caught:
        fields._json(body)
    assert caught.value.status == 400


def test_a_large_image_is_no_body_of_many_values() -> None:
    image = "data:image/png;base64," + "A" * 3_000_000
    assert fields._json(b'{"image": "%s"}' % image.encode()) == {"image": image}


@pytest.mark.parametrize("name", ["cancel#", "../models", "a/b", "a?b=c", "%2e%2e", "é"])
def test_a_name_stays_one_part_of_the_address(name: str) -> None:
    for path in (
        calls.cancel(name).path,
        calls.get(name).path,
        calls.load(name).path,
        calls.Following("", name, 0).path,
    ):
        assert not set(path) & set("#?") and path.isascii()
        assert len(path.split("/")) == 5 - (path == calls.get(name).path)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    for call in (calls.get, calls.cancel, calls.delete, calls.preview, calls.load):
        with pytest.raises(RequestError, match="is not the name of a"):
            call(name)


@pytest.mark.parametrize("job", ["", "cancel#", "../models", f"job_{7:032x}\n", "job_1"])
def test_assistants_name_real_jobs(job: str) -> None:
    with pytest.raises(ValueError, match="job"):
        OfJob(job=job)
    assert OfJob(job=(real := new_id())).job == real


def test_a_made_up_method_is_no_label() -> None:
    metrics = Metrics(None)  # type: ignore[arg-type]
    for method in ("GET", "BREW", "SECRET-TOKEN"):
        metrics.seen({"type": "http", "method": method}, 200, 0.1)
    labels = {one.labels["method"] for family in metrics.requests.collect() for one in family.samples}
    assert labels == {"GET", "other"}


def test_another_key_ends_the_sessions_of_the_old_one() -> None:
    secret = b"s" * 32
    old = Keys({digest("old-0123456789abcdef"): Owner("alice")}, secret=secret)
    new = Keys({digest("new-0123456789abcdef"): Owner("alice")}, secret=secret)
    cookie = old.cookie(Owner("alice"))
    assert old.owner_of_cookie(cookie) == Owner("alice")
    assert new.owner_of_cookie(cookie) is None
    assert new.owner_of_cookie(new.cookie(Owner("alice"))) == Owner("alice")
