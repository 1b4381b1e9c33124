"""A training by 2 and 4 processes equals that of one, and its checkpoints are for any number of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kandinsky
from tiny.clips import NETWORKS

HERE = Path(__file__).parent
STEPS = 20
LOOP = {"steps": STEPS, "lr": 3e-3, "warmup": 2, "bf16": False, "log_every": 1, "checkpoint_minutes": 60, "seed": 1}
# of the loss of any step, and of the weights at the end relative to the largest; only the order of sums differs
TOLERANCE = 1e-4
Case = dict[str, Any]

SCHEMES: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "data": {},
        "fsdp": {"fsdp": 2},
        "ulysses": {"ulysses": 2},
        "ring": {"ring": 2},
        "tp": {"tp": 2},
    },
    4: {
        "fsdp": {"fsdp": 4},
        "hsdp": {"fsdp": 2},
        "ring x ulysses": {"ring": 2, "ulysses": 2},
        "ulysses + fsdp": {"ulysses": 2, "fsdp": 4},
        "tp + fsdp": {"tp": 2, "fsdp": 2},
        "tp x ring": {"tp": 2, "ring": 2},
    },
}  # fmt: skip


def start(processes: int, cases: list[Case], folder: Path) -> None:
    """Run cases one after the other, by a group of so many processes."""
    path = folder / f"cases-{processes}.json"
    path.write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    source = Path(kandinsky.__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{source}{os.pathsep}{HERE.parent}"}
    done = subprocess.run(
        [*command, str(HERE / "scale_group.py"), str(path)], env=environment, capture_output=True, text=True,
        timeout=1500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def case(out: Path, network: str, scale: dict[str, Any] | None = None, heads: int = 5, **more: Any) -> Case:
    return {"out": str(out), "network": network, "scale": scale or {}, "heads": heads, "loop": {**LOOP, **more}}


def losses(out: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (out / "log.jsonl").read_text().splitlines()]


def distance(out: Path, expected: Path) -> float:
    """The largest difference of two trainings: losses of a step, gradient norms, averaged and trained weights."""
    found = [
        abs(a - b) / abs(b)
        for name in ("loss", "norm", "time")
        for a, b in zip(losses(out, name), losses(expected, name), strict=True)
    ]
    for file in ("averaged.safetensors", "trained.safetensors"):
        made, whole = load_file(out / file), load_file(expected / file)
        assert made.keys() == whole.keys()
        found += [float((made[key] - whole[key]).abs().max() / whole[key].abs().max()) for key in whole]
    return max(found)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings by one process: of 5 heads, which no number of processes divides, and of 4 for tensor parallelism."""
    folder = tmp_path_factory.mktemp("alone")
    start(1, [case(folder / f"{name} {heads}", name, heads=heads) for name in NETWORKS for heads in (4, 5)], folder)
    return folder


def schemes(world: int) -> dict[str, tuple[str, dict[str, Any], int]]:
    """Of each case, its network, what the recipe would say, and its heads."""
    found = {}
    for network in NETWORKS:
        for name, scale in SCHEMES[world].items():
            if "ring" in scale and "nabla" in network:  # which needs all tokens of a head
                continue
            found[f"{network}: {name}"] = (network, scale, 4 if "tp" in scale else 5)
    return found


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_training_by_many_is_that_of_one(alone: Path, tmp_path: Path, world: int) -> None:
    cases = schemes(world)
    start(world, [case(tmp_path / key, *given[:2], heads=given[2]) for key, given in cases.items()], tmp_path)
    far = {key: distance(tmp_path / key, alone / f"{network} {heads}") for key, (network, _, heads) in cases.items()}
    for key, (network, _, heads) in cases.items():
        first, *_, last = losses(alone / f"{network} {heads}")
        assert last < 0.9 * first, key  # something was learned
    print(json.dumps(far, indent=1))
    assert {key: value for key, value in far.items() if not value <= TOLERANCE} == {}
