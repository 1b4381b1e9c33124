"""A training by 2 and 4 processes equals that of one, and its checkpoints are for any number of them."""

from __future__ import annotations

import json
import os
import re
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
# Only the order of sums differs. Relative: of losses and gradient norms of each step, of weights at the end to the
# largest of their tensor (Adam moves a weight whose gradient is next to nothing as far as any other).
LOSSES, WEIGHTS = 2e-5, 5e-4
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


def start(processes: int, cases: list[Case], folder: Path, *, fails: bool = False) -> tuple[int, str]:
    """Run cases one after the other, by a group of so many processes. Returns: how it ended, and what it said."""
    path = folder / f"cases-{processes}.json"
    path.write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    source = Path(kandinsky.__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{source}{os.pathsep}{HERE.parent}"}
    done = subprocess.run(
        [*command, str(HERE / "scale_group.py"), str(path)], env=environment, capture_output=True, text=True,
        timeout=1500, check=False,
    )  # fmt: skip
    assert fails or done.returncode == 0, done.stderr[-4000:]
    return done.returncode, done.stderr


def case(out: Path, network: str, scale: Case | None = None, heads: int = 5, width: int = 16, **more: Any) -> Case:
    made = {"heads": heads, "width": width}
    return {"out": str(out), "network": network, "made": made, "scale": scale or {}, "loop": {**LOOP, **more}}


def losses(out: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (out / "steps.jsonl").read_text().splitlines()]


def distances(out: Path, expected: Path) -> tuple[float, float]:
    """The largest differences of two trainings: of losses and gradient norms, of averaged and trained weights."""
    of_losses = max(
        abs(a - b) / abs(b)
        for name in ("loss", "norm", "time")
        for a, b in zip(losses(out, name), losses(expected, name), strict=True)
    )
    of_weights = []
    for file in ("averaged.safetensors", "trained.safetensors"):
        made, whole = load_file(out / file), load_file(expected / file)
        assert made.keys() == whole.keys()
        of_weights += [float((made[key] - whole[key]).abs().max() / whole[key].abs().max()) for key in whole]
    return of_losses, max(of_weights)


def differing(found: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    print(json.dumps(found, indent=1))
    return {key: value for key, value in found.items() if not (value[0] <= LOSSES and value[1] <= WEIGHTS)}


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
    far = {key: distances(tmp_path / key, alone / f"{network} {heads}") for key, (network, _, heads) in cases.items()}
    for key, (network, _, heads) in cases.items():
        first, *_, last = losses(alone / f"{network} {heads}")
        assert last < 0.9 * first, key  # something was learned
    assert differing(far) == {}


MUON = {"optimiser": "muon", "weight_decay": 0.1}


@pytest.mark.slow
def test_micro_batches_and_whole_matrices(tmp_path: Path) -> None:
    """Gradients add up over micro-batches and processes; Muon needs whole matrices of weights that lie in shards."""
    wide = {"heads": 4, "width": 32, "steps": 6}
    ways: dict[str, Case] = {"accumulate": {"accumulate": 2}, "muon": {**MUON, **wide}}
    start(1, [case(tmp_path / f"{name} alone", "kandinsky5 dense", **way) for name, way in ways.items()], tmp_path)
    spread = [("accumulate", {"fsdp": 2}), ("accumulate", {}), ("muon", {"fsdp": 2}), ("muon", {"tp": 2})]
    cases = {f"{name} {scale}": (name, scale) for name, scale in spread}
    start(
        2,
        [case(tmp_path / out, "kandinsky5 dense", scale, **ways[name]) for out, (name, scale) in cases.items()],
        tmp_path,
    )
    found = {out: distances(tmp_path / out, tmp_path / f"{name} alone") for out, (name, _) in cases.items()}
    muon = {key: found.pop(key) for key in list(found) if key.startswith("muon")}
    assert differing(found) == {}
    # directions are found in bfloat16, where a bit of a sum shows
    assert all(one[0] <= 1e-3 and one[1] <= 1e-2 for one in muon.values()), muon


@pytest.mark.slow
def test_shards_in_bfloat16_and_in_main_memory(tmp_path: Path) -> None:
    ways: dict[str, Case] = {"plain": {}, "offload": {"offload": True}, "bfloat16": {"param_dtype": "bfloat16"}}
    cases = [case(tmp_path / name, "kandinsky5 dense", {"fsdp": 2, **way}, steps=4) for name, way in ways.items()]
    start(2, cases, tmp_path)
    assert differing({"offload": distances(tmp_path / "offload", tmp_path / "plain")}) == {}
    rounded, whole = losses(tmp_path / "bfloat16"), losses(tmp_path / "plain")
    assert rounded != whole and all(abs(a - b) < 0.05 * b for a, b in zip(rounded, whole, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["kandinsky5 dense", "kandinsky4"])
def test_a_checkpoint_of_four_goes_on_with_two_and_with_one(tmp_path: Path, network: str) -> None:
    more: Case = {"schedule": "constant", "heads": 4}
    out = tmp_path / "run"
    start(1, [case(tmp_path / "alone", network, **more | {"steps": 12})], tmp_path)
    start(4, [case(out, network, {"tp": 2, "fsdp": 2}, **more | {"steps": 4})], tmp_path)
    written = {file: load_file(out / file) for file in ("averaged.safetensors", "trained.safetensors")}
    # read by other numbers of processes, not a bit is another
    others: list[tuple[int, Case]] = [(1, {}), (2, {"ulysses": 2, "fsdp": 2}), (2, {"tp": 2})]
    for world, scale in others:
        start(world, [case(out, network, scale, **more | {"steps": 4})], tmp_path)
        for file, expected in written.items():
            made = load_file(out / file)
            assert all(torch.equal(made[key], expected[key]) for key in expected), (world, scale)
    start(2, [case(out, network, {"ulysses": 2, "fsdp": 2}, **more | {"steps": 8})], tmp_path)
    start(1, [case(out, network, **more | {"steps": 12})], tmp_path)
    assert differing({network: distances(out, tmp_path / "alone")}) == {}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["sigterm", "kill", "nan"])
def test_what_happens_to_one_process_happens_to_all(tmp_path: Path, what: str) -> None:
    more: Case = {"steps": 8, "checkpoint_steps": 1}
    scale = {"fsdp": 2}
    start(2, [case(tmp_path / "whole", "kandinsky5 dense", scale, **more)], tmp_path)
    out = tmp_path / "run"
    broken = case(out, "kandinsky5 dense", scale, **more) | {"event": {"rank": 1, "step": 4, "what": what}}
    code, said = start(2, [broken], tmp_path, fails=True)
    assert code
    last = max(int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*"))
    words = {
        "sigterm": "interrupted",
        "kill": "has gone: it was killed|the launcher ended it",
        "nan": "the loss of step 5 is nan",
    }
    first = {"sigterm": 5, "kill": 3, "nan": 4}
    assert re.search(words[what], said) and first[what] <= last <= 5, said
    assert what != "nan" or "the checkpoint of step 4 is kept" in said
    start(2, [case(out, "kandinsky5 dense", scale, **more)], tmp_path)
    for file in ("averaged.safetensors", "trained.safetensors"):
        made, whole = load_file(out / file), load_file(tmp_path / "whole" / file)
        assert all(torch.equal(made[key], whole[key]) for key in whole)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9)) and not list(out.glob(".checkpoint*"))
