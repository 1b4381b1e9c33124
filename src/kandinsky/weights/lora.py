"""LoRA files: reading them into updates of named linear layers, and writing them.

| style | names of one layer's tensors |
|---|---|
| `official` | `base_model.model.<layer>.lora_A.default.weight`, `….lora_B…`; numbers in a JSON beside it |
| `peft` | the same without `.default` |
| `diffusers` | `transformer.<layer>.lora_A.weight`, `….lora_B.weight`; older: `….lora.down.weight`, `….lora.up…` |
| `comfyui` | `diffusion_model.<layer>.lora_down.weight`, `….lora_up.weight`, `….alpha` |
| `kohya` | `lora_unet_<layer with _ for .>.lora_down.weight`, `….lora_up.weight`, `….alpha` |

LoKr files are read too, see ``lokr.py``. DoRA adds `<layer>.lora_magnitude_vector`, in ComfyUI and kohya files
`<layer>.dora_scale`: norms of the rows.
Prefixes and tensor names may be mixed. A layer's scale comes from the first of these that exists: its `alpha` tensor;
the configuration passed in, or `config_lora.json` or `adapter_config.json` beside the file; the configuration Diffusers
stores in the header; otherwise α = r. The header is checked against the base network before any tensor is read.
Source: kandinskylab/kandinsky-5, kandinsky/t2v_pipeline.py, load_adapter (prefixes, `.default`, trigger).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kandinsky.errors import RequestError, WeightsError
from kandinsky.files import replacing
from kandinsky.ops.lora import LowRank
from kandinsky.printing import escaped
from kandinsky.weights import lokr
from kandinsky.weights.keymaps import IDENTITY, KeyMap
from kandinsky.weights.lora_files import LAYOUTS, find_files, name_of
from kandinsky.weights.read import check_finite, dtype_name, read_meta, read_metadata, read_stored
from kandinsky.weights.untrusted import parse_table, read_table, shown
from kandinsky.weights.write import write_state

log = logging.getLogger(__name__)
Shapes = Mapping[str, tuple[int, ...]]

# may be combined in any order, since some files went through several programs
PREFIXES = ("base_model.", "model.", "diffusion_model.", "transformer.", "unet.", "module.", "dit.", "_orig_mod.")
PEFT_PREFIX = "base_model.model."
BASE_LAYER = ".base_layer"  # PEFT's name of the layer it wrapped
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
TEXT_ENCODER = re.compile(
    r"(base_model\.model\.)?(text_encoders?|text_model|conditioner|cond_stage_model|lora_te|te\d)"
)
DIFFUSERS_HEADER = "lora_adapter_metadata"
_DOWN = re.compile(r"(.+)\.(?:lora_A(?:\.[^.]+)?|lora_down|lora\.down)\.weight")
_UP = re.compile(r"(.+)\.(?:lora_B(?:\.[^.]+)?|lora_up|lora\.up)\.weight")
_REPEAT = re.compile(r"(?<!\\)[*+{]")
_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{]")
LARGEST_ALPHA = 1e9  # α of released files goes up to a few hundred
_ALPHA = re.compile(r"(.+)\.(?:lora\.)?alpha")
_MAGNITUDE = re.compile(r"(.+)\.(?:lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?|dora_scale)")
# other adapter types, recognised by their tensor names
_RELATIVES = (
    (re.compile(r"\.hada_w"), "LoHa"),
    (re.compile(r"\.lokr_t"), "LoKr of convolutions"),
    (re.compile(r"\.(oft_|boft_)"), "OFT"),
    (re.compile(r"\.lora_mid"), "LoCon with a middle factor"),
    (re.compile(r"\.lora_(B|up)(\.[^.]+)?\.bias|\.lora\.up\.bias"), "LoRA with biases"),
    (re.compile(r"lora_embedding_"), "LoRA of embeddings"),
    (re.compile(r"\.diff(_b)?$"), "whole differences of weights"),
)


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The keys of a PEFT configuration that affect the result.

    Attributes:
        r: Rank; None if not given.
        alpha: α; None if not given.
        rank_stabilised: Use α/√r instead of α/r.
        ranks: Ranks of single layers, by PEFT's patterns.
        alphas: α of single layers, by PEFT's patterns.
        dora: The file must hold magnitudes.
    """

    r: int | None = None
    alpha: float | None = None
    rank_stabilised: bool = False
    ranks: Mapping[str, int] | None = None
    alphas: Mapping[str, float] | None = None
    dora: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str) -> LoraConfig:
        """Read a PEFT configuration.

        Args:
            values: The parsed JSON object.
            where: How error messages refer to it.

        Returns:
            The configuration.

        Raises:
            WeightsError: The adapter is not a plain LoRA, or a value has the wrong type or is out of range.
        """
        kind = str(getattr(values.get("peft_type"), "value", values.get("peft_type")) or "LORA")
        if kind.upper() not in ("LORA", "LOKR"):
            raise _is_relative(kind, where)
        named = "lora_alpha" if kind.upper() == "LORA" else "alpha"
        r, alpha = values.get("r"), values.get(named)
        for key in ("use_rslora", "use_dora"):
            if not isinstance(values.get(key), bool | None):
                raise WeightsError(f"`{where}` gives `{key}` as `{shown(values[key])}`: use true or false")
        return cls(
            r=None if r is None else _rank(r, "r", where),
            alpha=None if alpha is None else _alpha(alpha, named, where),
            rank_stabilised=bool(values.get("use_rslora")),
            dora=bool(values.get("use_dora")),
            ranks={key: _rank(value, key, where) for key, value in _patterns(values, "rank_pattern", where)},
            alphas={key: _alpha(value, key, where) for key, value in _patterns(values, "alpha_pattern", where)},
        )

    def rank_of(self, layer: str) -> int | None:
        out: int | None = _of_pattern(self.ranks, layer, self.r)
        return out

    def scale_of(self, layer: str, rank: int, alpha: float | None) -> float:
        """α/r or α/√r of a layer; ``alpha`` from the file takes precedence over the configuration."""
        if alpha is None:
            alpha = _of_pattern(self.alphas, layer, self.alpha)
        if alpha is None:
            alpha = float(rank)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


