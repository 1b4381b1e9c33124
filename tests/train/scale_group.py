"""Trainings by a group of processes; run by ``test_scale_processes.py`` under torchrun, once for all of its cases.

The cases stand in a JSON file. Of each, the first process writes the losses, the norms and the weights it ends with.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kandinsky.runtime.parallel import launch
from kandinsky.train import loop
from kandinsky.train.scale import Scale, Scaling
from tiny import clips


def train(case: dict[str, Any]) -> None:
    out = Path(case["out"])
    objective, divisible = clips.objective(case["network"], heads=case["heads"])
    settings = loop.LoopSettings.from_dict(case["loop"])
    scaling = Scaling(Scale(**case["scale"]), "cpu", divisible)
    steps: list[dict[str, float]] = []
    weights = loop.run(objective, settings, out, scaling=scaling, on_log=steps.append)["network"]
    state = scaling.state(objective.network)
    if scaling.is_first:
        save_file({name: t.contiguous() for name, t in weights.items()}, out / "averaged.safetensors")
        save_file({name: t.contiguous() for name, t in state.items()}, out / "trained.safetensors")
    else:
        assert not weights and not state and not steps


def main(cases: Path) -> None:
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    if launch.World.started().size > 1:
        launch.meet("cpu")
    for case in json.loads(cases.read_text()):
        train(case)
    launch.part()


if __name__ == "__main__":
    with launch.together(lambda text: print(text, file=sys.stderr, flush=True)):
        main(Path(sys.argv[1]))
