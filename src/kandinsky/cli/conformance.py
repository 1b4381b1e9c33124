"""`kandinsky conformance`: compare with recorded numbers of the official implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kandinsky.cli.streams import emit, emit_json


def conformance(
    paths: Annotated[list[Path], typer.Argument(help="Case folders, folders above them, or manifests.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")] = False,
) -> None:
    """Run conformance cases; exit 1 if one fails."""
    import math
    from dataclasses import asdict

    from kandinsky.conformance.run import Result, check, totals

    def plain(result: Result) -> dict[str, object]:
        # strict JSON has no infinity
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(result).items()}

    results = []
    for result in check(paths):
        results.append(result)
        if not as_json:
            emit(result.line())
    count = totals(results)
    if as_json:
        emit_json({"cases": [plain(result) for result in results], "totals": count}, indent=2)
    else:
        print(f"{count['pass']} passed, {count['fail']} failed, {len(results)} in all")
    if count["fail"]:
        raise typer.Exit(1)
