"""Curves of a training, from its ``log.jsonl``: as a picture, drawn with Pillow alone, and as SVG for pages."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from kandinsky.train import journal

COLOURS = [(40, 75, 205), (214, 40, 40), (50, 160, 75), (125, 55, 180)]
POINTS = 240  # of one curve: more are not seen
Point = tuple[float, float]


def read_journals(journals: Sequence[Path]) -> list[dict[str, float]]:
    """The lines of several parts of a training, their steps counted on from part to part."""
    lines: list[dict[str, float]] = []
    for path in journals:
        before = lines[-1]["step"] if lines else 0
        lines += [line | {"step": before + line["step"]} for line in journal.read(path)]
    return lines


def points_of(lines: Sequence[Mapping[str, float]], name: str) -> list[Point]:
    """The finite values of a figure, by step."""
    return [(line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))]


def smoothed(points: Sequence[Point], share: float = 0.02) -> list[Point]:
    """Running means, over so large a share of the curve; the first values count as much as any other."""
    keep, mean, weight = 1 - 1 / max(1.0, share * len(points)), 0.0, 0.0
    out = []
    for x, y in points:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        out.append((x, mean / weight))
    return out


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """No more points than are seen, means of those that lie together."""
    size = -(-len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size or 1)]
    return [(group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups]


def draw_curve(
    journals: Sequence[Path], target: Path, *, names: tuple[str, ...], title: str, logarithmic: bool = True
) -> Path:
    """Draw figures of a training's journals over its steps.

    Args:
        journals: of the parts of the training, one after the other.
        names:    keys of the journals' lines, one curve each; lines without a key are left out of that curve.
    """
    lines = read_journals(journals)
    width, height, left, top, bottom = 900, 420, 60, 36, 40
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    value = math.log if logarithmic else float
    points = {name: smoothed([point for point in points_of(lines, name) if point[1] > 0]) for name in names}
    everything = [y for curve in points.values() for _, y in curve]
    low, high = min(everything), max(everything)
    last = lines[-1]["step"]

    def at(x: float, y: float) -> tuple[float, float]:
        share = (value(y) - value(low)) / max(1e-9, value(high) - value(low))
        return left + (width - left - 16) * x / last, height - bottom - (height - top - bottom) * share

    draw.rectangle((left, top, width - 16, height - bottom), outline=(200, 200, 200))
    for k in range(5):
        y = math.exp(value(low) + (value(high) - value(low)) * k / 4) if logarithmic else low + (high - low) * k / 4
        draw.text((6, at(0, y)[1] - 6), f"{y:.3g}", fill="black")
        x = last * k / 4
        draw.text((at(x, low)[0] - 10, height - bottom + 8), f"{x:.0f}", fill="black")
    draw.text((left, 6), title, fill="black")
    for number, (name, curve) in enumerate(points.items()):
        if len(curve) > 1:
            draw.line([at(x, y) for x, y in curve], fill=COLOURS[number % len(COLOURS)], width=2)
        draw.text((left + 8 + 110 * number, 20), name, fill=COLOURS[number % len(COLOURS)])
    picture.save(target)
    return target


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve of a plot.

    Attributes:
        points: At least one.
        colour: Of CSS.
        faint: Whether it stands behind others.
    """

    points: Sequence[Point]
    colour: str
    faint: bool = False


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 210, 54, 12, 8, 26  # of a plot


def svg_plot(curves: Sequence[Curve], *, label: str, marks: Sequence[float] = (), linear: bool = False) -> str:
    """A plot over steps; values of which the largest is over ten times the smallest are on a logarithmic scale.

    Args:
        curves: At least one.
        label: For those who do not see it.
        marks: Steps with a line of their own, such as those of checkpoints.
        linear: Whether the scale is never logarithmic.
    """
    values = [y for curve in curves for _, y in curve.points]
    first, last = (pick(x for curve in curves for x, _ in curve.points) for pick in (min, max))
    low, high = min(values), max(values)
    is_log = not linear and low > 0 and high / low > 10
    scale = math.log10 if is_log else float
    if not is_log and (low > 0 or high < 0):  # a little change shall not look like a large one
        low, high = low - 0.1 * abs(low), high + 0.1 * abs(high)
    if high == low:
        low, high = low - 1, high + 1
    ticks = _decades(low, high) if is_log else _round_numbers(low, high)
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        share = (scale(y) - scale(low)) / (scale(high) - scale(low))
        return LEFT + across * ((x - first) / (last - first) if last > first else 0.5), TOP + down * (1 - share)

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    for tick in ticks:
        _, y = place(first, tick)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_said(tick)}</text>')
    for tick in _round_numbers(first, last):
        x, _ = place(tick, ticks[0] if ticks else low)
        if tick == int(tick):
            text = f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{int(tick):,}</text>'
            out.append(text)
    for mark in marks:
        x, _ = place(mark, low)
        if first <= mark <= last:
            out.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + down}"/>')
    for curve in curves:
        dots = [place(*point) for point in curve.points]
        style = f'style="stroke:{curve.colour}"' + (' class="faint"' if curve.faint else "")
        if len(dots) == 1:
            out.append(f'<circle cx="{dots[0][0]:.1f}" cy="{dots[0][1]:.1f}" r="3" style="fill:{curve.colour}"/>')
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
            out.append(f'<polyline points="{path}" {style}/>')
    return "".join([*out, "</svg>"])


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten within a range, with 2 and 5 between them where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5)):
        found = [step * 10.0**e for e in exponents for step in steps if low <= step * 10.0**e <= high]
        if len(found) >= 3:
            break
    return found[:: max(1, len(found) // 6)]


def _round_numbers(low: float, high: float) -> list[float]:
    """Some numbers of few digits within a range."""
    if high <= low:
        return [low]
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.99)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _said(value: float) -> str:
    """A number in few characters."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1000 if letter == 'k' else size):g}{letter}"
    return f"{value:.3g}"
