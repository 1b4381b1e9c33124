"""Adapters in training: which layers, what their files hold, and that every reader computes what was trained."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoKrConfig, LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kandinsky import catalogue
from kandinsky.engine.build import bare_network
from kandinsky.errors import RequestError, WeightsError
from kandinsky.model.params import read_params
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.lora import attach, fuse, layer_shapes, restore
from kandinsky.train import adapter
from kandinsky.train.adapter import AdapterSettings, targets
from kandinsky.weights.keymaps import IDENTITY
from kandinsky.weights.lora import read_lora
from tiny import family

FORMATS = ("official", "peft", "diffusers", "comfyui", "kohya")
DEFAULTS = catalogue.part("kandinsky5.dit").adapts


def answer(net: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 4, 4, 9, generator=generator)
    text = TextEmbeddings(torch.randn(2, 5, 32, generator=generator), torch.randn(2, 24, generator=generator))
    with torch.no_grad():
        out: Tensor = net(x, torch.tensor([300.0, 800.0]), text)
    return out


def trained(settings: AdapterSettings) -> tuple[nn.Module, dict[str, Tensor]]:
    """A tiny network whose adapters have numbers of every kind."""
    network = copy.deepcopy(family.dit()).requires_grad_(True)
    adapter.add(network, settings, DEFAULTS, seed=5)
    weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in weights.values():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return network.eval(), {name: p.detach().clone() for name, p in weights.items()}


def settings(**more: Any) -> AdapterSettings:
    return AdapterSettings(
        **{"rank": 3, "alpha": 6.0, "dtype": "float32", "formats": FORMATS, "trigger": "sks ", **more}
    )


@pytest.mark.parametrize("more", [{}, {"kind": "dora"}, {"rank_stabilised": True}])
def test_every_format_means_what_was_trained(more: dict[str, Any], tmp_path: Path) -> None:
    chosen = settings(**more)
    network, weights = trained(chosen)
    expected, plain = answer(network), answer(family.dit())
    assert (expected - plain).abs().max() > 0.02
    first = adapter.write(weights, chosen, tmp_path, IDENTITY)
    assert first == tmp_path / "lora" / "lora.safetensors"
    places = ["lora", "peft", "diffusers", "comfyui/lora.safetensors", "kohya/lora.safetensors"]
    for place in places:
        lora = read_lora(tmp_path / place, layer_shapes(family.dit()), model="tiny")
        assert lora.trigger == "sks "
        net = copy.deepcopy(family.dit())
        updates = {layer: [(update, 1.0)] for layer, update in lora.updates.items()}
        attach(net, updates)
        torch.testing.assert_close(answer(net), expected, rtol=1e-3, atol=1e-4)
        attach(net, {})
        originals = fuse(net, updates, home=torch.device("cpu"))
        torch.testing.assert_close(answer(net), expected, rtol=1e-3, atol=1e-4)
        restore(net, originals)
        assert torch.equal(answer(net), plain)
        attach(net, {layer: [(update, 0.5)] for layer, update in lora.updates.items()})
        half = answer(net)
        attach(net, {})
        fuse(net, {layer: [(update, 0.5)] for layer, update in lora.updates.items()}, home=torch.device("cpu"))
        torch.testing.assert_close(answer(net), half, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("place", ["lora/lora.safetensors", "peft/adapter_model.safetensors"])
def test_peft_reads_the_files(kind: str, place: str, tmp_path: Path) -> None:
    """As the official ``load_adapter``: a prefix is cut off, `.default` is removed, PEFT does the rest."""
    chosen = settings(kind=kind)
    network, weights = trained(chosen)
    file = tmp_path / place
    adapter.write(weights, chosen, tmp_path, IDENTITY)
    table = json.loads(
        (file.parent / {"lora": "config_lora.json", "peft": "adapter_config.json"}[file.parent.name]).read_text()
    )
    state = load_file(file)
    if file.parent.name == "lora":
        assert all(".default" in name for name in state)
    net = inject_adapter_in_model(
        LoraConfig(**{key: value for key, value in table.items() if key != "peft_type"}), copy.deepcopy(family.dit())
    )
    cut = {name.removeprefix("base_model.model.").replace(".default", ""): value for name, value in state.items()}
    result = set_peft_model_state_dict(net, cut)
    assert not result.unexpected_keys and not [name for name in result.missing_keys if "lora" in name]
    torch.testing.assert_close(answer(net.eval()), answer(network), rtol=1e-4, atol=1e-5)
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["trigger"] == "sks "


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_diffusers_reads_the_file(kind: str, tmp_path: Path, diffusers_folder: Path) -> None:
    from diffusers import Kandinsky5Transformer3DModel

    chosen = settings(kind=kind)
    _, weights = trained(chosen)
    adapter.write(weights, chosen, tmp_path, IDENTITY)
    theirs = Kandinsky5Transformer3DModel.from_pretrained(diffusers_folder / "transformer")
    theirs.load_lora_adapter(
        load_file(tmp_path / "diffusers" / "pytorch_lora_weights.safetensors"), prefix="transformer"
    )
    mine, ours = dict(theirs.named_modules()), trained(chosen)[0]
    generator = torch.Generator().manual_seed(1)
    for name in targets(family.dit(), DEFAULTS):
        layer = mine[name]
        x = torch.randn(2, layer.in_features, generator=generator)
        torch.testing.assert_close(layer(x), ours.get_submodule(name)(x), rtol=1e-4, atol=1e-5)


def test_only_adapters_learn_and_the_network_without_them_is_the_old_one() -> None:
    network, weights = trained(settings())
    assert len(weights) == 2 * (10 * 2 + 6) and all("lora_" in name for name in weights)
    with adapter.without(network):
        assert torch.equal(answer(network), answer(family.dit()))
    assert (answer(network) - answer(family.dit())).abs().max() > 0.01
    assert {name for name, p in network.named_parameters() if p.requires_grad} == set(weights)


@pytest.mark.parametrize(("base", "within"), [("bfloat16", 0.15), ("int8", 0.2)])
def test_frozen_weights_may_be_small(base: str, within: float) -> None:
    exact, _ = trained(settings())
    network, weights = trained(settings(base_dtype=base))
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    kept = [p for name, p in network.named_parameters() if name not in weights]
    assert all(p.dtype == torch.bfloat16 for p in kept)
    names = [f"{name}.base_layer" for name in targets(family.dit(), DEFAULTS)]
    packed = [name for name in names if type(network.get_submodule(name).weight) is not nn.Parameter]
    assert len(packed) == (20 if base == "int8" else 0) or len(packed) == 26
    network.train()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 4, 4, 9, generator=generator)
    text = TextEmbeddings(torch.randn(2, 5, 32, generator=generator), torch.randn(2, 24, generator=generator))
    out = network(x, torch.tensor([300.0, 800.0]), text).float()
    assert (out - answer(exact)).norm() < within * answer(exact).norm()
    out.square().mean().backward()
    grads = [p.grad for p in network.parameters() if p.requires_grad]
    assert all(g is not None and torch.isfinite(g).all() and g.abs().max() > 0 for g in grads)


def test_layers_in_float32_islands_can_be_adapted() -> None:
    for kind in ("lora", "dora"):
        network = copy.deepcopy(family.dit())
        names = adapter.add(network, settings(kind=kind, targets=("modulation.out_layer", "time_embeddings.*")), ())
        assert (
            "time_embeddings.in_layer" in names
            and "visual_transformer_blocks.0.visual_modulation.out_layer" not in names
        )
        before = answer(network)
        torch.testing.assert_close(before, answer(family.dit()), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for name, p in network.named_parameters():
                if p.requires_grad and "lora_B" in name:
                    p.fill_(0.05)
        changed = answer(network)
        assert (changed - before).abs().max() > 1e-3
        net = copy.deepcopy(family.dit())
        weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
        lora = adapter.as_lora(weights, settings(kind=kind))
        attach(net, {layer: [(update, 1.0)] for layer, update in lora.updates.items()})
        torch.testing.assert_close(answer(net), changed, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"factor": 4}, {"rank": 40, "alpha": 10.0}])
def test_a_lokr_means_what_was_trained_in_every_file(more: dict[str, Any], tmp_path: Path) -> None:
    """A rank of 40 is more than the layers' second factors have: these are trained whole."""
    chosen = settings(**{"kind": "lokr", "formats": ("peft", "comfyui", "kohya"), **more})
    network, weights = trained(chosen)
    assert any("lokr_w2." in name for name in weights) is (chosen.rank == 40)
    expected, plain = answer(network), answer(family.dit())
    assert (expected - plain).abs().max() > 0.02
    with adapter.without(network):
        torch.testing.assert_close(answer(network), plain)
    assert adapter.write(weights, chosen, tmp_path, IDENTITY) == tmp_path / "peft" / "adapter_model.safetensors"
    for place in ("peft", "comfyui/lora.safetensors", "kohya/lora.safetensors"):
        found = read_lora(tmp_path / place, layer_shapes(family.dit()), model="tiny")
        assert found.trigger == "sks " and set(found.updates) == set(targets(family.dit(), DEFAULTS))
        net = copy.deepcopy(family.dit())
        attach(net, {layer: [(update, 1.0)] for layer, update in found.updates.items()})
        torch.testing.assert_close(answer(net), expected, rtol=1e-3, atol=1e-4, msg=place)
        net = copy.deepcopy(family.dit())
        fuse(net, {layer: [(update, 1.0)] for layer, update in found.updates.items()}, home=torch.device("cpu"))
        torch.testing.assert_close(answer(net), expected, rtol=1e-3, atol=1e-4, msg=place)
    values = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    theirs = copy.deepcopy(family.dit())
    inject_adapter_in_model(LoKrConfig(**values), theirs, adapter_name="default")
    state = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    names = {name.removeprefix("base_model.model.") + ".default": x for name, x in state.items()}
    assert not theirs.load_state_dict(names, strict=False).unexpected_keys
    torch.testing.assert_close(answer(theirs), expected, rtol=1e-3, atol=1e-4)


