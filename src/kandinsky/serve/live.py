"""`/v1/live`: a stream over a WebSocket, which shows what is typed.

A session is a job of the queue: a worker takes it when it is free, calls the server over a Unix socket
(``jobs/live_line.py``), and makes frames until the session ends. The server passes them on, no more than a client
takes: what waits too long is dropped, so that nobody waits for a slow one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import struct
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from kandinsky.engine import timeline
from kandinsky.engine.attention import attention_for
from kandinsky.engine.request import parse_size, resolve
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.files import beside, is_left_over, remove, sweep
from kandinsky.jobs import job_files, live_line
from kandinsky.jobs.order import Order, work_of
from kandinsky.jobs.records import JobRecord, NewJob, State
from kandinsky.jobs.sqlite_store import HELD_S, SqliteStore, new_id
from kandinsky.media.packets import JPEG
from kandinsky.model.values import Request as Wanted
from kandinsky.serve import live_messages
from kandinsky.serve.access import Access, owner_of_connection
from kandinsky.serve.envelope import ApiError, body, told
from kandinsky.serve.intake import Intake
from kandinsky.serve.keys import Owner
from kandinsky.serve.offers import Offer, Offers
from kandinsky.serve.routes import errors
from kandinsky.serve.settings import ServeSettings
from kandinsky.serve.shapes import Envelope

log = logging.getLogger(__name__)
router = APIRouter(tags=["live"])
FRAME = struct.Struct("!IId")  # before each packet: number of the frame, chunk, second of the stream
START_S = 30.0  # to say what to show, after connecting
STALL_S = 30.0  # without an `ack` while frames wait for one
TEND_S = 0.25
FAREWELL_S = 1.0  # for the last words
LINE, LONGEST_ADDRESS = "line", 103  # of a Unix socket's name: the least that any system allows
AHEAD_S = 2.0  # of frames that were sent and not yet acknowledged
# What a socket is closed with, by why its session ends
CLOSES = {
    "stopped": (1000, "stopped"),
    "closing": (1001, "the server or its worker is about to end"),
    "stalled": (1008, "no frame was acknowledged for too long"),
    "failed": (1011, "the session failed: see the last `error`"),
    "internal_error": (1011, "internal error"),
    "limit": (1013, "others wait: start again to queue up"),
}
NO_START = (1008, f"no `start` within {START_S:g} s")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, as it waits to be sent."""

    number: int
    chunk: Mapping[str, Any]
    data: bytes
    is_key: bool


