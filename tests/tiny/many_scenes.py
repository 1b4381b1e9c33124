"""A simulated run over very many scenes: what the process that drives a run keeps of them in memory.

``python -m tiny.many_scenes [ROWS]`` writes so many rows of scenes as a run does, judges them by filters of which one
takes a percentile of what the others left, plans their buckets, and prints how long it took and the memory beside
that of a thousandth of the rows.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kandinsky.curate import buckets, scenes, tables
from kandinsky.curate.judging import Judge, Level
from kandinsky.curate.rules import Rules, read
from kandinsky.curate.scene_rows import SceneRows
from kandinsky.curate.spool import HELD

RULES = """
[filters]
duration = "2 <= duration <= 60"
busy = "dynamicity > percentile(dynamicity, 10)"
[buckets]
sizes = ["512x512", "768x512"]
seconds = [2, 5]
[measures]
names = ["dynamics"]
"""


@dataclass(frozen=True)
class Simulated:
    """What became of the rows: seconds of judging and of bucket plans, and how many are kept."""

    judging_s: float
    planning_s: float
    kept: int


def rules_in(folder: Path) -> Rules:
    (folder / "rules.toml").write_text(RULES)
    return read(folder / "rules.toml")


def simulated(count: int, folder: Path) -> Simulated:
    rules = rules_in(folder)
    judge, made = Judge(rules), SceneRows(folder / "rows.parquet", rules)
    row = {name: None for name in (*tables.SCENE_COLUMNS, *scenes.INNER)} | {
        "id": "a-000000000", "width": 1280, "height": 720, "duration": 1.0, "dynamicity": 0.5, "dropped_by": [],
        "captions": [], "caption_flags": [], "measure_faults": [], "steps": [],
    }  # fmt: skip
    spool = made._spool
    whole = tables.table_of([row] * HELD, spool.columns)
    rng = np.random.default_rng(0)
    planning_s = judging_s = 0.0
    for start in range(0, count, HELD):
        some = whole.slice(0, min(HELD, count - start))
        seconds = rng.uniform(0, 80, len(some))
        begun = time.perf_counter()
        sizes, _ = buckets.plan(range(len(some)), np.full(len(some), 1280), np.full(len(some), 720), seconds,
                                sizes=rules.sizes, lengths=rules.seconds)  # fmt: skip
        assert sizes[0] == "768x512"
        planning_s += time.perf_counter() - begun
        begun = time.perf_counter()
        (failed,) = judge.failed({"duration": seconds}, Level.SHOTS).values()
        judging_s += time.perf_counter() - begun
        found = {
            "duration": pa.array(seconds),
            "dynamicity": pa.array(rng.random(len(some))),
            "dropped_by": pa.array([["duration"] if one else [] for one in failed.tolist()], pa.list_(pa.string())),
        }
        for name, column in found.items():
            some = some.set_column(some.column_names.index(name), name, column)
        spool._writer.write_table(some)
        spool._count += len(some)
    made.done()
    begun = time.perf_counter()
    made.decide(judge, rules.bits)
    return Simulated(judging_s + time.perf_counter() - begun, planning_s, int(made.kept.sum()))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    peaks = []
    for rows in (count // 1000, count):
        with tempfile.TemporaryDirectory() as folder:
            told = simulated(rows, Path(folder))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        print(
            f"{rows:,} rows: filters {told.judging_s:.1f} s, bucket plan {told.planning_s:.1f} s, {told.kept:,} kept, "
            f"peak {peaks[-1] / 2**20:,.0f} MiB"
        )
    print(f"{(peaks[1] - peaks[0]) / count:.0f} bytes of memory a row")


if __name__ == "__main__":
    main()
