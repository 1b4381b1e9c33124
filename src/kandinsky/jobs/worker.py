"""A worker: one process that takes jobs from a store, one batch at a time, and runs them with the engine.

A second thread renews the leases and looks whether something is to stop; the engine is asked to stop between two steps
of sampling, two frames of decoding, two stages. What was sampled is kept on disk until its file is written, so that a
worker that dies while it decodes costs no sampling.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.engine.options import RunOptions
from kandinsky.errors import (
    BackendError,
    Cancelled,
    KandinskyError,
    NotFinite,
    OutOfMemory,
    RequestError,
    WeightsError,
)
from kandinsky.jobs import job_files, live_line, results
from kandinsky.jobs.loaded import Models
from kandinsky.jobs.order import Order
from kandinsky.jobs.records import Claim, State
from kandinsky.jobs.sqlite_store import RETENTION_S, open_store
from kandinsky.jobs.store import StoreGone, WorkStore

if TYPE_CHECKING:
    from kandinsky.engine.events import Event, Step
    from kandinsky.engine.pipeline import GenerationPipeline
    from kandinsky.engine.request import Job
    from kandinsky.jobs.loaded import Pipeline
    from kandinsky.model.values import VideoStream

log = logging.getLogger(__name__)
LOOK_S = 0.04  # how often the second thread looks whether something is to stop
IDLE_S = 0.05  # how often a worker without a job looks for one
TELL_S = 0.2  # steps and frames are told at most this often
WINDOW = 32  # frames of a clip that is continued are scaled so many at a time
CODES: Mapping[type[KandinskyError], str] = {
    RequestError: "invalid_request",
    WeightsError: "weights",
    BackendError: "backend",
    OutOfMemory: "out_of_memory",
    NotFinite: "not_finite",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How a worker works.

    Attributes:
        options: How its models run.
        models: Only these; empty = whatever is asked for.
        warm: Models that are loaded before the first job.
        memory: Most bytes of weights in memory at once; None = no limit.
        loras: Folder of the LoRAs that requests may name.
        branches: Folder of the branches that requests may name.
        batch: Most jobs that run as one batch, where the card says that it pays; 1 switches batches off.
        preview_s: Least seconds between two previews; None = no previews.
        lease_s: A worker that has not been heard of for so long has lost its jobs.
        parent: Process with which the worker ends; 0 = none.
    """

    options: RunOptions = RunOptions()  # noqa: RUF009 - frozen
    models: tuple[str, ...] = ()
    warm: tuple[str, ...] = ()
    memory: int | None = None
    loras: Path | None = None
    branches: Path | None = None
    batch: int = 8
    preview_s: float | None = 0.4
    lease_s: float = 15.0
    parent: int = 0


class _Stop(Exception):  # noqa: N818 - not an error
    """No job of the batch is wanted any more, or the worker is to end."""


class _Dropped(Exception):  # noqa: N818 - not an error
    """One job of the batch is not wanted any more; the others are."""