class Outbox:
    """What is to be sent to a client: words, which all arrive, and frames, of which the newest do.

    Args:
        fps: Frames a second.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.words: deque[dict[str, Any]] = deque()
        self.frames: deque[Frame] = deque()
        self.unread: deque[int] = deque()  # numbers of frames that were sent and not acknowledged
        self.dropped = 0
        self.heard = time.monotonic()
        self.bell = asyncio.Event()
        self._window = round(AHEAD_S * fps)
        self._is_torn = False  # frames were left out, and the next one has to need none before it

    def say(self, **word: Any) -> None:
        self.words.append(word)
        self.bell.set()

    def add(self, chunk: dict[str, Any], packets: list[bytes]) -> bool:
        """Take the frames of a chunk; of those before, as many as it has may still wait.

        Where some are left out, so are those that build on them.

        Returns:
            Whether a key frame is needed for the stream to go on.
        """
        while len(self.frames) > len(packets):
            self._drop()
        self._window = max(self._window, 2 * len(packets))
        keys = chunk.get("keys")
        for number, data in enumerate(packets, chunk["frame"]):
            self.frames.append(Frame(number, chunk, data, keys is None or number in keys))
        while self._is_torn and self.frames and not self.frames[0].is_key:
            self._drop()
        self._is_torn = self._is_torn and not self.frames
        self.bell.set()
        return self._is_torn

    def _drop(self) -> None:
        self.frames.popleft()
        self.dropped += 1
        self._is_torn = True

    def ack(self, frame: int) -> None:
        """Hear that a frame has come, and all before it."""
        while self.unread and self.unread[0] <= frame:
            self.heard = time.monotonic()
            self.unread.popleft()
        self.bell.set()

    @property
    def is_open(self) -> bool:
        """Whether the client takes a frame, and there is one."""
        return bool(self.frames) and len(self.unread) < self._window

    @property
    def is_stalled(self) -> bool:
        return bool(self.unread) and time.monotonic() - self.heard > STALL_S

    async def empty(self, socket: WebSocket) -> None:
        """Send what there is, as long as the client takes it; for ever."""
        chunk: Mapping[str, Any] | None = None
        while True:
            await self.bell.wait()
            self.bell.clear()
            while self.words or self.is_open:
                if self.words:
                    await socket.send_json(self.words.popleft())
                    continue
                frame = self.frames.popleft()
                if frame.chunk is not chunk:
                    chunk = frame.chunk
                    await socket.send_json({**chunk, "dropped": self.dropped})
                if not self.unread:
                    self.heard = time.monotonic()
                self.unread.append(frame.number)
                head = FRAME.pack(frame.number, chunk["chunk"], frame.number / self.fps)
                await socket.send_bytes(head + frame.data)


class Session:
    """One viewer, and the worker that makes what is seen.

    Args:
        lives: All sessions.
        owner: Whose.
        offer: The model.
        job: What the queue has of it.
        secret: What the worker has to show.
    """

    def __init__(self, lives: Lives, owner: Owner, offer: Offer, job: JobRecord, secret: str) -> None:
        self.lives = lives
        self.owner = owner
        self.offer = offer
        self.job = job
        self.secret = secret
        roll = offer.card.roll
        self.actions = () if roll is None else roll.actions
        self.outbox = Outbox(offer.card.clip.fps)
        self.over = asyncio.Event()
        self.reason = ""
        self.begun = 0.0  # when the worker came
        self.prompt = job.prompt
        self._count = 0
        self._early: dict[str, Mapping[str, Any]] = {}  # the newest of what was said before the worker came, by type
        self._line: asyncio.StreamWriter | None = None
        self._place: int | None = None

    def end(self, reason: str) -> None:
        """End the session, for the first reason that is given."""
        if not self.over.is_set():
            self.reason = reason
            self.over.set()

    # -- the client ----------------------------------------------------------------------------------------------------

    async def take(self, values: Mapping[str, Any]) -> None:
        """Do what a message asks for.

        Raises:
            ApiError: It cannot be done.
        """
        match values["type"]:
            case "ack":
                self.outbox.ack(values["frame"])
            case "prompt":
                self._count = values.get("id", self._count + 1)
                self.prompt = values["prompt"]
                self.outbox.say(type="accepted", id=self._count, prompt=self.prompt)
                await self._pass_on({"type": "prompt", "prompt": self.prompt, "id": self._count})
            case "action":
                action = values.get("action")
                if action is not None and action not in self.actions:
                    known = f"use one of {', '.join(self.actions)}" if self.actions else "it has none"
                    message = f"model `{self.offer.name}` knows no action `{action}`: {known}"
                    raise ApiError(400, message, code="invalid_value", param="action")
                await self._pass_on({"type": "action", "action": action})
            case "format":
                await self._pass_on({"type": "format", "formats": _listed(values["format"])})
            case "save":
                if self._line is None:
                    raise ApiError(400, "nothing was shown yet: save when frames have come", code="not_ready")
                self.lives.intake.check_rate(self.owner)
                await asyncio.to_thread(self.lives.intake.check_storage, self.owner)
                asked = {"id": values.get("id", 0), "seconds": values.get("seconds", 10.0), "clip": new_id()}
                await self._pass_on({"type": "save", **asked})
            case "stop":
                self.end("stopped")
            case "start":
                raise ApiError(400, "the session runs already: send `prompt` for another prompt", code="invalid_value")

    async def _pass_on(self, word: Mapping[str, Any]) -> None:
        """Tell the worker; of each type, the newest word waits for one that has not come yet."""
        if self._line is None:
            self._early[word["type"]] = word
            return
        self._line.write(live_line.packed(word))
        with suppress(ConnectionError):
            await self._line.drain()

    # -- the worker ----------------------------------------------------------------------------------------------------

    @property
    def has_worker(self) -> bool:
        return self._line is not None

    async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take over what the worker tells, until one of both ends."""
        self._line, self.begun = writer, time.monotonic()
        for word in self._early.values():  # before anything that is said from now on
            writer.write(live_line.packed(word))
        while not self.over.is_set() and (message := await live_line.receive(reader)) is not None:
            word, data = message
            match word["type"]:
                case "ready":  # to make the first chunk; what was said so far has gone ahead of this
                    await self._pass_on({"type": "begin"})
                case "chunk":
                    if self._chunk(word, data):
                        await self._pass_on({"type": "key"})
                case "saved":
                    await self._saved(word)
                case "not_saved":
                    error = body(400, word["message"], "not_saved")["error"]
                    self.outbox.say(type="error", id=word["id"], error=error)
                case "failed":
                    self._failed(word["error"])
                case "end":
                    self.end("closing")  # the worker was told to end
                case _:
                    self.outbox.say(**word)
        if not self.over.is_set():
            self._failed({"code": "worker_died", "message": "the worker of this session has ended: start again"})

    def _chunk(self, word: dict[str, Any], data: bytes) -> bool:
        packets, begin = list[bytes](), 0
        for length in word.pop("lengths"):
            packets.append(data[begin : begin + length])
            begin += length
        return self.outbox.add({**word, "frames": len(packets)}, packets)

    def _failed(self, error: Mapping[str, Any]) -> None:
        message = f"{error['message']}; {error['hint']}" if error.get("hint") else error["message"]
        self.outbox.say(type="error", error=body(500, message, error["code"])["error"])
        self.end("internal_error" if error["code"] == "internal_error" else "failed")

    def broke(self, error: BaseException) -> None:
        """End, since the server itself has failed; its log says why."""
        log.error("a live session failed", exc_info=error)
        if not self.over.is_set():
            self._failed({"code": "internal_error", "message": "the server failed; its log says why"})

    async def _saved(self, word: Mapping[str, Any]) -> None:
        clip = str(word["clip"])
        try:
            await asyncio.to_thread(self.lives.keep, self, clip, word["result"])
        except Exception:
            log.exception("a clip of a live session cannot be stored")
            error = body(500, "the clip could not be stored; the server's log says why", "internal_error")["error"]
            self.outbox.say(type="error", id=word["id"], error=error)
            return
        facts = {"seconds": word["result"]["seconds"], "url": f"/v1/videos/{clip}/content"}
        self.outbox.say(type="saved", id=word["id"], video=clip, **facts)

    # -- time ----------------------------------------------------------------------------------------------------------

    async def tend(self) -> None:
        """Tell the place in the queue, and end what has lasted too long; for ever."""
        store, limit = self.lives.store, self.lives.settings.live_limit
        while True:
            if not self.has_worker:
                await self._wait_in_queue()
            elif self.outbox.is_stalled:
                self.end("stalled")
            elif time.monotonic() - self.begun > limit and await asyncio.to_thread(lambda: store.waiting() > 0):
                self.end("limit")
            await asyncio.sleep(TEND_S)

    async def _wait_in_queue(self) -> None:
        store = self.lives.store
        place = await asyncio.to_thread(store.place, self.job.id)
        if place is not None and place.place != self._place:
            self._place = place.place
            self.outbox.say(type="phase", phase="queued", place=place.place)
        if place is None and not self.has_worker:
            now = await asyncio.to_thread(store.get, self.job.id)
            if now is not None and now.state == State.FAILED:
                self._failed(now.error or {"code": "failed", "message": "the session could not begin"})
            elif now is None or now.state.is_final:
                self.end("closing")

    async def close(self) -> None:
        """Let the worker go, and take the job out of the queue."""
        if self._line is not None:
            self._line.close()
        store = self.lives.store
        await asyncio.to_thread(store.cancel, self.job.id)
        end = time.monotonic() + STALL_S
        while not await asyncio.to_thread(store.delete, self.job.id) and time.monotonic() < end:
            await asyncio.sleep(0.1)  # until the worker has noticed, within a step


