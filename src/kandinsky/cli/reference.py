"""Writes docs/reference/cli.md from the commands' own help: `python -m kandinsky.cli.reference FILE`.

A test compares the file with what this would write.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kandinsky.cli.main import root_command

WIDTH = 100
HEAD = "# Command line\n\nWritten by `make docs` from the program's own help; do not edit by hand.\n"


def text() -> str:
    """The whole reference as Markdown."""
    command = root_command()
    sections = [f"## {title}\n\n```text\n{body}\n```\n" for title, body in _helps(command, "kandinsky", None)]
    return "\n".join([HEAD, *sections])


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    path = name if parent is None else f"{parent.command_path} {name}"
    context = command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=WIDTH)
    lines = command.get_help(context).strip().splitlines()
    yield path, "\n".join(line.rstrip() for line in lines)
    for child, sub in getattr(command, "commands", {}).items():
        yield from _helps(sub, child, context)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
