"""Recipes run by a group of processes; started by ``test_recipe_processes.py`` under torchrun, once for all of them.

The recipes stand in a JSON file. Of each, the first process writes the figures of every step, and every process how
many examples it encoded.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from kandinsky.errors import RequestError
from kandinsky.runtime.parallel import launch
from kandinsky.train import loop, model_recipe
from kandinsky.train.recipe import read_recipe, run_recipe

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


def main(recipes: Path) -> None:
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    take_step, encode = loop.take_step, model_recipe.encode

    def taken(*given: Any) -> dict[str, float]:
        STEPS.append(take_step(*given))
        return STEPS[-1]

    def encoded(context: Any, examples: Any, *given: Any) -> Any:
        ENCODED.append(len(examples))
        return encode(context, examples, *given)

    loop.take_step, model_recipe.encode = taken, encoded  # type: ignore[assignment]
    for path in json.loads(recipes.read_text()):
        run(Path(path))
    launch.part()


if __name__ == "__main__":
    with launch.together(lambda text: print(text, file=sys.stderr, flush=True)):
        main(Path(sys.argv[1]))
