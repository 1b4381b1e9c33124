"""Starts of Python for tests, forked from one process that has imported everything: a start takes milliseconds.

``Forked`` is a ``subprocess.Popen`` for command lines that begin with this Python; the process it starts has a process
number, streams, a session and an end of its own. What depends on the start of an interpreter (encodings, variables that
libraries read when they are imported, what is imported at all) is not seen this way: such tests start Python itself.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import inspect
import io
import json
import os
import pkgutil
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import kandinsky

TESTS = Path(__file__).resolve().parents[1]
PLACE = "TESTS_FORKS"  # the socket, for `client`
LAUNCHER = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"
PATIENCE_S = 1500  # of a process
LARGEST = 1 << 20  # request, in bytes
# read when Python begins or a library is imported
AT_START = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_", "PYTHONIOENCODING", "PYTHONUTF8", "LC_", "LANG")
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # forked processes ask no hub
# What the library imports as it works.
NEEDED = (
    "av",
    "PIL.Image",
    "PIL.PngImagePlugin",
    "PIL.WebPImagePlugin",
    "rich.progress",
    "safetensors.torch",
    "torch.distributed.run",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.utils.checkpoint",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.models.auto",
)


class Forked(subprocess.Popen[Any]):
    """A process of this Python, as ``subprocess.Popen`` with the same arguments starts it, but forked.

    Raises:
        AssertionError: The command line is not of this Python, or its environment has other values of ``AT_START``.
    """

    def _execute_child(self, *given: Any) -> None:
        asked = inspect.signature(subprocess.Popen._execute_child).bind(self, *given).arguments  # type: ignore[attr-defined]
        words, env = [os.fspath(word) for word in asked["args"]], asked["env"]
        assert words[0] == sys.executable, words
        ours = {"p2cread": 0, "c2pwrite": 1, "errwrite": 2}
        streams = {to: asked[name] if asked[name] != -1 else to for name, to in ours.items()}
        request = {
            "words": words[1:],
            "env": dict(os.environ if env is None else env),
            "cwd": os.fspath(asked["cwd"] or Path.cwd()),
            "streams": list(streams),
            "session": bool(asked["start_new_session"]),
            "group": asked.get("process_group", -1),
        }
        self._line = _asked(place(), request, list(streams.values()))
        self.pid = int(self._line.recv(64))
        self._child_created = True
        self._close_pipe_fds(*(asked[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")))  # type: ignore[attr-defined]  # fmt: skip  # noqa: E501

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if not flags or select.select([self._line], [], [], 0)[0]:
            status = int(self._line.recv(64))
            self._line.close()
            return self.pid, status
        return 0, 0

    def _internal_poll(self, _deadstate: int | None = None, **_: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            with contextlib.ExitStack() as stack:
                stack.callback(self._waitpid_lock.release)  # type: ignore[attr-defined]
                pid, status = self._try_wait(os.WNOHANG)
                if pid == self.pid:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
        return self.returncode


def run(words: list[str], *, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[Any]:
    """As ``subprocess.run`` with ``capture_output``."""
    with Forked(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


@cache
def place() -> str:
    """The socket of the process that forks, which is started by the first who asks and ends with this process."""
    if PLACE in os.environ:
        return os.environ[PLACE]
    folder = tempfile.mkdtemp(prefix="kandinsky-forks-")
    path = f"{folder}/socket"
    source = Path(kandinsky.__file__).parents[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"OMP_NUM_THREADS": "1", **OFFLINE, "PYTHONPATH": f"{source}{os.pathsep}{TESTS}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tiny.command_line", path], env=env, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    def end(owner: int = os.getpid()) -> None:
        if os.getpid() == owner:
            process.communicate()
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    _check_same.expected = _at_start(env)  # type: ignore[attr-defined]
    return path


def client() -> list[str]:
    """A command that stands for this Python in a shell's line: its arguments, folder, streams and exit code are those
    of a forked process. A signal reaches the client alone."""
    return [sys.executable, "-I", "-S", "-c", CLIENT, place()]


CLIENT = """
import json, os, socket, sys
def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
streams = [number for number in range(3) if is_open(number)]
line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
line.connect(sys.argv[1])
request = {"words": sys.argv[2:], "env": dict(os.environ), "cwd": os.getcwd(), "streams": streams, "session": False,
           "group": -1}
