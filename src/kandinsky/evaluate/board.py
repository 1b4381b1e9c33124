"""A leaderboard: one self-contained page from result files, with nothing loaded from elsewhere and no program in it.

It shows a radar of the metrics that all models share, tables of every figure with its interval, cost against quality,
and a contact sheet of each model's clips. Values of different suites stand in different tables: they are not
comparable, and neither are VBench-like values with those of the official tool, which say so.

Legend: T frames; H W rows and columns.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kandinsky.errors import KandinskyError, RequestError
from kandinsky.evaluate.results import Result
from kandinsky.evaluate.vbench import DIMENSIONS
from kandinsky.files import replacing
from kandinsky.media.video import read_video

MOST_MODELS = 12
MOST_AXES = 16
CLIPS, FRAMES, HEIGHT = 6, 4, 90  # of a contact sheet
QUALITY = ("clip similarity", "aesthetic quality", "imaging quality")  # what is taken for it, if it was measured
COLOURS = (
    "#3550e0", "#f0512d", "#1c9a5b", "#b8860b", "#8e44ad", "#0e8a9a", "#d1437b", "#6b7280", "#5b8c00", "#a0522d",
    "#2f6f9f", "#c0392b",
)  # fmt: skip
_STYLE = """
:root{color-scheme:light dark;--ground:light-dark(#f5f5f2,#111114);--surface:light-dark(#fff,#1a1a1f);
--ink:light-dark(#17171b,#f2f1ed);--soft:light-dark(#5a5b64,#a7a8b3);--line:light-dark(#dfdfd9,#2c2c34)}
*{box-sizing:border-box}body{margin:0 auto;max-width:1180px;padding:32px 20px 60px;background:var(--ground);
color:var(--ink);font:15px/1.5 system-ui,sans-serif}h1{margin:0 0 4px;font-size:26px;letter-spacing:-.02em}
h2{margin:0 0 12px;font-size:19px}p{margin:4px 0}.soft{color:var(--soft);font-size:13px}
section{margin-top:16px;padding:18px 22px;border:1px solid var(--line);border-radius:14px;background:var(--surface);
break-inside:avoid}.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:16px}
.pair section{min-width:0}.scrolls{overflow-x:auto}table{width:100%;border-collapse:collapse;
font-variant-numeric:tabular-nums}th,td{padding:6px 8px;text-align:right;border-top:1px solid var(--line);
white-space:nowrap}th:first-child{text-align:left;white-space:normal;font-weight:520}thead th{border-top:0;
font-size:13px;font-weight:520;color:var(--soft)}td small{display:block;color:var(--soft)}.best{font-weight:680}
.best small{font-weight:400}
svg{display:block;width:100%;height:auto}svg text{fill:var(--ink);font:12px system-ui,sans-serif}
.grid{fill:none;stroke:var(--line)}.key{display:inline-block;width:12px;height:12px;margin-right:6px;border-radius:4px;
vertical-align:-1px}.sheet img{max-width:100%;border-radius:8px;display:block}ul{margin:6px 0 0;padding-left:20px}
@media(max-width:480px){.pair{grid-template-columns:1fr}}@media print{body{padding:0}section{border:0;padding:8px 0}}
"""


def write(results: Sequence[Result], path: str | Path, *, title: str = "Comparison of models") -> Path:
    """Write the page, whole or not at all.

    Args:
        results: Result files; of one suite and model, the names say which is which.
        path: A `.html` file.
        title: Its heading.

    Returns:
        The file.

    Raises:
        RequestError: There are none or too many, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"a leaderboard is a page: `{path}` must end in `.html`")
    text = page(results, title=title)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def page(results: Sequence[Result], *, title: str = "Comparison of models") -> str:
    """The page as HTML; see ``write``."""
    if not 1 <= len(results) <= MOST_MODELS:
        raise RequestError(f"{len(results)} results: a leaderboard shows 1 to {MOST_MODELS}")
    named = list(zip(_names(results), results, COLOURS, strict=False))
    suites = list(dict.fromkeys(one.suite for one in results))
    body = [f"<h1>{_text(title)}</h1>", f'<p class="soft">{_legend(named)}</p>']
    for suite in suites:
        mine = [one for one in named if one[1].suite == suite]
        figures = [chart for chart in (_radar(mine), _cost(mine)) if chart]
        if figures:
            body.append(f'<div class="pair">{"".join(figures)}</div>')
        body.append(_table(suite, mine))
    if sheets := "".join(_sheet(name, one, colour) for name, one, colour in named):
        body.append(f'<div class="pair">{sheets}</div>')
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


Named = tuple[str, Result, str]


def _names(results: Sequence[Result]) -> list[str]:
    """The models' names, with their folders where two are the same."""
    made = []
    for one in results:
        twice = sum(other.model == one.model and other.suite == one.suite for other in results) > 1
        made.append(f"{one.model} ({one.folder.resolve().name})" if twice else one.model)
    return made


def _legend(named: Sequence[Named]) -> str:
    seen = {name: colour for name, _, colour in reversed(named)}
    return " &nbsp; ".join(f"{_key(colour)}{_text(name)}" for name, colour in reversed(seen.items()))


def _key(colour: str) -> str:
    return f'<span class="key" style="background:{colour}"></span>'


def _scaled(name: str, one: Mapping[str, Any], all_of: Sequence[float]) -> float:
    """A value from 0 to 1: VBench's own normalisation, else between the least and most that any model has."""
    value = float(one["value"])
    if (dimension := DIMENSIONS.get(name)) is not None:
        share = (value - dimension.least) / (dimension.most - dimension.least)
    else:
        least, most = min(all_of), max(all_of)
        share = 0.5 if most == least else 0.15 + 0.7 * (value - least) / (most - least)
    share = max(0.0, min(1.0, share))
    return 1.0 - share if one.get("better") == "lower" else share


def _axes(named: Sequence[Named]) -> list[str]:
    """Metrics that every model has and of which more, or less, is better."""
    shared = [
        name
        for name, one in named[0][1].metrics.items()
        if one.get("better") in ("higher", "lower") and all(name in other.metrics for _, other, _ in named)
    ]
    # whole dimensions of VBench are comparable on one scale; what is scaled by the models at hand needs two of them
    return [name for name in shared if name in DIMENSIONS or len(named) > 1][:MOST_AXES]


def _radar(named: Sequence[Named]) -> str:
    axes = _axes(named)
    if len(axes) < 3:
        return ""
    radius, middle = 120.0, (230.0, 165.0)

    def at(i: int, share: float) -> tuple[float, float]:
        angle = 2 * math.pi * i / len(axes) - math.pi / 2
        return middle[0] + radius * share * math.cos(angle), middle[1] + radius * share * math.sin(angle)

    def shape(shares: Sequence[float]) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(i, share) for i, share in enumerate(shares)))

    parts = [f'<polygon class="grid" points="{shape([step] * len(axes))}"/>' for step in (0.25, 0.5, 0.75, 1.0)]
    for i, name in enumerate(axes):
        x, y = at(i, 1.0)
        tx, ty = at(i, 1.12)
        anchor = "middle" if abs(tx - middle[0]) < 12 else "start" if tx > middle[0] else "end"
        parts.append(f'<line class="grid" x1="{middle[0]}" y1="{middle[1]}" x2="{x:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{tx:.1f}" y="{ty + 4:.1f}" text-anchor="{anchor}">{_text(name)}</text>')
    for name, one, colour in named:
        columns = [[other.metrics[axis]["value"] for _, other, _ in named] for axis in axes]
        shares = [_scaled(axis, one.metrics[axis], column) for axis, column in zip(axes, columns, strict=True)]
        parts.append(
            f'<polygon points="{shape(shares)}" fill="{colour}" fill-opacity="0.12" stroke="{colour}" '
            f'stroke-width="2"><title>{_text(name)}</title></polygon>'
        )
    told = "outside is better; dimensions of VBench by its own bounds, others between the least and the most here"
    return (
        f'<section><h2>Metrics</h2><svg viewBox="0 0 460 330" role="img" aria-label="Radar of {len(axes)} metrics">'
        f'{"".join(parts)}</svg><p class="soft">{told}</p></section>'
    )


