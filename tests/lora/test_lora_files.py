"""LoRA files: every key style, read back as written; whatever does not fit is named."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kandinsky.catalogue import cards as catalogue
from kandinsky.errors import KandinskyError, RequestError, WeightsError
from kandinsky.ops.lora import LowRank, attach, fuse, layer_shapes, updated_layers
from kandinsky.weights.keymaps import KeyMap
from kandinsky.weights.lora import Lora, LoraConfig, read_lora, write_lora
from kandinsky.weights.lora_files import find_loras, parse_spec
from tiny import family
from tiny.loras import lora

LAYERS = layer_shapes(family.dit())
MODEL = "tiny"
LAYER = "visual_transformer_blocks.1.self_attention.to_query"
STYLES = ("official", "peft", "diffusers", "comfyui", "kohya")


def read(path: Path, **options: object) -> Lora:
    return read_lora(path, LAYERS, model=MODEL, **options)  # type: ignore[arg-type]


def products(one: Lora) -> dict[str, Tensor]:
    """What each layer's weight changes by."""
    return {name: u.scale * (u.up_OR.double() @ u.down_RI.double()) for name, u in one.updates.items()}


def pair(prefix: str = "transformer.", layer: str = LAYER, *, r: int = 2, rows: int = 32, columns: int = 32,
         parts: tuple[str, str] = ("lora_A", "lora_B")) -> dict[str, Tensor]:  # fmt: skip
    return {
        f"{prefix}{layer}.{parts[0]}.weight": torch.ones(r, columns),
        f"{prefix}{layer}.{parts[1]}.weight": torch.ones(rows, r),
    }


@pytest.mark.parametrize("style", STYLES)
def test_each_style_is_read_as_it_was_written(style: str, tmp_path: Path) -> None:
    whole = lora(family.dit(), trigger="sks ", scale=0.75)
    target = tmp_path / "x" if style in ("official", "peft") else tmp_path / "x.safetensors"
    file = write_lora(whole, target, style=style)
    again = read(target)
    assert again.trigger == "sks " and again.name == "x" and len(again.sha256) == 64
    assert set(again.updates) == set(LAYERS)
    assert len(load_file(file)) == len(LAYERS) * (3 if style in ("comfyui", "kohya") else 2)
    for name, change in products(whole).items():
        torch.testing.assert_close(products(again)[name], change, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("style", ["peft", "comfyui"])
def test_each_layer_keeps_its_own_rank_and_alpha(style: str, tmp_path: Path) -> None:
    net = family.dit()
    a, b = lora(net, rank=2, scale=0.5, only="self_attention"), lora(net, rank=5, scale=3.0, only="feed_forward")
    mixed = Lora({**a.updates, **b.updates}, "mixed")
    target = tmp_path / ("m" if style == "peft" else "m.safetensors")
    write_lora(mixed, target, style=style)
    again = read(target)
    assert {name: (u.rank, u.scale) for name, u in again.updates.items()} == {
        name: (u.rank, pytest.approx(u.scale)) for name, u in mixed.updates.items()
    }


@pytest.mark.parametrize(
    ("prefix", "parts"),
    [
        ("base_model.model.", ("lora_A.default", "lora_B.default")),
        ("base_model.model.", ("lora_A.camera_1", "lora_B.camera_1")),
        ("base_model.model.transformer.", ("lora_A", "lora_B")),
        ("transformer.", ("lora.down", "lora.up")),
        ("model.diffusion_model.", ("lora_down", "lora_up")),
        ("", ("lora_A", "lora_B")),
    ],
)
def test_prefixes_and_parts_may_be_mixed(prefix: str, parts: tuple[str, str], tmp_path: Path) -> None:
    save_file(pair(prefix, parts=parts), tmp_path / "a.safetensors")
    (update,) = read(tmp_path / "a.safetensors").updates.items()
    assert update[0] == LAYER and update[1].scale == 1.0


def test_underscored_names_find_their_layer_with_a_key_map(tmp_path: Path) -> None:
    keys = KeyMap((("{name}", "net.{name}"),))
    save_file(pair("lora_unet_", LAYER.replace(".", "_"), parts=("lora_down", "lora_up")), tmp_path / "a.safetensors")
    found = read_lora(tmp_path / "a.safetensors", {f"net.{k}": v for k, v in LAYERS.items()}, model=MODEL, keymap=keys)
    assert set(found.updates) == {f"net.{LAYER}"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"r": 2, "lora_alpha": 8}, 4.0),
        ({"r": 2, "lora_alpha": 8, "use_rslora": True}, 8 / 2**0.5),
        ({"r": 7, "lora_alpha": 8, "rank_pattern": {"to_query": 2}}, 4.0),
        (
            {"r": 2, "lora_alpha": 8, "alpha_pattern": {r"visual_transformer_blocks\.\d\.self_attention\.to_query": 1}},
            0.5,
        ),
        ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"blocks.0.self_attention.to_query": 1}}, 4.0),
        ({}, 1.0),
    ],
)
def test_scale_from_the_configuration(values: dict[str, object], expected: float, tmp_path: Path) -> None:
    save_file(pair("base_model.model."), tmp_path / "lora.safetensors")
    (tmp_path / "config_lora.json").write_text(json.dumps(values), encoding="utf-8")
    assert read(tmp_path).updates[LAYER].scale == pytest.approx(expected)
    assert read(tmp_path / "lora.safetensors").updates[LAYER].scale == pytest.approx(expected)


