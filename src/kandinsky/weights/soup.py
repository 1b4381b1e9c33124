"""Soups: weighted averages of models that were trained from the same weights, and LoRAs as differences of models.

Whole models are averaged tensor by tensor, in float32, from files that stay mapped: one tensor at a time is in memory.
LoRAs are averaged as what they change of the weights (averaging their two matrices apart would be another thing): the
sum of low-rank updates is held exactly by their matrices side by side, or cut to a rank by its singular values.
Source: arXiv 2203.05482 (uniform soups); the weights by √size, Kandinsky 5.0 report (arXiv 2511.14993).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kandinsky.errors import RequestError, WeightsError
from kandinsky.ops.lora import LowRank
from kandinsky.printing import escaped
from kandinsky.weights.keymaps import IDENTITY, KeyMap
from kandinsky.weights.lora import Lora, Shapes, is_lora, layers_in, read_lora, write_lora
from kandinsky.weights.lora_files import find_files
from kandinsky.weights.read import cast, check_finite, read_meta, read_state, weight_files
from kandinsky.weights.untrusted import shown
from kandinsky.weights.write import write_tensors

log = logging.getLogger(__name__)
Rule = Literal["uniform", "size", "sqrt"]
RULES = ("uniform", "size", "sqrt")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OVERSAMPLED = 16  # singular vectors beyond the rank, for the randomised decomposition of large matrices


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One model of a soup.

    Attributes:
        path: File or folder.
        weight: Its share.
    """

    path: Path
    weight: float


def shares(count: int, rule: Rule | Sequence[float], sizes: Sequence[float] = ()) -> list[float]:
    """What each of so many models weighs.

    Args:
        count: Number of models.
        rule: `uniform`; `size` or `sqrt`, in proportion to the data sets' sizes or their roots; or the weights.
        sizes: Of the data sets, one for each model.

    Raises:
        RequestError: The rule is unknown, or there is not one finite number for each model.
    """
    if count < 1:
        raise RequestError("a soup needs models: give files or folders")
    if isinstance(rule, str):
        if rule not in RULES:
            raise RequestError(f"weights `{escaped(rule)}` are unknown: use {', '.join(RULES)}, or numbers")
        if (rule == "uniform") == bool(sizes):
            need = "takes no sizes" if sizes else "needs the size of each data set"
            raise RequestError(f"a soup by `{rule}` {need}")
        if rule == "uniform":
            return [1 / count] * count
        _check_numbers(sizes, count, "sizes", least=0)
        raw = [math.sqrt(size) if rule == "sqrt" else float(size) for size in sizes]
        if not sum(raw):
            raise RequestError("the sizes of all data sets are 0")
        return [one / sum(raw) for one in raw]
    if sizes:
        raise RequestError("a soup by given weights takes no sizes")
    _check_numbers(rule, count, "weights")
    return [float(one) for one in rule]


def make(
    sources: Sequence[Path],
    out: Path,
    *,
    weights: Rule | Sequence[float] = "uniform",
    sizes: Sequence[float] = (),
    dtype: str | None = None,
    rank: int | None = None,
    layers: Shapes | None = None,
    keymap: KeyMap = IDENTITY,
    base: Path | None = None,
) -> Path:
    """Average models, or LoRAs, into one.

    Args:
        sources: Files or folders, all of models or all of LoRAs.
        out: File to write; of LoRAs also a folder, which gets the official layout.
        weights: As ``shares``. Those of whole models must add up to 1.
        sizes: As ``shares``.
        dtype: `float32`, `bfloat16` or `float16`; the first model's where absent, float32 for LoRAs.
        rank: Of a soup of LoRAs; all of their ranks together where absent, which loses nothing.
        layers: Linear layers of the model the LoRAs are for, where their files do not tell.
        keymap: Its names of them.
        base: The model the LoRAs were trained on, which DoRA needs.

    Returns:
        The weight file.

    Raises:
        RequestError: An argument does not fit the others.
        WeightsError: A file cannot be read, or they do not belong together; the message names tensor and file.
    """
    chosen = [Ingredient(*one) for one in zip(sources, shares(len(sources), weights, sizes), strict=True)]
    if dtype is not None and dtype not in DTYPES:
        raise RequestError(f"type `{escaped(dtype)}` is unknown: use {', '.join(DTYPES)}")
    if rank is not None and rank < 1:
        raise RequestError(f"rank {rank} is too small: use 1 or more")
    found = [_layers(one.path, layers) for one in chosen]
    if not any(found):
        if rank is not None or base is not None:
            raise RequestError("these are whole models: rank and base are for LoRAs")
        return _of_models(chosen, out, None if dtype is None else DTYPES[dtype])
    if not all(found):
        odd = chosen[[bool(one) for one in found].index(False)].path
        raise WeightsError(f"`{escaped(odd)}` is no LoRA, but others are: a soup is of one kind")
    loras = [
        read_lora(one.path, own or {}, model="the model of the soup", keymap=keymap)
        for one, own in zip(chosen, found, strict=True)
    ]
    return _of_loras(chosen, loras, out, DTYPES[dtype or "float32"], rank, keymap, base)


