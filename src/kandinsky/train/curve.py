"""A loss curve as a picture, from a run's ``log.jsonl``, drawn with Pillow alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = [(40, 75, 205), (214, 40, 40), (50, 160, 75), (125, 55, 180)]


def read_journals(journals: Sequence[Path]) -> list[dict[str, float]]:
    """The lines of several parts of a training, their steps counted on from part to part."""
    lines: list[dict[str, float]] = []
    for journal in journals:
        before = lines[-1]["step"] if lines else 0
        part = [json.loads(line) for line in journal.read_text().splitlines()]
        once = {line["step"]: line for line in part}  # a resumed run writes the steps since its checkpoint again
        lines += [line | {"step": before + step} for step, line in sorted(once.items())]
    return lines


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
    points = {name: [(line["step"], line[name]) for line in lines if line.get(name, 0) > 0] for name in names}
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
