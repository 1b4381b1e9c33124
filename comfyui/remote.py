"""A Kandinsky server on this or another machine, asked through ``kandinsky.client``. Imports nothing of ComfyUI.

A key is sent to the server that ``KANDINSKY_SERVER`` names, and to this machine, alone: the address stands in the
workflow, which may be somebody else's.
"""

from __future__ import annotations

import io
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit

from kandinsky.client import ApiError, Client, Event, Job, JobFailed
from kandinsky.client.calls import ADDRESS, URL, VARIABLE, address
from kandinsky.errors import Cancelled, KandinskyError, RequestError
from kandinsky.model.given import KINDS, Given

from .running import POLL_S

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from kandinsky.model.values import Video

    from .models import Host

STILL = 0  # seconds of an image
END_S = 5.0  # for the connection, once nobody waits any more
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_Preview: TypeAlias = tuple[Event, bytes]


def default_server() -> str:
    """The server that is meant if none is named."""
    return address(None)


@dataclass(frozen=True)
class Answer:
    """What a server made.

    Attributes:
        data: The file.
        is_image: Whether it is one image.
        id: The job's.
    """

    data: bytes
    is_image: bool
    id: str


def generate(
    server: str, model: str, prompt: str, values: Mapping[str, Any], images: Mapping[str, np.ndarray], host: Host
) -> Answer:
    """Have a server make a clip, or with 0 seconds an image, and wait for it.

    Args:
        server: Its address, such as `http://127.0.0.1:8000`.
        model: The model's id there.
        prompt: The prompt.
        values: Further fields of a request, and `size`.
        images: Images [H, W, 3] by the field of the request.
        host: Where progress and previews are shown, and interrupts are looked for.

    Returns:
        The file.

    Raises:
        RequestError: The address is none, or the server refuses the request; the message is the server's.
        BackendError: No server answers there.
        KandinskyError: The job failed.
        Cancelled: The user asked to stop; the job is cancelled on the server too.
    """
    is_still = values.get("seconds") == STILL
    known = values.get("conditions", ())
    clip = values.get("video")
    plain = {name: value for name, value in values.items() if name not in ("conditions", "video")}
    asked: dict[str, Any] = {"model": model, **plain, **{name: _png(pixels) for name, pixels in images.items()}}
    if clip is not None:
        asked["video"] = _file(clip.frames_THWC, clip.fps)
    if not asked.get("loop"):  # what images know nothing of
        asked.pop("loop", None)
    if is_still:
        del asked["seconds"]
    where = checked(server)

    def ask(client: Client) -> Job:
        if known:
            rates = [float(one.data["fps"]) for one in client.models() if one.id == model]
            asked["conditions"] = [_sent(one, *rates[:1]) for one in known]
        if not is_still:
            return client.create(prompt, **asked)
        (job,) = client.create_images(prompt, **asked)
        return job

    try:
        with Client(where, key=key_for(where)) as client:
            watched = _Watched(client, ask)
            try:
                return watched.answer(host)
            finally:
                watched.end()
    except ApiError as error:
        raise _refused(where, error) from error
    except JobFailed as error:
        raise KandinskyError(f"`{where}` made nothing: {error}", hint=error.hint) from error


def checked(server: str) -> str:
    """The address of a server.

    Raises:
        RequestError: It is none.
    """
    url = server.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        _ = parts.port
    except ValueError:
        is_one = False
    if not is_one:
        raise RequestError(f"server `{server}` is no address: give one such as `{URL}`")
    return url


def key_for(server: str) -> str:
    """The key that is sent to a server; empty for a server that is not one's own."""
    is_own = urlsplit(server).hostname in _LOOPBACK or server == os.environ.get(ADDRESS, "").strip().rstrip("/")
    return os.environ.get(VARIABLE, "") if is_own else ""