def _quality(one: Result) -> tuple[str, float] | None:
    """What stands for quality beside the cost: VBench's total or quality score, or one metric."""
    for name in ("total", "quality"):
        if one.totals is not None and (value := one.totals.get(name)) is not None:
            return f"VBench {name}, {one.totals.get('label')}", float(value)
    for name in (*QUALITY, *one.metrics):
        metric = one.metrics.get(name, {})
        if metric.get("better") == "higher":
            return name, float(metric["value"])
    return None


def _cost(named: Sequence[Named]) -> str:
    points = [
        (name, float(one.cost["seconds"]), found, colour)
        for name, one, colour in named
        if one.cost is not None and (found := _quality(one)) is not None
    ]
    if not points or len({label for _, _, (label, _), _ in points}) > 1:
        return ""
    label = points[0][2][0]
    xs, ys = [seconds for _, seconds, _, _ in points], [value for _, _, (_, value), _ in points]
    low, high = math.log10(max(min(xs), 1e-3) / 1.6), math.log10(max(max(xs), 1e-3) * 1.6)
    spread = (max(ys) - min(ys)) or max(abs(max(ys)) * 0.02, 1e-6)
    bottom, top = min(ys) - 0.25 * spread, max(ys) + 0.25 * spread
    parts = []
    for step in range(5):
        y = 20.0 + 65 * step
        value = top - (top - bottom) * step / 4
        parts.append(f'<line class="grid" x1="62" y1="{y:g}" x2="450" y2="{y:g}"/>')
        parts.append(f'<text x="56" y="{y + 4:g}" text-anchor="end">{value:.4g}</text>')
        x = 62 + 388 * step / 4
        seconds = 10 ** (low + (high - low) * step / 4)
        anchor = "end" if step == 4 else "middle"
        parts.append(f'<text x="{x:.0f}" y="300" text-anchor="{anchor}">{seconds:.3g} s</text>')
    for name, seconds, (_, value), colour in points:
        x = 62 + 388 * (math.log10(max(seconds, 1e-3)) - low) / (high - low)
        y = 280 - 260 * (value - bottom) / (top - bottom)
        anchor, dx = ("end", -10) if x > 300 else ("start", 10)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>')
        parts.append(f'<text x="{x + dx:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{_text(name)}</text>')
    machines = list(dict.fromkeys(_machine(one) for _, one, _ in named if one.cost is not None))
    told = f"seconds a clip, on {'; '.join(machines)}" + ("" if len(machines) == 1 else ": not comparable")
    return (
        '<section><h2>Cost against quality</h2><svg viewBox="0 0 460 310" role="img" '
        f'aria-label="{_text(label)} against seconds a clip">{"".join(parts)}</svg>'
        f'<p class="soft">{_text(label)} against {_text(told)}</p></section>'
    )


