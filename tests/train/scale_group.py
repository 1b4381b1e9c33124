"""Trainings by groups of processes, for ``test_scale_processes.py``.

Of each case the first process writes the losses, the norms and the weights it ends with.
"""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from kandinsky.runtime.parallel import launch
from kandinsky.train import loop
from kandinsky.train.scale import Scale, Scaling
from tiny import clips, nursery


def train(case: dict[str, Any]) -> None:
    out = Path(case["out"])
    objective, divisible = clips.objective(case["network"], **case["made"])
    if (event := case.get("event")) and event["rank"] == launch.World.started().rank:
        objective.visit = partial(_befall, event)
    settings = loop.LoopSettings.from_dict(case["loop"])
    scaling = Scaling(Scale(**case["scale"]), "cpu", divisible)
    lines: list[dict[str, float]] = []
    take_step, steps = loop.take_step, []

    def taken(*given: Any) -> dict[str, float]:
        steps.append(take_step(*given))
        return steps[-1]

    loop.take_step = taken  # the log has running means
    weights = loop.run(objective, settings, out, scaling=scaling, on_log=lines.append)["network"]
    loop.take_step = take_step
    state = scaling.state(objective.network)
    if scaling.is_first:
        with (out / "steps.jsonl").open("a") as stream:
            stream.writelines(json.dumps(step) + "\n" for step in steps)
        save_file({name: t.contiguous() for name, t in weights.items()}, out / "averaged.safetensors")
        save_file({name: t.contiguous() for name, t in state.items()}, out / "trained.safetensors")
    else:
        assert not weights and not state and not lines


def _befall(event: dict[str, Any], step: int, loss: Tensor) -> Tensor:
    """What happens to this process in a step, before its gradients are found."""
    if step == event["step"] and event["what"] == "nan":
        return loss * float("nan")
    if step == event["step"]:
        os.kill(os.getpid(), signal.SIGTERM if event["what"] == "sigterm" else signal.SIGKILL)
    return loss


def run(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        train(case)


if __name__ == "__main__":
    clips.objective("kandinsky5 dense", adapted={})  # imports what adapters need
    nursery.serve(run)