def test_alpha_in_the_file_goes_before_the_configuration(tmp_path: Path) -> None:
    save_file(pair() | {f"transformer.{LAYER}.alpha": torch.tensor(6.0)}, tmp_path / "a.safetensors")
    assert read(tmp_path / "a.safetensors", config=LoraConfig(r=2, alpha=2)).updates[LAYER].scale == 3.0


def test_configuration_in_the_header(tmp_path: Path) -> None:
    header = {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 5})}
    save_file(pair(), tmp_path / "pytorch_lora_weights.safetensors", metadata=header)
    assert read(tmp_path).updates[LAYER].scale == 2.5


def test_pickled_files_are_read_without_executing_them(tmp_path: Path) -> None:
    torch.save(pair(), tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").updates[LAYER].rank == 2


def test_text_encoder_tensors_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    foreign = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 8)}
    save_file(pair() | foreign, tmp_path / "a.safetensors")
    assert set(read(tmp_path / "a.safetensors").updates) == {LAYER}
    assert "1 tensors" in caplog.text and "text encoder" in caplog.text
    save_file(foreign, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match="text encoder only"):
        read(tmp_path / "b.safetensors")


def no_partner(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t for name, t in state.items() if "lora_A" in name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (pair(columns=1792), r"lora_A.weight` in .* has 1792 inputs, the layer `.*to_query` of `tiny` has 32"),
        (pair(rows=64), r"lora_B.weight` in .* has 64 outputs, .* has 32: the LoRA was made for another model"),
        (pair(layer="transformer_blocks.0.attn1.to_q"), r"`transformer_blocks.0.attn1.to_q`, but `tiny` has no such"),
        (pair(layer="text_embeddings.norm"), r"`text_embeddings.norm`, but `tiny` has no such linear layer among its"),
        (pair("lora_unet_", "down_blocks_0_to_q"), r"changes the layer `down_blocks_0_to_q`, but `tiny`"),
        (no_partner(pair()), r"has no lora_B or lora_up tensor"),
        (pair() | {"transformer.out_layer.bias": torch.ones(3)}, r"`transformer.out_layer.bias` .* is not part of a"),
        (pair() | pair(""), r"both stand for the layer `visual_transformer_blocks.1.self_attention.to_query`"),
        ({}, r"holds no tensors"),
    ],
)
def test_what_does_not_fit_is_named(state: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=message) as error:
        read(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)


