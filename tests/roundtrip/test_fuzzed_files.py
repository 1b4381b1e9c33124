"""Files with values changed at random: each is read rightly or refused by an error of this library, nothing else.

Examples are drawn without chance. Counted are those tried, refused, and read; anything else fails.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from kandinsky import catalogue
from kandinsky.engine.build import network_builder
from kandinsky.errors import KandinskyError
from kandinsky.model.card import Component
from kandinsky.ops.lora import layer_shapes
from kandinsky.runtime.placement import Precision
from kandinsky.text.pretrained import read_tokenizer_file
from kandinsky.weights.lora import read_lora
from kandinsky.weights.read import read_meta, read_state
from kandinsky.weights.write import write_state
from tiny import family
from tiny.loras import lora

COUNTS: Counter[str] = Counter()
EXAMPLES = settings(
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NESTED: Any = []
for _ in range(500):
    NESTED = [NESTED]
HOSTILE: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 2**64, 10**400, -0.5, 0.0, 1.5, 1e-320, 1e308, math.nan,
    math.inf, "", "x", "F32", "I32", "BF16", "dense", "nabla", "..", "../x", "/etc/passwd", "nul\0", "\ud800",
    "x" * 300, [], [0], [1, 2, 2], [None], ["x"], [[]], [-1], [1e9], [1] * 2000, {}, {"a": 1}, {"": None},
    {"type": "x"}, NESTED,
]  # fmt: skip
changes = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, len(HOSTILE) - 1), st.integers(0, 5)), min_size=1, max_size=3
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in nested tables and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


def spoilt(table: Any, wanted: list[tuple[int, int, int]]) -> Any:
    """A copy with values replaced, removed, renamed or wrapped."""
    table = copy.deepcopy(table)
    for where, what, how in wanted:
        known = list(places(table))
        if not known:
            return table
        *above, key = known[where % len(known)]
        inner = table
        for step in above:
            inner = inner[step]
        if how == 0:
            del inner[key]
        elif how == 1 and isinstance(inner, dict) and isinstance(key, str):
            inner[str(HOSTILE[what])[:50] or "x"] = inner.pop(key)
        elif how == 2:
            inner[key] = [inner[key]]
        else:
            inner[key] = copy.deepcopy(HOSTILE[what])
    return table


def judged(kind: str, read: Callable[[], Any]) -> Any:
    """What was read; None where it was refused in one line."""
    COUNTS[f"{kind}: tried"] += 1
    try:
        result = read()
    except KandinskyError as error:
        assert str(error) and "\n" not in str(error), str(error)
        COUNTS[f"{kind}: refused"] += 1
        return None
    COUNTS[f"{kind}: read"] += 1
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ---------------------------------------------------------------- weights

STATE = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.ones(2, dtype=torch.bfloat16),
         "1.weight": torch.ones(2, dtype=torch.float16), "n": torch.tensor(3), "none": torch.zeros(0, 4)}  # fmt: skip


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def whole(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def same_as_the_format(content: bytes, found: dict[str, torch.Tensor]) -> bool:
    """Whether the format's own reader gives the same tensors."""
    theirs = load(content)
    return set(theirs) == set(found) and all(
        tensor.dtype is found[name].dtype
        and tensor.shape == found[name].shape
        and torch.equal(tensor.view(-1).view(torch.uint8), found[name].view(-1).view(torch.uint8))
        for name, tensor in theirs.items()
        if tensor.numel()
    )


@EXAMPLES
@given(changes)
def test_headers(folder: Path, wanted: list[tuple[int, int, int]]) -> None:
    header, data = parts(save(STATE, metadata={"format": "pt"}))
    content = whole(spoilt(header, wanted), data)
    file = folder / "header.safetensors"
    file.write_bytes(content)
    if (found := judged("header", lambda: read_state(file))) is not None:
        assert same_as_the_format(content, found)
    meta = judged("header", lambda: read_meta(file))
    assert (found is None) == (meta is None)


@EXAMPLES
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4), st.integers(-60, 8))
def test_bytes_of_a_weight_file(folder: Path, flips: list[tuple[int, int]], more: int) -> None:
    content = bytearray(save(STATE))
    for place, value in flips:
        content[place % len(content)] = value
    content = content[:more] if more < 0 else content + bytes(more if more > 4 else 0)
    file = folder / "bytes.safetensors"
    file.write_bytes(content)
    if (found := judged("bytes", lambda: read_state(file))) is not None:
        assert same_as_the_format(bytes(content), found)


@EXAMPLES
@given(changes)
def test_indices(folder: Path, wanted: list[tuple[int, int, int]]) -> None:
    place = folder / "sharded"
    if not place.exists():
        write_state(STATE, place, layout="diffusers", shard_bytes=20)
    index = place / "diffusion_pytorch_model.safetensors.index.json"
    table = {"metadata": {"total_size": 1}, "weight_map": json.loads(index.read_text(encoding="utf-8"))["weight_map"]}
    changed = place / "changed.safetensors.index.json"
    changed.write_text(json.dumps(spoilt(table, wanted)), encoding="utf-8")
    found = judged("index", lambda: read_state(changed))
    assert found is None or all(torch.equal(found[name], STATE[name]) for name in found)


# ---------------------------------------------------------------- LoRAs


@pytest.fixture(scope="module")
def layers() -> dict[str, tuple[int, ...]]:
    return layer_shapes(family.dit())


