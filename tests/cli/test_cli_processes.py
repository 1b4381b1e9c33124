"""Real processes: streams that are closed or full, limits on memory and files, signals that end them."""

import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kandinsky.cli import failures
from kandinsky.media.video import read_video
from tiny import command_line

SLOW = pytest.mark.slow  # further cases of what a first one shows

STILL = ("generate", "a panda", "--seconds", "0", "--steps", "1", "--seed", "1", "--device", "cpu", "-q")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(
    line: str, *arguments: str, python: Sequence[str] = (sys.executable,), **settings: str
) -> tuple[int, str, str]:
    """A line of bash in which `k` is the program with these arguments: exit code, stdout, stderr."""
    script = f'k() {{ {shlex.join(python)} -m kandinsky "$@"; }}; {line}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *arguments],
        capture_output=True,
        env=ENVIRONMENT | settings,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
    ("line", "code", "said", "is_forked"),
    [
        ('k "$@" > /dev/full', 1, "error: standard output cannot be written: No space left on device\n", False),
        pytest.param('k "$@" >&-', 0, "", True, marks=SLOW),
        pytest.param('k "$@" 2>&-', 0, "", True, marks=SLOW),
        pytest.param('k "$@" 2>/dev/full', 0, "", True, marks=SLOW),
        ('k "$@" <&- >&- 2>&-', 0, "", False),
        ('k "$@" | true; exit "${PIPESTATUS[0]}"', 0, "", True),
    ],
)
def test_a_result_is_made_whatever_its_streams_take(line: str, code: int, said: str, is_forked: bool) -> None:
    python = command_line.client() if is_forked else (sys.executable,)
    assert shell(line, *STILL, "-o", "x.png", python=python)[::2] == (code, said)
    assert read_video("x.png").recipe["prompt"] == "a panda"
    assert [path.name for path in Path().iterdir()] == ["x.png"]


@pytest.mark.parametrize("arguments", [("models",), ("doctor", "--json"), ("--help",), ("plan", "nano-t2v", "--json")])
def test_reports_to_a_full_device(arguments: tuple[str, ...]) -> None:
    code, _, err = shell('k "$@" > /dev/full', *arguments, python=command_line.client())
    assert (code, err) == (1, "error: standard output cannot be written: No space left on device\n")


def test_results_to_a_closed_or_full_stdout() -> None:
    assert shell('k "$@" >&-', *STILL, "-o", "-") == (2, "", "error: output `-`: standard output is closed\n")
    code, _, err = shell('k "$@" > /dev/full', *STILL, "-o", "-", python=command_line.client())
    assert (code, err) == (1, "error: standard output cannot be written: No space left on device\n")


@pytest.mark.slow
def test_other_encodings() -> None:
    code, out, err = shell('k "$@"', *STILL, "-o", "панда.png", PYTHONIOENCODING="ascii")
    assert (code, out, err) == (0, r"\u043f\u0430\u043d\u0434\u0430.png" + "\n", "")
    assert Path("панда.png").exists()
    code, out, _ = shell('k "$@"', "show", "панда.png", PYTHONIOENCODING="latin-1")
    assert code == 0 and out.splitlines()[-1].startswith("kandinsky generate ")
    code, out, _ = shell('k "$@"', *STILL, "-o", "лиса.png", LC_ALL="C")
    assert (code, out) == (0, "лиса.png\n")


@pytest.mark.parametrize(
    "line",
    [
        r"""k generate $'caf\xe9' --seconds 0""",
        r"""k generate x -o $'\xff.png' --seconds 0""",
        r"""k show $'x\xc3.png'""",
        r"""k plan $'nano\xfe'""",
    ],
)
def test_arguments_that_are_no_text(line: str) -> None:
    code, out, err = shell(line)
    assert code == 2 and out == "" and re.fullmatch(r"error: argument `.*\\udc..*` is not valid UTF-8: .*\n", err)
    assert not list(Path().iterdir())


def test_a_limit_on_memory() -> None:
    code, out, err = shell('ulimit -v 300000; k "$@"', *STILL, "-o", "x.png")
    assert code == 1 and out == "" and len(err.splitlines()) == 2
    assert "limited to 0.3 GB of address space (`ulimit -v`)\nhint: raise the limit" in err
    assert shell("ulimit -v 400000; k plan nano-t2v --json | head -c 1") == (0, "{", "")


