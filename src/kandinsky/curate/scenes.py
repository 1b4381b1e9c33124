"""Scenes as rows, and the columns of them that filters can name."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from kandinsky.curate import captioning, measures, tables
from kandinsky.curate.stages import Row, Rows, digest

_SAFE = re.compile(r"[A-Za-z0-9_-]{1,80}")
TEXTS = ("dataset_name", "source", "begins_with", "ends_with", "prompt", "container", "video_codec")
TRUTHS = ("duplicate", "wrong_container")
COUNTED = {"caption_count": "captions", "caption_faults": "caption_flags"}  # numbers of what a column lists
# columns of scenes that are known of them, and stand in no table
INNER = {
    "raw_key": "string", "dataset_name": "string", "container": "string", "video_codec": "string",
    "undecodable": "double", "wrong_container": "bool", "clip_lineage": "string", "steps": "map<string, string>",
}  # fmt: skip


def name_of(file_id: str) -> str:
    """What ids of a file's scenes begin with."""
    return file_id if _SAFE.fullmatch(file_id) else digest(file_id)


def of_file(file: Row) -> Rows:
    """The scenes of a file whose shots are known."""
    places = zip(
        file["starts"], file["ends"], file["starts_s"], file["ends_s"], file["begin"], file["finish"], strict=True
    )
    return [_scene(file, int(start), int(end), *more) for start, end, *more in places]


def whole(file: Row) -> Row:
    """A file as one scene, before its shots are known."""
    return _scene(file, 0, file["frames"] or 0, 0.0, file["duration_s"] or 0.0, "file", "file")


def _scene(file: Row, start: int, end: int, start_s: float, end_s: float, begins: str, ends: str) -> Row:
    prompt, captions, flags = captioning.of_scene(file["captions"])
    return {
        "id": f"{name_of(file['id'])}-{round(start_s * 1000):09d}",
        "raw_id": file["id"],
        "raw_key": file["key"],
        "source": file["key"],
        "dataset_name": file["dataset_name"],
        "obs_endpoint": file["obs_endpoint"],
        "path": None,
        "prompt": prompt,
        "captions": captions,
        "caption_flags": flags,
        "width": file["width"],
        "height": file["height"],
        "fps": file["fps"],
        "container": file["container"],
        "video_codec": file["video_codec"],
        "start_s": start_s,
        "end_s": end_s,
        "duration": end_s - start_s,
        "start_frame": start,
        "end_frame": end,
        "begins_with": begins,
        "ends_with": ends,
        "undecodable": file.get("undecodable"),
        "wrong_container": bool(file["fault"]) and str(file["fault"]).startswith("wrong container"),
        "aesthetic_score": _number(file["given"].get("aesthetic_score")),
        "lineage": digest(file["lineage"], start, end),
        "clip_lineage": digest(file["lineage"], start, end, "clip"),
        "hashes": None,
        "measure_faults": [],
        "duplicate_of": None,
        "duplicate": False,
        "bucket": None,
        "bucket_seconds": None,
        "dropped_by": [],
        "steps": {},
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | Decimal) and math.isfinite(value) else None


def numbers(names: Sequence[str]) -> list[str]:
    """Columns of numbers that filters can name.

    Args:
        names: Of the measures that are taken.
    """
    own = [name for name, kind in tables.SCENE_COLUMNS.items() if kind in ("double", "int32", "int64")]
    given = [column for name in names for column in measures.MEASURES[name].gives]
    every = [column for one in measures.MEASURES.values() for column in one.gives]
    counts = ("undecodable", "caption_count", "caption_faults")
    return list(dict.fromkeys([*(name for name in own if name not in every), *given, *counts]))


def columns_of(scenes: Rows, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What filters can name: numbers, truth values and texts of scenes.

    Args:
        scenes: The rows.
        names: Of the measures that are taken.
    """
    columns: dict[str, np.ndarray] = {}
    for name in numbers(names):
        values = [_counted(one, name) for one in scenes]
        columns[name] = np.array([np.nan if value is None else value for value in values], float)
    for name in TEXTS:
        columns[name] = np.array([one[name] for one in scenes], object)
    for name in TRUTHS:
        columns[name] = np.array([one[name] for one in scenes], bool)
    return columns


def _counted(scene: Row, name: str) -> float | None:
    if name == "caption_count":
        return len(scene["captions"])
    if name == "caption_faults":
        return len(scene["caption_flags"])
    value: float | None = scene.get(name)
    return value


def column_in(table: Any, name: str) -> np.ndarray:
    """A column that filters can name, of a table: numbers (NaN where missing), truth values, or texts (None)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if name in COUNTED:
        counts = pc.fill_null(pc.list_value_length(table[COUNTED[name]]), 0)
        found: np.ndarray = counts.to_numpy().astype(float)
        return found
    column = table[name]
    if name in TEXTS:  # rows that say the same share one text
        coded = column.combine_chunks().dictionary_encode()
        coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
        words = np.array([*coded.dictionary.to_pylist(), None], object)
        return np.asarray(words[pc.fill_null(coded.indices, len(words) - 1).to_numpy(zero_copy_only=False)])
    if name in TRUTHS:
        return np.asarray(pc.fill_null(column, False).to_numpy(), bool)
    return np.asarray(pc.cast(column, pa.float64()).to_numpy(), float)


def no_column(name: str) -> np.ndarray:
    """The column of no scenes."""
    return np.zeros(0, object if name in TEXTS else bool if name in TRUTHS else float)
