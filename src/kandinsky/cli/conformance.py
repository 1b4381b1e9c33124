"""`kandinsky conformance`: recorded numbers of the official implementations against ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def conformance(
    paths: Annotated[list[Path], typer.Argument(help="Case folders, or any folder above cases; or manifests.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")] = False,
) -> None:
    """Run conformance cases; exit 1 if one fails."""
    import json
    from dataclasses import asdict

    from kandinsky.conformance.cases import totals
    from kandinsky.conformance.run import check

    results = []
    for result in check(paths):
        results.append(result)
        if not as_json:
            print(result.line(), flush=True)
    count = totals(results)
    if as_json:
        cases = [asdict(r) for r in results]
        # strict JSON has no infinity
        for case in cases:
            for key in ("max_abs", "max_rel"):
                if case[key] == float("inf"):
                    case[key] = None
        print(json.dumps({"cases": cases, "totals": count}, indent=2))
    else:
        print(f"{count['pass']} passed, {count['fail']} failed, {count['skip']} skipped, {len(results)} in all")
    if count["fail"]:
        raise typer.Exit(1)