def test_ranks_that_disagree(tmp_path: Path) -> None:
    state = pair()
    state[f"transformer.{LAYER}.lora_B.weight"] = torch.ones(32, 5)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"has rank 2, .* has rank 5"):
        read(tmp_path / "a.safetensors")
    save_file(pair(), tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match="has rank 2, its configuration says 16"):
        read(tmp_path / "b.safetensors", config=LoraConfig(r=16, alpha=16))


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (f"lora_unet_{LAYER.replace('.', '_')}.hada_w1_a", "LoHa"),
        (f"lora_unet_{LAYER.replace('.', '_')}.lokr_t2", "LoKr of convolutions"),
        (f"diffusion_model.{LAYER}.diff", "whole differences"),
        (f"transformer.{LAYER}.lora_B.bias", "LoRA with biases"),
    ],
)
def test_relatives_of_lora_are_refused_by_name(tensor: str, kind: str, tmp_path: Path) -> None:
    save_file(pair() | {tensor: torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=f"is {kind}.*which is not supported: use a plain LoRA"):
        read(tmp_path / "a.safetensors")


def test_relatives_are_refused_by_their_configuration() -> None:
    with pytest.raises(WeightsError, match="LOHA"):
        LoraConfig.from_dict({"peft_type": "LOHA"}, where="x.json")


def test_dora_needs_a_norm_of_each_row(tmp_path: Path) -> None:
    name = f"transformer.{LAYER}.lora_magnitude_vector"
    save_file(pair() | {name: torch.ones(32)}, tmp_path / "a.safetensors")
    assert read(tmp_path / "a.safetensors").updates[LAYER].magnitude_O is not None
    for wrong in (torch.ones(1, 31), torch.ones(2, 32)):
        save_file(pair() | {name: wrong}, tmp_path / "b.safetensors")
        with pytest.raises(WeightsError, match=r"has shape \[\d, \d+\], but the layer .* has 32 outputs"):
            read(tmp_path / "b.safetensors")
    save_file(pair(), tmp_path / "c.safetensors")
    with pytest.raises(WeightsError, match="has no magnitudes"):
        read(tmp_path / "c.safetensors", config=LoraConfig.from_dict({"use_dora": True}, where="x.json"))
    with pytest.raises(WeightsError, match="`use_dora` as `3`"):
        LoraConfig.from_dict({"use_dora": 3}, where="x.json")


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    file = write_lora(lora(family.dit()), tmp_path / "x.safetensors", style="diffusers")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cut off within tensor"):
        read(file)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no LoRA"):
        read(tmp_path)
    with pytest.raises(WeightsError, match="is not there"):
        read(tmp_path / "none.safetensors")
    save_file(pair(), tmp_path / "dolly.safetensors")
    assert read(tmp_path).name == "dolly"
    save_file(pair(), tmp_path / "truck.safetensors")
    with pytest.raises(WeightsError, match="holds 2"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("owner/name:-1", ("owner/name", -1.0)),
        (r"C:\loras\a.safetensors", (r"C:\loras\a.safetensors", 1.0)),
        (r"C:\loras\a.safetensors:1e-1", (r"C:\loras\a.safetensors", 0.1)),
        ("a:b.safetensors:.5", ("a:b.safetensors", 0.5)),
    ],
)
def test_file_and_scale_in_one_word(spec: str, expected: tuple[str, float]) -> None:
    assert parse_spec(spec) == expected


def test_an_empty_file_name() -> None:
    with pytest.raises(RequestError, match="names no file"):
        parse_spec(" :0.5")


def test_an_unknown_style(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="unknown LoRA style `x`"):
        write_lora(lora(family.dit()), tmp_path / "a", style="x")


def test_the_official_layers_are_known_by_every_style_of_the_catalogue() -> None:
    """Underscored names are ambiguous only where two layers differ in nothing but dots."""
    from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams

    cards = [card for card in catalogue().values() if card.dit.kind == "kandinsky5.dit"]
    assert cards
    with torch.device("meta"):
        for params in {json.dumps(dict(card.dit.params), sort_keys=True) for card in cards}:
            small = json.loads(params) | {"num_visual_blocks": 12}
            names = layer_shapes(DiffusionTransformer3D(DiTParams.from_dict(small)))
            assert len({name.replace(".", "_") for name in names}) == len(names)


# ---------------------------------------------------------------- files that are wrong


