"""`/v1/live` on a real server: a causal Nano over a WebSocket."""

from __future__ import annotations

import io
import itertools
import json
import queue
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import psutil
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import kandinsky
from kandinsky.engine import timeline
from kandinsky.jobs import job_files, live_line
from kandinsky.jobs import live as live_jobs
from kandinsky.jobs.live import Prompter
from kandinsky.jobs.live import Session as LiveSession
from kandinsky.jobs.sqlite_store import SqliteStore
from kandinsky.lab.nano.measure import background_colour
from kandinsky.lab.nano.measure_world import stands
from kandinsky.media import recipe as recipes
from serve.conftest import BROWSER, Server, browser
from serve.test_serve_pages import blocks

CARD = """
id = "nano-causal"
base = "nano-t2v"
[sampling]
steps = 1
guidance = 1.0
mag_ratios = []
attention = { type = "causal", frames = 2, reach = 1 }
[roll]
context_noise = 0.1
"""
FRAME = struct.Struct("!IId")
BLUE, PINK = 5, 7  # of captions.COLOURS
KEY, OTHER = "the-key-of-alice", "the-key-of-bob--"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cards")
    (folder / "nano-causal.toml").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, cards: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("live")
    (folder / "keys.toml").write_text(f'[alice]\nkey = "{KEY}"\n[bob]\nkey = "{OTHER}"\nrunning = 1\n')
    models, options = (
        ("nano-t2v", "nano-causal", "nano-world"),
        ("--keys", str(folder / "keys.toml"), "--live-limit", "3"),
    )
    with Server(folder, *options, models=models, KANDINSKY_CARDS=str(cards)) as server:
        server.client.headers["authorization"] = f"Bearer {KEY}"
        yield server.wait_ready()


