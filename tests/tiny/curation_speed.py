"""Curation by one process and by two Ray workers of this machine: time, and seconds of video a second of each stage.

``python -m tiny.curation_speed FOLDER [FILES]`` draws so many files (16) of 640×360 pixels and 8 s with three scenes,
curates them twice, and prints what each took, and how the stages' rates are to that of decoding alone.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from kandinsky.curate.run import Curated, curate
from kandinsky.model.values import Video
from tiny.raw_videos import scene

SIZE, FPS, LENGTHS = (640, 360), 24.0, (60, 68, 64)  # frames of the scenes
OF_WORKERS = ("process_start", "process_node")  # which differ


def draw(folder: Path, files: int) -> None:
    """Draw the files that are not there."""
    for number in range(files):
        if not (path := folder / f"{number:03d}.mp4").is_file():
            shown = [scene(10 * number + n, length, size=SIZE) for n, length in enumerate(LENGTHS)]
            Video(np.concatenate(shown), fps=FPS, seed=0).save(path)


def same(one: Path, other: Path) -> bool:
    """Whether two data sets have the same tables."""
    for name in ("raw", "scenes"):
        tables = [pq.read_table(folder / f"{name}.parquet") for folder in (one, other)]
        kept = [
            table.drop_columns([column for column in OF_WORKERS if column in table.column_names]) for table in tables
        ]
        if not kept[0].equals(kept[1]):
            return False
    return True


def timed(folder: Path, name: str, ray: str | None) -> tuple[Curated, float]:
    """Curate anew. Returns: what came of it, and seconds of all, with Ray's start."""
    begun = time.perf_counter()
    made = curate(folder / "raw", folder / f"{name}-{os.getpid()}", ray=ray, workers=2 if ray else None)
    return made, time.perf_counter() - begun


def main(folder: Path, files: int = 16) -> None:
    """Draw, curate twice, and print."""
    draw(folder / "raw", files)
    load = os.getloadavg()[0]
    runs = [timed(folder, name, ray) for name, ray in (("one", None), ("two", "local"))]
    told = [made.throughput for made, _ in runs]
    print(
        f"{files} files, {files * sum(LENGTHS) / FPS:.0f} s of video; "
        f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    )
    print("| | one process | two workers |\n|---|---|---|")
    print(f"| files, s | {told[0]['wall_s']:.1f} | {told[1]['wall_s']:.1f} |")
    print(f"| all of it, with Ray's start and the clips, s | {runs[0][1]:.1f} | {runs[1][1]:.1f} |")
    for name in told[0]["stages"]:
        rates = [one["stages"][name] for one in told]
        print(
            f"| {name} | " + " | ".join(f"{one['video_s_per_s']:.1f} ({one['of_decoder']:.0%})" for one in rates) + " |"
        )
    print("the same tables" if same(runs[0][0].folder, runs[1][0].folder) else "other tables")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
