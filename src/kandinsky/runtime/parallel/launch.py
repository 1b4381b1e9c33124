"""From several started processes to one job: they meet, watch each other, and end together.

Every process sends heartbeats through the store they met in. One that fails says why and all end; one that has gone, or
is silent for ``SILENCE_S``, is missed and all end, including one that hangs; one that a scheduler ends reports it. The
importable part needs no torch.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from kandinsky.errors import KandinskyError, RequestError
from kandinsky.runtime.parallel import threads
from kandinsky.runtime.parallel.neighbours import Neighbour

BEAT_S = 1.0
# counted in the listener's own beats: one that was itself stopped or starved must not judge others by elapsed time
SILENCE_S = 15.0
# after this silence, a process is looked for
DOUBT_S = 3.0
# a process that does not stop on its own is ended after this time
GRACE_S = 3.0
# longer than any one stage: heartbeats detect processes that are really gone
PATIENCE = timedelta(hours=12)
# machines of a cluster do not start at the same moment
MEETING_S = 300.0
# a fault in a request is the first process's to report; one that is not ended within this time was alone with it
ALONE_S = 20.0
ENDED = 1
# what launchers and terminals send to end a process, besides SIGINT
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
NOTHING = "the job ends, no file was written"
BY_LAUNCHER = "the launcher ended it, most likely since another process failed; no file was written"


@dataclass(frozen=True, slots=True)
class World:
    """How many processes were started, and which of them this is; ``local`` counts within the machine."""

    size: int = 1
    rank: int = 0
    local: int = 0

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @classmethod
    def started(cls) -> World:
        """What `torchrun` or another launcher says in the environment.

        Raises:
            RequestError: The variables are not valid.
        """
        if "WORLD_SIZE" not in os.environ:
            return cls()
        size, rank, local = (_number(name, default) for name, default in
                             (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))  # fmt: skip
        if not rank < size:
            raise RequestError(f"RANK is `{rank}` and WORLD_SIZE `{size}`: start the processes with `torchrun`")
        return cls(size, rank, local)

    def device(self, asked: str | None) -> str | None:
        """The device of this process: on a machine with several, its own."""
        from kandinsky.runtime.devices import choose_device

        if self.size == 1:
            return asked
        if asked in (None, "auto", "cuda"):
            best = choose_device(asked)
            return f"cuda:{self.local}" if best.startswith("cuda") else best
        return asked


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise RequestError(f"{name} is `{value}`: start the processes with `torchrun`, which sets it")
    return int(value)


def meet(device_type: str) -> None:
    """Form the group of all started processes, if it does not exist yet, and watch over it."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    if device_type == "cuda":
        import torch

        torch.cuda.set_device(World.started().local)
    store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=MEETING_S)))
    # before the group is formed, which would wait for a process that is gone
    _Watch.present = _Watch(store.clone(), World.started())
    group_store = dist.PrefixStore("kandinsky-group", store)
    dist.init_process_group(backend, store=group_store, rank=rank, world_size=size, timeout=PATIENCE)
    # also in scripts that never part
    atexit.register(threads.let_go)


@contextmanager
def endings_held() -> Iterator[None]:
    """Within the block, what a scheduler sends to end the job does not end it: whoever entered it ends it himself."""
    watch = _Watch.present
    if watch is None:
        yield
        return
    watch.obeys = False
    try:
        yield
    finally:
        watch.obeys = True


def is_ending() -> bool:
    """Whether the job ends since another process failed or is missed."""
    return _Watch.present is not None and _Watch.present.ending is not None


def part(failed: str | None = None) -> None:
    """Leave the group: the job is done, or has failed for the given reason, which ends it for all."""
    import torch.distributed as dist

    watch, _Watch.present = _Watch.present, None
    if watch is not None:
        watch.finish(failed)
    if dist.is_initialized() and failed is None:
        dist.destroy_process_group()


