"""Writes down what the library computes and says today, for ``test_frozen.py`` to hold it against later.

    PYTHONPATH=tests OMP_NUM_THREADS=1 python -m frozen.record            # both files
    PYTHONPATH=tests OMP_NUM_THREADS=1 python -m frozen.record numbers    # `numbers.json` alone
    PYTHONPATH=tests OMP_NUM_THREADS=1 python -m frozen.record texts      # `texts.json` alone
    PYTHONPATH=tests OMP_NUM_THREADS=1 python -m frozen.record add        # hashes of this processor beside the others

`numbers.json` holds, by class of processor (``measure.processor``), one hash for each result; and for each hash of the
first class a summary, with which the test compares on a processor of no class that is known. `add` refuses where the
results are farther from the summaries than the test allows. Recipes and texts are plain: a diff shows what moved.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import measure, texts

HERE = Path(__file__).parent
NUMBERS, TEXTS = HERE / "numbers.json", HERE / "texts.json"
# How far a result may be from that of another processor, in deviations of its own values: rounding of float32 grows
# over a few steps; bfloat16 rounds a thousandth of each value in every layer; block-sparse attention and training
# multiply what is rounded. Whole numbers may fall to either side: two levels are always allowed.
TOLERANCE = {"": 0.02, "bfloat16": 0.3, "nabla": 0.1, "train": 0.1}


LEVELS = 2


def tolerance(name: str, array: np.ndarray) -> float:
    allowed = max(value for word, value in TOLERANCE.items() if word in name)
    if np.issubdtype(array.dtype, np.integer):
        return max(allowed, LEVELS / max(float(array.std()), 1.0))
    return allowed


def read() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(NUMBERS.read_text(encoding="utf-8"))
    return made


def moved(arrays: Mapping[str, np.ndarray], frozen: Mapping[str, Any], processor: str) -> list[str]:
    """Which results are not those that were written down, and by how much."""
    hashes = frozen["hashes"].get(processor)
    reference = next(iter(frozen["hashes"].values()))
    found = []
    for name, array in arrays.items():
        if name not in reference:
            found.append(f"{name}: not written down")
            continue
        if hashes is not None and measure.digest(array) == hashes[name]:
            continue
        away = measure.distance(measure.summary(array), frozen["summaries"][reference[name]])
        if hashes is not None or not away <= tolerance(name, array):
            found.append(f"{name}: moved, by {away:.2g} deviations as far as the summary shows")
    return found


def _write(path: Path, values: Any) -> None:
    """One line an entry: short, and good to compare."""
    lines = []
    for section, entries in values.items():
        inner = ",\n".join(
            f"  {json.dumps(key, ensure_ascii=False)}: {_entry(value)}" for key, value in entries.items()
        )
        lines.append(f"{json.dumps(section)}: {{\n{inner}\n}}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _entry(value: Any) -> str:
    """A table of tables is indented once more, a list of lines has one on each."""
    if isinstance(value, list) and len(value) > 1:
        return "[\n" + ",\n".join(f"    {json.dumps(line, ensure_ascii=False)}" for line in value) + "\n  ]"
    if isinstance(value, dict) and len(value) > 100:
        return "{\n" + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "\n  }"
    return json.dumps(value, ensure_ascii=False)


def record(what: str) -> None:
    from tiny import catalogue

    with tempfile.TemporaryDirectory() as temporary:
        folder = catalogue.write(Path(temporary).resolve() / "tiny")
        if what in ("all", "texts"):
            _write(TEXTS, texts.said(folder))
        if what == "texts":
            return
        found = measure.Found()
        for name in measure.PARTS:
            print(name, file=sys.stderr, flush=True)
            found.add(measure.part(name, folder))
    processor = measure.processor()
    hashes = {name: measure.digest(array) for name, array in found.arrays.items()}
    if what == "add":
        frozen = read()
        if far := moved(found.arrays, frozen, "a class that is not known"):
            sys.exit("\n".join(["not written:", *far]))
        if processor != next(iter(frozen["hashes"])):  # the summaries are of the first class
            _write(NUMBERS, frozen | {"hashes": frozen["hashes"] | {processor: hashes}})
            return
        frozen["hashes"][processor] = hashes
    else:
        frozen = {"hashes": {processor: hashes}, "recipes": found.recipes}
    summaries = {hashes[name]: measure.summary(array) for name, array in found.arrays.items()}
    _write(NUMBERS, {"hashes": frozen["hashes"], "summaries": summaries, "recipes": frozen["recipes"]})


if __name__ == "__main__":
    asked = sys.argv[1] if len(sys.argv) > 1 else "all"
    if asked not in ("all", "numbers", "texts", "add"):
        sys.exit(f"`{asked}` is unknown: use numbers, texts, add or nothing")
    record(asked)