def extract(base: Path, tuned: Path, out: Path, *, rank: int = 32, dtype: str = "bfloat16") -> tuple[Path, float]:
    """The difference of two models as a LoRA.

    Args:
        base: Model before the training.
        tuned: After it.
        out: Folder in the official layout, or a `.safetensors` file in Diffusers'.
        rank: Of the LoRA.
        dtype: `float32`, `bfloat16` or `float16`.

    Returns:
        The weight file, and the share of the difference that it keeps (of the squares of all matrices' elements).

    Raises:
        RequestError: The rank is below 1, or the models are equal.
        WeightsError: A file cannot be read, or they are not of the same model.
    """
    if rank < 1:
        raise RequestError(f"rank {rank} is too small: use 1 or more")
    if dtype not in DTYPES:
        raise RequestError(f"type `{escaped(dtype)}` is unknown: use {', '.join(DTYPES)}")
    _check_same(base, tuned)
    before, after = read_state(base), read_state(tuned)
    updates: dict[str, LowRank] = {}
    left: list[str] = []
    kept = whole = 0.0
    for name, old in before.items():
        new = after[name]
        if torch.equal(old, new):
            continue
        if old.dim() != 2 or not name.endswith(".weight"):
            left.append(name)
            continue
        check_finite({name: old}, str(base))
        check_finite({name: new}, str(tuned))
        change = new.float() - old.float()
        down, up = factors(change, rank)
        whole += float(change.double().square().sum())
        kept += float((up @ down).double().square().sum())
        updates[name.removesuffix(".weight")] = _rounded(name, down, up, DTYPES[dtype], tuned)
    if not updates:
        raise RequestError(
            f"no matrix of `{escaped(tuned)}` differs from `{escaped(base)}`: there is nothing to extract"
        )
    if left:
        log.warning("%d tensors differ that a LoRA cannot hold, such as `%s`: they are left out", len(left), left[0])
    share = kept / whole
    told = {"extracted": json.dumps({"base": _told(base), "tuned": _told(tuned), "kept": round(share, 6)})}
    return _write(Lora(updates), out, IDENTITY, told), share


