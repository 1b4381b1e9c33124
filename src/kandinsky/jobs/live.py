"""A worker's part of a live session: it makes a stream, sends its frames, and saves what was shown last.

One thread generates, one turns frames into packets and sends them, one hears what is asked for, one writes clips.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.engine.timeline import ENTRY, LONGEST, OF_PIECES, Timeline
from kandinsky.errors import BackendError, Cancelled, KandinskyError, RequestError
from kandinsky.jobs import job_files, results
from kandinsky.jobs.live_line import KEPT_S, Line
from kandinsky.media import packets
from kandinsky.model.timeline import Play, Shows, prompt_of
from kandinsky.model.values import Video, VideoStream

if TYPE_CHECKING:
    import numpy as np

    from kandinsky.engine.pipeline import GenerationPipeline

log = logging.getLogger(__name__)
KEPT_BYTES = 512_000_000  # of the newest frames at most, for saving
SPARE_S = 0.1  # a chunk is begun so much sooner than it has to be
AHEAD = 2  # chunks that wait to be packed
SAVES = 2  # that may wait


@dataclass(frozen=True, slots=True)
class Shown:
    """Frames of a chunk, as they are kept for saving."""

    begin: int
    frames: np.ndarray


class Prompter:
    """What a stream is told, chunk by chunk, at the time when the chunk is due.

    A chunk is begun as late as it can be, so that what is typed is seen soon, and no frames pile up before a viewer.

    Args:
        prompt: The first.
        fps: Frames a second.
        actions: Those of the model, the first where nothing is done.
    """

    def __init__(self, prompt: str, fps: float, actions: Sequence[str] = ()) -> None:
        self.fps = fps
        self.actions = actions
        self.number = 0  # of the newest prompt, as the client names it
        self.ended = threading.Event()
        self.timeline: list[tuple[int, Shows]] = []
        self.can_be_told = True  # whether a recipe has room for all prompts
        self.begun: int | None = None  # the number of a prompt that the newest chunk is the first of
        self.chunk = -1
        self._prompt = prompt
        self._is_new = False  # taken, and no chunk has it yet; numbers alone may repeat
        self._rest = next(iter(actions), "")
        self._held = self._rest  # what is done for as long as it is not ended
        self._struck: str | None = None  # what was begun since the newest chunk, which may have ended already
        self._told = 0  # characters of the timeline
        self._lock = threading.Lock()
        self._clock: float | None = None  # when frame 0 was shown, or would have been had all come in time
        self._takes_s = 0.0

    def take(self, prompt: str, number: int) -> None:
        """Have the chunks from now on show another prompt."""
        with self._lock:
            self._prompt, self.number, self._is_new = prompt, number, True

    def act(self, action: str | None) -> None:
        """Do something from the next chunk on, until this is called again; None ends it.

        What is ended before the next chunk is done in that one alone.
        """
        with self._lock:
            self._held = self._rest if action is None else action
            if action not in (None, self._rest):
                self._struck = action

    def __call__(self, at: float) -> Shows | None:
        """What the chunk that begins at a second shows; waits until it is due."""
        if self._clock is not None:
            self.ended.wait(max(0.0, self._clock + at - self._takes_s - SPARE_S - time.monotonic()))
        if self.ended.is_set():
            return None
        with self._lock:
            self.chunk += 1
            self.begun, self._is_new = self.number if self._is_new else None, False
            shows: Shows = self._prompt
            if self.actions:
                shows, self._struck = Play(self._prompt, self._struck or self._held), None
            if self.can_be_told and (not self.timeline or self.timeline[-1][1] != shows):
                self._told += len(json.dumps(self._prompt)) + ENTRY
                self.timeline.append((round(at * self.fps), shows))
                if self._told > LONGEST:  # a session without end must not grow
                    self.can_be_told = False
                    self.timeline.clear()
            return shows

    def made(self, at: float, takes_s: float) -> None:
        """Hear that the chunk of a second is there, and how long it took."""
        now = time.monotonic()
        self._clock = now - at if self._clock is None else max(self._clock, now - at)
        self._takes_s = takes_s if not self._takes_s else 0.7 * self._takes_s + 0.3 * takes_s


class Session:
    """A stream on a line.

    Args:
        line: To the server.
        pipe: The model.
        prompt: The first prompt.
        options: Options of ``GenerationPipeline.stream``, the seed among them.
        store: Folder of the store, where clips are saved.
        formats: How frames may be sent, see ``packets.FORMATS``; the first that can be encoded here is taken.
    """

    def __init__(
        self,
        line: Line,
        pipe: GenerationPipeline,
        prompt: str,
        options: Mapping[str, Any],
        *,
        store: Path,
        formats: Sequence[str] = (packets.JPEG,),
    ) -> None:
        self.line = line
        self.pipe = pipe
        self.fps = pipe.card.clip.fps
        self.options = dict(options)
        self.store = store
        self.frames = 0
        self._asked = 0.0
        self._fault: Exception | None = None  # of the thread that sends
        self._formats = tuple(formats)
        self._key = threading.Event()  # the next frame is to need none before it
        self._begin = threading.Event()  # the server has passed on all that was said before the first chunk
        roll = pipe.card.roll
        self._prompter = Prompter(prompt, self.fps, () if roll is None else roll.actions)
        self._kept: deque[Shown] = deque()
        self._lock = threading.Lock()
        self._recipe: dict[str, Any] = {}
        self._frames: queue.Queue[tuple[Video, float] | None] = queue.Queue(AHEAD)
        self._saving = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._saves = threading.BoundedSemaphore(SAVES)

    def stop(self) -> None:
        """End the stream within a step. From any thread."""
        self._prompter.ended.set()
        self._begin.set()
        self.pipe.cancel()

    def run(self) -> None:
        """Make the stream until it is stopped, or the line ends.

        Raises:
            KandinskyError: It cannot be made, or made any longer.
        """
        hearing = threading.Thread(target=self._hear, name="hear", daemon=True)
        sending = threading.Thread(target=self._send_all, name="send", daemon=True)
        hearing.start()
        sending.start()
        try:
            self._make()
        finally:
            self._prompter.ended.set()
            self._frames.put(None)
            sending.join()
            self._saving.shutdown(cancel_futures=True)
        if self._fault is not None:
            raise self._fault

    def _make(self) -> None:
        begun = time.monotonic()
        pieces = self.pipe.stream(self._ask, **self.options)
        try:
            for piece in pieces:
                takes_s = time.monotonic() - max(begun, self._asked)
                self._prompter.made(piece.recipe["start"], takes_s)
                self._keep(piece)
                self._frames.put((piece, takes_s))
        except Cancelled:
            if not self._prompter.ended.is_set():
                raise

    def _ask(self, at: float) -> Shows | None:
        if not self._begin.is_set():  # what was said while the session waited is heard before the first chunk begins
            if not self.line.send({"type": "ready"}):
                self.stop()
            self._begin.wait()
        shows = self._prompter(at)
        self._asked = time.monotonic()
        if shows is not None and self._prompter.begun is not None:
            told = {"prompt": prompt_of(shows), "chunk": self._prompter.chunk, "frame": round(at * self.fps)}
            self.line.send({"type": "applied", "id": self._prompter.begun, **told})
        return shows

    def _keep(self, piece: Video) -> None:
        with self._lock:
            self._kept.append(Shown(self.frames, piece.frames))
            self.frames += len(piece)
            self._recipe = piece.recipe
            while len(self._kept) > 1 and self._is_full():
                self._kept.popleft()

    def _is_full(self) -> bool:
        rest = self.frames - self._kept[1].begin
        return rest >= KEPT_S * self.fps or sum(one.frames.nbytes for one in self._kept) > KEPT_BYTES

    def _send_all(self) -> None:
        """Send until nothing comes any more, even where that fails: else the stream would wait for room for ever."""
        try:
            self._send()
        except Exception as error:
            self._fault = error
            self.stop()
            while self._frames.get() is not None:
                pass

    def _send(self) -> None:
        begin, formats = 0, tuple[str, ...]()
        packer: packets.Packer | None = None
        while (next_one := self._frames.get()) is not None:
            piece, takes_s = next_one
            if packer is None or formats != self._formats:
                formats = self._formats
                packer = packets.packer(formats, piece.frames.shape[2], piece.frames.shape[1], self.fps)
            key = self._key.is_set()
            self._key.clear()
            try:
                packed = packer.pack(piece.frames, key=key)
            except BackendError as error:
                log.warning("a live session goes on with JPEG: %s", error)
                packer = packets.Jpegs()
                packed = packer.pack(piece.frames)
            told: dict[str, Any] = {"type": "chunk", "chunk": piece.recipe["chunk"], "frame": begin}
            told |= {"prompt": piece.recipe["prompt"], "made_s": round(takes_s, 4), "format": packer.format}
            if packer.codec:
                told["codec"] = packer.codec
                told["keys"] = [begin + place for place, one in enumerate(packed) if one.is_key]
            told |= {"action": piece.recipe["action"]} if "action" in piece.recipe else {}
            told |= {"unused_words": piece.recipe.get("unused_words", [])}
            told |= {"lengths": [len(one.data) for one in packed]}
            begin += len(piece)
            if not self.line.send(told, b"".join(one.data for one in packed)):
                self.stop()

    # -- what is asked for -------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        while (told := self.line.receive()) is not None:
            match told["type"]:
                case "begin":
                    self._begin.set()
                case "key":
                    self._key.set()
                case "format":
                    self._formats = tuple(told["formats"])
                    self._key.set()  # also where it is the same one: its viewer begins anew
                case "prompt":
                    self._prompter.take(told["prompt"], told["id"])
                case "action":
                    self._prompter.act(told["action"])
                case "save" if self._saves.acquire(blocking=False):
                    try:
                        self._saving.submit(self._save, told)
                    except RuntimeError:  # the stream has just ended
                        break
                case "save":
                    self._refuse(told, "two clips are being saved already: wait until one is there")
                case "stop":
                    break
        self.stop()

    def _refuse(self, told: Mapping[str, Any], why: str) -> None:
        self.line.send({"type": "not_saved", "id": told["id"], "message": why})

    def _save(self, told: Mapping[str, Any]) -> None:
        """Write the last seconds as a clip, under the name that the server gave."""
        is_heard = False
        try:
            clip = self._clip(float(told["seconds"]))
            if clip is None:
                self._refuse(told, "nothing was shown yet: wait for the first frames")
                return
            folder = job_files.folder_of(self.store, told["clip"])
            folder.mkdir(mode=0o700, exist_ok=True)
            result = results.write_clip(clip, folder, "a1", "mp4", look=lambda done, total: None)
            is_heard = self.line.send({"type": "saved", "id": told["id"], "clip": told["clip"], "result": result})
        except KandinskyError as error:
            self._refuse(told, str(error))
        except Exception:
            log.exception("a clip of a live session cannot be saved")
            self._refuse(told, "the worker failed to write the clip; its log says why")
        finally:
            if not is_heard:  # no job will name these files
                job_files.remove_all(self.store, told["clip"])
            self._saves.release()

    def _clip(self, seconds: float) -> VideoStream | None:
        with self._lock:
            kept, end, recipe = list(self._kept), self.frames, self._recipe
            prompts = tuple(one for one in self._prompter.timeline if one[0] < end)
            can_be_told = self._prompter.can_be_told
        if not kept:
            return None
        if not can_be_told:
            raise RequestError("this session has had too many prompts for a file to name them: begin another one")
        first = max(kept[0].begin, end - max(1, round(seconds * self.fps)))
        line = Timeline(prompts, first, end - first)

        def frames() -> Iterator[np.ndarray]:
            for one in kept:
                if one.begin + len(one.frames) > first:
                    yield one.frames[max(0, first - one.begin) :]

        loras = {one["source"]: one["name"] for one in self.pipe.adapters.recipe()}
        told = {name: value for name, value in recipe.items() if name not in OF_PIECES}
        told |= {"seconds": line.frames / self.fps, **line.to_recipe(frames())}
        return VideoStream(frames(), line.frames, self.fps, recipe["seed"], results.without_paths(told, loras))