class Worker:
    """Takes jobs from a store and runs them.

    Args:
        store: The store.
        settings: How it works.
        name: Its name; no other worker has it.
        follows: Whether it is one of several processes that make the same, and another of them takes, writes and
            reports.
    """

    def __init__(self, store: WorkStore, settings: WorkerSettings, *, name: str, follows: bool = False) -> None:
        self.store = store
        self.settings = settings
        self.name = name
        self.models = Models(settings.options, memory=settings.memory, loras=settings.loras)
        self.stopping = threading.Event()
        self.leaving = threading.Event()
        self.follows = follows
        self.is_broken = False  # a process of several failed alone, and the others wait for it: it is to end
        self._watch = _Watch(self)
        self._state = "starting"
        self._step_s: float | None = None

    def stop(self) -> None:
        """Ask the worker to end: its jobs go back to the queue. From any thread or signal handler."""
        self.stopping.set()

    def leave(self) -> None:
        """Ask the worker to end with the jobs that it has: it takes no others. From any thread or signal handler."""
        self.leaving.set()

    @property
    def _is_to_end(self) -> bool:
        return self.stopping.is_set() or self.leaving.is_set()

    def run(self) -> None:
        """Work until ``stop`` or ``leave`` is called, or the parent process has ended."""
        with self.working():
            while not self._is_to_end:
                if not self.turn():
                    self.stopping.wait(IDLE_S)

    @property
    def is_watched(self) -> bool:
        """Whether its second thread lives, as it does within ``working``."""
        return self._watch.is_alive

    @contextmanager
    def working(self) -> Iterator[None]:
        """Within the block, the worker reports that it lives, and has loaded what it is to have ready."""
        self._beat()
        with self._watch:
            import kandinsky.engine.pipeline  # noqa: F401 - torch takes seconds, which no job should wait for

            for name in self.settings.warm:
                if self._is_to_end:
                    break
                self._warm(name)
            self._set_state("ready")
            yield
        with suppress(StoreGone):
            self._set_state("ended")
        self.store.close()

    def turn(self, taken: Callable[[list[Claim]], None] = lambda _: None) -> bool:
        """Take the next job, or batch of jobs, and run it to its end.

        Args:
            taken: Called with what was taken, before it runs.

        Returns:
            Whether there was one.

        Raises:
            StoreGone: The store does not answer.
        """
        claims = self.store.claim(
            self.name, lease_s=self.settings.lease_s, at_once=self.settings.batch, models=self.settings.models
        )
        if claims:
            taken(claims)
            self._set_state("busy")
            self._work(claims)
            self._set_state("ready")
        return bool(claims)

    def follow(self, claims: list[Claim]) -> None:
        """Take part in what another process has taken."""
        self._work(claims)

    def facts(self) -> dict[str, Any]:
        """What it reports about itself."""
        told: dict[str, Any] = {
            "device": str(self.settings.options.device or "auto"),
            "models": list(self.models.names),
            "weights_bytes": self.models.bytes,
            "rss_bytes": _resident(),
            "pid": os.getpid(),
        }
        if self._step_s is not None:
            told["step_s"] = round(self._step_s, 4)
        if self._state != "starting":  # until then another thread may be importing torch
            import torch

            if torch.cuda.is_available() and torch.cuda.is_initialized():
                told["device_bytes"] = torch.cuda.memory_allocated()
        return told

    def _beat(self) -> None:
        self.store.beat(self.name, pid=os.getpid(), state=self._state, facts=self.facts())

    def _set_state(self, state: str) -> None:
        self._state = state
        self._beat()

    def _warm(self, name: str) -> None:
        """Load a model's networks; one that cannot be loaded is reported when it is asked for."""
        try:
            pipe = self.models.get(name)
            for network in pipe.placement.names:
                with pipe.placement.hold(network):
                    pass
        except KandinskyError as error:
            log.warning("`%s` cannot be loaded: %s", name, error)

    # -- a batch -----------------------------------------------------------------------------------------------------

    def _work(self, claims: list[Claim]) -> None:
        """Run the jobs of a batch; each ends in the store, whatever happens."""
        with self._watch.over(claims):
            try:
                self._run(claims)
            except StoreGone:
                raise
            except _Stop:
                pass
            except Exception as error:
                if self.settings.options.parallel is not None and not isinstance(error, RequestError):
                    self.is_broken = True
                    self._fail(self._left(claims), error)
                elif self._is_out_of_memory(error) and self.models.keep_only(claims[0].job.model):
                    log.warning("memory ran out: the other models are unloaded, and the job begins again")
                    try:
                        self._run(self._left(claims))
                    except StoreGone:
                        raise
                    except _Stop:
                        pass
                    except Exception as again:
                        self._fail(self._left(claims), again)
                else:
                    self._fail(self._left(claims), error)
            for claim in self._left(claims):  # stopped in the middle
                self._let_go(claim)

    def _left(self, claims: Sequence[Claim]) -> list[Claim]:
        return [claim for claim in claims if claim.job.id not in self._watch.ended]

    def _let_go(self, claim: Claim) -> None:
        """End a job that stopped: as cancelled, given back, or lost."""
        if claim.job.id in self._watch.cancelled:
            job_files.remove_attempts(self.store.folder, claim.job.id, upto=claim.attempt)
            self.store.confirm_cancel(claim)
        elif claim.job.id in self._watch.lost:  # what it made is of no use to the attempt that has the job now
            job_files.latent_of(self.store.folder, claim.job.id, claim.attempt).unlink(missing_ok=True)
        else:
            self.store.release(claim)
        self._watch.ended.add(claim.job.id)

    def _fail(self, claims: Sequence[Claim], error: Exception) -> dict[str, str]:
        if isinstance(error, KandinskyError):
            code = next((code for kind, code in CODES.items() if isinstance(error, kind)), "failed")
            told = {"code": code, "message": str(error), "hint": error.hint or ""}
        else:  # a bug: what it says may hold anything, so the log has it and the client does not
            log.error("a job failed:\n%s", "".join(traceback.format_exception(error)))
            told = {"code": "internal_error", "message": f"the worker failed: {type(error).__name__}", "hint": ""}
        for claim in claims:
            if self.store.fail(claim, told):
                job_files.remove_attempts(self.store.folder, claim.job.id, upto=claim.attempt)
            self._watch.ended.add(claim.job.id)
        return told

    def _is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, OutOfMemory | MemoryError)

    def _run(self, claims: list[Claim]) -> None:
        begun = time.monotonic()
        model = claims[0].job.model
        if claims[0].job.kind == live_line.KIND:
            if not self.follows:
                self._live(claims[0], begun)
            return
        if not self.models.has(model):
            for claim in claims:
                self.store.report(claim, "loading", {"model": model}, phase="loading")
        pipe = self.models.get(model)
        if claims[0].job.kind == "load":
            self._warm(model)
            for claim in claims:
                self._done(claim, {"model": model}, begun, 1)
            return
        loading_s = time.monotonic() - begun
        orders = {claim.job.id: Order.from_dict(claim.job.order) for claim in claims}
        first = orders[claims[0].job.id]
        with self.models.switched(pipe, first.lora, first.attention):
            jobs: list[tuple[Claim, Job]] = []
            for claim in claims:
                try:
                    asked = orders[claim.job.id].asked(
                        self.store.folder, claim.job.id, in_memory=True, branches=self.settings.branches
                    )
                    jobs.append((claim, pipe.resolve(asked)))
                except KandinskyError as error:
                    self._fail([claim], error)
            if not jobs:
                return
            if pipe.card.does.makes == "sound":
                for claim, job in () if self.follows else jobs:
                    self._sound(pipe, claim, job, orders[claim.job.id], begun)
            else:
                self._clips(pipe, jobs, orders, begun, loading_s)

    def _live(self, claim: Claim, begun: float) -> None:
        """Be the worker of a live session until it ends; what stops it is told to the server."""
        from kandinsky.engine.pipeline import GenerationPipeline
        from kandinsky.jobs.live import Session
        from kandinsky.media import packets

        order, model = claim.job.order, claim.job.model
        try:
            line = live_line.Line(order["address"])
        except KandinskyError as error:
            self._fail([claim], error)
            return
        try:
            line.send({"type": "hello", "job": claim.job.id, "secret": order["secret"]})
            if not self.models.has(model):
                line.send({"type": "phase", "phase": "loading"})
            pipe = self.models.get(model)
            assert isinstance(pipe, GenerationPipeline)
            line.send({"type": "phase", "phase": "encode"})
            formats = order.get("formats", (packets.JPEG,))
            session = Session(line, pipe, order["prompt"], order["options"], store=self.store.folder, formats=formats)
            with self.models.switched(pipe, (), None), self._watch.asking(session.stop):
                session.run()
            self._done(claim, {"frames": session.frames}, begun, 1)
            line.send({"type": "end"})
        except StoreGone:
            raise
        except Exception as error:
            line.send({"type": "failed", "error": self._fail([claim], error)})
        finally:
            line.close()

    def _clips(
        self,
        pipe: Pipeline,
        jobs: list[tuple[Claim, Job]],
        orders: Mapping[str, Order],
        begun: float,
        loading_s: float,
    ) -> None:
        from kandinsky.engine.pipeline import GenerationPipeline
        from kandinsky.model.values import VideoStream

        assert isinstance(pipe, GenerationPipeline)
        folders = [job_files.folder_of(self.store.folder, claim.job.id) for claim, _ in jobs]
        for folder in folders:
            folder.mkdir(mode=0o700, exist_ok=True)
        claims = [claim for claim, _ in jobs]
        store = self.store.folder
        latents = [job_files.latent_of(store, claim.job.id, claim.attempt) for claim in claims]
        is_long = any(job.long for _, job in jobs)
        in_turns = is_long or any(job.upscale for _, job in jobs)  # networks run while the result is consumed
        if is_long:
            latents = [job_files.windows_of(store, claim.job.id) for claim in claims]
        elif in_turns:  # a latent would be that of the first stage alone
            latents = []
        kept = [job_files.kept_latent(store, claim.job.id, upto=claim.attempt) for claim in claims]
        is_kept = pipe.team.agree(pipe.team.is_first and all(kept))
        streams = self._kept(pipe, [one or own for one, own in zip(kept, latents, strict=True)]) if is_kept else None
        if streams is None:
            made = self._sampled(pipe, claims, [job for _, job in jobs], latents)
            streams = [one for one in pipe.engine.results(made) if isinstance(one, VideoStream)]
        if self.follows:
            return
        sampled_s = time.monotonic() - begun
        loras = {one["source"]: one["name"] for one in pipe.adapters.recipe()}
        with ExitStack() as held:
            if not in_turns:
                held.enter_context(pipe.placement.hold("vae"))  # once for all clips
            held.enter_context(self._watch.asking(pipe.cancel))
            for claim, folder, stream in zip(claims, folders, streams, strict=True):
                order = orders[claim.job.id]
                stream = dataclasses.replace(stream, recipe=results.without_paths(stream.recipe, loras))
                try:
                    self._watch.check(claim)
                    if order.before:
                        stream = _continued(stream, folder / order.before, order.overlap, step=pipe.card.clip.temporal)
                    result = self._written(claim, stream, folder, order)
                    if order.sound:
                        self._add_sound(claim, result, folder, order)
                except _Dropped:
                    self._let_go(claim)
                    continue
                except Cancelled:
                    raise _Stop from None
                except KandinskyError as error:
                    if self._is_out_of_memory(error):
                        raise
                    self._fail([claim], error)
                    continue
                result["stages"] = {
                    "load": round(loading_s, 3),
                    "sample": round(sampled_s - loading_s, 3),
                    "write": round(time.monotonic() - begun - sampled_s, 3),
                }
                result["batch"] = len(jobs)
                self._done(claim, result, begun, len(jobs))

    def _kept(self, pipe: GenerationPipeline, latents: list[Path]) -> list[VideoStream] | None:
        """The clips of latents that an earlier attempt left; None if they are of no use."""
        try:
            return [pipe.finish_stream(latent) for latent in latents]
        except KandinskyError as error:
            log.warning("a kept latent is of no use: %s", error)
            for latent in latents:
                latent.unlink(missing_ok=True)
            return None

    def _sampled(self, pipe: Pipeline, claims: list[Claim], jobs: list[Job], latents: list[Path]) -> Any:
        """Run a batch up to its latents, telling steps and previews.

        Raises:
            _Stop: It is to stop.
        """
        keep = latents if pipe.card.does.makes != "sound" else ()
        heard = self._heard(pipe, claims)
        running = pipe.engine.latents(jobs, keep=keep, tell=heard)
        try:
            with self._watch.asking(pipe.cancel):
                while True:
                    try:
                        event = next(running)
                    except StopIteration as end:
                        return end.value
                    except Cancelled:
                        raise _Stop from None
                    heard(event)
        finally:
            running.close()

    def _heard(self, pipe: Pipeline, claims: list[Claim]) -> Callable[[Event], None]:
        """What reports phases, steps and previews of a batch; it raises ``_Stop`` if the batch is to stop."""
        from kandinsky.engine.events import Phase, Step

        told = shown = last = float("-inf")

        def heard(event: Event) -> None:
            nonlocal told, shown, last
            if pipe.context.team.size == 1:  # several processes stop together, when the engine says so
                self._watch.check()
            now = time.monotonic()
            if isinstance(event, Phase):
                for claim in self._left(claims):
                    self.store.report(claim, "phase", {"phase": event.name}, phase=event.name)
                last = now
            elif isinstance(event, Step):
                self._step_s, last = now - last, now
                is_last = event.step == event.total
                if now - told >= TELL_S or is_last:
                    told = now
                    data = {"step": event.step, "steps": event.total, "step_s": round(self._step_s, 4)}
                    data["eta_s"] = round(self._step_s * (event.total - event.step), 3)
                    for claim in self._left(claims):
                        self.store.report(claim, "step", data, phase="sample", step=event.step, steps=event.total)
                every = self.settings.preview_s
                if every is not None and now - shown >= every and not is_last:
                    shown = now
                    self._show(claims, event)

        return heard

    def _show(self, claims: list[Claim], event: Step) -> None:
        try:
            images = event.preview().images
            for claim, image in zip(claims, images, strict=False):
                if claim.job.id in self._watch.ended:
                    continue
                folder = job_files.folder_of(self.store.folder, claim.job.id)
                folder.mkdir(mode=0o700, exist_ok=True)
                results.write_preview(image, folder / job_files.PREVIEW)
                if not self.store.report(claim, "preview", {"step": event.step, "steps": event.total}):
                    (folder / job_files.PREVIEW).unlink(missing_ok=True)  # the job is another attempt's, or over
        except (OSError, KandinskyError, ValueError) as error:  # a result without previews is still a result
            log.warning("no preview: %s", error)

    def _written(self, claim: Claim, stream: VideoStream, folder: Path, order: Order) -> dict[str, Any]:
        """Decode and write one clip.

        Raises:
            _Stop: Nothing of the batch is wanted any more.
            _Dropped: This clip is not.
        """
        told = float("-inf")
        self.store.report(claim, "phase", {"phase": "decode"}, phase="decode")

        def look(done: int, total: int) -> None:
            nonlocal told
            self._watch.check(claim)
            if time.monotonic() - told >= TELL_S:
                told = time.monotonic()
                phase = "write" if done == total else "decode"
                self.store.report(claim, "decoding", {"frames": done, "of": total}, phase=phase)

        return results.write_clip(stream, folder, f"a{claim.attempt}", order.form, look=look)

    def _done(self, claim: Claim, result: Mapping[str, Any], begun: float, jobs: int) -> None:
        """Register a result; files of a job that was cancelled or lost meanwhile are removed."""
        run_s = (time.monotonic() - begun) / jobs
        store = self.store
        job_files.remove_attempts(store.folder, claim.job.id, upto=claim.attempt - 1)
        size = job_files.size_of(store.folder, claim.job.id)
        state = store.complete(claim, result, run_s=run_s, size=size)
        self._watch.ended.add(claim.job.id)
        if state != State.COMPLETED:
            for path in job_files.folder_of(store.folder, claim.job.id).glob(f"a{claim.attempt}-*"):
                path.unlink(missing_ok=True)
        else:
            (job_files.folder_of(store.folder, claim.job.id) / job_files.PREVIEW).unlink(missing_ok=True)
        if state is not None:
            job_files.remove_latents(store.folder, claim.job.id, upto=claim.attempt)
            job_files.remove_windows(store.folder, claim.job.id)
        else:  # those before may serve the attempt that has the job now
            job_files.latent_of(store.folder, claim.job.id, claim.attempt).unlink(missing_ok=True)

    # -- sound -------------------------------------------------------------------------------------------------------

    def _sound(self, pipe: Pipeline, claim: Claim, job: Job, order: Order, begun: float) -> None:
        """Generate audio for an input video."""
        from kandinsky.model.values import Soundtrack

        folder = job_files.folder_of(self.store.folder, claim.job.id)
        made = self._sampled(pipe, [claim], [job], [])
        self.store.report(claim, "phase", {"phase": "decode"}, phase="decode")
        with self._watch.asking(pipe.cancel):
            try:
                (sound,) = pipe.engine.results(made)
            except Cancelled:
                raise _Stop from None
        assert isinstance(sound, Soundtrack)
        sound = dataclasses.replace(sound, recipe=results.without_paths(sound.recipe, {}))
        self._watch.check()
        result = results.write_sound(sound, folder, f"a{claim.attempt}", order.form)
        self._watch.check()
        self._done(claim, result, begun, 1)

    def _add_sound(self, claim: Claim, result: dict[str, Any], folder: Path, order: Order) -> None:
        """Generate audio for a clip that was just written, and put it into the file; its recipe says so."""
        from kandinsky.media import mux
        from kandinsky.model.values import Request, Soundtrack

        pipe = self.models.get(order.sound)
        path = folder / result["file"]
        request = {"model": order.sound, "prompt": order.request.get("prompt", ""), "seed": result["seed"]}
        asked = pipe.resolve(Request(**request, video=path))
        made = self._sampled(pipe, [claim], [asked], [])
        (sound,) = pipe.engine.results(made)
        assert isinstance(sound, Soundtrack)
        told = {key: value for key, value in sound.recipe.items() if key not in ("video", "prompt", "versions")}
        result["recipe"] = {**result["recipe"], "sound": told}
        mux.copy_with_audio(mux.probe(path), sound.audio, path, recipe=result["recipe"], over=True)
        sound.audio.save(folder / f"a{claim.attempt}-audio.wav")
        result["audio"] = f"a{claim.attempt}-audio.wav"