def _machine(one: Result) -> str:
    facts = one.machine
    return str(
        facts.get("accelerator") or f"{facts.get('processor', 'an unknown processor')}, {facts.get('cores')} cores"
    )


def _table(suite: str, named: Sequence[Named]) -> str:
    rows = []
    metrics = list(dict.fromkeys(name for _, one, _ in named for name in one.metrics))
    for name in metrics:
        values = [one.metrics.get(name) for _, one, _ in named]
        known = [float(value["value"]) for value in values if value is not None]
        better = next((str(value.get("better")) for value in values if value is not None), "neither")
        best = max(known) if better == "higher" else min(known) if better == "lower" else None
        cells = []
        for (_, one, _), value in zip(named, values, strict=True):
            if value is None:
                why = one.unavailable.get(name, "not measured")
                cells.append(f'<td title="{_text(why)}">–</td>')
                continue
            low, high = value.get("low"), value.get("high")
            spread = f"[{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
            told = ", ".join(part for part in (spread, str(value.get("label") or "")) if part)
            mark = ' class="best"' if len(named) > 1 and value["value"] == best else ""
            cells.append(f"<td{mark}>{float(value['value']):.4g}{f'<small>{_text(told)}</small>' if told else ''}</td>")
        arrow = {"higher": " ↑", "lower": " ↓"}.get(better, "")
        rows.append(f'<tr><th scope="row">{_text(name)}{arrow}</th>{"".join(cells)}</tr>')
    for score in ("quality", "semantic", "total"):
        if any(one.totals is not None for _, one, _ in named):
            cells = []
            for _, one, _ in named:
                value = None if one.totals is None else one.totals.get(score)
                label = "" if one.totals is None else f"<small>{_text(one.totals.get('label'))}</small>"
                cells.append("<td>–</td>" if value is None else f"<td>{value:.4f}{label}</td>")
            rows.append(f'<tr><th scope="row">VBench {score} ↑</th>{"".join(cells)}</tr>')
    costs = [one.cost for _, one, _ in named]
    if any(costs):
        cells = ["<td>–</td>" if cost is None else f"<td>{cost['seconds']:.2f}</td>" for cost in costs]
        rows.append(f'<tr><th scope="row">seconds a clip ↓</th>{"".join(cells)}</tr>')
    rows.append(
        '<tr><th scope="row">clips</th>' + "".join(f"<td>{len(one.clips) or '–'}</td>" for _, one, _ in named) + "</tr>"
    )
    head = "".join(f'<th scope="col">{_key(colour)}{_text(name)}</th>' for name, _, colour in named)
    missing = {name: why for _, one, _ in named for name, why in one.unavailable.items() if name not in metrics}
    lines = "".join(f"<li>{_text(name)}: {_text(why)}</li>" for name, why in missing.items())
    note = f'<details class="soft"><summary>Not measured</summary><ul>{lines}</ul></details>' if lines else ""
    return (
        f'<section><h2>{_text(suite)}</h2><div class="scrolls"><table><thead><tr><th scope="col">Metric</th>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>{note}"
        '<p class="soft">In brackets: 95 % interval, prompts resampled. Bold is the best value here, not a proof.</p>'
        "</section>"
    )