@dataclass(frozen=True, slots=True)
class Lora:
    """One LoRA, ready to be applied.

    Attributes:
        updates: Low-rank updates by our name of the layer.
        name: What it is called.
        trigger: Text that the file wants in front of the prompt.
        source: The name it was requested by.
        sha256: Digest of the file; empty if there is none.
    """

    updates: Mapping[str, LowRank]
    name: str = ""
    trigger: str = ""
    source: str = ""
    sha256: str = ""


def read_config(path: Path) -> LoraConfig:
    """Read a PEFT configuration file.

    Args:
        path: The JSON file.

    Returns:
        The configuration.

    Raises:
        WeightsError: The file is not a JSON object, the adapter is not a plain LoRA, or a value has the wrong type or
            is out of range.
    """
    return LoraConfig.from_dict(read_table(path), where=escaped(path))


def read_lora(
    path: Path,
    layers: Shapes,
    *,
    model: str,
    config: LoraConfig | None = None,
    keymap: KeyMap = IDENTITY,
    name: str = "",
    source: str = "",
) -> Lora:
    """Read a LoRA file and check it against the network it is for.

    Args:
        path: File or folder.
        layers: (outputs, inputs) of the network's linear layers, by our name.
        model: The network's name, for messages.
        config: Used instead of the configuration beside the file.
        keymap: Official names of the layers ↔ ours.
        name: What to call it; the file's or folder's name if empty.
        source: The name it was requested by; the path if empty.

    Returns:
        The LoRA.

    Raises:
        WeightsError: It does not fit; the message names the tensor, what the network needs and what the file has.
    """
    file, beside = find_files(path)
    if config is None and beside is not None:
        config = read_config(beside)
    described = read_meta(file, stored=True)
    shapes = {key: tuple(tensor.shape) for key, tensor in described.items()}
    metadata = read_metadata(file) or {}
    known = config or _header_config(metadata, file)
    if any(".lokr_w" in key for key in shapes):
        updates = _read_lokr(file, shapes, layers, known or LoraConfig(), keymap, model)
        return Lora(updates, name or name_of(file), metadata.get("trigger", ""), source or str(path), _sha256(file))
    grouped = _group(shapes, file)
    plan: dict[str, str] = {}  # name in the file → our name
    taken: dict[str, str] = {}
    for raw, names in grouped.items():
        layer = plan[raw] = _layer(raw, names, layers, keymap, model, file, len(grouped))
        _check(layer, names, described, layers, known, model, file)
        if (other := taken.setdefault(layer, raw)) != raw:
            raise WeightsError(
                f"`{shown(other)}` and `{shown(raw)}` in `{file}` both stand for the layer `{layer}`: keep one"
            )
    if known is None and any(n.startswith(PEFT_PREFIX) for n in shapes) and not any("alpha" in n for n in shapes):
        log.warning("`%s` has no configuration beside it: its scale is taken as 1 (alpha = rank)", file.name)
    state = read_stored(file)
    check_finite({name: state[name] for names in grouped.values() for name in names.values()}, str(file))
    updates = {}
    for raw, names in grouped.items():
        down, up = state[names["down"]], state[names["up"]]
        alpha = _alpha(float(state[names["alpha"]]), names["alpha"], str(file)) if "alpha" in names else None
        scale = (known or LoraConfig()).scale_of(plan[raw], down.shape[0], alpha)
        magnitude = state[names["magnitude"]].flatten() if "magnitude" in names else None
        updates[plan[raw]] = LowRank(down.flatten(1), up.flatten(1), scale, magnitude)
    return Lora(updates, name or name_of(file), metadata.get("trigger", ""), source or str(path), _sha256(file))