def test_a_lokr_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    layer = targets(family.dit(), DEFAULTS)[0]
    shapes = layer_shapes(family.dit())
    rows, columns = shapes[layer]
    good = {f"{layer}.lokr_w1": torch.ones(2, 2), f"{layer}.lokr_w2": torch.ones(rows // 2, columns // 2)}
    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({**good, f"{layer}.lokr_w2": torch.ones(rows, columns)}, "was made for another model"),
        ({**good, f"{layer}.lokr_w2_a": torch.ones(2, 2)}, "needs `lokr_w2`, or `lokr_w2_a` and `lokr_w2_b`"),
        ({**good, f"{layer}.lora_A.weight": torch.ones(2, 2)}, "is not part of a LoKr"),
        ({f"{layer}.lokr_w1": torch.ones(2, 2)}, "needs `lokr_w2`"),
        ({"a.lokr_w1": torch.ones(2, 2), "a.lokr_w2": torch.ones(2, 2)}, "no such linear layer"),
        ({**good, f"{layer}.lokr_w1": torch.ones(2)}, "is no matrix"),
    ]
    for number, (state, message) in enumerate(wrong):
        save_file(state, tmp_path / f"{number}.safetensors")
        with pytest.raises(WeightsError, match=message):
            read_lora(tmp_path / f"{number}.safetensors", shapes, model="tiny")
    save_file(good, tmp_path / "good.safetensors")
    update = read_lora(tmp_path / "good.safetensors", shapes, model="tiny").updates[layer]
    torch.testing.assert_close(update.up_OR @ update.down_RI * update.scale, torch.ones(rows, columns))


@pytest.mark.parametrize(
    "model",
    [
        "kandinsky5-lite-t2v-sft-5s",
        "kandinsky4-t2v-flash",
        "kandinsky3.1-flash",
        "kandinsky-video-1.1",
        "kandinsky4-v2a",
        "nano-t2v",
        "nano-v2a",
    ],
)
def test_every_family_names_layers_that_are_there(model: str) -> None:
    card = catalogue.find(model)
    part = card.part("dit")
    with torch.device("meta"):
        network = bare_network(part, card.dit, Path())
    found = targets(network, part.adapts)
    assert len(found) > 5
    assert not [name for name in found if "modulation" in name or "embed" in name or "pooling" in name]
    each = [targets(network, (one,)) for one in part.adapts]  # none fits nothing
    assert sum(map(len, each)) == len(found)  # and no two fit the same


def test_targets_that_fit_nothing_are_named() -> None:
    for wanted, said in ((("self_attention.to_querry",), "self_attention.to_query"), (("conv*",), "26|fits none")):
        with pytest.raises(RequestError, match=said):
            targets(family.dit(), wanted)
    with pytest.raises(RequestError, match="give `targets`"):
        targets(family.dit(), ())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 0}, "`rank` must be 1 or more"),
        ({"alpha": 0}, "`alpha` must be above 0"),
        ({"kind": "loha"}, "`lora` or `dora` or `lokr`"),
        ({"kind": "lokr"}, "format `official` holds low-rank updates alone: give `formats`, some of peft, comfyui"),
        ({"kind": "lokr", "formats": ["peft"], "dropout": 0.1}, "has no `dropout`"),
        ({"kind": "lokr", "formats": ["peft"], "base_dtype": "int8"}, "use base_dtype `bfloat16`"),
        ({"factor": 4}, "`factor` is for `lokr`"),
        ({"dropout": 1.5}, "must be 0.99 or less"),
        ({"ranks": 3}, "did you mean `rank`"),
        ({"kind": "dora", "base_dtype": "int8"}, "use base_dtype `bfloat16`"),
        ({"formats": []}, "is empty"),
        ({"formats": ["lycoris"]}, "formats"),
        ({"targets": "to_query"}, "a list of text"),
    ],
)
def test_settings_that_are_wrong(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_params(AdapterSettings, values, "adapter key")
