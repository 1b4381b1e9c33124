"""``run.html``: a training on one page, which holds everything it shows but the videos, and asks nothing of a network.

It is made of what lies in the run's folder: the log, the last checkpoint's table, the samples. It is written when a
run ends, and by ``kandinsky train FOLDER --page`` at any time, also of a run that goes on.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kandinsky.errors import RequestError
from kandinsky.files import replacing
from kandinsky.printing import escaped
from kandinsky.train import journal
from kandinsky.train.checkpoint import STATE, name_of
from kandinsky.train.curve import Curve, Point, points_of, smoothed, svg_plot, thinned
from kandinsky.train.record import BINS, COUNT, LOSS, bin_name

NAME = "run.html"
ROUNDS = 6  # of samples that are shown
SHEET_WIDTH = 640  # pixels of a contact sheet
_SAMPLE = re.compile(r"step-(\d{8,})-(\d+)\.png")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# what a figure is called on the page; those that are not here stand after them
TITLES = {
    "loss": "Loss",
    "norm": "Gradient norm",
    "lr": "Learning rate",
    "tokens per second": "Tokens per second",
    "samples per second": "Samples per second",
    "TFLOP/s": "TFLOP/s",
    "MFU": "Share of the matrix rate",
    "memory GB": "Peak memory, GB",
    "seconds per step": "Seconds per step",
    "seconds of waiting": "Seconds of a step spent waiting for data",
}
# what another figure shows as well
_INSTEAD = {"samples per second": "tokens per second", "TFLOP/s": "MFU"}
_NO_CURVE = ("step", "steps", "seconds")


def write(folder: Path) -> Path:
    """Write the page of a run's folder.

    Returns:
        The file.

    Raises:
        RequestError: There is no log in the folder, or the page cannot be written.
    """
    lines = journal.read(folder / journal.FILE)
    if not lines:
        raise RequestError(f"`{escaped(folder)}` holds no log of a training: name the folder that a recipe calls `out`")
    parts = [
        f"<header><h1>{text(folder.resolve().name)}</h1>{_tiles(lines)}</header>",
        *_figures(folder, lines),
        *_samples(folder),
        *_checkpoints(folder),
        *_recipe(folder),
    ]
    page = document(folder.resolve().name, parts)
    with replacing(folder / NAME) as part:
        part.write_text(page, encoding="utf-8")
    return folder / NAME


def document(title: str, parts: Iterable[str]) -> str:
    """A page that holds everything it shows and asks nothing of a network."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _tiles(lines: Sequence[Mapping[str, float]]) -> str:
    last, tail = lines[-1], lines[-max(1, len(lines) // 20) :]

    def recent(name: str) -> float | None:
        values = [y for _, y in points_of(tail, name)]
        return math.fsum(values) / len(values) if values else None

    tiles = [("Step", f"{last['step']:,.0f} of {last.get('steps', last['step']):,.0f}")]
    told = {
        "Loss": (recent("loss"), "{:.4g}"),
        "Tokens per second": (recent("tokens per second"), "{:,.4g}"),
        "Samples per second": (recent("samples per second"), "{:,.3g}"),
        "Share of the matrix rate": (recent("MFU"), "{:.0%}"),
        "Peak memory": (recent("memory GB"), "{:.2f} GB"),
    }
    tiles += [(name, form.format(value)) for name, (value, form) in told.items() if value is not None]
    tiles.append(("Time", _duration(last.get("seconds", 0.0))))
    return tiled(tiles)


def tiled(tiles: Iterable[tuple[str, str]]) -> str:
    """Names and their values, side by side."""
    cells = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in tiles)
    return f'<dl class="tiles">{cells}</dl>'


def _figures(folder: Path, lines: Sequence[Mapping[str, float]]) -> Iterator[str]:
    names = dict.fromkeys(name for line in lines for name in line)
    bins = [number for number in range(BINS) if f"{LOSS} {bin_name(number)}" in names]
    of_bins = {f"{what} {bin_name(number)}" for what in (LOSS, COUNT) for number in range(BINS)}
    said = {name for name, other in _INSTEAD.items() if other in names}
    others = [name for name in names if name not in {*TITLES, *of_bins, *_NO_CURVE}]
    marks = _steps(folder)
    cards = []
    for name in (*TITLES, *others):
        points = points_of(lines, name)
        if not points or name in said:
            continue
        curves = [Curve(thinned(points), "var(--curve)")]
        if name not in ("lr", "memory GB") and len(points) > 20:
            behind = Curve(thinned(points), "var(--curve)", faint=True)
            curves = [behind, Curve(thinned(smoothed(points, 0.05)), "var(--curve)")]
        title = TITLES.get(name, name[:1].upper() + name[1:])
        plot = svg_plot(curves, label=f"{title} over steps", marks=marks if name == "loss" else (), linear=name == "lr")
        cards.append(card(title, plot))
        if name == "loss" and bins:
            cards.append(_by_time(lines, bins))
    note = '<p class="note">Dotted lines are the checkpoints that lie in the folder.</p>' if marks else ""
    yield f'<section><h2>Figures</h2><div class="cards">{"".join(cards)}</div>{note}</section>'


def _by_time(lines: Sequence[Mapping[str, float]], bins: Sequence[int]) -> str:
    curves, keys = [], []
    for number in bins:
        points = _bin_points(lines, number)
        colour = _HUES[number]
        curves.append(Curve(thinned(points, 60), colour))
        keys.append(f'<li><i style="background:{colour}"></i>{bin_name(number)}</li>')
    plot = svg_plot(curves, label="Loss over steps, by time")
    return card("Loss by time (0 clip, 1 noise)", f'{plot}<ul class="keys">{"".join(keys)}</ul>')


def _bin_points(lines: Sequence[Mapping[str, float]], number: int, groups: int = 60) -> list[Point]:
    """The mean error of a bin, weighed by its counts, in stretches of the run."""
    error, count = f"{LOSS} {bin_name(number)}", f"{COUNT} {bin_name(number)}"
    size, points = -(-len(lines) // groups), []
    for start in range(0, len(lines), size):
        some = [line for line in lines[start : start + size] if line.get(count, 0) > 0]
        if weight := math.fsum(line[count] for line in some):
            points.append((some[-1]["step"], math.fsum(line[error] * line[count] for line in some) / weight))
    return smoothed(points, 0.1)


def _samples(folder: Path) -> Iterator[str]:
    rounds: dict[int, dict[int, Path]] = defaultdict(dict)
    for path in sorted((folder / journal.SAMPLES).glob("step-*.png")):
        if found := _SAMPLE.fullmatch(path.name):
            rounds[int(found[2])][int(found[1])] = path
    if not rounds:
        return
    blocks = []
    for _, by_step in sorted(rounds.items()):
        steps = _some(sorted(by_step), ROUNDS)
        rows = []
        for step in steps:
            sheet, video = by_step[step], by_step[step].with_suffix(".mp4")
            image = f'<img src="{_data(sheet)}" alt="Sample of step {step:,}">'
            if video.is_file():
                image = f'<a href="{journal.SAMPLES}/{video.name}">{image}</a>'
            rows.append(f"<figure><figcaption>step {step:,}</figcaption>{image}</figure>")
        blocks.append(f"<h3>{text(_prompt(by_step[steps[-1]]))}</h3>{''.join(rows)}")
    note = '<p class="note">A sheet leads to its video, in the folder of the run.</p>'
    yield f'<section class="samples"><h2>Samples</h2>{"".join(blocks)}{note}</section>'


def _prompt(sheet: Path) -> str:
    """What a sample was asked for, as its file says."""
    from kandinsky.media import recipe

    found = recipe.read_if_any(sheet) or {}
    return str(found.get("prompt") or sheet.stem)


def _data(sheet: Path) -> str:
    with Image.open(sheet) as image:
        small = image.convert("RGB")
        small.thumbnail((SHEET_WIDTH, SHEET_WIDTH))
    return data_of(small)


def data_of(small: Image.Image) -> str:
    """An image as an address that holds it."""
    held = io.BytesIO()
    small.save(held, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"


def _some(steps: Sequence[int], most: int) -> list[int]:
    """The first, the last, and some between."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(k * (len(steps) - 1) / (most - 1))] for k in range(most)]


def _steps(folder: Path) -> list[int]:
    found = (_CHECKPOINT.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
    return sorted(int(one[1]) for one in found if one)


def _checkpoints(folder: Path) -> Iterator[str]:
    rows = []
    for step in _steps(folder):
        path = folder / name_of(step)
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        rows.append([path.name, f"{step:,}", f"{size / 1e6:,.1f} MB"])
    if rows:
        yield f"<section><h2>Checkpoints</h2>{table(['folder', 'step', 'size'], rows)}</section>"


def _recipe(folder: Path) -> Iterator[str]:
    """What decides the result, as the last checkpoint holds it."""
    for step in reversed(_steps(folder)):
        try:
            told: Any = json.loads((folder / name_of(step) / STATE).read_text(encoding="utf-8"))["recipe"]
            rows = [[str(name), _shown(value)] for name, value in told.items() if value is not None]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # of a checkpoint that is broken; an earlier one says the same
        yield f"<section><h2>Recipe</h2>{table(['key', 'value'], rows)}</section>"
        return


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def card(title: str, inner: str) -> str:
    """A block with a heading; what is in it is markup."""
    return f'<article class="card"><h3>{text(title)}</h3>{inner}</article>'


def table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{text(one)}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{text(one)}</td>" for one in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def text(value: object) -> str:
    """Text of a file, which can be no markup."""
    return html.escape(escaped(value))


# from warm, near the clip, to cold, near noise; seen on light and on dark ground
_HUES = ("#d9480f", "#e07a1f", "#c9a227", "#8fa82e", "#4fa650", "#2fa084", "#2f93b5", "#3c78c8", "#5f62d2", "#8a50c4")
STYLE = """
:root{color-scheme:light dark;--ground:#f7f7f5;--card:#fff;--ink:#1d1f22;--dim:#63676e;--line:#e4e4e0;
--curve:#2c74c9}
@media(prefers-color-scheme:dark){:root{--ground:#15171a;--card:#1d2024;--ink:#e9eaec;--dim:#9aa0a8;--line:#32363c;
--curve:#6ba7e8}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:28px 24px 60px;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:24px;margin:0 0 14px} h2{font-size:18px;margin:36px 0 12px}
h3{font-size:14px;margin:0 0 8px;font-weight:600}
.tiles{display:flex;flex-wrap:wrap;gap:10px 36px;margin:0} .tiles dt{color:var(--dim);font-size:13px}
.tiles dd{margin:0;font-size:20px;font-variant-numeric:tabular-nums}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:16px}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 14px 8px}
svg{display:block;width:100%;height:auto;overflow:visible}
polyline{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}
polyline.faint{stroke-width:1;opacity:.3}
.grid{stroke:var(--line)} .mark{stroke:var(--dim);stroke-dasharray:1 4} .tick{fill:var(--dim);font-size:11px}
.keys{display:flex;flex-wrap:wrap;gap:2px 12px;margin:6px 0 4px;padding:0;list-style:none;
color:var(--dim);font-size:12px}
.keys i{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:5px}
.note{color:var(--dim);font-size:13px}
.samples h3{margin:18px 0 6px} figure{display:flex;gap:14px;align-items:center;margin:0 0 6px}
figcaption{flex:0 0 100px;color:var(--dim);font-size:13px;text-align:right;font-variant-numeric:tabular-nums}
figure img{max-width:100%;display:block;border-radius:4px} figure a{min-width:0}
table{border-collapse:collapse;font-size:13px} th{text-align:left;color:var(--dim);font-weight:500}
td,th{padding:3px 24px 3px 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
"""