def spoilt(**changes: Tensor) -> dict[str, Tensor]:
    """The pair with `down`, `up` or `alpha` replaced."""
    names = {"down": f"transformer.{LAYER}.lora_A.weight", "up": f"transformer.{LAYER}.lora_B.weight",
             "alpha": f"transformer.{LAYER}.alpha"}  # fmt: skip
    return pair() | {names[part]: tensor for part, tensor in changes.items()}


def holding(value: float, rows: int, columns: int) -> Tensor:
    tensor = torch.ones(rows, columns)
    tensor[-1, -1] = value
    return tensor


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (spoilt(down=torch.ones(0, 32), up=torch.ones(32, 0)), r"lora_A.weight` in .* has rank 0: at least 1"),
        (spoilt(down=torch.ones(2, 32, dtype=torch.int32)), r"lora_A.weight` in .* holds int32"),
        (spoilt(up=torch.ones(32, 2, dtype=torch.bool)), r"lora_B.weight` in .* holds bool"),
        (spoilt(down=torch.ones(64)), r"lora_A.weight` in .* has shape \[64\]"),
        (spoilt(down=torch.tensor(1.0)), r"lora_A.weight` in .* has shape \[\]"),
        (spoilt(alpha=torch.ones(2)), r"alpha` in .* has shape \[2\]: alpha is one number"),
        (spoilt(alpha=torch.ones(0)), r"alpha` in .* has shape \[0\]"),
        (spoilt(alpha=torch.tensor(float("nan"))), r"alpha` in .* holds NaN or infinity"),
        (spoilt(alpha=torch.tensor(float("-inf"))), r"alpha` in .* holds NaN or infinity"),
        (spoilt(alpha=torch.tensor(1e30)), r"alpha` as `1\.0+.*e\+30`: alpha is a number of at most"),
        (spoilt(down=holding(float("nan"), 2, 32)), r"lora_A.weight` in .* holds NaN or infinity"),
        (spoilt(up=holding(float("inf"), 32, 2)), r"lora_B.weight` in .* holds NaN or infinity"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_wrong_tensors_of_a_lora_are_named(state: dict[str, Tensor], message: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    torch.save(state, file) if suffix == ".pt" else save_file(state, file)
    with pytest.raises(WeightsError, match=message) as caught:
        read(file)
    assert LAYER in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "alpha", [torch.tensor(6), torch.tensor([6.0]), torch.tensor([[6.0]]), torch.tensor(6.0).half()]
)
def test_alpha_may_have_any_shape_of_one_number(alpha: Tensor, tmp_path: Path) -> None:
    save_file(spoilt(alpha=alpha), tmp_path / "a.safetensors")
    assert read(tmp_path / "a.safetensors").updates[LAYER].scale == 3.0


@pytest.mark.parametrize(
    "config",
    [
        b"", b"[]", b"{", b"null", b"[" * 100_000, b"\xff", b'{"r": 2, "r": 3}',
        *(json.dumps(values).encode() for values in (
            {"r": 0}, {"r": -1}, {"r": 2.5}, {"r": "2"}, {"r": True}, {"r": [2]}, {"r": {}}, {"r": float("inf")},
            {"lora_alpha": "8"}, {"lora_alpha": float("nan")}, {"lora_alpha": float("inf")}, {"lora_alpha": 10**400},
            {"lora_alpha": [8]}, {"lora_alpha": True}, {"use_rslora": "yes"}, {"use_rslora": 1},
            {"rank_pattern": [1]}, {"rank_pattern": "x"}, {"rank_pattern": {"x": None}}, {"rank_pattern": {"x": 0}},
            {"alpha_pattern": {"x": "many"}}, {"alpha_pattern": {"(": 1}}, {"alpha_pattern": {"[": 1}},
            {"alpha_pattern": {"(a+)+$": 1}}, {"alpha_pattern": {"(a|a)*b": 1}}, {"alpha_pattern": {".*.*.*.*.*x": 1}},
            {"alpha_pattern": {"x" * 1000: 1}}, {"alpha_pattern": {r"\1": 1}}, {"alpha_pattern": {"a{99999999999}": 1}},
            {"alpha_pattern": {"x)(": 1}}, {"peft_type": 5}, {"peft_type": ["LORA"]}, {"peft_type": "LOHA"},
        )),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["beside", "header"])
def test_configurations_that_are_none(config: bytes, where: str, tmp_path: Path) -> None:
    if where == "beside":
        save_file(pair("base_model.model."), tmp_path / "lora.safetensors")
        (tmp_path / "config_lora.json").write_bytes(config)
    elif config.isascii():
        header = {"lora_adapter_metadata": config.decode()}
        save_file(pair("base_model.model."), tmp_path / "a.safetensors", metadata=header)
    else:
        return
    with pytest.raises(WeightsError) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pattern_takes_no_time(tmp_path: Path) -> None:
    save_file(pair("base_model.model."), tmp_path / "lora.safetensors")
    (tmp_path / "config_lora.json").write_text(json.dumps({"alpha_pattern": {".*.*.*x": 1}}), encoding="utf-8")
    assert read(tmp_path).updates[LAYER].scale == 1.0


@pytest.mark.parametrize(
    "prefix",
    ["unet.", "model.", "base_model.", "base_model.model.model.", "base_model.model.unet.", "model.unet.",
     "base_model.model.transformer.", "_orig_mod.", "module.", "transformer._orig_mod.", "module._orig_mod.",
     "base_model.model._orig_mod."],
)  # fmt: skip
def test_more_prefixes(prefix: str, tmp_path: Path) -> None:
    save_file(pair(prefix), tmp_path / "a.safetensors")
    assert set(read(tmp_path / "a.safetensors").updates) == {LAYER}


def test_a_lora_beside_the_layers_it_wrapped(tmp_path: Path) -> None:
    """What PEFT's network itself gives as its state: the LoRA beside the whole network."""
    whole = pair("base_model.model.", parts=("lora_A.default", "lora_B.default"))
    layer = f"base_model.model.{LAYER}.base_layer"
    whole |= {f"{layer}.weight": torch.ones(32, 32), f"{layer}.bias": torch.ones(32)}
    whole |= {"base_model.model.out.weight": torch.ones(3)}
    save_file(whole, tmp_path / "a.safetensors")
    assert set(read(tmp_path / "a.safetensors").updates) == {LAYER}
    inside = {name.replace(".lora_", ".base_layer.lora_"): tensor for name, tensor in pair().items()}
    save_file(inside, tmp_path / "b.safetensors")
    assert set(read(tmp_path / "b.safetensors").updates) == {LAYER}


def test_names_of_other_networks_and_of_no_length(tmp_path: Path) -> None:
    for name in ("x" * 5000, "line\nbreak", "\x1b[31mred"):
        save_file(pair("", name), tmp_path / "a.safetensors")
        with pytest.raises(WeightsError) as caught:
            read(tmp_path / "a.safetensors")
        assert str(caught.value).isprintable() and len(str(caught.value)) < 2000


@pytest.mark.parametrize("source", ["", " ", "x" * 300, "nul\0byte", "lone\ud800", "~nobody-here/x", "a/" + "b" * 300])
def test_names_that_are_no_files(source: str) -> None:
    with pytest.raises(KandinskyError) as caught:
        find_loras([source])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("specs", [5, 1.5, True, [5], [None], {"a": 1}.values()])
def test_specs_of_other_types(specs: object) -> None:
    with pytest.raises(RequestError):
        find_loras(specs)  # type: ignore[arg-type]


@pytest.mark.parametrize("fused", [False, True])
def test_a_scale_that_makes_numbers_too_large(fused: bool) -> None:
    net = copy.deepcopy(family.dit()).half()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    update = LowRank(torch.ones(2, 32), torch.ones(32, 2), 1.0)
    updates = {"visual_transformer_blocks.0.self_attention.to_query": [(update, 1.0)], LAYER: [(update, 1e6)]}
    with pytest.raises(RequestError, match=f"`{LAYER}` too large for float16"):
        fuse(net, updates, home=torch.device("cpu")) if fused else attach(net, updates)
    assert not updated_layers(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
