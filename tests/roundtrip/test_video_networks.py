"""Official files of Kandinsky Video: names there and back, and files that hold more than tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import kandinsky_video
import video_kandinsky3
from kandinsky import catalogue
from kandinsky.cli.main import main
from kandinsky.errors import WeightsError
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.read import read_state
from tiny import unets as tiny

MANIFESTS = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky_video1" / "manifests"
# file → model, network
NETWORKS = {
    "kandinsky_video.pt": ("kandinsky-video-1.0", "dit"),
    "kandinsky_video_interpolation.pt": ("kandinsky-video-1.0", "interpolation"),
    "t2v.pt": ("kandinsky-video-1.1", "dit"),
    "interpolation.pt": ("kandinsky-video-1.1", "interpolation"),
}


class Notes:
    """What a training run leaves in its file: a class that a safe reader does not know."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("networks") / "all")


@pytest.fixture(autouse=True)
def tiny_cards(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY_CARDS", str(folder / "cards"))


@pytest.mark.parametrize("file", NETWORKS)
def test_names_of_the_tiny_networks(file: str) -> None:
    net = tiny.unet(file)
    keymap = keymap_of(catalogue.part(net.params.kind))
    official = tiny.official_state(file)
    assert {keymap.to_ours(name) for name in official} == set(net.state_dict())
    assert [keymap.to_official(keymap.to_ours(name)) for name in official] == list(official)


@pytest.mark.skipif(not MANIFESTS.is_dir(), reason="the reference folder is not beside this checkout")
def test_names_of_the_full_size_networks() -> None:
    seen = 0
    for path in MANIFESTS.glob("*unet*.json"):
        number = "1.0" if "1.0" in path.name else "1.1"
        kind = f"kandinsky_video1.{'keyframes' if 'keyframe' in path.name else 'interpolation'}-{number}"
        keymap = keymap_of(catalogue.part(kind))
        names = json.loads(path.read_text(encoding="utf-8"))["tensors"]
        assert [keymap.to_official(keymap.to_ours(name)) for name in names] == list(names)
        assert len({keymap.to_ours(name) for name in names}) == len(names)
        seen += len(names)
    assert seen == 1900 + 1651 + 1910 + 1723


@pytest.mark.parametrize("file", NETWORKS)
def test_a_file_with_more_than_tensors_is_converted_and_then_read(
    file: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(folder / "weights" / file, weights_only=True)
    torch.save(state | {"notes": Notes()}, tmp_path / file)
    model, name = NETWORKS[file]
    getter = "get_T2V_unet" if name == "dit" else "get_interpolation_unet"

    def read() -> tuple[Any, ...]:
        if model.endswith("1.0"):
            return getattr(video_kandinsky3, getter)("cpu", str(tmp_path / file))
        return getattr(kandinsky_video, getter)(str(tmp_path), "cpu")

    with pytest.raises(WeightsError, match="holds more than tensors") as caught:
        read()
    command = (caught.value.hint or "").partition(": kandinsky ")[2].split()
    assert command[0] == "convert" and command[-1] == "--trust-pickle"
    assert main(command) == 0
    said = capsys.readouterr()
    assert "left behind, since it is not a tensor: notes" in said.err
    made = Path(said.out.strip())
    # nothing is lost, and no name is changed
    before, after = read_state(folder / "weights" / file), read_state(made)
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    # it is read from now on, whether the other one stays or goes
    for _ in range(2):
        net, null, *more = read()
        expected = tiny.unet(file).state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in net.state_dict().items())
        assert torch.equal(null, expected["null_embedding"])
        if file == "kandinsky_video.pt":
            assert more[0]["t5"].keys() == tiny.projection().state_dict().keys()
        (tmp_path / file).unlink(missing_ok=True)
