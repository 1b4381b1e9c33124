"""Every way to share the work equals one process: 2 and 4 processes on gloo, started once for all checks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny import command_line, unets

HERE = Path(__file__).parent


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 4], ids=lambda world: f"{world} processes")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = unets.write(tmp_path_factory.mktemp("group") / "unets")
    target = folder / "found.json"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(request.param), "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KANDINSKY_CARDS": str(folder / "cards")}
    words = [sys.executable, *launcher, str(HERE / "group.py"), str(target)]
    done = command_line.run(words, env=environment, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-4000:]
    return {"world": request.param, **json.loads(target.read_text(encoding="utf-8"))}


def test_every_scheme_equals_one_process(found: dict[str, Any]) -> None:
    distances = {name: value for name, value in found.items() if isinstance(value, float)}
    for word in ("dense", "nabla", "kandinsky4", "groups", "guidance", "first-block", "ulysses", "tp", "fsdp", "ring"):
        assert any(word in name for name in distances), word
    assert {name: value for name, value in distances.items() if not value <= 1e-5} == {}


def test_nano_makes_the_same_frames(found: dict[str, Any]) -> None:
    levels = {name: value for name, value in found.items() if name.startswith("nano ") and isinstance(value, int)}
    assert len(levels) == 3
    assert max(levels.values()) <= 1, levels  # a sum in another order may round to the next of 256 levels


def test_unets_share_the_passes_of_guidance(found: dict[str, Any]) -> None:
    levels = {name: value for name, value in found.items() if name.startswith("frames of ")}
    expected = {"frames of kandinsky3.0 cfg=2", "frames of kandinsky-video-1.1 cfg=2"}
    assert set(levels) == (expected if found["world"] == 2 else set())
    assert not any(level > 1 for level in levels.values()), levels


def test_recipes_are_those_of_one_process(found: dict[str, Any]) -> None:
    """Seeds, passes left out and blocks kept are of all processes together."""
    for name, value in found.items():
        if name.startswith("nano recipes"):
            assert value[0] == value[1], name


def test_all_processes_decide_alike(found: dict[str, Any]) -> None:
    skips, plain = found["first-block decisions"]
    assert skips == plain
    assert {True, False} <= {one for step in plain for one in step}


def test_the_first_process_speaks_for_all(found: dict[str, Any]) -> None:
    assert len(set(found["seeds"])) == 1 and len(found["seeds"]) == found["world"]
    assert found["said by all"] == ["no text today"] * found["world"]
