"""The page `docs/reference/official-snippets.md`, written by `make official`: what the documents' code does here."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":  # as pytest sets it
    sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

from seed_documents import ENTRIES, FILES, SLIDES, Entry  # noqa: E402
from tiny_workspace import Outcome, Workspace  # noqa: E402

PAGE = ROOT / "docs" / "reference" / "official-snippets.md"
HEAD = """# The documents' code and command lines, run here

Written by `make official`, which runs every snippet and every command line of the five official documents in the
folders of [`official/`](../../official/README.md), with tiny random weights in the official file layouts.
`tests/official` runs them again and compares with this page.

Each call is made as the document says; then size, length and number of steps are reduced, so that it finishes on a CPU.
*Asked* lists the arguments that reached the official call before that. Where a text had to differ, *changed* says how.
"""
SHOWN_LINES = 3


def row(entry: Entry, outcome: Outcome | None) -> str:
    """One line of a document's table."""
    typed = "the code" if entry.kind == "python" else "<br>".join(_code(line) for line in entry.text.splitlines())
    changed = ", ".join(f"{_code(old.strip())} → {_code(new.strip())}" for old, new in entry.changes.items())
    changed = "; ".join(filter(None, (changed, entry.note)))
    if outcome is None:
        return f"| {entry.name} | {typed} | {changed} | – | – | – |"
    asked = ", ".join(_code(f"{name}={outcome.asked[name]!r}") for name in entry.asks if name != "text")
    lines = outcome.printed.splitlines()
    printed = [_code(line) for line in lines[:SHOWN_LINES]]
    if len(lines) > SHOWN_LINES:
        printed[-1] = f"… {len(lines)} lines in all"
    made = "<br>".join(f"{_code(name)}: {outcome.files[name]}" for name in entry.made)
    return (
        f"| {entry.name} | {typed} | {changed} | {asked or '–'} | {'<br>'.join(printed) or 'nothing'} | {made or '–'} |"
    )


def page(outcomes: dict[str, Outcome]) -> str:
    parts = [HEAD]
    for document in FILES.values():
        parts.append(f"\n## {document}\n\n")
        if document == SLIDES:
            parts.append("Neither code nor commands.\n")
            continue
        parts.append("| section | as typed | changed | asked | printed | made |\n|---|---|---|---|---|---|\n")
        entries = [entry for entry in ENTRIES if entry.document == document]
        parts += [f"{row(entry, outcomes.get(entry.id))}\n" for entry in entries]
        for entry in entries:
            if entry.kind == "python":
                code = "\n".join(line.rstrip() for line in entry.text.splitlines())
                parts.append(f"\n*{entry.name}*:\n\n```text\n{code}\n```\n")
    return "".join(parts)


def _code(text: str) -> str:
    text = text.strip().replace("|", "\\|")
    return f"`{text}`"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        space = Workspace(Path(folder))
        done = {entry.id: space.run(entry) for entry in ENTRIES if entry.is_run}
    for name, outcome in done.items():
        if outcome.code:
            sys.exit(f"{name}: exit code {outcome.code}\n{outcome.printed}")
    Path(sys.argv[1]).write_text(page(done), encoding="utf-8")