class Viewer:
    """A client; frames are acknowledged as they come unless it is slow."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.words: list[dict[str, Any]] = []
        self.frames: list[tuple[int, int, float, bytes]] = []
        self.acks = True

    def say(self, **word: Any) -> None:
        self.socket.send(json.dumps(word))

    def read(self) -> dict[str, Any] | None:
        """The next message; None for a frame."""
        told = self.socket.recv(timeout=PATIENCE_S)
        if isinstance(told, bytes):
            number, chunk, at = FRAME.unpack(told[: FRAME.size])
            self.frames.append((number, chunk, at, told[FRAME.size :]))
            if self.acks:
                self.say(type="ack", frame=number)
            return None
        self.words.append(json.loads(told))
        return self.words[-1]

    def until(self, kind: str, test: Callable[[dict[str, Any]], bool] = lambda word: True) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            word = self.read()
            if word is not None and word["type"] == kind and test(word):
                return word
        raise AssertionError((kind, self.words))

    def until_frames(self, count: int) -> None:
        while len(self.frames) < count:
            self.read()

    def rest(self) -> int:
        """Read to the end; returns the code of the closing."""
        try:
            while True:
                self.read()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            return closed.rcvd.code


@contextmanager
def viewer(server: Server, *, key: str | None = KEY, **more: Any) -> Iterator[Viewer]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with connect(server.url.replace("http", "ws") + "/v1/live", additional_headers=headers, **more) as socket:
        yield Viewer(socket)


def test_a_session_shows_switches_saves_and_ends(live: Server, cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with viewer(live) as seen:
        seen.say(type="start", model="nano-causal", prompt="a cat", seed=5, size="96x96")
        told = seen.until("session")
        assert (told["seed"], told["width"], told["height"], told["fps"]) == (5, 96, 96, 12)
        first = seen.until("chunk")
        assert (first["chunk"], first["frame"], first["prompt"]) == (0, 0, "a cat") and first["made_s"] > 0
        assert first["format"] == "jpeg" and "codec" not in first and "keys" not in first
        seen.until_frames(5)
        numbers = [number for number, *_ in seen.frames]
        assert numbers == list(range(len(numbers))) and seen.frames[4][2] == pytest.approx(4 / 12)
        assert Image.open(io.BytesIO(seen.frames[0][3])).size == (96, 96)
        seen.say(type="prompt", prompt="a zzyzx tractor", id=7)
        assert seen.until("accepted")["id"] == 7
        applied = seen.until("applied")
        assert (applied["id"], applied["prompt"]) == (7, "a zzyzx tractor")
        shown = seen.until("chunk", lambda word: word["prompt"] == "a zzyzx tractor")
        assert (shown["chunk"], shown["frame"]) == (applied["chunk"], applied["frame"])
        assert shown["unused_words"] == ["zzyzx"] and shown["dropped"] == 0
        seen.until("chunk", lambda word: word["chunk"] == applied["chunk"] + 2)
        seen.say(type="save", seconds=1.5, id=9)
        saved = seen.until("saved")
        assert saved["id"] == 9 and saved["seconds"] == pytest.approx(1.5)
        seen.say(type="stop")
        assert seen.rest() == 1000 and seen.words[-1] == {"type": "end", "reason": "stopped"}
    clip = live.get(saved["video"])
    assert (clip["status"], clip["model"], clip["seconds"], clip["frames"]) == ("completed", "nano-causal", "1.5", 18)
    assert clip["bytes"] > 1000 and clip["variants"]
    file = live.folder / "clip.mp4"
    file.write_bytes(live.client.get(saved["url"]).content)
    recipe = recipes.read(file)
    line = timeline.read(recipe)
    assert [prompt for _, prompt in line.prompts] == ["a cat", "a zzyzx tractor"] and line.first_frame > 0
    assert line.prompts[1][0] == applied["frame"] and "address" not in json.dumps(recipe)
    # made again, here, by the library
    monkeypatch.setenv("KANDINSKY_CARDS", str(cards))
    again = kandinsky.load("nano-causal", device="cpu").replay(recipe).gather()
    assert len(again) == 18 and timeline.digest([again.frames]) == recipe["frames_sha256"]
    shown_then = {number: jpeg for number, _, _, jpeg in seen.frames}
    for place in range(18):
        if (jpeg := shown_then.get(line.first_frame + place)) is not None:
            assert np.abs(np.asarray(Image.open(io.BytesIO(jpeg)), int) - again.frames[place]).mean() < 6


def test_another_prompt_while_a_world_is_played(live: Server) -> None:
    with viewer(live) as seen:
        seen.say(type="start", model="nano-world", prompt="a panda on a blue background", seed=2)
        assert seen.until("session")["actions"] == ["stay", "left", "right", "jump", "grow"]
        seen.say(type="action", action="right")
        seen.until("chunk", lambda word: word["action"] == "right" and word["chunk"] >= 2)
        seen.until("chunk", lambda word: word["action"] == "right" and word["chunk"] >= 4)
        seen.say(type="prompt", prompt="a frog on a pink background", id=1)  # while the key is held
        applied = seen.until("applied")
        assert (applied["id"], applied["prompt"]) == (1, "a frog on a pink background")
        begun = seen.until("chunk", lambda word: word["prompt"] == applied["prompt"])
        assert (begun["chunk"], begun["action"]) == (applied["chunk"], "right")
        seen.say(type="action")
        seen.until("chunk", lambda word: word["chunk"] >= applied["chunk"] + 2)

        def at(chunk: int) -> np.ndarray:
            while not any(number >= chunk for _, number, *_ in seen.frames):
                seen.read()
            jpeg = [jpeg for _, number, _, jpeg in seen.frames if number == chunk][-1]
            return np.asarray(Image.open(io.BytesIO(jpeg)))

        before, after = at(applied["chunk"] - 1), at(applied["chunk"] + 1)
        assert background_colour(before[None]) == BLUE and background_colour(after[None]) == PINK
        assert stands(before).x > 0.2 < stands(after).x  # it is where the one before was led
        seen.say(type="save", seconds=3)
        saved = seen.until("saved")
        seen.say(type="stop")
        assert seen.rest() == 1000
    file = live.folder / "world.mp4"
    file.write_bytes(live.client.get(saved["url"]).content)
    recipe = recipes.read(file)
    shows = {(one.prompt, one.action) for _, one in timeline.read(recipe).prompts if isinstance(one, kandinsky.Play)}
    assert {("a panda on a blue background", "right"), ("a frog on a pink background", "right")} <= shows
    again = kandinsky.load("nano-world", device="cpu").replay(recipe).gather()
    assert timeline.digest([again.frames]) == recipe["frames_sha256"]


def test_the_example_of_the_guide(live: Server) -> None:
    (code,) = [block for block in blocks("python") if "/v1/live" in block]
    address = '"ws://127.0.0.1:8000/v1/live"'
    assert address in code
    there = f'"{live.url.replace("http", "ws")}/v1/live", additional_headers={{"X-API-Key": "{KEY}"}}'
    names: dict[str, Any] = {}
    exec(code.replace(address, there), names)
    assert names["number"] >= 36 and names["jpeg"][:2] == b"\xff\xd8"
    assert names["told"] == {"type": "end", "reason": "stopped"}


def test_a_slow_viewer_gets_the_newest_frames(live: Server) -> None:
    with viewer(live) as seen:
        seen.acks = False
        seen.say(type="start", model="nano-causal", prompt="a dog", seed=1)
        seen.until_frames(24)  # two seconds are sent ahead, and no more
        made_s = max(word["made_s"] for word in seen.words if word["type"] == "chunk")
        with pytest.raises(TimeoutError):  # while some chunks are made, which find no room, on a busy machine too
            while True:
                assert seen.socket.recv(timeout=min(20.0, max(2.5, 4 * made_s))) is not None
        seen.acks = True
        seen.say(type="ack", frame=24)
        told = seen.until("chunk", lambda word: word["dropped"] > 0)
        seen.read()
        number = seen.frames[-1][0]
        assert number > 24 and told["dropped"] >= number - 24
        seen.say(type="stop")
        assert seen.rest() == 1000


DECODERS = {"h264": ("h264", "avc1.42C0"), "vp9": ("vp9", "vp09.00.10.08")}


def decoded(seen: Viewer, name: str, frames: list[tuple[int, int, float, bytes]]) -> list[np.ndarray]:
    """Frames of a coded stream from a key frame on."""
    decoder: Any = av.CodecContext.create(name, "r")
    decoder.thread_count = 1
    packets = [av.Packet(data) for *_, data in frames]
    return [one.to_ndarray(format="rgb24") for packet in (*packets, None) for one in decoder.decode(packet)]


@pytest.mark.parametrize("format", DECODERS)
def test_a_coded_stream_shows_the_frames_that_are_saved(live: Server, format: str) -> None:
    name, codec = DECODERS[format]
    with viewer(live) as seen:
        seen.say(type="start", model="nano-causal", prompt="a cat", seed=5, format=[format, "jpeg"])
        first = seen.until("chunk")
        assert first["format"] == format and first["codec"].startswith(codec) and first["keys"] == [0]
        seen.until_frames(13)
        seen.say(type="save", seconds=1)
        saved = seen.until("saved")
        # a slow viewer: what it is sent goes on with a key frame
        seen.acks = False
        seen.until_frames(len(seen.frames) + 24)
        last = seen.frames[-1][0]
        with pytest.raises(TimeoutError):
            while True:
                assert seen.socket.recv(timeout=4.0) is not None
        seen.acks = True
        seen.say(type="ack", frame=last)
        seen.until("chunk", lambda word: word["dropped"] > 0)
        seen.until_frames(len(seen.frames) + 9)
        torn = next(place for place, (a, b) in enumerate(itertools.pairwise(seen.frames), 1) if b[0] > a[0] + 1)
        keys = {number for word in seen.words if word["type"] == "chunk" for number in word["keys"]}
        assert seen.frames[torn][0] in keys
        # another format from the next chunk on
        seen.say(type="format", format="jpeg")
        seen.until("chunk", lambda word: word["format"] == "jpeg")
        seen.read()
        assert seen.frames[-1][3][:2] == b"\xff\xd8"
        seen.say(type="format", format=format)
        again = seen.until("chunk", lambda word: word["format"] == format)
        assert again["keys"][0] == again["frame"]
        seen.say(type="format", format=format)  # the same: a key frame
        assert seen.until("chunk", lambda word: bool(word["keys"]))["frame"] > again["frame"]
        seen.say(type="stop")
        assert seen.rest() == 1000
    (live.folder / f"{format}.mp4").write_bytes(live.client.get(saved["url"]).content)
    recipe = recipes.read(live.folder / f"{format}.mp4")
    begin, count = recipe["first_frame"], recipe["frames"]
    with av.open(str(live.folder / f"{format}.mp4")) as container:
        kept = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    shown = decoded(seen, name, seen.frames[:torn])
    assert len(shown) == torn and shown[0].shape == (96, 96, 3)
    near = [np.abs(shown[begin + place].astype(int) - kept[place]).mean() for place in range(count)]
    assert max(near) < 8, near
    assert len(decoded(seen, name, seen.frames[torn : torn + 9])) == 9  # by themselves


def test_wrong_messages_are_one_clear_line_each(live: Server) -> None:
    with viewer(live) as seen:

        def refused(text: str | bytes) -> dict[str, Any]:
            seen.socket.send(text)
            error: dict[str, Any] = seen.until("error")["error"]
            assert "\n" not in error["message"] and error["message"]
            return error

        assert "JSON" in refused("panda")["message"] and "binary" in refused(b"\x00")["message"]
        assert "`start`, `prompt`" in refused('{"type": "go"}')["message"] and "object" in refused("[1]")["message"]
        assert "`start` first" in refused('{"type": "save"}')["message"]
        assert refused('{"type": "start", "prompt": " "}')["code"] == "missing"
        wrong = refused('{"type": "start", "prompt": "a cat", "model": "nano-t2v"}')
        assert wrong["param"] == "model" and "use `nano-causal`" in wrong["message"]
        assert refused('{"type": "start", "prompt": "a cat", "model": "no"}')["code"] == "model_not_found"
        assert "64x64" in refused('{"type": "start", "prompt": "a cat", "size": "64x64"}')["message"]
        assert refused('{"type": "start", "prompt": "a cat", "seed": -1}')["param"] == "seed"
        assert refused('{"type": "start", "prompt": "a cat", "colour": 1}')["code"] == "unknown_parameter"
        assert refused(json.dumps({"type": "start", "prompt": "a" * 4001}))["param"] == "prompt"
        seen.say(type="start", prompt="a cat")  # the only model that can
        seen.until("chunk")
        assert "already" in refused('{"type": "start", "prompt": "a cat"}')["message"]
        assert refused('{"type": "save", "seconds": 31}')["param"] == "seconds"
        assert refused('{"type": "prompt", "prompt": ""}')["code"] == "missing"
        assert refused('{"type": "ack"}')["param"] == "frame"
        assert refused('{"type": "format", "format": "mpeg1"}')["param"] == "format"
        assert refused('{"type": "format", "format": []}')["param"] == "format"
        seen.until("chunk")  # and it went on


def test_who_may_not_look_is_told(live: Server) -> None:
    for key in (None, "not-a-key-of-this-server"):
        with pytest.raises(InvalidStatus) as refused, viewer(live, key=key):
            pass
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body or b"")["error"]["code"] == "invalid_api_key"
    with pytest.raises(InvalidStatus) as refused, viewer(live, origin="https://elsewhere.example"):
        pass
    assert refused.value.response.status_code == 403
    with viewer(live, origin=live.url) as seen:
        seen.say(type="stop")
        assert seen.rest() == 1000
    answer = live.client.get("/v1/live")
    assert answer.status_code == 426 and "WebSocket" in answer.json()["error"]["message"]
    with viewer(live) as seen:
        seen.socket.send(json.dumps({"type": "start", "prompt": "a" * 70_000}))
        with pytest.raises(ConnectionClosed) as closed:
            seen.socket.recv(timeout=PATIENCE_S)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


def test_sessions_and_jobs_share_the_worker_in_turn(live: Server) -> None:
    with viewer(live) as seen, viewer(live, key=OTHER) as waits:
        seen.say(type="start", prompt="a cat")
        seen.until("chunk")
        waits.say(type="start", prompt="a dog")
        assert waits.until("phase")["phase"] == "queued"
        waits.say(type="prompt", prompt="a star", id=1)  # while it waits
        with viewer(live, key=OTHER) as third:  # bob may have one job
            third.say(type="start", prompt="a dog")
            assert third.until("error")["error"]["code"] == "too_many_jobs"
        assert seen.rest() == 1013 and seen.words[-1]["reason"] == "limit"  # after three seconds, since one waits
        first = waits.until("chunk")
        assert (first["chunk"], first["frame"], first["prompt"]) == (0, 0, "a star")
        assert [word["id"] for word in waits.words if word["type"] == "applied"] == [1]
        job = live.create("a panda", model="nano-t2v")
        waits.socket.close()  # who goes away frees the worker
        assert live.wait(job["id"])["status"] == "completed"
    assert not SqliteStore(live.folder / "jobs").list(source=live_line.KIND).jobs  # sessions leave no rows


def test_prompts_without_end_are_kept_no_longer_than_a_recipe_can_name_them() -> None:
    prompter = Prompter("a panda", 12.0)
    for number in range(3):
        assert prompter(number * 0.5) == "a panda"
    assert prompter.timeline == [(0, "a panda")]
    for number in range(400):
        prompter.take(f"{number} " + "я" * 1000, number)
        prompter(number + 2.0)
    assert not prompter.can_be_told and not prompter.timeline


def test_what_was_said_while_a_session_waited_is_in_its_first_chunk(tmp_path: Path) -> None:
    """Also where the worker's thread that hears is late."""
    told: list[dict[str, Any]] = []
    heard: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def answer() -> None:
        for word in early:
            heard.put(word)

    class Line:
        def send(self, word: dict[str, Any], data: bytes = b"") -> bool:
            told.append(word)
            if word["type"] == "ready":  # the server's answer, late, behind what was said before
                threading.Timer(0.3, answer).start()
            return True

        def receive(self) -> dict[str, Any] | None:
            return heard.get()

    def stream(ask: Callable[[float], Any], **_: Any) -> Iterator[kandinsky.Video]:
        shows = ask(0.0)
        yield kandinsky.Video(
            np.zeros((1, 8, 8, 3), np.uint8),
            12.0,
            0,
            {"chunk": 0, "start": 0.0, "prompt": shows.prompt, "action": shows.action},
        )
        heard.put(None)

    roll = SimpleNamespace(actions=("stay", "left"))
    pipe = SimpleNamespace(
        card=SimpleNamespace(clip=SimpleNamespace(fps=12.0), roll=roll), stream=stream, cancel=lambda: None
    )
    early: list[dict[str, Any]] = [
        {"type": "action", "action": "left"},
        {"type": "prompt", "prompt": "a star", "id": 4},
        {"type": "begin"},
    ]
    LiveSession(Line(), pipe, "a panda", {}, store=tmp_path).run()  # type: ignore[arg-type]
    (chunk,) = [word for word in told if word["type"] == "chunk"]
    assert (chunk["prompt"], chunk["action"]) == ("a star", "left")
    assert [word["id"] for word in told if word["type"] == "applied"] == [4]


