"""Recorded numbers of the official Kandinsky Video 1 and Kandinsky 3, through the conformance command's own code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kandinsky import catalogue
from kandinsky.conformance import Status, check
from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.weights.keymaps import keymap_of

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
FAMILIES = ("kandinsky_video1", "kandinsky3")

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference folder is not beside this checkout")


def entries(kind: str, pattern: str) -> list[Path]:
    return [path for family in FAMILIES for path in sorted((REFERENCE / family / kind).glob(pattern))]


@pytest.mark.parametrize("folder", entries("golden", "*/"), ids=lambda path: f"{path.parts[-3]}-{path.name}")
def test_case_passes(folder: Path) -> None:
    (result,) = check([folder])
    assert result.status is Status.PASS, result.line()


@pytest.mark.parametrize("file", entries("manifests", "*.json"), ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_manifest_matches_and_its_names_go_there_and_back(file: Path) -> None:
    (result,) = check([file])
    assert result.status is Status.PASS, result.line()
    values = json.loads(file.read_text())
    if "model_channels" not in values["config"]:
        return
    keymap = keymap_of(catalogue.part(UNetParams.from_dict(values["config"]).kind))
    ours = [keymap.to_ours(name) for name in values["tensors"]]
    assert len(set(ours)) == len(ours)
    assert [keymap.to_official(name) for name in ours] == list(values["tensors"])


def test_other_values_fail(tmp_path: Path) -> None:
    """The cases mean something: another guidance, another first-frame noise."""
    for name, key, value in (("sample", "guidance_scale", 5.5), ("sample_v11", "noise_augmentation", 200)):
        folder = tmp_path / name
        shutil.copytree(REFERENCE / "kandinsky_video1" / "golden" / name, folder)
        file = folder / "case.json"
        file.chmod(0o644)
        case = json.loads(file.read_text())
        case["call"][key] = value
        folder.chmod(0o755)
        file.write_text(json.dumps(case))
        (result,) = check([folder])
        assert result.status is Status.FAIL
