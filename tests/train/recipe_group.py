"""Recipes run by groups of processes, for ``test_recipe_processes.py``.

Of each recipe the first process writes the figures of every step, and every process how
many examples it encoded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.runtime.parallel import launch
from kandinsky.train import loop, model_recipe
from kandinsky.train.recipe import read_recipe, run_recipe
from tiny import nursery

STEPS: list[dict[str, float]] = []
ENCODED: list[int] = []


def run(path: Path) -> None:
    STEPS.clear()
    ENCODED.clear()
    out, rank = Path(read_recipe(path)["out"]), launch.World.started().rank
    out.mkdir(exist_ok=True)
    try:
        run_recipe(path)
        said = ""
    except RequestError as error:
        said = str(error)
    (out / f"encoded-{rank}.json").write_text(json.dumps([sum(ENCODED), said]))
    if rank == 0:
        (out / "steps.json").write_text(json.dumps(STEPS))


def work(recipes: list[str]) -> None:
    take_step, encode = loop.take_step, model_recipe.encode

    def taken(*given: Any) -> dict[str, float]:
        STEPS.append(take_step(*given))
        return STEPS[-1]

    def encoded(context: Any, examples: Any, *given: Any) -> Any:
        ENCODED.append(len(examples))
        return encode(context, examples, *given)

    loop.take_step, model_recipe.encode = taken, encoded  # type: ignore[assignment]
    for path in recipes:
        run(Path(path))


if __name__ == "__main__":
    nursery.serve(work)
