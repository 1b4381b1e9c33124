"""``curate.html``: a curated data set on one page, which holds everything it shows and asks nothing of a network.

The yield of each stage and filter, histograms of what each filter looks at before and after it, and contact sheets of
what it dropped.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kandinsky.curate.captioning import FLAGS
from kandinsky.curate.footage import small_frames
from kandinsky.curate.ingest import example_of
from kandinsky.curate.rules import Rules
from kandinsky.curate.scene_rows import SceneRows
from kandinsky.curate.scenes import COUNTED, TEXTS, TRUTHS, column_in
from kandinsky.curate.spool import Spool
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
_SAID_OF_CAPTIONS = {
    "": "without a fault",
    "wrong_script": "wrong_script: letters that the language does not have",
    "repeats": "repeats: three words in a row come four times",
    "too_short": "too_short: fewer than two words",
    "unfinished": "unfinished: a longer text ends without a mark",
    "not_confirmed": "not_confirmed: the model that wrote it denies it",
}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 420, 150, 34, 22


def write(
    folder: Path,
    files: Spool,
    scenes: SceneRows,
    rules: Rules,
    tallies: Sequence[Tally],
    faults: Sequence[Fault],
    throughput: Mapping[str, Any],
) -> Path:
    """Write the page.

    Args:
        folder: Of the data set.
        files: With their shots.
        scenes: Decided.
        rules: That they were judged by.
        tallies: What each stage did.
        faults: Files that cannot be used, or are odd.
        throughput: See ``speeds``.

    Returns:
        The file.

    Raises:
        RequestError: It cannot be written.
    """
    counted = _Counted(scenes, rules)
    count, kept = len(scenes), int(scenes.kept.sum())
    tiles = [
        ("Files", f"{len(files):,}"),
        ("Scenes", f"{count:,}"),
        ("Kept", f"{kept:,} ({kept / count:.0%})" if count else "0"),
        ("Hours of scenes", f"{counted.hours[0]:,.2f}"),
        ("Hours kept", f"{counted.hours[1]:,.2f}"),
    ]
    parts = [
        f"<header><h1>{text(folder.resolve().name)}</h1>{tiled(tiles)}</header>",
        _yields(counted, rules, tallies),
        *_throughput(throughput),
        *_histograms(counted, rules),
        *_captions(counted),
        *_buckets(counted),
        *_dropped(files, scenes, counted, rules),
        *_faults(faults),
    ]
    with replacing(folder / NAME) as part:
        part.write_text(document(f"{folder.resolve().name}: curation", parts), encoding="utf-8")
    return folder / NAME


class _Counted:
    """What the page says of scenes, gone through twice: ranges and numbers first, then what depends on them.

    Args:
        scenes: Decided.
        rules: That they were judged by.

    Attributes:
        hours: Of all scenes, and of those that are kept.
        passed: By filter, the scenes that reach it, those that pass it, and those that it alone would drop.
        histograms: By filter and column, counts before and after it, and their range.
        buckets: Scenes that are kept, by size and length.
        captioned: Scenes with captions: all, and those that are kept.
        flagged: Of these, by kind of fault, those with a caption that has it; under "" those without any.
        shown: By filter, numbers of the scenes whose sheets are shown.
    """

    def __init__(self, scenes: SceneRows, rules: Rules) -> None:
        self.hours = [0.0, 0.0]
        self.passed = {name: [0, 0, 0] for name in rules.filters}
        self.buckets: Counter[tuple[str, str]] = Counter()
        self.captioned = [0, 0]
        self.flagged = {flag: [0, 0] for flag in ("", *FLAGS)}
        self.shown: dict[str, list[int]] = {name: [] for name in rules.filters}
        self.histograms: dict[tuple[str, str], Histogram] = {}
        numbers = sorted({column for rule in rules.filters.values() for column in rule.names})
        read = [*dict.fromkeys([*numbers, "duration", "bucket", "bucket_seconds"])]
        words = [*dict.fromkeys([*read, "captions", "caption_flags"])]
        ranges: dict[tuple[str, str], tuple[float, float]] = {}
        for rows, masks in self._reached(scenes, rules, words):
            seconds = np.asarray(rows["duration"].to_numpy(), float)
            kept = np.asarray(rows["kept"].to_numpy(), bool)
            self.hours[0] += float(seconds.sum()) / 3600
            self.hours[1] += float(seconds[kept].sum()) / 3600
            self._fill_buckets(rows, kept)
            self._fill_captions(rows, kept)
            for name, (before, after, dropped) in masks.items():
                for place, mask in enumerate((before, after, dropped)):
                    self.passed[name][place] += int(mask.sum())
                for column in rules.filters[name].names:
                    values = _numbers(rows, column)[before]
                    values = values[np.isfinite(values)]
                    if values.size:
                        low, high = ranges.get((name, column), (np.inf, -np.inf))
                        ranges[name, column] = min(low, float(values.min())), max(high, float(values.max()))
        self.histograms = {place: Histogram(*ends) for place, ends in ranges.items()}
        gone: Counter[str] = Counter()
        at = 0
        for rows, masks in self._reached(scenes, rules, read):
            for name, (before, after, _) in masks.items():
                for column in rules.filters[name].names:
                    if (name, column) in self.histograms:
                        values = _numbers(rows, column)
                        self.histograms[name, column].add(values[before], values[after])
                lost = self.passed[name][0] - self.passed[name][1]
                for place in np.flatnonzero(before & np.logical_not(after)).tolist():
                    if gone[name] % max(1, lost // SHEETS) == 0 and len(self.shown[name]) < SHEETS:
                        self.shown[name].append(at + place)
                    gone[name] += 1
            at += len(rows)

    def _fill_captions(self, rows: Any, kept: np.ndarray) -> None:
        import pyarrow.compute as pc

        there = pc.fill_null(pc.list_value_length(rows["captions"]), 0).to_numpy() > 0
        flags = rows["caption_flags"].combine_chunks()
        places, names = pc.list_parent_indices(flags).to_numpy(), np.asarray(flags.flatten().to_pylist(), object)
        for flag, counts in self.flagged.items():
            if flag:
                has = np.zeros(len(rows), bool)
                has[places[names == flag]] = True
            else:
                has = np.ones(len(rows), bool)
                has[places] = False
            for place, mask in enumerate((there & has, there & has & kept)):
                counts[place] += int(mask.sum())
        for place, mask in enumerate((there, there & kept)):
            self.captioned[place] += int(mask.sum())

    def _fill_buckets(self, rows: Any, kept: np.ndarray) -> None:
        lengths = rows["bucket_seconds"].to_pylist()
        for place, size in enumerate(rows["bucket"].to_pylist()):
            if kept[place]:
                seconds = lengths[place]
                self.buckets[size or "none", "shorter than all" if seconds is None else f"{seconds:g} s"] += 1

    def _reached(
        self, scenes: SceneRows, rules: Rules, columns: Sequence[str]
    ) -> Iterator[tuple[Any, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]]:
        """Some thousand scenes at a time; by filter, which ones reach it, pass it, and fail it."""
        import pyarrow.compute as pc

        for rows in scenes.tables(columns):
            dropped = rows["dropped_by"].combine_chunks()
            places, names = pc.list_parent_indices(dropped).to_numpy(), dropped.flatten().to_pylist()
            failed = {name: np.zeros(len(rows), bool) for name in rules.filters}
            for place, name in zip(places.tolist(), names, strict=True):
                if name in failed:
                    failed[name][place] = True
            there, masks = np.ones(len(rows), bool), {}
            for name in rules.filters:
                masks[name] = there, there & np.logical_not(failed[name]), failed[name]
                there = masks[name][1]
            yield rows, masks


def _yields(counted: _Counted, rules: Rules, tallies: Sequence[Tally]) -> str:
    stages = [[one.name, f"{one.new:,}", f"{one.known:,}", f"{one.passed:,}"] for one in tallies]
    rows = []
    for name, (before, after, alone) in counted.passed.items():
        share = f"{after / before:.1%}" if before else ""
        rows.append([name, rules.filters[name].text, f"{before:,}", f"{after:,}", share, f"{alone:,}"])
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


def _histograms(counted: _Counted, rules: Rules) -> Iterator[str]:
    cards = []
    for name, rule in rules.filters.items():
        for column in sorted(rule.names):
            if (found := counted.histograms.get((name, column))) is not None:
                cards.append(card(f"{name}: {column}", found.drawn(f"{column} before and after")))
    if cards:
        key = (
            f'<ul class="keys"><li><i style="background:{_BEFORE}"></i>before the filter</li>'
            '<li><i style="background:var(--curve)"></i>after it</li></ul>'
        )
        yield f'<section><h2>What filters look at</h2>{key}<div class="cards">{"".join(cards)}</div></section>'


def _numbers(table: Any, column: str) -> np.ndarray:
    """A column's numbers, NaN where it has none."""
    if column in TEXTS or column in COUNTED or (column in TRUTHS and column != "duplicate"):
        return np.full(len(table), np.nan)
    return np.asarray(column_in(table, column), float)


