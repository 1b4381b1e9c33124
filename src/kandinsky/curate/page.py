"""``curate.html``: a curated data set on one page, which holds everything it shows and asks nothing of a network.

The yield of each stage and filter, histograms of what each filter looks at before and after it, and contact sheets of
what it dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kandinsky.curate.footage import small_frames
from kandinsky.curate.ingest import example_of
from kandinsky.curate.rules import Rules
from kandinsky.curate.stages import Row, Rows, Tally, check_lasting, reason
from kandinsky.files import replacing
from kandinsky.media.mux import probe
from kandinsky.media.sheet import contact_sheet
from kandinsky.train.data.sources import Fault
from kandinsky.train.page import card, data_of, document, table, text, tiled

NAME = "curate.html"
BINS = 24
SHEETS = 4  # of each filter
FRAMES = 4  # of a sheet
SIDE = 144  # pixels of a frame's longer side
FAULTS = 50  # that are listed
_BEFORE = "color-mix(in srgb,var(--dim) 45%,transparent)"  # the colour of histograms before a filter
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 420, 150, 34, 22


def write(
    folder: Path,
    files: Rows,
    scenes: Rows,
    rules: Rules,
    tallies: Sequence[Tally],
    faults: Sequence[Fault],
    throughput: Mapping[str, Any],
) -> Path:
    """Write the page.

    Args:
        folder: Of the data set.
        files: With their shots.
        scenes: With what dropped them.
        rules: That they were judged by.
        tallies: What each stage did.
        faults: Files that cannot be used, or are odd.
        throughput: See ``speeds``.

    Returns:
        The file.

    Raises:
        RequestError: It cannot be written.
    """
    kept = [one for one in scenes if one["kept"]]
    hours = [sum(one["duration"] for one in some) / 3600 for some in (scenes, kept)]
    tiles = [
        ("Files", f"{len(files):,}"),
        ("Scenes", f"{len(scenes):,}"),
        ("Kept", f"{len(kept):,} ({len(kept) / len(scenes):.0%})" if scenes else "0"),
        ("Hours of scenes", f"{hours[0]:,.2f}"),
        ("Hours kept", f"{hours[1]:,.2f}"),
    ]
    parts = [
        f"<header><h1>{text(folder.resolve().name)}</h1>{tiled(tiles)}</header>",
        _yields(scenes, rules, tallies),
        *_throughput(throughput),
        *_histograms(scenes, rules),
        *_buckets(kept),
        *_dropped(files, scenes, rules),
        *_faults(faults),
    ]
    with replacing(folder / NAME) as part:
        part.write_text(document(f"{folder.resolve().name}: curation", parts), encoding="utf-8")
    return folder / NAME


def passing(scenes: Rows, rules: Rules) -> Iterator[tuple[str, Rows, Rows]]:
    """Each filter with the scenes that reach it and those that pass it."""
    there = list(scenes)
    for name in rules.filters:
        left = [one for one in there if name not in one["dropped_by"]]
        yield name, there, left
        there = left


def _yields(scenes: Rows, rules: Rules, tallies: Sequence[Tally]) -> str:
    stages = [[one.name, f"{one.new:,}", f"{one.known:,}", f"{one.passed:,}"] for one in tallies]
    rows = []
    for name, before, after in passing(scenes, rules):
        alone = sum(name in one["dropped_by"] for one in scenes)
        share = f"{len(after) / len(before):.1%}" if before else ""
        rows.append([name, rules.filters[name].text, f"{len(before):,}", f"{len(after):,}", share, f"{alone:,}"])
    heads = ["filter", "condition", "scenes before", "after", "yield", "would drop alone"]
    return (
        f"<section><h2>Filters</h2>{table(heads, rows)}</section>"
        f"<section><h2>Stages of the last run</h2>{table(['stage', 'made', 'known', 'passed'], stages)}</section>"
    )


def _throughput(told: Mapping[str, Any]) -> Iterator[str]:
    if not told:
        return
    rows = [
        [
            name,
            f"{one['count']:,}",
            f"{one['video_s']:,.1f}",
            f"{one['work_s']:,.2f}",
            f"{one['video_s_per_s']:,.1f}",
            "" if one["of_decoder"] is None else f"{one['of_decoder']:.0%}",
        ]
        for name, one in told["stages"].items()
    ]
    heads = [
        "stage", "files or scenes", "seconds of video", "seconds of work", "video a second, of one worker",
        "of the decoder's rate",
    ]  # fmt: skip
    note = f"{told['workers']} at once, {told['wall_s']:,.1f} s in all. Decoding is the limit of what sees all frames."
    yield f'<section><h2>Throughput</h2>{table(heads, rows)}<p class="note">{text(note)}</p></section>'


def _histograms(scenes: Rows, rules: Rules) -> Iterator[str]:
    cards = []
    for name, before, after in passing(scenes, rules):
        for column in sorted(rules.filters[name].names):
            values = [_numbers(some, column) for some in (before, after)]
            if values[0].size:
                cards.append(card(f"{name}: {column}", histogram(values[0], values[1], f"{column} before and after")))
    if cards:
        key = (
            f'<ul class="keys"><li><i style="background:{_BEFORE}"></i>before the filter</li>'
            '<li><i style="background:var(--curve)"></i>after it</li></ul>'
        )
        yield f'<section><h2>What filters look at</h2>{key}<div class="cards">{"".join(cards)}</div></section>'


def _numbers(scenes: Rows, column: str) -> np.ndarray:
    values = [one.get(column) for one in scenes]
    return np.array([one for one in values if isinstance(one, int | float) and math.isfinite(one)], float)


def histogram(before: np.ndarray, after: np.ndarray, label: str) -> str:
    """Two histograms on each other, as SVG; their bins and scale are shared."""
    low, high = float(before.min()), float(before.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # the same, but for rounding
        low, high = low - 0.5, high + 0.5
    counts = [np.histogram(values, BINS, (low, high))[0] for values in (before, after)]
    top = max(1, int(counts[0].max()))
    across, down = (_WIDTH - _LEFT) / BINS, _HEIGHT - _BOTTOM - 6
    out = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(label)}">']
    for numbers, colour in zip(counts, (_BEFORE, "var(--curve)"), strict=True):
        for place, number in enumerate(numbers.tolist()):
            if number:
                tall = down * number / top
                out.append(
                    f'<rect x="{_LEFT + place * across:.1f}" y="{6 + down - tall:.1f}" width="{across - 1:.1f}" '
                    f'height="{tall:.1f}" style="fill:{colour}"><title>{number:,}</title></rect>'
                )
    out.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{6 + down}" y2="{6 + down}"/>')
    out.append(f'<text class="tick" x="{_LEFT - 5}" y="15" text-anchor="end">{top:,}</text>')
    for value, anchor in ((low, "start"), ((low + high) / 2, "middle"), (high, "end")):
        x = _LEFT + (_WIDTH - _LEFT) * (value - low) / (high - low)
        out.append(f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{value:.4g}</text>')
    return "".join([*out, "</svg>"])


def _buckets(kept: Rows) -> Iterator[str]:
    counts: dict[tuple[str, str], int] = {}
    for one in kept:
        seconds = one["bucket_seconds"]
        key = (one["bucket"] or "none", "shorter than all" if seconds is None else f"{seconds:g} s")
        counts[key] = counts.get(key, 0) + 1
    if counts:
        rows = [[size, length, f"{count:,}"] for (size, length), count in sorted(counts.items())]
        yield f"<section><h2>Buckets</h2>{table(['size', 'length', 'scenes'], rows)}</section>"


def _dropped(files: Rows, scenes: Rows, rules: Rules) -> Iterator[str]:
    chosen: list[tuple[str, int, Rows]] = []
    for name, before, after in passing(scenes, rules):
        passed = {one["id"] for one in after}
        gone = [one for one in before if one["id"] not in passed]
        if gone:
            chosen.append((name, len(gone), gone[:: max(1, len(gone) // SHEETS)][:SHEETS]))
    wanted: dict[str, dict[str, Row]] = {}
    for _, _, shown in chosen:
        for one in shown:
            wanted.setdefault(one["raw_key"], {})[one["id"]] = one
    pictures: dict[str, str] = {}
    for file in files:
        if file["key"] in wanted:
            pictures |= _pictures(file, list(wanted[file["key"]].values()))
    blocks = []
    for name, count, shown in chosen:
        rule = rules.filters[name]
        figures = "".join(_figure(one, pictures[one["id"]], rule.names) for one in shown)
        blocks.append(f"<h3>{text(name)}: {count:,} dropped, not <code>{text(rule.text)}</code></h3>{figures}")
    if blocks:
        yield f'<section class="samples"><h2>What was dropped</h2>{"".join(blocks)}</section>'


def _figure(scene: Row, picture: str, names: frozenset[str]) -> str:
    values = [f"{name} {_said(scene[name])}" for name in sorted(names) if name in scene]
    if scene.get("duplicate_of") and "duplicate" in names:
        values.append(f"of {scene['duplicate_of']}")
    said = "".join(f"<br>{text(one)}" for one in values)
    return f"<figure><figcaption>{text(_where(scene))}{said}</figcaption>{picture}</figure>"


def _where(scene: Row) -> str:
    return f"{scene['source']}, {scene['start_s']:.2f} to {scene['end_s']:.2f} s"


def _said(value: object) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "is missing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shown(scene: Row) -> list[int]:
    """Numbers of the frames of a contact sheet; of a file that was dropped undecoded, the first alone."""
    if "signals" not in scene["steps"]:
        return [scene["start_frame"]]
    places = np.linspace(scene["start_frame"], scene["end_frame"] - 1, FRAMES)
    return [int(place) for place in np.unique(places.round())]


def _pictures(file: Row, scenes: Rows) -> dict[str, str]:
    """Contact sheets of scenes of a file, which is decoded once."""
    places = {one["id"]: _shown(one) for one in scenes}
    frames: dict[int, np.ndarray] = {}
    fault = None
    try:
        with example_of(file).decoded() as path:
            frames = dict(small_frames(probe(path), SIDE, {place for some in places.values() for place in some}))
    except Exception as error:  # whatever a file makes a decoder do, the report is written
        check_lasting(error)
        fault = text(reason(error))
    out = {}
    for one in scenes:
        there = [frames[place] for place in places[one["id"]] if place in frames]
        sheet = contact_sheet(np.stack(there), FRAMES) if there else Image.new("RGB", (SIDE, SIDE // 2))
        out[one["id"]] = fault or f'<img src="{data_of(sheet)}" alt="{text(_where(one))}">'
    return out


def _faults(faults: Sequence[Fault]) -> Iterator[str]:
    if faults:
        rows = [[one.name, one.reason] for one in faults[:FAULTS]]
        more = f'<p class="note">{len(faults) - FAULTS:,} more</p>' if len(faults) > FAULTS else ""
        yield f"<section><h2>Files with faults</h2>{table(['file', 'what is wrong'], rows)}{more}</section>"