socket.send_fds(line, [json.dumps(request).encode()], streams)
line.recv(64)
code = os.waitstatus_to_exitcode(int(line.recv(64)))
os._exit(code if code >= 0 else 128 - code)
"""


def _at_start(env: Any) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(AT_START) and OFFLINE.get(name) != value}


def _check_same(env: dict[str, str]) -> None:
    expected = getattr(_check_same, "expected", None)
    assert expected in (None, _at_start(env)), f"start Python itself: {_at_start(env)} instead of {expected}"


def _asked(path: str, request: dict[str, Any], streams: list[int]) -> socket.socket:
    _check_same(request["env"])
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
    line.connect(path)
    socket.send_fds(line, [json.dumps(request).encode()], streams)
    return line


# -- the process that forks ------------------------------------------------------------------------------------------


def serve(path: str) -> dict[str, Any] | None:
    """Fork as asked until stdin ends. Returns: in a forked process what it is to do, in the first process None."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    told, tell = socket.socketpair()
    for end in (told, tell):
        end.setblocking(False)
    signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    lines: dict[int, socket.socket] = {}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        ready = select.select([0, listener, told], [], [])[0]
        if told in ready:
            told.recv(4096)
            while lines:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                with contextlib.suppress(OSError), lines.pop(pid) as line:  # whoever asked may have gone
                    line.send(str(status).encode())
        if listener in ready:
            line = listener.accept()[0]
            data, streams, _, _ = socket.recv_fds(line, LARGEST, 3)
            if data and (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for one in (listener, told, tell, line, *lines.values()):
                    one.close()
                request: dict[str, Any] = json.loads(data)
                _become(request, streams)
                return request
            for number in streams:
                os.close(number)
            if data:
                lines[pid] = line
                with contextlib.suppress(OSError):
                    line.send(str(pid).encode())
        if 0 in ready and not os.read(0, 64):
            for pid in lines:
                os.kill(pid, signal.SIGKILL)
            return None


def _become(request: dict[str, Any], given: list[int]) -> None:
    """Make this forked process what a start would have made it."""
    signal.alarm(PATIENCE_S)
    if request["session"]:
        os.setsid()
    elif request["group"] not in (-1, None):
        os.setpgid(0, request["group"])
    for number in range(3):
        with contextlib.suppress(OSError):
            os.close(number)
    held = [os.dup(one) if one < 3 else one for one in given]
    for number, one in zip(request["streams"], held, strict=True):
        os.dup2(one, number, inheritable=True)
    for one in held:
        os.close(one)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _stream(number) if number in request["streams"] else None
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    from huggingface_hub import constants

    if home := os.environ.get("HF_HOME"):
        constants.HF_HUB_CACHE = f"{home}/hub"
    constants.HF_HUB_CACHE = os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE)
    random.seed()


def _stream(number: int) -> io.TextIOWrapper:
    buffer: Any = open(number, "rb" if number == 0 else "wb", closefd=False)  # noqa: SIM115
    errors = "backslashreplace" if number == 2 else "strict"
    return io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=number == 2 or os.isatty(number))


def _do(words: list[str]) -> NoReturn:
    """What Python does with these arguments."""
    if words[0] == "-u":
        words = words[1:]
    kind, *rest = words
    sys.path[0] = ""
    sys.path[1:1] = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one and one not in sys.path]
    if any(Path(one, "sitecustomize.py").is_file() for one in sys.path):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    elif kind == "-m":
        if rest[0].startswith("torch.distributed."):  # what a forked launcher starts is forked, too
            importlib.import_module(LAUNCHER).Popen = Forked  # type: ignore[attr-defined]
            os.environ[PLACE] = sys.argv[1]
            sys.modules.pop(rest[0], None)
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(kind).parent)
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")
    sys.exit()


def _end(code: Any) -> NoReturn:
    """The end of an interpreter without its last part, which takes every module apart."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError:
            code = 120
    os._exit(code or 0)


def warm() -> None:
    """Import everything, and start no thread."""
    import torch

    torch.set_num_threads(1)
    for name in NEEDED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for module in pkgutil.walk_packages(kandinsky.__path__, "kandinsky."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    from kandinsky.cli.main import root_command

    root_command()
    if (tasks := Path("/proc/self/task")).is_dir():
        assert len(list(tasks.iterdir())) == 1, "a process of several threads must not be forked"
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    warm()
    sys.modules.pop("tiny.command_line", None)
    if (todo := serve(sys.argv[1])) is not None:
        try:
            _do(todo["words"])
        except SystemExit as ended:
            _end(ended.code)