def _continued(stream: VideoStream, before: Path, overlap: str, *, step: int) -> VideoStream:
    """A clip that goes on where another ends: that one's frames, at the rate and size of this one, then its own.

    The frames that the new clip begins with, since they were known of it, are left out.

    Args:
        stream: The new clip.
        before: The clip that it continues.
        overlap: The part of that one that is known of the new one; empty for its last frame.
        step: Frames in a group of the latent: what is known is known in whole ones.
    """
    import numpy as np
    from PIL import Image

    from kandinsky.media.image import cover
    from kandinsky.media.input_clip import open_clip
    from kandinsky.media.mux import frames_of_windows, probe

    video, clip = probe(before), open_clip(before)
    chosen, known = clip.shown_at(stream.fps), 1
    if overlap:
        given = len(open_clip(before, overlap).shown_at(stream.fps))
        known = (given - 1) // step * step + 1
        chosen = chosen[: len(chosen) - (given - known)]
    elif chosen[-1] != len(clip.times_s) - 1:
        chosen.append(len(clip.times_s) - 1)

    def pieces() -> Iterator[np.ndarray]:
        new = iter(stream.pieces)
        piece, skip = next(new), known
        H, W = piece.shape[1:3]
        windows = [chosen[i : i + WINDOW] for i in range(0, len(chosen), WINDOW)]  # never all at their full size
        for frames in frames_of_windows(video, windows):
            yield np.stack([np.asarray(cover(Image.fromarray(frame), W, H)) for frame in frames])
        while True:
            if len(piece) > skip:
                yield piece[skip:]
            skip = max(0, skip - len(piece))
            try:
                piece = next(new)
            except StopIteration:
                return

    recipe = {**stream.recipe, "extended": {"frames": len(chosen), "fps": video.fps}}
    count = len(chosen) + stream.num_frames - known
    return dataclasses.replace(stream, pieces=pieces(), num_frames=count, recipe=recipe)


