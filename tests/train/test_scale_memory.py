"""What blocks keep for the backward pass: the same gradients whatever it is, and less memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import kandinsky
from kandinsky.errors import RequestError
from kandinsky.model.params import read_params
from kandinsky.runtime.parallel.places import Place, Split
from kandinsky.train.objective import Portion, Rng
from kandinsky.train.scale import Scale, Scaling, works_on
from tiny import clips

HERE = Path(__file__).parent
WAYS: dict[str, dict[str, Any]] = {
    "kept": {},
    "operations": {"activations": "operations"},
    "every second": {"activations": "blocks", "every": 2},
    "full": {"activations": "full"},
}


def gradients(network: str, scale: dict[str, Any], *, autocast: bool = False) -> dict[str, torch.Tensor]:
    objective, divisible = clips.objective(network, blocks=3)
    Scaling(Scale(**scale), "cpu", divisible).prepare(objective.network)
    batch = objective.batch(0, Rng(0, 0), Portion())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        objective.loss("network", batch, Rng(0, 0)).value.backward()
    return {name: p.grad for name, p in objective.network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("network", clips.NETWORKS)
@pytest.mark.parametrize("autocast", [False, True])
def test_what_is_computed_again_gives_the_same_gradients(network: str, autocast: bool) -> None:
    expected = gradients(network, {}, autocast=autocast)
    assert expected
    for way, scale in WAYS.items():
        made = gradients(network, scale, autocast=autocast)
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in expected), way


@pytest.mark.parametrize("activations", ["full", "operations"])
def test_a_frozen_network_that_gradients_go_through_is_spared_too(activations: Any) -> None:
    def passed(kept: Any) -> tuple[torch.Tensor, int]:
        objective, divisible = clips.objective("kandinsky5 dense", blocks=3)
        objective.network.requires_grad_(False)
        Scaling(Scale(activations=kept), "cpu", divisible).prepare(objective.network, trains=False)
        batch = objective.batch(0, Rng(0, 0), Portion())
        batch = replace(batch, clean=batch.clean.requires_grad_(True))
        held = [0]

        def pack(x: torch.Tensor) -> torch.Tensor:
            held[0] += x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            objective.loss("network", batch, Rng(0, 0)).value.backward()
        assert batch.clean.grad is not None
        return batch.clean.grad, held[0]

    (expected, whole), (made, less) = passed("kept"), passed(activations)
    assert torch.equal(made, expected) and less < 0.5 * whole


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a part of a process")
def test_less_is_kept_in_memory() -> None:
    """Of a wider network on larger clips, by the largest memory of a process of its own; ``peak`` below."""
    source = Path(kandinsky.__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{source}{os.pathsep}{HERE.parent}"}
    command = [sys.executable, __file__, json.dumps(list(WAYS.values()))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    peaks = dict(zip(WAYS, map(int, done.stdout.split()), strict=True))
    print(peaks)
    assert peaks["full"] < 0.65 * peaks["kept"]  # the gradients of the weights are a third of the first already
    assert peaks["full"] < peaks["every second"] < 0.9 * peaks["kept"]
    assert peaks["full"] < peaks["operations"] < 0.9 * peaks["kept"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_blocks_train_alike() -> None:
    for activations in ("kept", "full"):
        expected = gradients("kandinsky5 dense", {})
        made = gradients("kandinsky5 dense", {"compile": True, "activations": activations})
        for name, grad in expected.items():
            torch.testing.assert_close(made[name], grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("values", "world", "message"),
    [
        ({"tp": 2}, 1, "must be the number of processes, 1.*nproc-per-node 2"),
        ({"ulysses": 3}, 4, "are 3 together"),
        ({"data": 2, "ring": 2}, 8, "`data` is 2; start them with `torchrun --nproc-per-node 4`"),
        ({"fsdp": 3}, 4, "`fsdp` is 3, and must divide .* here 4"),
        ({"fsdp": 4, "tp": 2}, 12, "here 6"),
        ({"offload": True}, 2, "`offload` is a matter of shards"),
        ({"param_dtype": "bfloat16"}, 2, "`param_dtype` is a matter of shards"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(values: dict[str, Any], world: int, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        read_params(Scale, values, "key").layout(world)
    assert "\n" not in str(refused.value)


def test_networks_that_cannot_be_divided_are_refused() -> None:
    _, divisible = clips.objective("kandinsky5 nabla")
    scaling = Scaling()
    for values, message in (
        ({"ring": 2}, "block-sparse"),
        ({"tp": 2}, "`tp` must divide 5 heads"),
        ({"ulysses": 8}, "5 at most"),
    ):
        scaling.layout = Scale(**values).layout(8)
        with pytest.raises(RequestError, match=f"`scale`: .*{message}"):
            scaling._check(divisible)


@pytest.mark.parametrize("shape", [(12, 8), (12,), (7, 8), (12, 8, 3)])
@pytest.mark.parametrize(
    ("axis", "fused", "parts", "shards"), [(0, 3, 2, 1), (0, 1, 2, 3), (0, 3, 2, 4), (1, 1, 2, 2), (None, 1, 1, 5)]
)
def test_parts_are_the_whole(shape: tuple[int, ...], axis: int | None, fused: int, parts: int, shards: int) -> None:
    if (axis == 1 and len(shape) < 2) or (axis == 0 and shape[0] % (fused * parts)):
        return
    whole = torch.arange(float(torch.Size(shape).numel())).view(shape)
    split = Split(shape, axis, fused, parts, shards)
    found, held = torch.full(shape, -1.0), 0
    for shard in range(shards):
        for part in range(parts):
            place = split.place(shard, part)
            own = torch.empty(place.size)
            place.take(whole, own)
            place.put(own, found)
            held += own.numel()
    assert torch.equal(found, whole) and held == whole.numel()
    assert Place.whole(shape).size == shape


def peak(scale: dict[str, Any]) -> int:
    """MB that a step takes besides the network."""
    torch.set_num_threads(1)
    for blocks in (1, 12):  # the first step imports things
        objective, divisible = clips.objective("kandinsky5 dense", heads=8, blocks=blocks, size=clips.LARGE)
        Scaling(Scale(**scale), "cpu", divisible).prepare(objective.network)
        batch = objective.batch(0, Rng(0, 0), Portion())
        if blocks == 1:
            objective.loss("network", batch, Rng(0, 0)).value.backward()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory()
    objective.loss("network", batch, Rng(0, 0)).value.backward()
    return (memory() - before) >> 10


def memory() -> int:
    """Peak of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    for given in json.loads(sys.argv[1]):
        if (pid := os.fork()) == 0:
            print(peak(given), flush=True)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0


@dataclass
class Shard:
    """What can be asked of a shard: where it lies, and on what its pieces meet."""

    device: torch.device
    device_mesh: Any


def test_batches_go_where_the_pass_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where shards lie in main memory; no GPU is at hand, so one is described."""
    net = torch.nn.Linear(2, 2, device="meta")
    assert works_on(net) == torch.device("meta")
    monkeypatch.setattr(torch, "get_device_module", lambda kind: SimpleNamespace(current_device=lambda: 3))
    for lies, meets, expected in (("cpu", "cuda", "cuda:3"), ("cuda:3", "cuda", "cuda:3"), ("cpu", "cpu", "cpu")):
        shard = Shard(torch.device(lies), SimpleNamespace(device_type=meets))
        monkeypatch.setattr(net, "parameters", lambda shard=shard: iter([shard]))
        assert works_on(net) == torch.device(expected)