@contextmanager
def together(say: Callable[[str], None]) -> Iterator[World]:
    """Run a job on one or several processes: only one of them reports, and all end when one does.

    Raises:
        SystemExit: The job failed on several processes; it has been reported. With one process, its own error passes
            through.
    """
    world = World.started()
    if world.size == 1:
        yield world
        return

    def ended(*_: object) -> None:
        # before the processes have met, while each still imports and reads
        say(f"error: process {world.rank} of {world.size} ends: {BY_LAUNCHER}")
        _leave(ENDED)

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, ended) for number in _endings()} if is_main else {}
    try:
        yield world
    except KandinskyError as error:
        _leave_undisturbed()
        # an error in a request is found by every process
        watch = _Watch.present
        is_common = isinstance(error, RequestError) and watch is None
        if is_common and not world.is_first and is_main:
            _wait_for_end(error.exit_code)
            is_common = False
        if watch.may_speak() if watch else world.is_first or not is_common:
            say(f"error: {error}" if is_common else f"error: process {world.rank} of {world.size}: {error}")
            if error.hint:
                say(f"hint: {error.hint}")
        part(str(error))
        _leave(error.exit_code)
    except KeyboardInterrupt as error:
        _leave_undisturbed()
        watch = _Watch.present
        reason = watch.ending if watch else None
        if reason is None and world.is_first:
            say(f"interrupted: {error if error.args else 'nothing half-written was left behind'}")
        part("interrupted" if reason is None else reason)
        _leave(130 if reason is None else ENDED)
    except SystemExit:
        part()
        raise
    except Exception as error:
        watch = _Watch.present
        # the others' connections break before anybody has missed the one that is gone
        reason = watch.explain(error) if watch else None
        _leave_undisturbed()
        if reason is None:
            reason = f"{type(error).__name__}: {error}"
            say("".join(traceback.format_exception(error)).rstrip())
            say(f"error: process {world.rank} of {world.size}: {reason}")
        part(reason)
        _leave(ENDED)
    else:
        part()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _endings() -> list[signal.Signals]:
    """The signals that end a job; one that is ignored, as under `nohup`, stays ignored."""
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]


def _wait_for_end(code: int) -> None:
    """Leave with the code as soon as the launcher says so; return after ``ALONE_S``.

    A launcher ends all processes when one has left, and would so end the first before it has reported.
    """
    for number in _endings():
        signal.signal(number, lambda *_: _leave(code))
    time.sleep(ALONE_S)