@EXAMPLES
@given(changes, changes, st.booleans())
def test_loras(
    folder: Path, layers: dict[str, tuple[int, ...]], header: list[Any], config: list[Any], is_header: bool
) -> None:
    file, table = folder / "lora" / "lora.safetensors", {"r": 2, "lora_alpha": 4, "use_rslora": False}
    file.parent.mkdir(exist_ok=True)
    table |= {"rank_pattern": {"to_query": 2}, "alpha_pattern": {"out_layer": 1.0}, "peft_type": "LORA"}
    update = lora(family.dit(), only="self_attention.to_query").updates
    state = {f"base_model.model.{name}.lora_A.weight": u.down_RI for name, u in update.items()}
    state |= {f"base_model.model.{name}.lora_B.weight": u.up_OR for name, u in update.items()}
    state |= {f"base_model.model.{name}.alpha": torch.tensor(1.0) for name in list(update)[:1]}
    table["r"] = next(iter(update.values())).rank
    table["rank_pattern"] = {"to_query": table["r"]}
    entries, data = parts(save(state))
    file.write_bytes(whole(spoilt(entries, header) if is_header else entries, data))
    file.with_name("config_lora.json").write_text(json.dumps(spoilt(table, config) if not is_header else table))
    found = judged("lora", lambda: read_lora(file, layers, model="tiny"))
    for name, one in {} if found is None else found.updates.items():
        assert (one.up_OR.shape[0], one.down_RI.shape[1]) == layers[name] and one.rank > 0 and math.isfinite(one.scale)
        assert bool(torch.isfinite(one.up_OR).all()) and bool(torch.isfinite(one.down_RI).all())


# ---------------------------------------------------------------- configurations


def autoencoder(folder: Path, kind: str) -> Path:
    place = folder / kind
    if not place.exists():
        {"flux": family.flux, "hunyuan": family.vae}[kind]().save_pretrained(place)
    return place


@pytest.mark.parametrize("kind", ["flux", "hunyuan"])
@EXAMPLES
@given(wanted=changes)
def test_configurations_of_autoencoders(folder: Path, kind: str, wanted: list[tuple[int, int, int]]) -> None:
    place = autoencoder(folder, kind)
    original = place / "original.json"
    if not original.exists():
        shutil.copy(place / "config.json", original)
    table = json.loads(original.read_text(encoding="utf-8"))
    (place / "config.json").write_text(json.dumps(spoilt(table, wanted)), encoding="utf-8")
    component = Component(kind, (), {})
    built = judged(
        "autoencoder",
        lambda: network_builder(catalogue.part(kind), component, {"": place}, Precision(torch.float32))(),
    )
    assert built is None or not any(parameter.is_meta for parameter in built.parameters())


@EXAMPLES
@given(wanted=changes)
def test_official_yaml(folder: Path, wanted: list[tuple[int, int, int]]) -> None:
    file = folder / "config_5s_sft.yaml"
    table = spoilt(family.official_config(str(folder)), wanted)
    file.write_text(yaml.safe_dump(yaml_able(table)), encoding="utf-8")
    found = judged("yaml", lambda: catalogue.source_of(file))
    assert found is None or found.card.sampling.steps > 0


@pytest.mark.parametrize("name", ["model_index.json", "transformer/config.json", "scheduler/scheduler_config.json"])
@EXAMPLES
@given(wanted=changes)
def test_folders_of_diffusers(
    folder: Path, diffusers_folder: Path, name: str, wanted: list[tuple[int, int, int]]
) -> None:
    place = folder / "diffusers"
    if not place.exists():
        for path in diffusers_folder.rglob("*.json"):
            (place / path.relative_to(diffusers_folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place / path.relative_to(diffusers_folder))
        for path in diffusers_folder.glob("transformer/*.safetensors"):
            shutil.copy(path, place / "transformer" / path.name)
    original = (diffusers_folder / name).read_text(encoding="utf-8")
    (place / name).write_text(json.dumps(spoilt(json.loads(original), wanted)), encoding="utf-8")
    try:
        found = judged("folder", lambda: catalogue.source_of(place))
        if found is not None:
            dit = found.card.dit
            judged("network", lambda: network_builder(found.card.part("dit"), dit, {"": place / "transformer"}, None)())
    finally:
        (place / name).write_text(original, encoding="utf-8")


@EXAMPLES
@given(wanted=changes)
def test_tokenizers(folder: Path, diffusers_folder: Path, wanted: list[tuple[int, int, int]]) -> None:
    file = folder / "tokenizer.json"
    table = json.loads((diffusers_folder / "tokenizer_2" / "tokenizer.json").read_text(encoding="utf-8"))
    table["model"]["vocab"] = dict(list(table["model"]["vocab"].items())[:20])
    table["model"]["merges"] = []
    file.write_text(json.dumps(spoilt(table, wanted)), encoding="utf-8")
    judged("tokenizer", lambda: read_tokenizer_file(file))


def yaml_able(value: Any) -> Any:
    """The same without what YAML cannot hold."""
    if isinstance(value, dict):
        return {yaml_able(key): yaml_able(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [yaml_able(inner) for inner in value]
    return value.encode(errors="replace").decode().replace("\0", "") if isinstance(value, str) else value


def test_the_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed with `pytest -s`: how many were tried, refused in one line, and read."""
    kinds = sorted({name.partition(":")[0] for name in COUNTS})
    with capsys.disabled():
        for kind in kinds:
            tried, refused, read = (COUNTS[f"{kind}: {what}"] for what in ("tried", "refused", "read"))
            print(f"\n{kind}: {tried} tried, {refused} refused, {read} read, {tried - refused - read} else", end="")
            assert tried == refused + read
            assert refused > 0