def _read_lokr(
    file: Path, shapes: Shapes, layers: Shapes, config: LoraConfig, keymap: KeyMap, model: str
) -> dict[str, LowRank]:
    """The updates of a LoKr file."""
    found = lokr.grouped({name: None for name in shapes if not TEXT_ENCODER.match(name)}, file)
    state = read_stored(file)
    check_finite({name: state[name] for names in found.values() for name in names.values()}, str(file))
    updates: dict[str, LowRank] = {}
    for raw, names in found.items():
        parts = {part: state[name] for part, name in names.items() if part != "alpha"}
        where = f"{shown(raw)} in {file}"
        made = lokr.kronecker(parts, 1.0, where)
        layer = _layer(raw, {"down": next(iter(names.values()))}, layers, keymap, model, file, len(found))
        if made.shape != tuple(layers[layer]):
            raise WeightsError(
                f"`{where}` makes {made.shape[0]} x {made.shape[1]} weights, the layer `{layer}` of `{model}` has "
                f"{layers[layer][0]} x {layers[layer][1]}: the LoKr was made for another model"
            )
        alpha = _alpha(float(state[names["alpha"]]), names["alpha"], str(file)) if "alpha" in names else None
        rank = made.rank or config.rank_of(layer)
        # files without a configuration have no scale where both factors are whole
        scale = 1.0 if rank is None or (made.rank is None and config.r is None) else config.scale_of(layer, rank, alpha)
        if made.rank is not None and config.rank_of(layer) not in (None, made.rank):
            raise WeightsError(
                f"`{where}` has rank {made.rank}, its configuration says {config.rank_of(layer)}: file and "
                "configuration do not belong together"
            )
        updates[layer] = replace(made, scale=scale).low_rank()
    return updates