def test_a_clip_that_nobody_hears_of_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sends = iter((False, True))
    line = SimpleNamespace(send=lambda told, data=b"": next(sends))
    pipe = SimpleNamespace(card=SimpleNamespace(clip=SimpleNamespace(fps=12.0), roll=None))
    session = LiveSession(line, pipe, "a panda", {}, store=tmp_path)  # type: ignore[arg-type]
    stream = kandinsky.Video(np.zeros((5, 64, 64, 3), np.uint8), 12.0, 0)
    monkeypatch.setattr(session, "_clip", lambda seconds: stream)
    monkeypatch.setattr(live_jobs.results, "write_clip", lambda clip, folder, *rest, **more: write(folder))

    def write(folder: Path) -> dict[str, str]:
        (folder / "a1-video.mp4").write_bytes(b"x")
        return {"file": "a1-video.mp4"}

    for name, is_there in (("job_" + "a" * 32, False), ("job_" + "b" * 32, True)):
        folder = job_files.folder_of(tmp_path, name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        session._saves.acquire()
        session._save({"id": 1, "clip": name, "seconds": 1})
        assert (folder / "a1-video.mp4").is_file() == is_there == folder.is_dir()


@pytest.mark.slow
def test_the_page_in_a_browser(live: Server) -> None:
    chromium = browser()
    command = ["node", "live.mjs", chromium, live.url, KEY]
    done = subprocess.run(command, cwd=BROWSER, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["ok"], told["problem"]


@pytest.mark.slow
def test_a_worker_or_a_server_that_ends_says_so(live: Server) -> None:
    """The last one, since nothing is left after it."""
    with viewer(live) as seen:
        seen.say(type="start", prompt="a cat")
        seen.until("chunk")
        psutil.Process(live.worker_pids()[0]).kill()
        assert seen.rest() == 1011
        assert [word["error"]["code"] for word in seen.words if word["type"] == "error"] == ["worker_died"]
    live.wait_ready()
    with viewer(live) as seen:  # and the next one begins
        seen.say(type="start", prompt="a cat")
        seen.until("chunk")
        assert live.process is not None
        live.process.terminate()
        assert seen.rest() == 1001 and seen.words[-1] == {"type": "end", "reason": "closing"}
    assert live.process.wait(30) == 0
