"""A training by 2 and 4 processes equals that of one, and its checkpoints are for any number of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny.clips import NETWORKS
from tiny.nursery import Nursery

HERE = Path(__file__).parent
STEPS = 20
LOOP = {"steps": STEPS, "lr": 3e-3, "warmup": 2, "bf16": False, "log_every": 1, "checkpoint_minutes": 60, "seed": 1}
# Only the order of sums differs. Relative: of losses and gradient norms of each step, of weights at the end to the
# largest of their tensor (Adam moves a weight whose gradient is next to nothing as far as any other).
LOSSES, WEIGHTS = 2e-5, 5e-4
Case = dict[str, Any]

SCHEMES: dict[int, dict[str, Case]] = {
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
}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery(HERE / "scale_group.py") as one:
        yield one


def case(out: Path, network: str, scale: Case | None = None, made: Case | None = None, **more: Any) -> Case:
    """A training; ``made`` is for ``clips.objective``, what is left for the loop."""
    return {"out": str(out), "network": network, "made": made or {}, "scale": scale or {}, "loop": {**LOOP, **more}}


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


FEWER = {"steps": 4}
ADAPTED = ("lora", "dora", "lokr")
DENSE, SPARSE, FOUR = NETWORKS
# of each training: its network, how it is made, and what else is said of its loop; tensor parallelism needs even heads
TRAININGS: dict[str, tuple[str, Case, Case]] = {
    **{
        f"{network} {heads}": (network, {"heads": heads}, {} if network == DENSE else FEWER)
        for network in NETWORKS
        for heads in (4, 5)
    },
    "by frame": (DENSE, {"by_frame": True}, FEWER),
    "by frame, nabla": (SPARSE, {"by_frame": True}, FEWER),
    **{
        f"{kind}, {network}": (network, {"heads": 4, "adapted": {"kind": kind, "rank": 3, "formats": ["peft"]}}, FEWER)
        for network in (DENSE, FOUR)
        for kind in ADAPTED
    },
    "accumulate": (DENSE, {"heads": 4}, {"accumulate": 2, **FEWER}),
    "muon": (DENSE, {"heads": 4, "width": 32}, {"optimiser": "muon", "weight_decay": 0.1, **FEWER}),
}
# what is tried of each, by the number of processes; of the dense network all there is
TRIED: dict[int, dict[str, list[Case]]] = {
    2: {
        f"{SPARSE} 5": [{"ulysses": 2}],
        f"{SPARSE} 4": [{"tp": 2}],
        f"{FOUR} 5": [{"fsdp": 2}, {"ulysses": 2}, {"ring": 2}],
        f"{FOUR} 4": [{"tp": 2}],
        "by frame": [{"ulysses": 2}, {"ring": 2}],
        "by frame, nabla": [{"ulysses": 2}],
        **{name: [{"tp": 2}] for name in TRAININGS if name.startswith(ADAPTED)},
        "accumulate": [{"fsdp": 2}, {}],
        "muon": [{"fsdp": 2}, {"tp": 2}],
    },
    4: {
        f"{SPARSE} 5": [{"ulysses": 2, "fsdp": 4}],
        f"{FOUR} 5": [{"ring": 2, "ulysses": 2}],
        f"{FOUR} 4": [{"tp": 2, "ring": 2}],
        "by frame": [{"ring": 2, "ulysses": 2}],
        f"dora, {DENSE}": [{"tp": 2, "fsdp": 2}],
        f"lora, {FOUR}": [{"tp": 2, "ring": 2}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Path:
    """All trainings by one process."""
    folder = tmp_path_factory.mktemp("alone")
    wanted = {training for world in SCHEMES for training, _ in schemes(world).values()}
    given = [
        case(folder / name, TRAININGS[name][0], {}, TRAININGS[name][1], **TRAININGS[name][2]) for name in sorted(wanted)
    ]
    nursery.start(1, given)
    return folder


def schemes(world: int) -> dict[str, tuple[str, Case]]:
    """Of each case, its training and what the recipe would say."""
    found: dict[str, tuple[str, Case]] = {}
    for name, scale in SCHEMES[world].items():
        found[f"{DENSE}: {name}"] = f"{DENSE} {4 if 'tp' in scale else 5}", scale
    return found | {f"{name}: {scale}": (name, scale) for name, tried in TRIED[world].items() for scale in tried}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_training_by_many_is_that_of_one(alone: Path, tmp_path: Path, nursery: Nursery, world: int) -> None:
    cases = schemes(world)
    given = []
    for key, (training, scale) in cases.items():
        network, made, more = TRAININGS[training]
        given.append(case(tmp_path / key, network, scale, made, **more))
    nursery.start(world, given)
    far = {key: distances(tmp_path / key, alone / training) for key, (training, _) in cases.items()}
    for heads in (4, 5):
        first, *_, last = losses(alone / f"{DENSE} {heads}")
        assert last < 0.9 * first  # something was learned
    # directions are found in bfloat16, where a bit of a sum shows
    muon = {key: far.pop(key) for key in list(far) if key.startswith("muon")}
    assert differing(far) == {}
    assert all(one[0] <= 1e-3 and one[1] <= 1e-2 for one in muon.values()), muon


@pytest.mark.slow
def test_shards_in_bfloat16_and_in_main_memory(tmp_path: Path, nursery: Nursery) -> None:
    ways: dict[str, Case] = {"plain": {}, "offload": {"offload": True}, "bfloat16": {"param_dtype": "bfloat16"}}
    cases = [case(tmp_path / name, "kandinsky5 dense", {"fsdp": 2, **way}, steps=4) for name, way in ways.items()]
    nursery.start(2, cases)
    assert differing({"offload": distances(tmp_path / "offload", tmp_path / "plain")}) == {}
    rounded, whole = losses(tmp_path / "bfloat16"), losses(tmp_path / "plain")
    assert rounded != whole and all(abs(a - b) < 0.05 * b for a, b in zip(rounded, whole, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("network", [DENSE, FOUR])
def test_a_checkpoint_of_four_goes_on_with_two_and_with_one(tmp_path: Path, nursery: Nursery, network: str) -> None:
    made: Case = {"heads": 4}
    out = tmp_path / "run"

    def go_on(world: int, steps: int, scale: Case, folder: Path = out) -> None:
        nursery.start(world, [case(folder, network, scale, made, schedule="constant", steps=steps)])

    go_on(1, 12, {}, tmp_path / "alone")
    go_on(4, 4, {"tp": 2, "fsdp": 2})
    written = {file: load_file(out / file) for file in ("averaged.safetensors", "trained.safetensors")}
    # read by other numbers of processes, not a bit is another
    others: list[tuple[int, Case]] = [(1, {}), (2, {"ulysses": 2, "fsdp": 2}), (2, {"tp": 2})]
    for world, scale in others:
        go_on(world, 4, scale)
        for file, expected in written.items():
            found = load_file(out / file)
            assert all(torch.equal(found[key], expected[key]) for key in expected), (world, scale)
    go_on(2, 8, {"ulysses": 2, "fsdp": 2})
    go_on(1, 12, {})
    assert differing({network: distances(out, tmp_path / "alone")}) == {}


@pytest.mark.slow
def test_what_happens_to_one_process_happens_to_all(tmp_path: Path, nursery: Nursery) -> None:
    more: Case = {"steps": 8, "checkpoint_steps": 1}
    scale = {"fsdp": 2}
    nursery.start(2, [case(tmp_path / "whole", "kandinsky5 dense", scale, **more)])
    words = {
        "sigterm": "interrupted",
        "kill": "has gone: it was killed|the launcher ended it",
        "nan": "the loss of step 5 is nan",
    }
    first = {"sigterm": 5, "kill": 3, "nan": 4}
    for what, expected in words.items():
        out = tmp_path / what
        broken = case(out, "kandinsky5 dense", scale, **more) | {"event": {"rank": 1, "step": 4, "what": what}}
        code, said = nursery.start(2, [broken], fails=True)
        assert code
        last = max(int(path.name.removeprefix("checkpoint-")) for path in out.glob("checkpoint-*"))
        assert re.search(expected, said) and first[what] <= last <= 5, said
        assert what != "nan" or "the checkpoint of step 4 is kept" in said
    nursery.start(2, [case(tmp_path / what, "kandinsky5 dense", scale, **more) for what in words])
    for what in words:
        out = tmp_path / what
        for file in ("averaged.safetensors", "trained.safetensors"):
            made, whole = load_file(out / file), load_file(tmp_path / "whole" / file)
            assert all(torch.equal(made[key], whole[key]) for key in whole)
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 9)) and not list(out.glob(".checkpoint*"))
