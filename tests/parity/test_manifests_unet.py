"""The full-size networks of Kandinsky 3 and Kandinsky Video 1, by name and shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kandinsky import catalogue
from kandinsky.conformance import Status, check
from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.weights.keymaps import keymap_of
from parity.golden_cases import HAS_REFERENCE, REFERENCE

MANIFESTS = sorted([*REFERENCE.glob("kandinsky_video1/manifests/*"), *REFERENCE.glob("kandinsky3/manifests/*")])


pytestmark = pytest.mark.skipif(not HAS_REFERENCE, reason="the reference folder is not beside this checkout")


def test_there_are_manifests() -> None:
    assert len(MANIFESTS) == 9


@pytest.mark.parametrize(
    "file", MANIFESTS or [REFERENCE / "kandinsky3" / "manifests"], ids=lambda path: f"{path.parts[-3]}-{path.stem}"
)
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