def _leave_undisturbed() -> None:
    """Ignore interrupts, since the job is over here: one on behalf of the others would only hide the reason."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _leave(code: int) -> None:
    """End this process now: the group's own clean-up would wait for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Watch:
    """Heartbeats of all processes, in a thread; reports once why the job ends, and ends it here."""

    present: _Watch | None = None

    def __init__(self, store: Any, world: World) -> None:
        self.store = store
        self.world = world
        self.ending: str | None = None
        self.obeys = True
        self._done = threading.Event()
        self._signals, self._signalled = socket.socketpair()
        self._signals.setblocking(False)
        self._signalled.setblocking(False)
        self._restore: list[Callable[[], object]] = []
        if threading.current_thread() is threading.main_thread():
            # a handler runs only between two Python instructions, which a process that waits for others never reaches
            before = {number: signal.signal(number, lambda *_: None) for number in _endings()}
            wakeup = signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
            self._restore = [*(partial(signal.signal, *one) for one in before.items())]
            self._restore.append(lambda: signal.set_wakeup_fd(wakeup))
        store.set(f"kandinsky/place/{world.rank}", str(Neighbour.myself()))
        self._beats = 0
        self._thread = threading.Thread(target=self._run, name="kandinsky-watch", daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard, name="kandinsky-guard", daemon=True).start()

    def finish(self, failed: str | None) -> None:
        """This process is done, or has failed."""
        self._done.set()
        self._thread.join(2 * BEAT_S)
        if not self._thread.is_alive():  # else it waits for a store that does not answer
            self._tell_end(failed)
        for restore in self._restore:
            restore()

    def _tell_end(self, failed: str | None) -> None:
        with contextlib.suppress(Exception):
            if failed is not None:
                self.store.set("kandinsky/failed", failed)
            self.store.set(f"kandinsky/done/{self.world.rank}", "1")
            if self.world.is_first and failed is None:  # the store may live here: leave last
                end = time.monotonic() + SILENCE_S
                while time.monotonic() < end and not all(self._is_done(rank) for rank in range(self.world.size)):
                    time.sleep(0.05)

    def may_speak(self) -> bool:
        """Whether no process has reported yet why the job ends: several may find the same fault."""
        with contextlib.suppress(Exception):
            return bool(self.store.add("kandinsky/said", 1) == 1)
        return True

    def explain(self, error: Exception) -> str | None:
        """Why a call to others failed, if they are the reason: waits until a process is missed or has reported."""
        if type(error).__name__ not in ("RuntimeError", "DistBackendError", "DistNetworkError", "DistError"):
            return None
        if not any(word in str(error).lower() for word in ("connection", "peer", "socket", "nccl", "timed out")):
            return None
        end = time.monotonic() + SILENCE_S + 5 * BEAT_S
        with contextlib.suppress(KeyboardInterrupt):
            while self.ending is None and time.monotonic() < end:
                time.sleep(0.05)
        return self.ending or "the connection to another process broke"

    def _run(self) -> None:
        heard: dict[int, tuple[bytes, int]] = {}  # the sign, and when it was new
        while not self._done.wait(BEAT_S):
            self._beats += 1
            try:
                is_ended = self._is_ended()
                if is_ended:  # whichever fails first reports it; allow a moment for it to arrive
                    time.sleep(0.2)
                if failure := self._failure():
                    return self._end(None, failure)
                if is_ended:
                    text = f"error: process {self.world.rank} of {self.world.size} ends: {BY_LAUNCHER}"
                    return self._end(text, BY_LAUNCHER)
                self.store.set(f"kandinsky/life/{self.world.rank}", str(self._beats))
                for rank in range(self.world.size):
                    if rank == self.world.rank or self._is_done(rank):
                        continue
                    sign = self._told(f"kandinsky/life/{rank}")
                    if rank not in heard or heard[rank][0] != sign:
                        heard[rank] = (sign, self._beats)
                    elif missing := self._missing(rank, (self._beats - heard[rank][1]) * BEAT_S):
                        first = self.store.add("kandinsky/missed", 1) == 1
                        return self._end(f"error: {missing}; {NOTHING}" if first else None, missing)
            except Exception:  # the store has gone with the process that held it
                if self._done.is_set():
                    return None
                reason = "the process that held the others together has gone"
                return self._end(f"error: process {self.world.rank}: {reason}", reason)
        return None

    def _guard(self) -> None:
        """Guard against a store that does not answer, its process being stopped: then the other thread hangs too."""
        beats, same = self._beats, 0
        while not self._done.wait(BEAT_S) and self.ending is None:
            same = same + 1 if beats == self._beats else 0
            beats = self._beats
            if same * BEAT_S >= SILENCE_S:
                reason = f"the process that holds the others together does not answer: no sign for {SILENCE_S:g} s"
                return self._end(f"error: process {self.world.rank}: {reason}; {NOTHING}", reason)
        return None

    def _missing(self, rank: int, silent_s: float) -> str | None:
        """Why a process that was silent that long is missed; None if not yet. One that hangs here is ended."""
        if silent_s < DOUBT_S:
            return None
        told = self._told(f"kandinsky/place/{rank}")
        who = Neighbour.parse(told.decode()) if told else None
        place = f" ({who.place})" if who else ""
        if who and who.has_gone() and not self._is_done(rank):
            return f"process {rank}{place} has gone: it was killed, by someone or for want of memory"
        if silent_s < (SILENCE_S if who else MEETING_S):
            return None
        if who:  # a launcher would first ask it to end, and wait
            who.end()
            return f"process {rank}{place} does not answer: no sign of life for {SILENCE_S:g} s"
        return f"process {rank} did not come within {MEETING_S:g} s"

    def _told(self, key: str) -> bytes:
        """What another process has put into the store; empty if nothing yet."""
        return bytes(self.store.get(key)) if self.store.check([key]) else b""

    def _is_ended(self) -> bool:
        try:
            return any(number in ENDING for number in self._signals.recv(64)) and self.obeys
        except BlockingIOError:
            return False

    def _failure(self) -> str | None:
        return self._told("kandinsky/failed").decode() or None

    def _is_done(self, rank: int) -> bool:
        return bool(self.store.check([f"kandinsky/done/{rank}"]))

    def _end(self, text: str | None, reason: str) -> None:
        """Interrupt the work, so that no partial files stay; end the process if it cannot react."""
        self.ending = reason
        if text:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        _thread.interrupt_main()
        if not self._done.wait(GRACE_S):
            os._exit(ENDED)
