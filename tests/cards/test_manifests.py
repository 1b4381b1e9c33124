"""Full-size networks by name and shape: cards are held against the lists of the official files."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from kandinsky import catalogue
from kandinsky.conformance import Status, check
from kandinsky.engine.build import bare_network

MANIFESTS = Path(__file__).parents[3] / "shared" / "reference" / "kandinsky5" / "manifests"
REPOSITORIES = {card.id: card.dit.parts[0].repo for card in catalogue.cards().values()}


@pytest.mark.skipif(not MANIFESTS.is_dir(), reason="the reference folder is not beside the checkout")
def test_every_manifest_passes_and_every_card_it_names_was_held_against_it() -> None:
    held = {}
    for file in sorted(MANIFESTS.glob("*.json")):
        (result,) = check([file])
        assert result.status is Status.PASS, result.line()
        held[file.stem] = result.output.partition("; ")[2].split(", ")
    assert held["lite_i2i"] == ["kandinsky5-lite-i2i"] and held["lite_t2i"] == ["kandinsky5-lite-t2i"]
    assert len(held["lite_t2v"]) == 8 and held["pro_t2v"] == ["kandinsky5-pro-t2v-sft-10s", "kandinsky5-pro-t2v-sft-5s"]
    videos = {name for name in REPOSITORIES if "kandinsky5" in name and ("t2v" in name or "i2v" in name)}
    assert set(held["hunyuan_vae"]) == videos and all("2i" in name for name in held["flux_vae"])


def test_all_networks_have_the_parameters_that_their_cards_say() -> None:
    counts: dict[str, int] = {}
    for card in catalogue.cards().values():
        if not card.id.startswith("kandinsky5"):
            continue
        bare = dataclasses.replace(card.dit, parts=())
        if (key := repr(bare)) not in counts:
            with torch.device("meta"):
                net = bare_network(card.family.part(bare.kind), bare, Path("none"))
                counts[key] = sum(p.numel() for p in net.parameters())
        assert counts[key] == card.parameters, card.id
    assert len(counts) == 4


def test_a_card_that_disagrees_fails_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = catalogue.find("kandinsky5-lite-t2i")
    params = card.dit.params | {"model_dim": 128, "ff_dim": 128, "num_visual_blocks": 1}
    small = dataclasses.replace(card, dit=dataclasses.replace(card.dit, params=params))
    bare = dataclasses.replace(small.dit, parts=())
    with torch.device("meta"):
        net = bare_network(card.family.part(bare.kind), bare, Path("none"))
    values = {
        "checkpoint": card.dit.parts[0].repo,
        "file": card.dit.parts[0].files[0],
        "dit_params": params,
        "tensors": {name: list(tensor.shape) for name, tensor in net.state_dict().items()},
    }
    file = tmp_path / "small.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    monkeypatch.setattr(catalogue, "cards", lambda: {"small": small})
    (result,) = check([file])
    assert result.status is Status.PASS and result.output.endswith("kandinsky5-lite-t2i")
    wider = dataclasses.replace(small, id="wider", dit=dataclasses.replace(card.dit, params=params | {"ff_dim": 256}))
    monkeypatch.setattr(catalogue, "cards", lambda: {"wider": wider})
    (result,) = check([file])
    assert result.status is Status.FAIL and "wider" in result.reason and "feed_forward" in result.reason
