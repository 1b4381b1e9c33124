"""Where recorded cases lie: the whole reference beside the checkout, or the part of it that this repository holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from kandinsky.golden.cases import find

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
SUBSET = Path(__file__).parents[1] / "golden"
HAS_REFERENCE = REFERENCE.is_dir()
CASES = find(REFERENCE if HAS_REFERENCE else SUBSET)


def family(folder: Path) -> str:
    return folder.relative_to(SUBSET if folder.is_relative_to(SUBSET) else REFERENCE).parts[0]


def title(folder: Path) -> str:
    return f"{family(folder)}-{folder.name}"


def component(folder: Path) -> str:
    return json.loads((folder / "case.json").read_text())["component"]


def named(name: str) -> Path | None:
    """A case by `<family>/<name>`; None where only the whole reference has it."""
    return next((folder for folder in CASES if f"{family(folder)}/{folder.name}" == name), None)


def copy(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a case that may be written to; ``changes`` go into objects of its `case.json`."""
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    values = json.loads((folder / "case.json").read_text())
    for key, change in changes.items():
        values[key] |= change
    (folder / "case.json").write_text(json.dumps(values))
    return folder
