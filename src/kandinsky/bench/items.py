"""Figures of one machine as a file: commands that each print a report, run one after the other, each within its time.

Each command runs in a process of its own, so that one that hangs, is killed or runs out of memory costs the others
nothing. The file is written after each, so that a machine that is taken away leaves what it has measured.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kandinsky.files import replacing

FORMAT = 1
END_S = 5.0  # for a command that is to end
TAIL = 400  # characters of what a failed command said


@dataclass(frozen=True, slots=True)
class Item:
    """One command and the time it may take.

    Attributes:
        name: What it measures, for people.
        words: Arguments of the Python interpreter.
        limit_s: Seconds after which it is ended.
    """

    name: str
    words: tuple[str, ...]
    limit_s: float = 120.0

    @property
    def command(self) -> str:
        """As it is typed."""
        shown = ("kandinsky", *self.words[2:]) if self.words[:2] == ("-m", "kandinsky") else ("python", *self.words)
        return shlex.join(word for word in shown if word != "--json")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command.

    Attributes:
        state: `done`, `failed`, `too long` or `left out`.
        report: What it printed, if that is JSON; else its last line as `said`.
        reason: Why there is none.
        seconds: How long it took.
    """

    state: str
    report: dict[str, Any]
    reason: str = ""
    seconds: float = 0.0


Run = Callable[[Item, float], Outcome]


def apart(item: Item, limit_s: float) -> Outcome:
    """Run a command in a process of its own, which ends with everything it started after ``limit_s`` seconds."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *item.words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return Outcome("too long", {}, f"ended after {limit_s:.0f} s", time.monotonic() - begun)
    return told(process.returncode, out, err, time.monotonic() - begun)


def told(code: int, out: str, err: str, seconds: float) -> Outcome:
    """The outcome of a command that ended with ``code`` and wrote ``out`` and ``err``."""
    lines = out.strip().splitlines()
    if code:
        said = (err.strip() or out.strip())[-TAIL:].replace("\n", " ")
        return Outcome("failed", {}, f"exit code {code}: {said}", seconds)
    try:
        report = json.loads(out)
    except ValueError:
        report = {"said": lines[-1] if lines else ""}
    return Outcome("done", report if isinstance(report, dict) else {"said": report}, seconds=seconds)


def measured(
    items: Sequence[Item],
    target: Callable[[dict[str, Any]], Path],
    facts: Callable[[], dict[str, Any]],
    *,
    budget_s: float,
    run: Run = apart,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Run commands in their order and write what they report.

    Args:
        items: The commands.
        target: Chooses the file from what ``facts`` says.
        facts: The machine, its rates and its load, asked before and after all.
        budget_s: Seconds for everything; what finds no time left is left out.
        run: Runs one command within some seconds.
        say: Called with a line about each.

    Returns:
        The file.
    """
    begun = time.monotonic()
    machine = facts()
    path = target(machine["machine"])
    found: dict[str, Any] = {
        "format": FORMAT,
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        **machine,
        "items": [],
    }
    for item in items:
        left_s = budget_s - (time.monotonic() - begun)
        if left_s > 0:
            outcome = run(item, min(item.limit_s, left_s))
        else:
            outcome = Outcome("left out", {}, f"the {budget_s:.0f} s for all were over")
        say(f"{item.name}: {outcome.state}{f' ({outcome.reason})' if outcome.reason else ''}, {outcome.seconds:.0f} s")
        found["items"].append({
            "name": item.name, "command": item.command, "state": outcome.state, "reason": outcome.reason,
            "seconds": round(outcome.seconds, 1), "report": outcome.report,
        })  # fmt: skip
        _write(path, found)
    found["machine_after"] = {"load": facts()["machine"]["load"]}
    found["seconds"] = round(time.monotonic() - begun, 1)
    _write(path, found)
    return path


def _write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