def write_lora(
    lora: Lora,
    path: Path,
    *,
    style: str = "official",
    keymap: KeyMap = IDENTITY,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a LoRA in one of the styles above; reading it back gives the same values.

    Args:
        lora: What to write.
        path: The file; for `official` and `peft` the folder that gets file and configuration.
        style: One of the styles above.
        keymap: Official names of the layers ↔ ours.
        metadata: Further text for the header.

    Returns:
        The weight file.

    Raises:
        RequestError: The style is unknown.
    """
    official = {_layer_name(keymap.to_official(f"{layer}.weight")): update for layer, update in lora.updates.items()}
    metadata = {"format": "pt", **(metadata or {})} | ({"trigger": lora.trigger} if lora.trigger else {})
    if style in ("official", "peft"):
        name = "lora.safetensors" if style == "official" else "adapter_model.safetensors"
        ending = ".default" if style == "official" else ""
        parts = (f"lora_A{ending}.weight", f"lora_B{ending}.weight", f"lora_magnitude_vector{ending}")
        write_state(_named(official, PEFT_PREFIX + "{}", parts), path / name, metadata=metadata)
        _write_config(official, path / LAYOUTS[name])
        return path / name
    if style == "diffusers":
        # This style cannot store α, so it is multiplied into the second matrix.
        scaled = {k: replace(u, up_OR=(u.up_OR.float() * u.scale).to(u.up_OR), scale=1.0) for k, u in official.items()}
        state = _named(scaled, "transformer.{}", ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"))
    elif style in ("comfyui", "kohya"):
        flat = style == "kohya"
        prefix = "lora_unet_{}" if flat else "diffusion_model.{}"
        named = {k.replace(".", "_") if flat else k: update for k, update in official.items()}
        state = _named(named, prefix, ("lora_down.weight", "lora_up.weight", "dora_scale"))
        state |= {f"{prefix.format(k)}.alpha": torch.tensor(u.scale * u.rank) for k, u in named.items()}
    else:
        raise RequestError(f"unknown LoRA style `{style}`: use official, peft, diffusers, comfyui or kohya")
    return write_state(state, path, metadata=metadata)


def is_lora(path: Path) -> bool:
    """Whether a file or folder holds a LoRA. Raises: WeightsError where it cannot be read."""
    names = list(read_meta(find_files(path)[0], stored=True))
    return any(_DOWN.fullmatch(name) or lokr.PART.fullmatch(name) for name in names)


def layers_in(path: Path) -> Shapes | None:
    """(outputs, inputs) of the layers a LoRA changes, by the names its file has for them; None for another file.

    Args:
        path: File or folder.

    Raises:
        WeightsError: It cannot be read, or its names have `_` for `.`, so that the layers cannot be told.
    """
    if not is_lora(path):
        return None
    file, _ = find_files(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in read_meta(file, stored=True).items()}
    found: dict[str, tuple[int, ...]] = {}
    if any(lokr.PART.fullmatch(name) for name in shapes):
        raise WeightsError(f"`{escaped(file)}` is a LoKr: say which model it is for")
    for raw, names in _group(shapes, file).items():
        if raw.startswith(FLAT_PREFIXES):
            raise WeightsError(f"`{escaped(file)}` has `_` for `.` in its names: say which model it is for")
        bare = raw
        while prefix := next((one for one in PREFIXES if bare.startswith(one)), ""):
            bare = bare.removeprefix(prefix)
        down, up = shapes[names["down"]], shapes[names["up"]]
        found[bare] = (*up[:1], *down[1:2])
    return found


def _group(shapes: Shapes, file: Path) -> dict[str, dict[str, str]]:
    """For each layer, under its name in the file, the names of its tensors by part."""
    grouped: dict[str, dict[str, str]] = {}
    foreign: list[str] = []
    is_whole = any(f"{BASE_LAYER}." in name for name in shapes)  # then the network's own tensors lie beside the LoRA's
    for name in shapes:
        if TEXT_ENCODER.match(name):
            foreign.append(name)
            continue
        for pattern, kind in _RELATIVES:
            if pattern.search(name):
                raise _is_relative(kind, f"{file}", tensor=name)
        for part, pattern in (("down", _DOWN), ("up", _UP), ("alpha", _ALPHA), ("magnitude", _MAGNITUDE)):
            if match := pattern.fullmatch(name):
                layer = match[1].removesuffix(BASE_LAYER)
                if (other := grouped.setdefault(layer, {}).setdefault(part, name)) != name:
                    raise WeightsError(
                        f"tensors `{shown(other)}` and `{shown(name)}` in `{file}` stand for the same: keep one"
                    )
                break
        else:
            if is_whole:
                continue
            raise WeightsError(
                f"tensor `{shown(name)}` in `{file}` is not part of a LoRA: expected `<layer>.lora_A.weight` and "
                "`.lora_B.weight`, or `.lora_down.weight` and `.lora_up.weight`"
            )
    if foreign and not grouped:
        raise WeightsError(
            f"`{file}` holds a LoRA of a text encoder only, such as tensor `{shown(foreign[0])}`: "
            "here a LoRA changes the transformer"
        )
    if foreign:
        log.warning("%d tensors of `%s` are for a text encoder, such as `%s`: they are left out, only the transformer "
                    "is changed", len(foreign), file.name, shown(foreign[0]))  # fmt: skip
    if not grouped:
        raise WeightsError(f"`{file}` holds no tensors")
    for raw, names in grouped.items():
        for part, title in (("down", "lora_A or lora_down"), ("up", "lora_B or lora_up")):
            if part not in names:
                raise WeightsError(f"layer `{shown(raw)}` in `{file}` has no {title} tensor: the file is not complete")
    return grouped


def _layer(
    raw: str, names: Mapping[str, str], layers: Shapes, keymap: KeyMap, model: str, file: Path, total: int
) -> str:
    """Our name of the layer a name in a file stands for."""
    bare, stripped = raw, True
    while stripped:
        for candidate in (keymap.to_ours(f"{bare}.weight").removesuffix(".weight"), bare):
            if candidate in layers:
                return candidate
        prefix = next((p for p in PREFIXES if bare.startswith(p)), "")
        bare, stripped = bare.removeprefix(prefix), bool(prefix)
    flat = next((bare.removeprefix(p) for p in FLAT_PREFIXES if bare.startswith(p)), None)
    if flat is not None:
        for layer in layers:
            official = _layer_name(keymap.to_official(f"{layer}.weight"))
            if flat in (official.replace(".", "_"), layer.replace(".", "_")):
                return layer
    near = f", one of {total} in the file" if total > 1 else ""
    raise WeightsError(
        f"tensor `{shown(names['down'])}` in `{file}` changes the layer `{shown(flat or bare)}`{near}, but "
        f"`{model}` has no such linear layer among its {len(layers)}: the LoRA was made for another model"
    )


def _check(
    layer: str,
    names: Mapping[str, str],
    described: Mapping[str, Tensor],
    layers: Shapes,
    config: LoraConfig | None,
    model: str,
    file: Path,
) -> None:
    """Check one layer's tensors, given on the meta device, against the layer and the configuration."""
    down, up = described[names["down"]], described[names["up"]]
    outputs, inputs = layers[layer]
    rank = None if config is None else config.rank_of(layer)
    for name, tensor, axis, needed, what in (
        (names["down"], down, 1, inputs, "inputs"),
        (names["up"], up, 0, outputs, "outputs"),
    ):
        if not tensor.is_floating_point():
            raise WeightsError(
                f"tensor `{shown(name)}` in `{file}` holds {dtype_name(tensor.dtype)}, a LoRA matrix holds "
                "floating-point numbers"
            )
        # a kernel of 1×1 is the same as none
        if tensor.dim() < 2 or math.prod(tensor.shape[2:]) != 1:
            raise WeightsError(
                f"tensor `{shown(name)}` in `{file}` has shape {list(tensor.shape)}, a LoRA matrix has two axes"
            )
        if tensor.shape[axis] != needed:
            raise WeightsError(
                f"tensor `{shown(name)}` in `{file}` has {tensor.shape[axis]} {what}, the layer `{layer}` of `{model}` "
                f"has {needed}: the LoRA was made for another model"
            )
    if down.shape[0] != up.shape[1]:
        raise WeightsError(
            f"tensor `{shown(names['down'])}` in `{file}` has rank {down.shape[0]}, `{shown(names['up'])}` has rank "
            f"{up.shape[1]}: they do not belong together"
        )
    if down.shape[0] == 0:
        raise WeightsError(f"tensor `{shown(names['down'])}` in `{file}` has rank 0: at least 1 is needed")
    if "magnitude" in names and described[names["magnitude"]].numel() != outputs:
        raise WeightsError(
            f"tensor `{shown(names['magnitude'])}` in `{file}` has shape "
            f"{list(described[names['magnitude']].shape)}, but the layer `{layer}` of `{model}` has {outputs} outputs: "
            "one norm of each row is supported"
        )
    if config is not None and config.dora and "magnitude" not in names:
        raise WeightsError(f"layer `{layer}` has no magnitudes in `{file}`, though its configuration says DoRA")
    if rank is not None and rank != down.shape[0]:
        raise WeightsError(
            f"tensor `{shown(names['down'])}` in `{file}` has rank {down.shape[0]}, its configuration says {rank}: "
            "file and configuration do not belong together"
        )
    if "alpha" in names and described[names["alpha"]].numel() != 1:
        raise WeightsError(
            f"tensor `{shown(names['alpha'])}` in `{file}` has shape {list(described[names['alpha']].shape)}: alpha is "
            "one number"
        )


def _header_config(metadata: Mapping[str, str], file: Path) -> LoraConfig | None:
    """The configuration Diffusers writes into the header: one JSON table, its keys with the component's prefix."""
    if (text := metadata.get(DIFFUSERS_HEADER)) is None:
        return None
    where = f"{file}, {DIFFUSERS_HEADER}"
    own = {key.removeprefix("transformer."): value for key, value in parse_table(text.encode(), where).items()}
    return LoraConfig.from_dict(own, where=where)


def _rank(value: Any, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WeightsError(f"`{where}` gives `{shown(key)}` as `{shown(value)}`: a rank is a whole number from 1 on")
    return value


def _alpha(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_ALPHA:
        raise WeightsError(
            f"`{where}` gives `{shown(key)}` as `{shown(value)}`: alpha is a number of at most {LARGEST_ALPHA:.0e}"
        )
    return float(value)


def _patterns(values: Mapping[str, Any], key: str, where: str) -> Iterable[tuple[str, Any]]:
    """A table of patterns that are safe to try: no attempt takes time that grows exponentially with a name."""
    table = values.get(key) or {}
    if not isinstance(table, dict):
        raise WeightsError(f"`{where}` gives `{key}` as `{shown(table)}`: an object is needed")
    for pattern in table:
        if len(pattern) > 500 or len(_REPEAT.findall(pattern)) > 3 or _REPEATED_GROUP.search(pattern):
            raise WeightsError(
                f"`{where}` has the pattern `{shown(pattern)}`: at most 3 repetitions, and none of a group, are "
                "supported"
            )
        try:
            re.compile(pattern), _ending(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise WeightsError(f"`{where}` has the invalid pattern `{shown(pattern)}`: {error}") from error
    return table.items()


def _of_pattern(patterns: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that fits the end of a layer's name, from a dot on."""
    return next((value for pattern, value in (patterns or {}).items() if _ending(pattern).fullmatch(layer)), default)


def _ending(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})")


def _is_relative(kind: str, where: str, *, tensor: str = "") -> WeightsError:
    seen = f" (tensor `{shown(tensor)}`)" if tensor else ""
    return WeightsError(f"`{where}` is {kind}{seen}, which is not supported: use a plain LoRA")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _layer_name(tensor: str) -> str:
    return tensor.removesuffix(".weight")


def _named(updates: Mapping[str, LowRank], prefix: str, parts: tuple[str, str, str]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for layer, update in updates.items():
        state[f"{prefix.format(layer)}.{parts[0]}"] = update.down_RI
        state[f"{prefix.format(layer)}.{parts[1]}"] = update.up_OR
        if update.magnitude_O is not None:
            as_column = parts[2] == "dora_scale"
            state[f"{prefix.format(layer)}.{parts[2]}"] = (
                update.magnitude_O[:, None] if as_column else update.magnitude_O
            )
    return state


def _write_config(updates: Mapping[str, LowRank], path: Path) -> None:
    """The PEFT configuration of these updates; layers that differ from the first one get patterns."""
    first = next(iter(updates.values()))
    alpha = first.scale * first.rank
    values: dict[str, Any] = {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": alpha,
        "use_dora": any(update.magnitude_O is not None for update in updates.values()),
        "target_modules": sorted(updates),
        "rank_pattern": {re.escape(k): u.rank for k, u in updates.items() if u.rank != first.rank},
        "alpha_pattern": {re.escape(k): u.scale * u.rank for k, u in updates.items() if u.scale * u.rank != alpha},
    }
    with replacing(path) as part:
        part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