class _Watched:
    """A job that a second thread asks for and follows, so that an interrupt is seen while nothing comes."""

    def __init__(self, client: Client, ask: Callable[[Client], Job]) -> None:
        self._client, self._ask = client, ask
        self._told: queue.SimpleQueue[Job | Event | _Preview | Answer | BaseException] = queue.SimpleQueue()
        self._job: Job | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="kandinsky-remote", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            job = self._ask(self._client)
            self._told.put(job)
            if self._over.is_set():  # meanwhile
                self._client.cancel(job)
                return
            for event in self._client.events(job):
                self._told.put(event)
                if event.kind == "preview":
                    with suppress(ApiError):  # the next one has taken its place, or the job has ended
                        self._told.put((event, self._client.preview(job)))
            done = self._client.wait(job)
            self._told.put(Answer(self._client.content(done), done.kind == "image", done.id))
        except BaseException as error:  # told by the thread that waits
            self._told.put(error)

    def answer(self, host: Host) -> Answer:
        """Wait for the result, showing what comes.

        Raises:
            Cancelled: The user asked to stop.
        """
        while True:
            if host.is_interrupted():
                host.stop()
                raise Cancelled("cancelled while the server worked")
            try:
                told = self._told.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if isinstance(told, BaseException):
                raise told
            if isinstance(told, Answer):
                return told
            if isinstance(told, Job):
                self._job = told
            elif isinstance(told, tuple):
                event, data = told
                host.progress(event.data["step"], event.data["steps"], _opened(data))
            elif told.kind == "step":
                host.progress(told.data["step"], told.data["steps"], None)

    def end(self) -> None:
        """Nobody waits any more: a job that is not finished is cancelled."""
        self._over.set()
        if self._thread.is_alive() and self._job is not None:
            with suppress(KandinskyError):
                self._client.cancel(self._job)
        self._thread.join(END_S)


def _refused(server: str, error: ApiError) -> KandinskyError:
    """What a server refuses, in its own words."""
    told = f"`{server}` answers: {error}"
    if error.status in (401, 403):
        hint = f"set {VARIABLE}, and {ADDRESS} to its address, in ComfyUI's environment; keys do not stand in workflows"
        return RequestError(told, hint=hint)
    return (RequestError if error.status < 500 else KandinskyError)(told)


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


def _sent(one: Given, fps: float = 1.0) -> dict[str, Any]:
    """A condition as the client sends it: images as PNG, clips as mp4, which costs them a little; branches by name.

    Args:
        one: The condition, with what it holds in memory.
        fps: Frames per second of frames that have no rate of their own.
    """
    values = {field.name: value for field in fields(one) if (value := getattr(one, field.name)) is not None}
    clip = values.pop("data")
    rate = float(getattr(clip, "fps", fps))
    kind = next(name for name, kind in KINDS.items() if isinstance(one, kind))
    frames = getattr(clip, "frames_THWC", clip)
    values[kind] = _file(frames, rate) if frames.ndim == 4 else _png(frames)
    if "branch" in values:  # the server's file of that name
        values["branch"] = Path(values["branch"]).name.removesuffix(".safetensors")
    if "mask" in values:
        mask = values["mask"]
        values["mask"] = _file(mask, rate) if mask.ndim == 4 else _png(mask.astype("uint8") * 255)
    return values


def _file(frames_THWC: np.ndarray, fps: float) -> bytes:
    from kandinsky.model.values import Video

    if len(frames_THWC) == 1:
        return _png(frames_THWC[0])
    with tempfile.TemporaryDirectory(prefix="kandinsky-") as folder:
        return Video(frames_THWC, fps=fps).save(Path(folder) / "given.mp4").read_bytes()


def _opened(data: bytes) -> Image:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def still(data: bytes) -> Video:
    """The image in a file as a clip of one frame.

    Raises:
        RequestError: It is no image.
    """
    import numpy as np

    from kandinsky.media.image import opened
    from kandinsky.model.values import Video

    with opened(io.BytesIO(data), "the server's answer") as image:
        return Video(np.asarray(image.convert("RGB"))[None], fps=1.0)
