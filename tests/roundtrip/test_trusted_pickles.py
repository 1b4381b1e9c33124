"""Pickled files: tensors are read, programs are not, unless a person says so in so many words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kandinsky.cli.main import main
from kandinsky.errors import WeightsError
from kandinsky.weights.read import read_state


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.at,))


def test_a_trap_is_not_sprung_and_the_message_names_the_way(tmp_path: Path) -> None:
    file, sprung = tmp_path / "unet.pt", tmp_path / "sprung"
    torch.save({"unet": {"a": torch.ones(2)}, "trap": Trap(sprung)}, file)
    with pytest.raises(WeightsError, match="holds more than tensors") as caught:
        read_state(file)
    assert "--trust-pickle" in (caught.value.hint or "")
    assert not sprung.exists()
    target = tmp_path / "unet.safetensors"
    assert main(["convert", str(file), str(target), "--trust-pickle"]) == 0
    assert sprung.exists()
    assert list(read_state(target)) == ["unet.a"]


def test_tables_in_tables(tmp_path: Path) -> None:
    file = tmp_path / "unet.pt"
    torch.save({"unet": {"a.weight": torch.ones(2)}, "projections": {"t5": {"0.weight": torch.zeros(1)}}}, file)
    assert list(read_state(file)) == ["unet.a.weight", "projections.t5.0.weight"]


def test_wrong_targets(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    assert main(["convert", str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), "--trust-pickle"]) == 2
    assert main(["convert", str(tmp_path / "c.pt"), str(tmp_path / "b.safetensors"), "--trust-pickle"]) == 2


def test_nothing_else_unpickles() -> None:
    source = Path(__file__).parents[2] / "src"
    found = [path.name for path in source.rglob("*.py") if "weights_only=False" in path.read_text(encoding="utf-8")]
    assert found == ["pickled.py"]
    code = "import kandinsky.engine.build, sys; assert 'kandinsky.weights.pickled' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
