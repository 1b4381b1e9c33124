"""Groups of processes for tests, forked from one that has imported everything: a start takes milliseconds.

A script calls ``serve`` with what a process of a group does; a test holds it as a ``Nursery`` and starts groups of any
number of processes, which find each other as those of `torchrun` do. A process that is to be killed is a life of
``Lives``, whose script calls ``raise_lives``.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import kandinsky

TESTS = Path(__file__).resolve().parents[1]
PATIENCE_S = 1500  # of a group
LIFE_S = 300  # of a life, which then says where it stands and ends


class Nursery:
    """Starts groups of processes.

    Args:
        script: Calls ``serve``.
        **environment: Variables besides those of this process.
    """

    def __init__(self, script: Path, **environment: str) -> None:
        self._process = _started(script, environment)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _ended(self._process)

    def start(self, processes: int, given: Any, *, fails: bool = False) -> tuple[int, str]:
        """Run a group to its end. Returns: 0 or the first process' failure, and what they said on stderr."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([processes, given]) + "\n")
        self._process.stdin.flush()
        codes, said = json.loads(self._process.stdout.readline())
        code = next((one for one in codes if one), 0)
        assert fails or not code, said[-4000:]
        return code, said


class Lives:
    """Starts single processes, one after the other, which may be killed.

    Args:
        script: Calls ``raise_lives``.
        **environment: Variables besides those of this process.
    """

    def __init__(self, script: Path, **environment: str) -> None:
        self._process = _started(script, environment)

    def __enter__(self) -> Lives:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _ended(self._process)

    def begin(self, given: Any) -> Life:
        """A process that does the script's work."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(given) + "\n")
        self._process.stdin.flush()
        return Life(int(_line(self._process.stdout)), self._process.stdout)


class Life:
    """A process of ``Lives``."""

    def __init__(self, pid: int, told: IO[str]) -> None:
        self._pid, self._told = pid, told

    @property
    def is_over(self) -> bool:
        """Whether it has ended by itself."""
        return bool(select.select([self._told], [], [], 0)[0])

    def kill(self) -> bool:
        """End it at once. Returns: whether it was still alive."""
        if not self.is_over:
            os.kill(self._pid, signal.SIGKILL)
        return self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Wait for its end. Returns: its exit code, or less the signal that ended it."""
        return int(_line(self._told))


def _line(stream: IO[str]) -> str:
    """The next line, and nothing behind it: else what comes then would not be seen by ``select``."""
    found = b""
    while not found.endswith(b"\n"):
        assert select.select([stream], [], [], LIFE_S + 30)[0], "the script says nothing"
        byte = os.read(stream.fileno(), 1)
        assert byte, "the script has ended; see its stderr"
        found += byte
    return found.decode()


def raise_lives(work: Callable[[Any], int | None]) -> None:
    """Fork processes that do ``work``, as asked on stdin, until that ends; what it returns is their exit code."""
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            code = 1
            try:
                os.dup2(2, 1)
                faulthandler.dump_traceback_later(LIFE_S, exit=True)
                code = work(json.loads(line)) or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _started(script: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    source = Path(kandinsky.__file__).parents[1]
    mine = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{source}{os.pathsep}{TESTS}", **environment}
    return subprocess.Popen(
        [sys.executable, str(script)], env=os.environ | mine, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _ended(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


def serve(work: Callable[[Any], None]) -> None:
    """Fork groups that do ``work``, as asked on stdin, until that ends; ``work`` meets the others itself."""
    import torch
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)], fused=True)  # imports what it needs
    for line in sys.stdin:
        processes, given = json.loads(line)
        answer = _group(work, processes, given)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _group(work: Callable[[Any], None], processes: int, given: Any) -> tuple[list[int], str]:
    with socket.socket() as free, tempfile.TemporaryFile() as said:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        ranks = {}
        for rank in range(processes):
            if (pid := os.fork()) == 0:
                _live(work, given, rank, processes, port, said.fileno())
            ranks[pid] = rank
        codes = [0] * processes
        for _ in range(processes):  # whoever has gone is buried at once, so that the others miss it
            pid, status = os.wait()
            codes[ranks[pid]] = os.waitstatus_to_exitcode(status)
        said.seek(0)
        return codes, said.read().decode(errors="replace")


def _live(work: Callable[[Any], None], given: Any, rank: int, processes: int, port: int, said: int) -> None:
    from kandinsky.runtime.parallel import launch

    code: Any = 1
    try:
        signal.alarm(PATIENCE_S)
        for stream in (1, 2):
            os.dup2(said, stream)
        warnings.simplefilter("ignore", UserWarning)
        if processes > 1:
            names = {"WORLD_SIZE": processes, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
        with launch.together(lambda text: print(text, file=sys.stderr, flush=True)):
            if processes > 1:
                launch.meet("cpu")
            work(given)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
