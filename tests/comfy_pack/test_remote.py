"""The node that has a server work: what is on the wire, and what is said when something fails."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comfy_pack import pack
from comfy_pack.fakes import Host, Interrupted, Server, serving
from kandinsky.errors import BackendError, KandinskyError, RequestError

PROMPT = "панда"


def png(size: tuple[int, int] = (8, 6)) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size, (10, 20, 30)).save(held, "PNG")
    return held.getvalue()


@pytest.fixture(autouse=True)
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.delenv("KANDINSKY_SERVER", raising=False)
    monkeypatch.delenv("KANDINSKY_API_KEY", raising=False)
    with pack.in_comfyui():
        yield pack.part("remote")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server(b"a film", png())) as made:
        yield made


def asked(remote: ModuleType, server: Server, host: Host | None = None, **values: Any) -> Any:
    return remote.generate(server.address, "nano-t2v", PROMPT, values, {}, host or Host())


def test_a_video_is_asked_for_watched_and_fetched(remote: ModuleType, server: Server) -> None:
    host = Host()
    made = asked(remote, server, host, seconds=2.0, size="96x96", seed=7, expand=False)
    assert made.data == b"a film" and made.id == "video_1" and not made.is_image
    (method, path, headers, form), *rest = server.calls
    assert (method, path) == ("POST", "/v1/videos") and headers["content-type"].startswith("multipart/form-data")
    assert form == {
        "model": "nano-t2v", "prompt": PROMPT, "seconds": "2.0", "size": "96x96", "seed": "7", "expand": "false",
    }  # fmt: skip
    assert headers["idempotency-key"]
    assert [call[:2] for call in rest][-1] == ("GET", "/v1/videos/video_1/content")
    assert [done for done, total, _ in host.told] == sorted(done for done, total, _ in host.told) and host.told


def test_images_travel_as_files(remote: ModuleType, server: Server) -> None:
    pixels = np.full((6, 8, 3), 9, np.uint8)
    remote.generate(server.address, "nano-i2v", "", {}, {"image": pixels}, Host())
    form = server.calls[0][3]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(form["input_reference"]))), pixels)
    made = remote.generate(server.address, "m", PROMPT, {"seconds": 0}, {"image": pixels}, Host())
    path, form = server.calls[-1][1], server.calls[-1][3]
    assert path == "/v1/images/edits" and isinstance(form["image"], bytes) and made.is_image


def test_zero_seconds_make_an_image(remote: ModuleType, server: Server) -> None:
    made = asked(remote, server, seconds=0.0, seed=7)
    assert server.calls[0][1] == "/v1/images/generations"
    assert server.calls[0][3] == {"model": "nano-t2v", "prompt": PROMPT, "seed": 7, "response_format": "b64_json"}
    still = remote.still(made.data)
    assert still.frames.shape == (1, 6, 8, 3) and tuple(still.frames[0, 0, 0]) == (10, 20, 30)


def test_an_interrupt_cancels_the_job_there(remote: ModuleType, server: Server) -> None:
    server.polls = 10**6
    with pytest.raises(Interrupted):
        asked(remote, server, Host(stop_after=2))
    assert server.calls[-1][:2] == ("DELETE", "/v1/videos/video_1")


def test_what_fails_is_said_in_the_servers_words(remote: ModuleType, server: Server) -> None:
    server.fails = "memory ran out"
    with pytest.raises(KandinskyError, match="memory ran out"):
        asked(remote, server)
    server.refuse = (400, "steps `0` are not supported")
    with pytest.raises(RequestError, match="steps `0`"):
        asked(remote, server)
    server.refuse = (401, "no key")
    with pytest.raises(RequestError, match="no key") as refused:
        asked(remote, server)
    assert "KANDINSKY_API_KEY" in str(refused.value.hint)


def test_without_a_server_the_command_is_named(remote: ModuleType, server: Server) -> None:
    with serving(Server()) as gone:
        address = gone.address
    with pytest.raises(BackendError, match="kandinsky serve"):
        remote.generate(address, "nano-t2v", PROMPT, {}, {}, Host())
    for wrong in ("", "file:///etc/passwd", "http://", "http://user:secret@127.0.0.1:1"):
        with pytest.raises(RequestError, match="is no address"):
            remote.generate(wrong, "nano-t2v", PROMPT, {}, {}, Host())


def test_a_key_goes_to_servers_of_ones_own_alone(
    remote: ModuleType, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KANDINSKY_API_KEY", "secret")
    asked(remote, server)
    assert server.calls[0][2]["authorization"] == "Bearer secret"
    headers = remote._client("https://elsewhere.example:8000").headers
    assert "authorization" not in headers
    monkeypatch.setenv("KANDINSKY_SERVER", "https://elsewhere.example:8000/")
    assert remote._client("https://elsewhere.example:8000").headers["authorization"] == "Bearer secret"
    assert remote.default_server() == "https://elsewhere.example:8000/"