class _Watch:
    """The second thread of a worker: renews leases, and notices what is to stop."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._claims: list[Claim] = []
        self._cancel: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self.cancelled: set[str] = set()
        self.lost: set[str] = set()
        self.ended: set[str] = set()

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @contextmanager
    def over(self, claims: list[Claim]) -> Iterator[None]:
        """Watch over the jobs of a batch."""
        with self._lock:
            self._claims = list(claims)
            self.cancelled, self.lost, self.ended = set(), set(), set()
        try:
            yield
        finally:
            with self._lock:
                self._claims = []

    @contextmanager
    def asking(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Call ``cancel`` while the block runs, as soon as nothing of the batch is wanted."""
        with self._lock:
            self._cancel = cancel
        try:
            yield
        finally:
            with self._lock:
                self._cancel = None

    def check(self, claim: Claim | None = None) -> None:
        """Stop what is not wanted any more.

        Raises:
            _Stop: Nothing of the batch is.
            _Dropped: ``claim`` is not.
        """
        if self._is_unwanted():
            raise _Stop
        if claim is not None and claim.job.id in self.cancelled | self.lost:
            raise _Dropped

    def _is_unwanted(self) -> bool:
        if self._worker.stopping.is_set():
            return True
        gone = self.cancelled | self.lost | self.ended
        return bool(self._claims) and all(claim.job.id in gone for claim in self._claims)

    def _look(self) -> None:
        worker, store = self._worker, self._worker.store
        lease_s, parent = worker.settings.lease_s, worker.settings.parent
        beaten = float("-inf")
        while not self._over.wait(LOOK_S):
            if parent and os.getppid() != parent:
                log.warning("the server is gone: this worker ends")
                worker.stop()
            with self._lock:
                claims = [claim for claim in self._claims if claim.job.id not in self.ended]
            try:
                if time.monotonic() - beaten >= lease_s / 3:
                    beaten = time.monotonic()
                    cancelled, lost = store.renew(claims, lease_s=lease_s)
                    worker._beat()
                elif claims and store.has_changed():
                    cancelled, lost = store.standing(claims)
                else:
                    cancelled, lost = set(), set()
            except StoreGone as error:  # nobody hears what is being done
                log.debug("%s", error)
                cancelled, lost = set(), {claim.job.id for claim in claims}
            except Exception:  # a busy disk must not end the worker: the lease tells in time
                log.warning("the store cannot be reached", exc_info=True)
                continue
            with self._lock:
                mine = {claim.job.id for claim in self._claims} - self.ended
                self.cancelled |= cancelled & mine
                self.lost |= lost & mine
                if self._cancel is not None and self._is_unwanted():
                    self._cancel()
        with suppress(Exception):
            store.close()


def _resident() -> int:
    """Bytes of main memory that this process takes; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def end_with(parent: int) -> None:
    """Have the system end this process when its parent does, where it can; the worker also looks itself."""
    if parent and sys.platform == "linux":
        import ctypes
        import signal

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def work(folder: str | Path | None, settings: WorkerSettings, *, name: str, retention_s: float = RETENTION_S) -> None:
    """Open a store and work for it until SIGTERM or SIGINT, which give its jobs back, or SIGUSR1, which lets them end.

    Args:
        folder: Where the store lies; None for the default.
        settings: How to work.
        name: The worker's name.
        retention_s: Seconds that a finished job is kept.
    """
    import signal

    store = open_store(folder, retention_s=retention_s)
    worker = Worker(store, settings, name=name)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: worker.stop())
    signal.signal(signal.SIGUSR1, lambda *_: worker.leave())
    end_with(settings.parent)
    worker.run()
    gc.freeze()  # the interpreter looks through all objects before it ends, which takes seconds with torch
