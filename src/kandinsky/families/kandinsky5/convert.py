"""From the official single file to the Diffusers folder and back. Names are equal in both; only the layout differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kandinsky.errors import RequestError, WeightsError
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.model.card import Card
from kandinsky.ops.attention import AttentionSpec
from kandinsky.weights import keymaps
from kandinsky.weights.read import check_shapes, read_metadata, read_state
from kandinsky.weights.untrusted import read_table
from kandinsky.weights.write import write_state

DIFFUSERS_CLASS = "Kandinsky5Transformer3DModel"
# axes_dims of the released networks by head width; a file does not say how a head is shared among the axes
AXES = {64: (16, 24, 24), 128: (32, 48, 48)}


def convert_transformer(
    source: Path,
    target: Path,
    *,
    to: str,
    params: DiTParams | None = None,
    attention: AttentionSpec | None = None,
) -> Path:
    """Write the Kandinsky 5 transformer at ``source`` in the other layout (or the same one).

    Args:
        source: Official file, or Diffusers folder (the one with the weights, or the one above).
        target: File for `official`; for `diffusers` a folder, which gets `transformer/`.
        params: The network's hyper-parameters; read from the folder's `config.json`, else from the shapes.

    Returns:
        ``target``.

    Raises:
        WeightsError: The tensors are not those of such a transformer.
        RequestError: The layout is unknown, or the target does not suit it.
    """
    if to not in ("official", "diffusers"):
        raise RequestError(f"unknown layout `{to}`: use `official` or `diffusers`")
    if to == "official" and target.suffix != ".safetensors":
        raise RequestError(f"target `{target}` is not a file name for an official file: end it with `.safetensors`")
    if to == "diffusers" and target.suffix:
        raise RequestError(f"target `{target}` looks like a file: the Diffusers layout is a folder")
    state = read_state(source)
    config = read_config(source)
    params = params or (params_from_config(config) if config else infer_params(state))
    with torch.device("meta"):
        net = DiffusionTransformer3D(params)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_shapes(net, shapes, keymap=keymaps.IDENTITY, where=str(source))
    metadata = read_metadata(source)
    if to == "official":
        write_state(state, target, layout="official", metadata=metadata)
    else:
        config = config or diffusers_config(params, attention or AttentionSpec())
        write_state(state, target / "transformer", layout="diffusers", metadata=metadata, config=config)
    return target


def read_config(source: Path) -> dict[str, Any] | None:
    """`config.json` beside the weights of a Diffusers folder; None for a single file.

    Raises:
        WeightsError: The file is not valid.
    """
    if not source.is_dir():
        return None
    for folder in (source, source / "transformer"):
        if (file := folder / "config.json").is_file():
            return read_table(file)
    return None


def params_from_config(config: Mapping[str, Any]) -> DiTParams:
    """Hyper-parameters of a Diffusers `config.json`, without its notes and attention keys."""
    values = {k: v for k, v in config.items() if not k.startswith(("_", "attention_"))}
    return DiTParams.from_dict(values)


def diffusers_config(params: DiTParams, attention: AttentionSpec) -> dict[str, Any]:
    """`config.json` of Diffusers' class. Quirk: there, image editing's channels count as ``visual_cond``."""
    config: dict[str, Any] = {"_class_name": DIFFUSERS_CLASS, **dataclasses.asdict(params)}
    config["visual_cond"] = params.has_condition_channels
    del config["instruct_type"]
    config |= {key: list(value) for key, value in config.items() if isinstance(value, tuple)}
    config["attention_type"] = "nabla" if attention.type == "nabla" else "regular"
    if attention.type == "nabla":
        config |= {f"attention_{key}": getattr(attention, key) for key in ("P", "wT", "wH", "wW")}
        config |= {"attention_add_sta": True, "attention_method": "topcdf"}
    return config


def infer_params(state: Mapping[str, Tensor]) -> DiTParams:
    """Hyper-parameters from tensor shapes, for files that come without any (all official ones).

    Patches are taken to be 1×2×2, as in every release.

    Raises:
        WeightsError: A tensor is missing or the head width is none of the released ones.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise WeightsError(f"tensor `{name}` is missing: this is no Kandinsky 5 transformer")
        return state[name].shape

    def count(prefix: str) -> int:
        return len({name.split(".")[1] for name in state if name.startswith(prefix + ".")})

    head = shape("visual_transformer_blocks.0.self_attention.query_norm.weight")[0]
    if head not in AXES:
        raise WeightsError(f"head width {head} is not one of {sorted(AXES)}: name the model whose parameters these are")
    patch = 1 * 2 * 2
    out_channels = shape("out_layer.out_layer.weight")[0] // patch
    return DiTParams(
        in_visual_dim=out_channels,
        out_visual_dim=out_channels,
        in_text_dim=shape("text_embeddings.in_layer.weight")[1],
        in_text_dim2=shape("pooled_text_embeddings.in_layer.weight")[1],
        time_dim=shape("time_embeddings.out_layer.weight")[0],
        model_dim=shape("time_embeddings.in_layer.weight")[1],
        ff_dim=shape("visual_transformer_blocks.0.feed_forward.in_layer.weight")[0],
        num_text_blocks=count("text_transformer_blocks"),
        num_visual_blocks=count("visual_transformer_blocks"),
        axes_dims=AXES[head],
        visual_cond=shape("visual_embeddings.in_layer.weight")[1] // patch != out_channels,
    )


def convert(source: Path, target: Path, to: str, card: Card | None) -> Path:
    """``convert_transformer`` with a card's values, where one is given; see ``model.family.Convert``."""
    params = None if card is None else DiTParams.from_dict(card.dit.params)
    spec = None if card is None else AttentionSpec.from_dict(card.sampling.attention)
    return convert_transformer(source, target, to=to, params=params, attention=spec)
