"""LoKr files: updates of linear layers that are Kronecker products, read as the low-rank updates that equal them.

ΔW = scale · (W₁ ⊗ W₂), each factor whole or itself a product (LyCORIS, arXiv 2309.14859). Since
W₁ ⊗ (A·B) = (W₁ ⊗ A) · (1 ⊗ B), such an update is a low-rank one exactly, so generation knows no other kind.

| style | names of one layer's tensors |
|---|---|
| `peft` | `base_model.model.<layer>.lokr_w1`, `….lokr_w2` (or `….lokr_w2_a`, `….lokr_w2_b`); a JSON beside it |
| `comfyui` | `diffusion_model.<layer>.lokr_w1`, …, `….alpha` |
| `kohya` | `lora_unet_<layer with _ for .>.lokr_w1`, …, `….alpha` |

Legend: a b rows and columns of W₁; c d those of W₂; r rank.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kandinsky.errors import RequestError, WeightsError
from kandinsky.files import replacing
from kandinsky.ops.lora import LowRank
from kandinsky.weights.keymaps import IDENTITY, KeyMap
from kandinsky.weights.untrusted import shown
from kandinsky.weights.write import write_state

STYLES = ("peft", "comfyui", "kohya")
PART = re.compile(r"(.+)\.lokr_(w[12](?:_[ab])?)(?:\.[^.]+)?")


@dataclass(frozen=True, slots=True)
class Kronecker:
    """One update of one layer.

    Attributes:
        first: W₁, [a, b]; or its factors [a, r] and [r, b].
        second: W₂, [c, d]; or its factors.
        scale: Of the product.
    """

    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the layer."""
        (a, b), (c, d) = ((one[0].shape[0], one[-1].shape[1]) for one in (self.first, self.second))
        return a * c, b * d

    @property
    def rank(self) -> int | None:
        """Of the factors; None where both matrices are whole."""
        return next((one[0].shape[1] for one in (self.second, self.first) if len(one) == 2), None)

    def low_rank(self) -> LowRank:
        """The same as a low-rank update, float32."""
        first, second = (tuple(x.float() for x in one) for one in (self.first, self.second))
        whole = first[0] if len(first) == 1 else first[0] @ first[1]
        (a, b), (c, d) = whole.shape, (second[0].shape[0], second[-1].shape[1])
        if len(second) == 2:
            return LowRank(torch.kron(torch.eye(b), second[1]), torch.kron(whole, second[0]), self.scale)
        if len(first) == 2 and first[0].shape[1] * c <= min(b * c, a * d):
            return LowRank(torch.kron(first[1], second[0]), torch.kron(first[0], torch.eye(c)), self.scale)
        if b * c <= a * d:
            return LowRank(torch.kron(torch.eye(b), second[0]), torch.kron(whole, torch.eye(c)), self.scale)
        return LowRank(torch.kron(whole, torch.eye(d)), torch.kron(torch.eye(a), second[0]), self.scale)


def kronecker(parts: Mapping[str, Tensor], scale: float, where: str) -> Kronecker:
    """An update from its tensors by part: `w1`, `w2`, `w1_a`, `w1_b`, `w2_a`, `w2_b`.

    Raises:
        WeightsError: Parts are missing, superfluous or do not fit each other.
    """

    def factors(name: str) -> tuple[Tensor, ...]:
        whole, pair = parts.get(name), tuple(parts[f"{name}{end}"] for end in ("_a", "_b") if f"{name}{end}" in parts)
        found = (*(() if whole is None else (whole,)), *pair)
        is_whole = whole is not None and not pair
        if not is_whole and (whole is not None or len(pair) != 2):
            raise WeightsError(f"`{where}` needs `lokr_{name}`, or `lokr_{name}_a` and `lokr_{name}_b`")
        if any(x.dim() != 2 or not x.is_floating_point() for x in found):
            raise WeightsError(f"`lokr_{name}` of `{where}` is no matrix of floating-point numbers")
        if len(found) == 2 and found[0].shape[1] != found[1].shape[0]:
            raise WeightsError(
                f"`lokr_{name}_a` of `{where}` has rank {found[0].shape[1]}, `lokr_{name}_b` has {found[1].shape[0]}: "
                "they do not belong together"
            )
        return found

    return Kronecker(factors("w1"), factors("w2"), scale)


def write_lokr(
    updates: Mapping[str, Kronecker],
    path: Path,
    *,
    style: str,
    keymap: KeyMap = IDENTITY,
    trigger: str = "",
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a LoKr.

    Args:
        updates: By our name of the layer.
        path: The file; for `peft` the folder that gets file and configuration.
        style: One of ``STYLES``.
        keymap: Official names of the layers ↔ ours.
        trigger: Text that the file wants in front of the prompt.
        config: Further entries of the configuration.

    Returns:
        The weight file.

    Raises:
        RequestError: The style cannot hold Kronecker products.
    """
    if style not in STYLES:
        raise RequestError(f"format `{style}` holds low-rank updates and no LoKr: use {', '.join(STYLES)}")
    official = {keymap.to_official(f"{layer}.weight").removesuffix(".weight"): one for layer, one in updates.items()}
    metadata = {"format": "pt"} | ({"trigger": trigger} if trigger else {})
    state: dict[str, Tensor] = {}
    for layer, update in official.items():
        named = layer.replace(".", "_") if style == "kohya" else layer
        prefix = {"peft": "base_model.model.", "comfyui": "diffusion_model.", "kohya": "lora_unet_"}[style] + named
        for name, factors in (("w1", update.first), ("w2", update.second)):
            ends = ("",) if len(factors) == 1 else ("_a", "_b")
            state |= {f"{prefix}.lokr_{name}{end}": x for end, x in zip(ends, factors, strict=True)}
        if style != "peft":
            first = f"{prefix}.lokr_w1" if len(update.first) == 1 else f"{prefix}.lokr_w1_a"
            if update.rank is None:  # then these files know no scale
                state[first] = (state[first].float() * update.scale).to(state[first])
            else:
                state[f"{prefix}.alpha"] = torch.tensor(update.scale * update.rank)
    if style != "peft":
        return write_state(state, path, metadata=metadata)
    with replacing(path / "adapter_config.json") as part:
        values = {"peft_type": "LOKR", "target_modules": sorted(official), **(config or {})}
        part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return write_state(state, path / "adapter_model.safetensors", metadata=metadata)


def grouped(names: Mapping[str, Any], file: Path) -> dict[str, dict[str, str]]:
    """Of a LoKr file, for each layer under its name there, the names of its tensors by part and of its `alpha`.

    Raises:
        WeightsError: A tensor is no part of a LoKr.
    """
    found: dict[str, dict[str, str]] = {}
    for name in names:
        layer, _, last = name.rpartition(".")
        match = PART.fullmatch(name)
        if match is None and last != "alpha":
            raise WeightsError(
                f"tensor `{shown(name)}` in `{file}` is not part of a LoKr: expected `<layer>.lokr_w1` and `.lokr_w2`"
            )
        key, part = (layer, "alpha") if match is None else (match[1], match[2])
        found.setdefault(key, {})[part] = name
    return found