class Lives:
    """All live sessions of a server.

    Args:
        store: Where their jobs are kept.
        offers: The models.
        settings: Limits.
        intake: Accepts jobs.
    """

    def __init__(self, store: SqliteStore, offers: Offers, settings: ServeSettings, intake: Intake) -> None:
        self.store = store
        self.offers = offers
        self.settings = settings
        self.intake = intake
        self.sessions: dict[str, Session] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._shows: set[asyncio.Task[Any]] = set()
        self._folder = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen for workers, and forget the sessions of servers that were killed."""
        place = Path(tempfile.gettempdir())
        sweep(place)
        for state in (State.QUEUED, State.RUNNING):
            for job in self.store.list(states=(state,), source=live_line.KIND, limit=100).jobs:
                if self._is_lost(job):
                    self.store.cancel(job.id)
        if not any(offer.streams for offer in self.offers.all.values()):
            return
        folder = beside(place / "kandinsky-live")  # by this name, its leftovers are known
        if len(os.fsencode(folder / LINE)) > LONGEST_ADDRESS:
            raise RequestError(
                f"`{place}` is too long for a socket: name a shorter folder for temporary files (TMPDIR)"
            )
        folder.mkdir(mode=0o700)  # which nobody else may enter
        self._folder = str(folder)
        self._server = await asyncio.start_unix_server(self._called, path=self.address)

    def _is_lost(self, job: JobRecord) -> bool:
        """Whether the server of a session that has not ended has gone.

        A container that is started again has another name and does not know its own leftovers. Then the socket is
        missing; but it is, too, for a server in another container of the same store, so a session has time to begin.
        Once a worker has it, that worker's lease says whether it lives.
        """
        line = Path(str(job.order.get("address")))
        if is_left_over(line.parent):
            return True
        return job.state == State.QUEUED and not line.exists() and self.store.clock() - job.created > HELD_S

    @property
    def address(self) -> str:
        return str(Path(self._folder) / LINE)

    async def end(self) -> None:
        """End all sessions, and have their clients told so."""
        for session in list(self.sessions.values()):
            session.end("closing")
        if self._shows:
            await asyncio.wait(self._shows, timeout=2 * FAREWELL_S)

    async def stop(self) -> None:
        """End, and let the workers go."""
        await self.end()
        if self._server is not None:
            self._server.close()
        if self._closing:
            await asyncio.wait(self._closing, timeout=1)
        if self._folder:
            remove(Path(self._folder))

    async def _called(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A worker calls."""
        try:
            message = None
            with suppress(TimeoutError):
                message = await asyncio.wait_for(live_line.receive(reader), live_line.CALL_S)
            if message is None:
                return
            session = self.sessions.get(str(message[0].get("job")))
            given = str(message[0].get("secret", ""))
            if session is None or session.has_worker or not secrets.compare_digest(session.secret, given):
                return
            try:
                await session.hear(reader, writer)
            except Exception as error:
                session.broke(error)
        finally:
            writer.close()

    # -- a session -----------------------------------------------------------------------------------------------------

    def begin(self, owner: Owner, values: Mapping[str, Any]) -> Session:
        """Accept a session.

        Args:
            owner: Who asks.
            values: Fields of ``live_messages.Start``.

        Raises:
            ApiError: It is not accepted.
        """
        if not self.settings.live_limit:
            raise ApiError(403, "this server offers no live sessions", code="unsupported")
        self.intake.check_room(owner)
        given = {name: value for name, value in values.items() if name not in ("type", "model", "prompt", "format")}
        offer = self._offer(values.get("model"))
        try:
            size = given.pop("size", "auto").strip()
            if size != "auto":
                given["width"], given["height"] = parse_size(size)
            job = resolve(Wanted(offer.name, values["prompt"], **given), offer.card)
            attention_for(offer.card, job.sampling, self.settings.options.attention)
            self.intake.check_effort(offer, work_of(job))
        except KandinskyError as error:
            raise told(error) from None
        secret = secrets.token_hex(16)
        options = given | {"seed": job.seed}
        shape = {"width": job.shape.width, "height": job.shape.height, "fps": job.fps}
        order = {"address": self.address, "secret": secret, "prompt": values["prompt"], "options": options}
        order["formats"] = _listed(values.get("format", JPEG))
        new = NewJob(
            kind=live_line.KIND, model=offer.name, order=order | {"shape": shape}, prompt=values["prompt"],
            owner=owner.name, source=live_line.KIND, priority=min(0, owner.priority), max_attempts=1,
        )  # fmt: skip
        made, _ = self.intake.put(owner, new)
        return Session(self, owner, offer, made, secret)

    def _offer(self, name: str | None) -> Offer:
        able = [offer.name for offer in self.offers.all.values() if offer.streams]
        if name is None and able:
            name = able[0]
        if name is None:
            raise ApiError(400, "no model of this server can be shown live: it needs an autoregressive one, whose card "
                           "has a table `roll`", code="unsupported", param="model")  # fmt: skip
        offer = self.offers.find(name)
        if not offer.streams:
            known = ", ".join(f"`{one}`" for one in able)
            raise ApiError(400, f"`{offer.name}` makes a clip as a whole and cannot be shown live"
                           + (f": use {known}" if able else ""), code="unsupported", param="model")  # fmt: skip
        return offer

    def keep(self, session: Session, clip: str, result: Mapping[str, Any]) -> None:
        """Store a clip that a worker has written as a finished job, so that it is listed with the others."""
        recipe = result["recipe"]
        asked = {name: recipe[name] for name in ("model", "prompt", *timeline.GIVEN) if recipe.get(name) is not None}
        shape = {name: result[name] for name in ("width", "height", "frames", "fps", "seconds")}
        order = Order(request=asked, form="mp4", shape=shape | {"steps": recipe.get("steps", 0)})
        self.store.add(
            NewJob(
                kind="video", model=session.offer.name, order=order.to_dict(), prompt=recipe["prompt"],
                owner=session.owner.name, holder=session.job.id, job_id=clip,
            )
        )  # fmt: skip
        self.store.begin(clip)
        size = job_files.size_of(self.store.folder, clip)
        self.store.settle(clip, result=result, error=None, run_s=None, size=size)

    async def show(self, socket: WebSocket, owner: Owner) -> None:
        """Serve one viewer, from the first message to the last."""
        task = asyncio.current_task()
        assert task is not None
        self._shows.add(task)
        try:
            await self._show(socket, owner)
        finally:
            self._shows.discard(task)

    async def _show(self, socket: WebSocket, owner: Owner) -> None:
        session = await self._first(socket, owner)
        if session is None:
            return
        self.sessions[session.job.id] = session
        if self.intake.closing:
            session.end("closing")
        shape = session.job.order["shape"]
        session.outbox.say(
            type="session", id=session.job.id, model=session.offer.name, prompt=session.prompt,
            seed=session.job.order["options"]["seed"], keeps_s=live_line.KEPT_S, actions=session.actions,
            **shape,
        )  # fmt: skip
        works = [session.outbox.empty(socket), session.tend(), self._listen(socket, session)]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            over = asyncio.create_task(session.over.wait())
            await asyncio.wait([*tasks, over], return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            for task in tasks:
                fault = task.exception() if task.done() else None
                if fault is not None and not _is_gone(socket, fault):
                    session.broke(fault)
            session.end("gone")
        finally:
            self.sessions.pop(session.job.id, None)
            for task in tasks:
                task.cancel()
            closing = asyncio.create_task(session.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.gather(*tasks, return_exceptions=True)
        await _farewell(socket, session)

    async def _first(self, socket: WebSocket, owner: Owner) -> Session | None:
        """Wait for a `start` that can be fulfilled; None if the client goes, or takes too long."""
        end = asyncio.get_running_loop().time() + START_S
        try:
            while True:
                try:
                    async with asyncio.timeout_at(end):
                        message = await socket.receive()
                except TimeoutError:
                    await socket.close(*NO_START)
                    return None
                if message["type"] == "websocket.disconnect":
                    return None
                try:
                    values = live_messages.read(message)
                    if values["type"] == "stop":
                        await socket.close(*CLOSES["stopped"])
                        return None
                    if values["type"] != "start":
                        raise ApiError(400, "no session runs yet: send `start` first", code="invalid_value")
                    return await self._begun(owner, values)
                except ApiError as error:
                    await socket.send_json(_error(error))
        except (WebSocketDisconnect, RuntimeError) as error:
            if not _is_gone(socket, error):
                raise
        return None

    async def _begun(self, owner: Owner, values: Mapping[str, Any]) -> Session:
        """Accept a session; if nobody waits for it any more, what was stored of it is removed."""
        beginning = asyncio.ensure_future(asyncio.to_thread(self.begin, owner, values))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, begun: asyncio.Future[Session]) -> None:
        if not begun.cancelled() and begun.exception() is None:
            closing = asyncio.ensure_future(begun.result().close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _listen(self, socket: WebSocket, session: Session) -> None:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                await session.take(live_messages.read(message))
            except ApiError as error:
                session.outbox.say(**_error(error))
            while session.outbox.words:  # who does not read what is said is not listened to
                await asyncio.sleep(0.005)


def _is_gone(socket: WebSocket, error: BaseException) -> bool:
    """Whether an error says only that the client is not there any more."""
    states = (socket.client_state, socket.application_state)
    return isinstance(error, WebSocketDisconnect) or (
        isinstance(error, RuntimeError) and WebSocketState.DISCONNECTED in states
    )


async def _farewell(socket: WebSocket, session: Session) -> None:
    """Say what is left, and why it ends."""
    if socket.application_state != WebSocketState.CONNECTED or session.reason == "gone":
        return
    with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(FAREWELL_S):
            while session.outbox.words:
                await socket.send_json(session.outbox.words.popleft())
            await socket.send_json({"type": "end", "reason": session.reason})
            await socket.close(*CLOSES[session.reason])


def _listed(formats: str | list[str]) -> list[str]:
    return [formats] if isinstance(formats, str) else formats


def _error(error: ApiError) -> dict[str, Any]:
    return {"type": "error", **body(error.status, error.message, error.code, error.param)}


@router.get(
    "/v1/live", status_code=426, response_model=Envelope, responses=errors(426), response_description="Use a WebSocket."
)
async def live_without_websocket(owner: Access) -> Envelope:
    """A WebSocket at this address shows a stream as it is made; the guide to the API has its messages."""
    raise ApiError(426, "this address speaks WebSocket: connect with `ws://`", code="upgrade_required",
                   headers={"Upgrade": "websocket"})  # fmt: skip


@router.websocket("/v1/live")
async def live(socket: WebSocket) -> None:
    """Show what is asked for, as long as somebody looks."""
    try:
        owner = owner_of_connection(socket)
    except ApiError as error:
        await socket.send_denial_response(error.answer())
        return
    lives: Lives = socket.app.state.lives
    await socket.accept()
    await lives.show(socket, owner)
