"""How much memory reading a network for training takes: mapped from its file, and cut block by block."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import kandinsky
from kandinsky.runtime.placement import Placement
from kandinsky.train import adapter, loop
from kandinsky.train.drawing import draw
from kandinsky.train.model_recipe import learning
from kandinsky.train.scale import Scale, Scaling
from kandinsky.weights.read import load_into
from tiny import clips

HERE = Path(__file__).parent
BLOCKS, SHARDS = 16, 4


class Peak(TorchDispatchMode):
    """Bytes of the tensors that are made within it and alive at once, the most there were; mapped ones are none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if is_plain(one)}
        for one in tree_leaves(out):
            if is_plain(one) and (storage := one.untyped_storage())._cdata not in before:
                self._found[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._found = {key: (ref, size) for key, (ref, size) in self._found.items() if not ref.expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._found.values()))
        return out


def is_plain(one: Any) -> bool:
    return type(one) in (Tensor, nn.Parameter) and not one.is_meta


def network(path: Path) -> nn.Module:
    """A network in the types of its file."""
    objective, _ = clips.objective("kandinsky5 dense", heads=8, blocks=BLOCKS)
    kind: Any = type(objective.network)
    if not path.is_file():
        save_file({name: t.bfloat16() for name, t in objective.network.state_dict().items()}, path)
    with torch.device("meta"):
        made: nn.Module = kind(objective.network.params)
    with Peak() as peak:
        load_into(made, path)
    made.peak = peak.bytes  # type: ignore[assignment]
    return made


def measured(path: Path) -> dict[str, float]:
    """Peaks as shares of the network in float32."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    net = network(path)
    whole = sum(4 * p.numel() for p in net.parameters())
    found: dict[str, float] = {"read": net.peak}  # type: ignore[dict-item]
    with Peak() as peak:
        adapter.add(net, adapter.AdapterSettings(rank=1, base_dtype="bfloat16"), ["feed_forward.in_layer"])
    found["adapter"] = peak.bytes
    net = learning(network(path))
    with Peak() as peak:
        Scaling().prepare(net)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    found["alone"] = peak.bytes
    dist.init_process_group("fake", rank=0, world_size=SHARDS, store=FakeStore())
    _, divisible = clips.objective("kandinsky5 dense", heads=8, blocks=BLOCKS)
    scaling = Scaling(Scale(fsdp=SHARDS), "cpu", divisible)
    net = learning(network(path))
    with Peak() as peak:
        scaling.prepare(net)
    found["shards"] = peak.bytes
    dist.destroy_process_group()
    return {name: size / whole for name, size in found.items()}


@pytest.mark.slow
def test_no_process_holds_a_whole_float32_network(tmp_path: Path) -> None:
    """In a process of its own, which is one of four that never meet."""
    source = Path(kandinsky.__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{source}{os.pathsep}{HERE.parent}"}
    command = [sys.executable, __file__, str(tmp_path / "net.safetensors")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["read"] < 0.1 and found["adapter"] < 0.1  # one tensor at a time, and what is added
    assert 1 <= found["alone"] < 1.1
    assert 1 / SHARDS <= found["shards"] < 1 / SHARDS + 0.1  # a shard of it, and one block


def test_encoders_are_forgotten_before_the_training_begins() -> None:
    built: list[str] = []

    def build(name: str) -> nn.Module:
        built.append(name)
        return nn.Linear(1, 1)

    placement = Placement(
        {name: lambda name=name: build(name) for name in ("text", "vae")},  # type: ignore[misc]
        device=torch.device("cpu"),
    )
    with placement.hold("vae"):
        with placement.hold("text"):
            pass
        assert placement.bytes == 16
        placement.release()
        assert placement.bytes == 8  # that which is held stays
    placement.release()
    assert placement.bytes == 0
    with placement.hold("text"):
        assert built == ["vae", "text", "text"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measured(Path(sys.argv[1]))))


class Twice(nn.Module):
    """Blocks, one that is used twice, weights of its own, and a second initialisation of what its parts drew."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(blocks))
        self.scale = nn.Parameter(torch.randn(width))
        self.register_buffer("table", torch.randn(3, width))
        self.register_buffer("passing", torch.randn(3), persistent=False)
        self.first, self.again = self.blocks[0], nn.Linear(width, width)
        self.again.weight = self.blocks[1][0].weight  # type: ignore[index,assignment]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.1)
        self.half = nn.Linear(3, 3, bias=False).to(torch.bfloat16)


def test_random_weights_are_drawn_module_by_module_and_are_the_same(tmp_path: Path) -> None:
    blocks, width = 24, 128
    with loop.seeded(5):
        known = Twice(blocks, width).state_dict()
    total = sum(t.numel() * t.element_size() for t in known.values())
    with Peak() as peak:
        draw(lambda: Twice(blocks, width), 5, tmp_path / "drawn.safetensors")
    found = load_file(tmp_path / "drawn.safetensors")
    assert found.keys() == known.keys() and [path.name for path in tmp_path.iterdir()] == ["drawn.safetensors"]
    for name, tensor in known.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name
    mapped = peak.bytes - total  # the file, which is counted too, is at least as large
    assert mapped < 0.35 * total
    with Peak() as plain, loop.seeded(5):
        Twice(blocks, width)
    assert plain.bytes > 0.9 * (total - known["again.weight"].nbytes - known["first.0.weight"].nbytes)
