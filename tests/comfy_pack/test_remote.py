"""The node that has a server work, against a real server process with Nano."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comfy_pack import pack
from comfy_pack.fakes import Host, Interrupted
from kandinsky.client import ApiError
from kandinsky.errors import BackendError, RequestError
from kandinsky.model.values import Video
from serve.conftest import Server

PROMPT = "панда машет"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), models=("nano-t2v", "nano-i2v")) as made:
        yield made.wait_ready()


@pytest.fixture(autouse=True)
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.delenv("KANDINSKY_SERVER", raising=False)
    monkeypatch.delenv("KANDINSKY_API_KEY", raising=False)
    with pack.in_comfyui():
        yield pack.part("remote")


def asked(remote: ModuleType, server: Server, host: Host | None = None, **values: Any) -> Any:
    return remote.generate(server.url, "nano-t2v", PROMPT, values, {}, host or Host())


def test_a_clip_is_asked_for_watched_and_fetched(remote: ModuleType, server: Server) -> None:
    host = Host()
    made = asked(remote, server, host, seconds=1.0, size="96x96", seed=7, steps=30, expand=False)
    job = server.get(made.id)
    assert not made.is_image and made.data == server.client.get(f"/v1/videos/{made.id}/content").content
    assert (job["seed"], job["steps"], job["frames"], job["prompt"]) == (7, 30, 13, PROMPT)
    done = [step for step, total, _ in host.told]
    assert done == sorted(done) and done[-1] == 30 and {total for _, total, _ in host.told} == {30}
    shown = [image for _, _, image in host.told if image is not None]
    assert shown and shown[0].mode == "RGB" and min(shown[0].size) > 32


def test_an_image_is_sent_and_zero_seconds_make_one(remote: ModuleType, server: Server) -> None:
    pixels = np.full((96, 96, 3), 9, np.uint8)
    made = remote.generate(server.url, "nano-i2v", "", {"seconds": 0.5, "steps": 1}, {"image": pixels}, Host())
    given = server.client.get(f"/v1/videos/{made.id}/content", params={"variant": "input"}).content
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(given))), pixels)
    made = asked(remote, server, seconds=0.0, seed=7, steps=1)
    assert made.is_image and server.get(made.id)["object"] == "image"
    assert remote.still(made.data).frames.shape == (1, 96, 96, 3)


def test_prompts_by_time_and_larger_clips_are_sent(remote: ModuleType, server: Server) -> None:
    nodes: Any = pack.part("nodes")
    later = nodes.KandinskyPromptAt.execute(prompt="a cat", at=0.5).args[0]
    told = {"seconds": 1.0, "steps": 1, "seed": 7, "prompt_at": later, "fade": 0.25, "loop": False, "upscale": "1.5"}
    made = remote.generate(server.url, "nano-t2v", PROMPT, told, {}, Host())
    job = server.get(made.id)
    assert job["size"] == "144x144" and job["request"]["upscale"] == "1.5" and "loop" not in job["request"]
    assert job["request"]["prompt_at"] == [{"prompt": "a cat", "at": 0.5}] and job["request"]["fade"] == 0.25
    clip = Video(np.zeros((5, 96, 96, 3), np.uint8), 12.0)
    made = remote.generate(server.url, "nano-t2v", PROMPT, {"steps": 1, "video": clip, "upscale": "2"}, {}, Host())
    assert (server.get(made.id)["size"], server.get(made.id)["frames"]) == ("192x192", 5)
    made = asked(remote, server, seconds=0.0, steps=1, loop=False, upscale="2")
    assert made.is_image and remote.still(made.data).frames.shape == (1, 192, 192, 3)


def test_an_interrupt_cancels_the_job_there(remote: ModuleType, server: Server) -> None:
    with pytest.raises(Interrupted):
        asked(remote, server, Host(stop_after=2), steps=190)
    (job,) = server.client.get("/v1/videos", params={"limit": 1}).json()["data"]
    assert server.wait(job["id"])["status"] == "cancelled"


def test_what_is_refused_is_said_in_the_servers_words(remote: ModuleType, server: Server) -> None:
    with pytest.raises(RequestError, match="1 to 1000"):
        asked(remote, server, steps=5000)
    with pytest.raises(RequestError, match="is not offered here"):
        remote.generate(server.url, "other", PROMPT, {}, {}, Host())
    refused = remote._refused(server.url, ApiError("no key", status=401))
    assert "KANDINSKY_API_KEY" in str(refused.hint)


def test_without_a_server_the_command_is_named(remote: ModuleType) -> None:
    with pytest.raises(BackendError, match="kandinsky serve"):
        remote.generate("http://127.0.0.1:9", "nano-t2v", PROMPT, {}, {}, Host())
    for wrong in ("", "file:///etc/passwd", "http://", "http://user:secret@127.0.0.1:1", "http://a:x"):
        with pytest.raises(RequestError, match="is no address"):
            remote.generate(wrong, "nano-t2v", PROMPT, {}, {}, Host())


def test_a_key_goes_to_servers_of_ones_own_alone(remote: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_API_KEY", "secret")
    assert remote.key_for("http://127.0.0.1:8000") == "secret" and remote.key_for("http://[::1]:1") == "secret"
    assert remote.key_for("https://elsewhere.example:8000") == ""
    monkeypatch.setenv("KANDINSKY_SERVER", "https://elsewhere.example:8000/")
    assert remote.key_for("https://elsewhere.example:8000") == "secret"
    assert remote.default_server() == "https://elsewhere.example:8000"


@pytest.mark.slow
def test_the_default_is_where_a_server_listens(remote: ModuleType) -> None:
    from kandinsky.serve.settings import ServeSettings

    usual = ServeSettings()
    assert remote.default_server() == f"http://{usual.host}:{usual.port}"
