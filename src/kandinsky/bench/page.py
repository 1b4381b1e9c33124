"""The page of all machines' figures, with plots: `python -m kandinsky.bench.page docs/benchmarks` writes it again.

It is made of the result files in the folder alone, which ``bench.record`` and ``bench.gpu`` write. A test holds the
page to them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from kandinsky.bench.items import FORMAT
from kandinsky.errors import RequestError
from kandinsky.files import listed, replacing
from kandinsky.printing import counted

PAGE = "machines.md"
HEAD = """# Figures by machine

Written by `python -m kandinsky.bench.page docs/benchmarks` from the result files beside it; do not edit by hand. A
file is made by one command on its machine: `python -m kandinsky.bench.record docs/benchmarks` for a processor,
`python -m kandinsky.bench.gpu docs/benchmarks` for a GPU.

*Median* and *spread* (slowest minus fastest) are seconds of a round; of one CPU thread, seconds of the processor, which
other work on the machine distorts little. *Share* is of the rate of products of large matrices, measured in the same
run. *Ratio* is our time over that of the other library, the median of rounds in which both took turns: below 1, this
library is faster.
"""
WIDTH, ROW, LEFT, RIGHT, TOP = 880, 22, 420, 150, 34
COLOURS = {"bar": "#3b7dd8", "rest": "#e3e8ef", "text": "#1f2733", "faint": "#6b7686", "faster": "#1a7f4b",
           "slower": "#b3261e"}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        RequestError: It is none, or of another version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"result file `{path}` cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT or "items" not in values:
        raise RequestError(f"`{path}` is no result file of this version: make it again, `bench.record` or `bench.gpu`")
    return values


def rows(result: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each measured stage but loading: what it is called, and its figures."""
    for item in result["items"]:
        for stage in item["report"].get("stages", ()):
            if stage["name"] != "load":
                yield f"{item['name']}: {stage['name']}", stage


def plot(result: Mapping[str, Any]) -> str:
    """A result file as an SVG image: the share of the matrix rate of each stage that has one, and its ratio."""
    shown = [(name, stage) for name, stage in rows(result) if stage["flops"]]
    height = TOP + ROW * len(shown) + 10
    width = WIDTH - LEFT - RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 18, "share of the measured matrix rate", COLOURS["faint"]),
        _text(WIDTH - RIGHT + 70, 18, "ours / theirs", COLOURS["faint"]),
    ]
    for number, (name, stage) in enumerate(shown):
        y = TOP + ROW * number
        share = min(1.0, stage["share"])
        parts += [
            _text(LEFT - 8, y + 15, name, COLOURS["text"], anchor="end"),
            f'<rect x="{LEFT}" y="{y + 4}" width="{width}" height="14" fill="{COLOURS["rest"]}"/>',
            f'<rect x="{LEFT}" y="{y + 4}" width="{share * width:.1f}" height="14" fill="{COLOURS["bar"]}"/>',
            _text(LEFT + width + 8, y + 15, f"{stage['share']:.0%}", COLOURS["text"]),
        ]
        if (ratio := _ratio(stage)) is not None:
            colour = COLOURS["faster" if ratio <= 1 else "slower"]
            parts.append(_text(WIDTH - RIGHT + 70, y + 15, f"{ratio:.2f}", colour))
    return "\n".join([*parts, "</svg>\n"])


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as Markdown.

    Args:
        results: Result files by their names without ending.
    """
    sections = [_section(name, result) for name, result in sorted(results.items())]
    return "\n".join([HEAD, *sections])


def write(folder: Path) -> list[Path]:
    """Write the page and the plots of a folder of result files.

    Returns:
        What was written.
    """
    results = {path.stem: read(path) for path in listed(folder, ".json")}
    texts = {folder / PAGE: page(results)} | {folder / f"{name}.svg": plot(one) for name, one in results.items()}
    for path, text in texts.items():
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    return list(texts)


def _section(name: str, result: Mapping[str, Any]) -> str:
    machine, rates = result["machine"], result["rates"]
    threads = counted(machine["threads"], "thread")
    told = [f"{machine['cores']} cores", f"{threads} waiting {machine['waiting']}ly"]
    told += [f"{machine['vectors']}", f"torch {machine['versions'].get('torch', '?')}"]
    told += [f"Diffusers {machine['versions']['diffusers']}"] if "diffusers" in machine["versions"] else []
    reached = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {kind}" for kind, rate in rates.items())
    after = result.get("machine_after", {}).get("load")
    load = f"{machine['load']}" if after is None else f"{machine['load']} to {after}"
    title = machine.get("accelerator") or f"{machine['processor']}, {machine['vectors']}"
    lines = [
        f"## {title}, {threads}\n",
        f"{', '.join(told)}; load {load}; {result['made']}. Products of large matrices reach {reached}.\n",
        f"![Shares of the matrix rate, and ratios]({name}.svg)\n",
        "| what | median s | spread s | share | peak GB | other library, s | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, stage in rows(result):
        share = f"{stage['share']:.0%}" if stage["flops"] else ""
        other = stage.get("against") or {}
        seconds = sorted(other.get("seconds", ()))
        theirs = f"{seconds[len(seconds) // 2]:.3f}" if seconds else escape(str(other.get("reason", "")))
        ratio = _ratio(stage)
        lines.append(
            f"| {what} | {stage['median_s']:.3f} | {stage['spread_s']:.3f} | {share} | {stage['peak_bytes'] / 1e9:.2f} "
            f"| {theirs} | {'' if ratio is None else f'{ratio:.2f}'} |"
        )
    lines.append("")
    for item in result["items"]:
        state = "" if item["state"] == "done" else f" – {item['state']}: {item['reason']}"
        said = f" – {item['report']['said']}" if "said" in item["report"] else ""
        lines += [f"- {item['name']}{said}{state}:\n\n      {item['command']}\n"]
    return "\n".join(lines)


def _ratio(stage: Mapping[str, Any]) -> float | None:
    other = stage.get("against") or {}
    return float(other["ratio"]) if other.get("seconds") else None


def _text(x: float, y: float, text: str, colour: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page of the folder that is named."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    for path in write(Path(folder)):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