@pytest.mark.slow
def test_a_limit_on_files() -> None:
    code, out, err = shell('ulimit -f 4; k "$@"', *STILL[:2], "--seconds", "2", *STILL[4:], "-o", "x.mp4")
    assert code == 1 and out == "" and err.startswith("error: ") and "Traceback" not in err
    assert "cannot be written" in err and "`ulimit -f`" in err
    assert not [path.name for path in Path().iterdir() if not path.name.endswith(".latent.safetensors")]


@contextmanager
def running(*arguments: str, is_forked: bool) -> Iterator[subprocess.Popen[str]]:
    job = (command_line.Forked if is_forked else subprocess.Popen)(
        [sys.executable, "-m", "kandinsky", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        yield job
    finally:
        job.kill()
        job.communicate()


def wait_for(job: subprocess.Popen[str], pattern: str) -> None:
    end = time.monotonic() + 240
    while not list(Path().glob(pattern)):
        assert job.poll() is None and time.monotonic() < end, "it ended too early, or hangs"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=SLOW) for n in (signal.SIGHUP, signal.SIGINT))]
)
@pytest.mark.slow
def test_signals_end_a_batch_and_say_what_is_kept(number: signal.Signals) -> None:
    Path("p.txt").write_text("a dot\n" + "a panda\n" * 40, encoding="utf-8")
    options = ("--seconds", "0", "--steps", "3", "--seed", "1", "--device", "cpu")
    with running(
        "generate", "-m", "nano-t2v", "--prompts", "p.txt", *options, is_forked=number != signal.SIGTERM
    ) as job:
        wait_for(job, "a-dot-1.png")
        job.send_signal(number)
        out, err = job.communicate(timeout=120)
    assert job.returncode == 130, err
    finished = len(list(Path().glob("*.png")))
    assert 1 <= finished < 41 and len(out.split()) >= finished - 1
    told = re.search(r"interrupted: (\d+) of 41 results are finished; the same command makes the rest", err)
    assert told and int(told[1]) in (finished, finished - 1), err
    assert "Traceback" not in err and not [p for p in Path().iterdir() if ".part-" in p.name]


@pytest.mark.slow
def test_a_signal_that_is_ignored_stays_ignored() -> None:
    script = 'trap "" HUP; k "$@" & pid=$!; sleep 0.5; kill -HUP $pid; wait $pid'
    code, out, err = shell(script, *STILL, "-o", "y.png")
    assert (code, out) == (0, "y.png\n"), err


def test_parts_of_dead_processes_are_swept() -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    from kandinsky import files

    left = Path(f".x.mp4.part-{dead.pid}-1-{files.host()}-0.mp4")
    ours = Path(f".y.mp4.part-{os.getpid()}-{files.started_at(os.getpid())}-{files.host()}-0.mp4")
    left.write_bytes(b"x" * 1000)
    ours.write_bytes(b"x")
    assert shell('k "$@"', *STILL, "-o", "z.png", python=command_line.client())[0] == 0
    assert not left.exists() and ours.exists() and Path("z.png").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory ran out"),
        (RuntimeError("unable to mmap 4015500000 bytes from file <x>: Cannot allocate memory (12)"), "memory ran out"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory ran out"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory ran out"),
        (OSError(12, "Cannot allocate memory"), "memory ran out"),
        (OSError(28, "No space left on device", "x.mp4"), "`x.mp4` cannot be written: the disk is full"),
        (OSError(36, "File name too long", "y" * 300), f"`{'y' * 300}`: File name too long"),
        (PermissionError(13, "Permission denied", "z"), "`z`: Permission denied"),
        (ValueError("a fault of ours"), None),
        (RuntimeError("shapes do not fit"), None),
        (ImportError("No module named 'x'"), None),
    ],
)
def test_what_is_said_of_failures_of_the_machine(error: Exception, said: str | None) -> None:
    told = failures.explained(error)
    assert (told is None) == (said is None) and (told is None or str(told).startswith(said or ""))
    assert told is None or told.exit_code == 1 or isinstance(error, OSError)
    try:
        try:
            raise error
        except Exception as cause:
            raise ImportError("package is not there") from cause
    except ImportError as outer:
        chained = failures.explained(outer)
    assert (chained is not None) == (said == "memory ran out")


def test_a_limit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2_000_000_000, 2_000_000_000))
    told = failures.explained(MemoryError())
    assert told is not None and "limited to 2.0 GB of address space (`ulimit -v`)" in str(told)
    failures.check_limit()
    assert failures.explained(SystemError("error return without exception set")) is None or failures._is_near_cap()