def _sheet(name: str, one: Result, colour: str) -> str:
    """Frames of a model's first clips, each clip a row with its prompt."""
    rows: list[list[Any]] = []
    texts = []
    for clip in one.clips:
        if len(rows) == CLIPS:
            break
        try:
            frames = read_video(one.folder / str(clip["file"])).frames_THWC
        except (KandinskyError, OSError, KeyError):
            continue
        rows.append([frames[round(i * (len(frames) - 1) / (FRAMES - 1))] for i in range(FRAMES)])
        texts.append(str(clip.get("prompt") or clip.get("key") or ""))
    if not rows:
        return ""
    lines = "".join(f"<li>{_text(text)}</li>" for text in texts)
    return (
        f'<section class="sheet"><h2>{_key(colour)}{_text(name)}, {_text(one.suite)}</h2><img alt="Frames of the first '
        f'{len(rows)} clips" src="data:image/jpeg;base64,{_jpeg(rows)}"><ol class="soft">{lines}</ol></section>'
    )


def _jpeg(rows: Sequence[Sequence[Any]]) -> str:
    from PIL import Image

    pictures = [[Image.fromarray(frame) for frame in row] for row in rows]
    small = [[one.resize((max(1, round(one.width * HEIGHT / one.height)), HEIGHT)) for one in row] for row in pictures]
    width = max(sum(one.width + 4 for one in row) for row in small) - 4
    sheet = Image.new("RGB", (width, len(small) * (HEIGHT + 4) - 4), "white")
    for j, row in enumerate(small):
        x = 0
        for one in row:
            sheet.paste(one, (x, j * (HEIGHT + 4)))
            x += one.width + 4
    sink = io.BytesIO()
    sheet.save(sink, "JPEG", quality=85)
    return base64.b64encode(sink.getvalue()).decode()


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