def factors(matrix_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of a rank, as (down [R, I], up [O, R]); both share the singular values."""
    smaller = min(matrix_OI.shape)
    rank = min(rank, smaller)
    if rank + OVERSAMPLED < smaller // 4:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix_OI.float(), q=rank + OVERSAMPLED, niter=4)
    else:
        u, s, vh = torch.linalg.svd(matrix_OI.float(), full_matrices=False)
        v = vh.mT
    root = s[:rank].sqrt()
    return (v[:, :rank] * root).mT.contiguous(), (u[:, :rank] * root).contiguous()


def _rounded(layer: str, down_RI: Tensor, up_OR: Tensor, dtype: torch.dtype, where: Path) -> LowRank:
    down, up = (cast(layer, one, dtype, str(where)).contiguous() for one in (down_RI, up_OR))
    return LowRank(down, up, 1.0)


def _of_models(chosen: Sequence[Ingredient], out: Path, dtype: torch.dtype | None) -> Path:
    total = sum(one.weight for one in chosen)
    if abs(total - 1) > 1e-4:
        raise RequestError(f"the weights add up to {total:g}: those of whole models must add up to 1")
    first = read_meta(chosen[0].path)
    for other in chosen[1:]:
        _check_same(chosen[0].path, other.path)
    states = [read_state(one.path) for one in chosen]

    def made(name: str) -> Tensor:
        tensors = [state[name] for state in states]
        if not tensors[0].is_floating_point():
            for one, other in zip(chosen, tensors, strict=True):
                if not torch.equal(other, tensors[0]):
                    raise WeightsError(
                        f"tensor `{shown(name)}` of whole numbers is another one in `{escaped(one.path)}`"
                    )
            return tensors[0]
        sum_ = torch.zeros(tensors[0].shape)
        for one, tensor in zip(chosen, tensors, strict=True):
            sum_.add_(tensor.float(), alpha=one.weight)
        if not torch.isfinite(sum_).all():
            raise WeightsError(f"the average of tensor `{shown(name)}` is not finite: one of the files is damaged")
        return cast(name, sum_, described[name].dtype, str(out))

    described = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }
    return write_tensors(out, described, made, metadata={"format": "pt", **_provenance(chosen)})


def _of_loras(
    chosen: Sequence[Ingredient],
    loras: Sequence[Lora],
    out: Path,
    dtype: torch.dtype,
    rank: int | None,
    keymap: KeyMap,
    base: Path | None,
) -> Path:
    needs_base = any(update.magnitude_O is not None for lora in loras for update in lora.updates.values())
    if needs_base and (base is None or rank is None):
        raise RequestError("a soup of DoRAs needs the model they were trained on, as `base`, and a `rank`")
    originals = read_state(base) if needs_base and base is not None else {}
    updates: dict[str, LowRank] = {}
    for layer in dict.fromkeys(layer for lora in loras for layer in lora.updates):
        parts = [
            (lora.updates[layer].on("cpu"), one.weight, one.path)
            for lora, one in zip(loras, chosen, strict=True)
            if layer in lora.updates
        ]
        size = (len(parts[0][0].up_OR), parts[0][0].down_RI.shape[1])
        for update, _, path in parts:
            if (len(update.up_OR), update.down_RI.shape[1]) != size:
                raise WeightsError(f"layer `{shown(layer)}` in `{escaped(path)}` has another shape than in the others")
        if any(update.magnitude_O is not None for update, _, _ in parts):
            name = f"{layer}.weight"
            stored = originals.get(keymap.to_official(name), originals.get(name))
            if stored is None or tuple(stored.shape) != size:
                raise WeightsError(f"`{escaped(base)}` has no tensor `{shown(name)}` of shape {list(size)}")
            change = sum((update.added_to(stored) - stored.float()) * weight for update, weight, _ in parts)
            assert isinstance(change, Tensor) and rank is not None
            down, up = factors(change, rank)
        else:
            down = torch.cat([update.down_RI for update, _, _ in parts])
            up = torch.cat([update.up_OR * (update.scale * weight) for update, weight, _ in parts], dim=1)
            if rank is not None and rank < len(down):
                # the change is up·down: with orthogonal bases of both, a small matrix decides
                q_up, r_up = torch.linalg.qr(up)
                q_down, r_down = torch.linalg.qr(down.mT)
                inner_down, inner_up = factors(r_up @ r_down.mT, rank)
                down, up = inner_down @ q_down.mT, q_up @ inner_up
        updates[layer] = _rounded(layer, down, up, dtype, out)
    trigger = "".join(dict.fromkeys(lora.trigger for lora in loras))
    return _write(Lora(updates, trigger=trigger), out, keymap, _provenance(chosen))


def _write(lora: Lora, out: Path, keymap: KeyMap, metadata: Mapping[str, str]) -> Path:
    style = "diffusers" if out.suffix == ".safetensors" else "official"
    return write_lora(lora, out, style=style, keymap=keymap, metadata=metadata)


def _layers(path: Path, known: Shapes | None) -> Shapes | None:
    """Layers that a LoRA may change, ``known`` or those of its file; None of a whole model."""
    if not path.exists():
        raise WeightsError(f"`{escaped(path)}` is not there: give files or folders")
    try:
        find_files(path)
    except WeightsError:
        return None  # a folder of another layout
    return known if known is not None and is_lora(path) else layers_in(path)


def _check_same(path: Path, other: Path) -> None:
    """Raises: WeightsError where two files do not hold tensors of the same names and shapes."""
    first, second = read_meta(path), read_meta(other)
    for name, there, here in (
        *((name, path, other) for name in first if name not in second),
        *((name, other, path) for name in second if name not in first),
    ):
        raise WeightsError(f"tensor `{shown(name)}` of `{escaped(there)}` is not in `{escaped(here)}`: other models")
    for name, tensor in first.items():
        if tensor.shape != second[name].shape:
            raise WeightsError(
                f"tensor `{shown(name)}` has shape {list(tensor.shape)} in `{escaped(path)}` and "
                f"{list(second[name].shape)} in `{escaped(other)}`: they are other models"
            )
        if tensor.is_floating_point() != second[name].is_floating_point():
            raise WeightsError(f"tensor `{shown(name)}` holds another kind of numbers in `{escaped(other)}`")


def _check_numbers(values: Sequence[float], count: int, what: str, *, least: float = -math.inf) -> None:
    if len(values) != count:
        raise RequestError(f"there are {len(values)} {what} for {count} models: give one each")
    for value in values:
        if not math.isfinite(value) or value < least:
            raise RequestError(f"{what} hold `{value}`: give finite numbers" + (" from 0 on" if least == 0 else ""))


def _provenance(chosen: Sequence[Ingredient]) -> dict[str, str]:
    return {"soup": json.dumps([_told(one.path) | {"weight": one.weight} for one in chosen])}


def _told(path: Path) -> dict[str, str]:
    """What a file or folder is, for the header: its name, and a hash of its weights."""
    try:
        files = [find_files(path)[0]]
    except WeightsError:
        files = weight_files(path)
    hashes = []
    for file in files:
        with file.open("rb") as stream:
            hashes.append(hashlib.file_digest(stream, "sha256").hexdigest())
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"file": path.name, "sha256": whole}
