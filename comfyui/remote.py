"""A Kandinsky server on this or another machine, by the calls that it documents. Imports nothing of ComfyUI.

A key is sent to the server that ``KANDINSKY_SERVER`` names, and to this machine, alone: the address stands in the
workflow, which may be somebody else's.
"""

from __future__ import annotations

import base64
import io
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kandinsky.errors import BackendError, Cancelled, KandinskyError, RequestError

from .running import POLL_S

if TYPE_CHECKING:
    import httpx
    import numpy as np

    from kandinsky.model.values import Video

    from .models import Host

SERVER, KEY = "KANDINSKY_SERVER", "KANDINSKY_API_KEY"
HERE = "http://127.0.0.1:8000"
POLL_AFTER = "openai-poll-after-ms"
TIMEOUT_S, CONNECT_S = 600.0, 5.0
STILL = 0  # seconds of an image
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TRIES = 3  # of a call that got no answer


def default_server() -> str:
    """The server that is meant if none is named."""
    return os.environ.get(SERVER) or HERE


@dataclass(frozen=True)
class Answer:
    """What a server made.

    Attributes:
        data: The file.
        is_image: Whether it is one image.
        id: The job's, empty for images.
    """

    data: bytes
    is_image: bool
    id: str = ""


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
        host: Where progress is shown, and interrupts are looked for.

    Returns:
        The file.

    Raises:
        RequestError: The address is none, or the server refuses the request; the message is the server's.
        BackendError: No server answers there.
        KandinskyError: The job failed.
        Cancelled: The user asked to stop; the job is cancelled on the server too.
    """
    with _client(server) as client:
        if values.get("seconds") == STILL:
            return _image(client, model, prompt, values, images, host)
        return _video(client, model, prompt, values, images, host)


def _client(server: str) -> httpx.Client:
    import httpx

    try:
        url = httpx.URL(server.strip().rstrip("/"))
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise RequestError(f"server `{server}` is no address: give one such as `{HERE}`")
    key = os.environ.get(KEY)
    is_own = url.host in _LOOPBACK or url == httpx.URL(os.environ.get(SERVER, "").rstrip("/"))
    headers = {"Authorization": f"Bearer {key}"} if key and is_own else {}
    return httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_S))


def _video(
    client: httpx.Client,
    model: str,
    prompt: str,
    values: Mapping[str, Any],
    images: Mapping[str, np.ndarray],
    host: Host,
) -> Answer:
    job = _call(client, "POST", "/v1/videos", host, files=_parts(model, prompt, values, images)).json()
    path = f"/v1/videos/{job['id']}"
    try:
        while job.get("status") in ("queued", "in_progress"):
            answer = _call(client, "GET", path, host)
            job = answer.json()
            host.progress(int(job.get("progress") or 0), 100, None)
            if job.get("status") in ("queued", "in_progress"):
                _wait(_poll_s(answer), host)
    except BaseException:
        _cancel(client, path)
        raise
    if job.get("status") != "completed":
        why = (job.get("error") or {}).get("message") or job.get("status")
        raise KandinskyError(f"`{client.base_url}` made no video: {why}")
    return Answer(_call(client, "GET", f"{path}/content", host).content, False, str(job["id"]))


def _image(
    client: httpx.Client,
    model: str,
    prompt: str,
    values: Mapping[str, Any],
    images: Mapping[str, np.ndarray],
    host: Host,
) -> Answer:
    told = {name: value for name, value in values.items() if name != "seconds"} | {"response_format": "b64_json"}
    made: list[httpx.Response | BaseException] = []

    def call() -> None:
        try:
            if images:
                parts = _parts(model, prompt, told, images, first="image")
                made.append(_call(client, "POST", "/v1/images/edits", host, files=parts))
            else:
                body = {"model": model, "prompt": prompt, **told}
                made.append(_call(client, "POST", "/v1/images/generations", host, json=body))
        except BaseException as error:
            made.append(error)

    waiting = threading.Thread(target=call, name="kandinsky-remote", daemon=True)
    waiting.start()
    while waiting.is_alive():
        _wait(POLL_S, host)  # leaving closes the connection, by which the server sees that nobody waits
    (answer,) = made
    if isinstance(answer, BaseException):
        raise answer
    (entry, *_) = answer.json()["data"]
    return Answer(base64.b64decode(entry["b64_json"]), True)


def _parts(
    model: str,
    prompt: str,
    values: Mapping[str, Any],
    images: Mapping[str, np.ndarray],
    *,
    first: str = "input_reference",
) -> list[tuple[str, tuple[str | None, bytes | str, str | None]]]:
    """A form in several parts, as all clients send it: text without a type, images as PNG files."""
    told = {"model": model, "prompt": prompt, **values}
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in told.items()}
    parts: list[tuple[str, tuple[str | None, bytes | str, str | None]]] = []
    parts += [(name, (None, value, None)) for name, value in texts.items()]
    for name, pixels in images.items():
        part = first if name == "image" else name
        parts.append((part, (f"{name}.png", _png(pixels), "image/png")))
    return parts


def _call(client: httpx.Client, method: str, path: str, host: Host, **content: Any) -> httpx.Response:
    """One call, tried again where no answer came; a key keeps the server from doing it twice."""
    import httpx

    headers = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}
    for attempt in range(_TRIES):
        try:
            answer = client.request(method, path, headers=headers, **content)
        except httpx.TransportError as error:
            if attempt + 1 == _TRIES:
                raise BackendError(
                    f"no server answers at `{client.base_url}`: start `kandinsky serve`, or correct the address",
                    hint=str(error),
                ) from error
            _wait(0.5 * 2**attempt, host)
            continue
        if answer.is_success:
            return answer
        if answer.status_code in (429, 503) and attempt + 1 < _TRIES:
            _wait(_retry_s(answer), host)
            continue
        raise _refused(client, answer)
    raise AssertionError("the last attempt returns or raises")


def _refused(client: httpx.Client, answer: httpx.Response) -> KandinskyError:
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"status {answer.status_code}"
    where = f"`{client.base_url}` answers"
    if answer.status_code in (401, 403):
        return RequestError(
            f"{where}: {message}",
            hint=f"set {KEY}, and {SERVER} to its address, in ComfyUI's environment; keys do not stand in workflows",
        )
    return (RequestError if answer.status_code < 500 else KandinskyError)(f"{where}: {message}")


def _cancel(client: httpx.Client, path: str) -> None:
    import httpx

    try:
        client.delete(path, timeout=CONNECT_S)
    except httpx.HTTPError:  # nobody is left who could be told
        return


def _wait(seconds: float, host: Host) -> None:
    """Wait, but not after the user asked to stop.

    Raises:
        Cancelled: They did.
    """
    until = time.monotonic() + seconds
    while True:
        if host.is_interrupted():
            host.stop()
            raise Cancelled("cancelled while the server worked")
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(POLL_S, left))


def _poll_s(answer: httpx.Response) -> float:
    given = answer.headers.get(POLL_AFTER, "")
    return min(60.0, int(given) / 1000) if given.isdigit() and int(given) else 1.0


def _retry_s(answer: httpx.Response) -> float:
    given = answer.headers.get("retry-after", "")
    return min(120.0, float(given)) if given.isdigit() else 1.0


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


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