class Histogram:
    """Two histograms on each other, whose bins and scale are shared; values come in portions.

    Args:
        low: The least of all values.
        high: The largest.
    """

    def __init__(self, low: float, high: float) -> None:
        if high - low <= 1e-9 * max(abs(low), abs(high)):  # the same, but for rounding
            low, high = low - 0.5, high + 0.5
        self.low, self.high = low, high
        self.counts = [np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)]

    def add(self, before: np.ndarray, after: np.ndarray) -> None:
        """Count values before and after a filter; those that are no numbers are left out."""
        for counts, values in zip(self.counts, (before, after), strict=True):
            counts += np.histogram(values[np.isfinite(values)], BINS, (self.low, self.high))[0]

    def drawn(self, label: str) -> str:
        """As SVG."""
        return _svg(self.counts, self.low, self.high, label)


def _svg(counts: Sequence[np.ndarray], low: float, high: float, label: str) -> str:
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


def _captions(counted: _Counted) -> Iterator[str]:
    """What the check of captions found, of those that came with files and those that a model wrote."""
    if not counted.captioned[0]:
        return
    rows = [["all", *(f"{count:,}" for count in counted.captioned)]]
    for flag, (count, kept) in counted.flagged.items():
        if count or not flag:
            rows.append([_SAID_OF_CAPTIONS[flag], f"{count:,}", f"{kept:,}"])
    heads = ["scenes with captions", "of all", "of those that are kept"]
    note = "A scene whose captions have several faults stands in several lines."
    yield f'<section><h2>Check of captions</h2>{table(heads, rows)}<p class="note">{note}</p></section>'


def _buckets(counted: _Counted) -> Iterator[str]:
    if counts := counted.buckets:
        rows = [[size, length, f"{count:,}"] for (size, length), count in sorted(counts.items())]
        yield f"<section><h2>Buckets</h2>{table(['size', 'length', 'scenes'], rows)}</section>"


def _dropped(files: Spool, scenes: SceneRows, counted: _Counted, rules: Rules) -> Iterator[str]:
    wanted = np.zeros(len(scenes), bool)
    wanted[[number for numbers in counted.shown.values() for number in numbers]] = True
    shown = {row["number"]: row for row in scenes.decided(wanted)}
    pictures: dict[str, str] = {}
    left = files.rows()
    for key, some in itertools.groupby(shown.values(), lambda scene: scene["raw_key"]):
        pictures |= _pictures(next(file for file in left if file["key"] == key), list(some))
    blocks = []
    for name, rule in rules.filters.items():
        count = counted.passed[name][0] - counted.passed[name][1]
        if not count:
            continue
        figures = "".join(
            _figure(shown[number], pictures[shown[number]["id"]], rule.names) for number in counted.shown[name]
        )
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
