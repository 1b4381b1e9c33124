"""Kandinsky 3 in the Diffusers layout: names of tensors, and configurations, in both directions. No torch here.

Source: Diffusers, models/unets/unet_kandinsky3.py and models/autoencoders/vq_model.py; checked by loading one side's
weights into the other's classes (tests/parity_diffusers).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kandinsky.errors import BackendError, WeightsError
from kandinsky.model.card import Card, Component
from kandinsky.model.family import Cards
from kandinsky.weights.folders import in_diffusers_layout, named_in, overruled
from kandinsky.weights.keymaps import KeyMap
from kandinsky.weights.untrusted import read_table

log = logging.getLogger(__name__)

PIPELINE, UNET_CLASS, MOVQ_CLASS = "Kandinsky3Pipeline", "Kandinsky3UNet", "VQModel"
STAGES = 16  # pairs of residual blocks a level that names are known for; the released networks have 3
RESOLUTION = 256  # of the official autoencoder; its attention is named by sizes counted from there
# Diffusers' class writes these into its code
FIXED: dict[str, Any] = {
    "expansion_ratio": 4,
    "compression_ratio": 2,
    "add_cross_attention": [False, True, True, True],
    "add_self_attention": [False, True, True, True],
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "variance_type": "fixed_small",
    "rescale_betas_zero_snr": False,
}
# what a folder has beside its networks, text encoder and tokenizer
OTHER_FILES: dict[str, dict[str, Any]] = {
    "model_index.json": {
        "_class_name": PIPELINE,
        "movq": ["diffusers", MOVQ_CLASS],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "unet": ["diffusers", UNET_CLASS],
    },
    "scheduler/scheduler_config.json": SCHEDULER | {"clip_sample": True, "clip_sample_range": 1.0},
}
DEFAULTS = {"steps": 25, "guidance": 4.0}  # of their call; guidance counted from 1
_TEXT = "encoder_hid_proj"  # the projection of text embeddings is in their U-Net
PROJECTION = {"table": _TEXT, "rule": "diffusers"}

_LAYERS = KeyMap(
    (
        ("{block}.to_q.{name}", "{block}.to_query.{name}"),
        ("{block}.to_k.{name}", "{block}.to_key.{name}"),
        ("{block}.to_v.{name}", "{block}.to_value.{name}"),
        ("{block}.to_out.0.{name}", "{block}.output_layer.{name}"),
    )
)
_BLOCKS = KeyMap(
    (
        ("{level}.attentions.0.{name}", "{level}.self_attention_block.{name}"),
        *(
            (f"{{level}}.{theirs}.{i + after}.{{name}}", f"{{level}}.resnet_attn_blocks.{i}.{number}.{{name}}")
            for i in range(STAGES)
            for number, (theirs, after) in enumerate((("resnets_in", 0), ("attentions", 1), ("resnets_out", 0)))
        ),
    ),
    then=_LAYERS,
)
UNET = KeyMap(
    (
        ("time_embedding.linear_1.{name}", "to_time_embed.1.{name}"),
        ("time_embedding.linear_2.{name}", "to_time_embed.3.{name}"),
        ("add_time_condition.{name}", "feature_pooling.{name}"),
        ("conv_in.{name}", "in_layer.{name}"),
        ("conv_norm_out.{name}", "out_layer.0.{name}"),
        ("conv_out.{name}", "out_layer.2.{name}"),
        ("down_blocks.{name}", "down_samples.{name}"),
        ("up_blocks.{name}", "up_samples.{name}"),
    ),
    elsewhere=(f"{_TEXT}.",),
    # without text they attend to what the projection makes of zeros, its bias: the same as one state that is that bias
    stand_ins=(("null_embedding", f"{_TEXT}.projection_norm.bias"),),
    then=_BLOCKS,
)


def movq(levels: int) -> KeyMap:
    """Names of the autoencoder; the decoder's levels are counted from the other end."""
    layers = (
        # the encoder's norms are plain, the decoder's are conditioned on the latent
        ("encoder.conv_norm_out.{name}", "encoder.norm_out.norm_layer.{name}"),
        ("decoder.conv_norm_out.{name}", "decoder.norm_out.{name}"),
        ("{block}.conv_shortcut.{name}", "{block}.nin_shortcut.{name}"),
        ("encoder.{block}.norm1.{name}", "encoder.{block}.norm1.norm_layer.{name}"),
        ("encoder.{block}.norm2.{name}", "encoder.{block}.norm2.norm_layer.{name}"),
        ("encoder.{block}.group_norm.{name}", "encoder.{block}.norm.norm_layer.{name}"),
        ("decoder.{block}.spatial_norm.{name}", "decoder.{block}.norm.{name}"),
        *((f"{{block}}.to_{letter}.{{name}}", f"{{block}}.{letter}.{{name}}") for letter in "qkv"),
        ("{block}.to_out.0.{name}", "{block}.proj_out.{name}"),
    )
    blocks = KeyMap(
        (
            ("{half}.mid_block.resnets.0.{name}", "{half}.mid.block_1.{name}"),
            ("{half}.mid_block.attentions.0.{name}", "{half}.mid.attn_1.{name}"),
            ("{half}.mid_block.resnets.1.{name}", "{half}.mid.block_2.{name}"),
            *_levels("encoder.down_blocks", "encoder.down", "downsample", range(levels)),
            *_levels("decoder.up_blocks", "decoder.up", "upsample", range(levels - 1, -1, -1)),
        )
    )
    return KeyMap(
        layers,
        matrices=tuple(f"{{block}}.{name}.weight" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        elsewhere=("quantize.",),  # a codebook that is never used
        then=blocks,
    )


def _levels(theirs: str, ours: str, step: str, order: Sequence[int]) -> list[tuple[str, str]]:
    return [
        pair
        for i, level in enumerate(order)
        for pair in (
            (f"{theirs}.{i}.resnets.{{j}}.{{name}}", f"{ours}.{level}.block.{{j}}.{{name}}"),
            (f"{theirs}.{i}.attentions.{{j}}.{{name}}", f"{ours}.{level}.attn.{{j}}.{{name}}"),
            (f"{theirs}.{i}.{step}rs.0.{{name}}", f"{ours}.{level}.{step}.{{name}}"),
        )
    ]


def unet_of(names: Collection[str]) -> KeyMap | None:
    """The key map if a file is the U-Net in this layout; None for another file."""
    return UNET if "conv_in.weight" in names else None


def movq_of(names: Collection[str]) -> KeyMap | None:
    """The key map if a file is the autoencoder in this layout; None for another file."""
    levels = {name.split(".")[2] for name in names if name.startswith("encoder.down_blocks.")}
    return movq(len(levels)) if levels else None


def unet_params(config: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters by official name.

    Raises:
        WeightsError: One is missing or wrong.
    """
    widths = _list(config, "block_out_channels")
    given = {
        "model_channels": widths[0],
        "init_channels": widths[0] // 2,
        "num_channels": _one(config, "in_channels"),
        "out_channels": _one(config, "in_channels"),
        "time_embed_dim": _one(config, "time_embedding_dim"),
        "context_dim": _one(config, "cross_attention_dim"),
        "groups": _one(config, "groups"),
        "head_dim": _one(config, "attention_head_dim"),
        "dim_mult": _multiples(widths),
        "num_blocks": [_one(config, "layers_per_block")] * len(widths),
    }
    if len(widths) != len(FIXED["add_self_attention"]):
        raise WeightsError(f"a U-Net of {len(widths)} levels is no `{UNET_CLASS}`: that has 4")
    return given | {key: list(value) if isinstance(value, list) else value for key, value in FIXED.items()}


def unet_config(params: Mapping[str, Any], text_width: int) -> dict[str, Any]:
    """`config.json` of Diffusers' class.

    Args:
        params: All hyper-parameters by official name.
        text_width: Width of the embeddings that are projected.

    Raises:
        BackendError: Diffusers' class cannot represent it.
    """
    widths = [params["model_channels"] * factor for factor in params["dim_mult"]]
    config = {
        "_class_name": UNET_CLASS,
        "attention_head_dim": params["head_dim"],
        "block_out_channels": widths,
        "cross_attention_dim": params["context_dim"],
        "encoder_hid_dim": text_width,
        "groups": params["groups"],
        "in_channels": params["num_channels"],
        "layers_per_block": params["num_blocks"][0],
        "time_embedding_dim": params["time_embed_dim"],
    }
    again = unet_params(config)
    for key, value in again.items():
        if key in params and (list(params[key]) if isinstance(value, list) else params[key]) != value:
            raise BackendError(f"Diffusers' `{UNET_CLASS}` cannot have {key} = {params[key]}: only {value}")
    return config


def movq_params(config: Mapping[str, Any]) -> dict[str, Any]:
    """The autoencoder's hyper-parameters by official name.

    Raises:
        WeightsError: The configuration does not describe a MoVQ of Kandinsky.
    """
    widths = _list(config, "block_out_channels")
    attends = [i for i, name in enumerate(_list(config, "down_block_types")) if name.startswith("Attn")]
    for key, only in (("norm_type", "spatial"), ("norm_num_groups", 32)):
        if (value := config.get(key)) != only:
            raise WeightsError(f"autoencoder with {key} `{value}` is no MoVQ: that has `{only}`")
    return {
        "z_channels": _one(config, "latent_channels"),
        "resolution": RESOLUTION,
        "in_channels": _one(config, "in_channels"),
        "out_ch": _one(config, "out_channels"),
        "ch": widths[0],
        "ch_mult": _multiples(widths),
        "num_res_blocks": _one(config, "layers_per_block"),
        "attn_resolutions": [RESOLUTION // 2**i for i in attends],
    }


def movq_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of Diffusers' ``VQModel``. ``params``: all hyper-parameters under the official names."""
    attends = [params["resolution"] // 2**i in params["attn_resolutions"] for i in range(len(params["ch_mult"]))]
    return {
        "_class_name": MOVQ_CLASS,
        "act_fn": "silu",
        "block_out_channels": [params["ch"] * factor for factor in params["ch_mult"]],
        "down_block_types": [f"{'Attn' if at else ''}DownEncoderBlock2D" for at in attends],
        "up_block_types": [f"{'Attn' if at else ''}UpDecoderBlock2D" for at in reversed(attends)],
        "in_channels": params["in_channels"],
        "out_channels": params["out_ch"],
        "latent_channels": params["z_channels"],
        "layers_per_block": params["num_res_blocks"],
        "norm_num_groups": 32,
        "norm_type": "spatial",
        "vq_embed_dim": params["z_channels"],
    }


def sampler_of(scheduler: Mapping[str, Any]) -> str | None:
    """Name of the sampler that a `scheduler_config.json` describes; None if there is none like it."""
    thresholds = scheduler.get("thresholding", False)
    # a threshold that may not go beyond 1 is a cut at 1
    cuts = scheduler.get("sample_max_value", 1.0) == 1 if thresholds else scheduler.get("clip_sample", True)
    same = all(scheduler.get(key, value) == value for key, value in SCHEDULER.items())
    return "kandinsky3-ddpm" if same and cuts and scheduler.get("clip_sample_range", 1.0) == 1 else None


def _one(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise WeightsError(f"`config.json` gives {key} as `{value}`: a whole number is needed")
    return value


def _list(config: Mapping[str, Any], key: str) -> list[Any]:
    value = config.get(key)
    if not isinstance(value, list) or not value:
        raise WeightsError(f"`config.json` gives {key} as `{value}`: a list is needed")
    return value


def _multiples(widths: Sequence[int]) -> list[int]:
    if any(width % widths[0] for width in widths):
        raise WeightsError(f"block_out_channels {list(widths)} are not multiples of the first")
    return [width // widths[0] for width in widths]


def read_diffusers(folder: Path, card: Card, cards: Cards) -> Card:
    """Kandinsky 3 as Diffusers runs it: its scheduler, guidance and steps, and its handling of padding."""
    if named_in(folder, card.task, cards) is None:
        card = dataclasses.replace(card, id=folder.name, title=folder.name, source=str(folder))
    card = in_diffusers_layout(card, str(folder))
    params = unet_params(read_table(folder / "unet" / "config.json"))
    vae = movq_params(read_table(folder / "movq" / "config.json"))
    sampler = sampler_of(read_table(folder / "scheduler" / "scheduler_config.json"))
    if sampler is None:
        log.warning("the scheduler of `%s` is not known: the official one of `%s` is used", folder, card.id)
    else:
        card = overruled(card, {"sampler": sampler} | DEFAULTS)
    return dataclasses.replace(
        card,
        dit=Component(card.dit.kind, card.dit.parts, params),
        vae=Component(card.vae.kind, card.vae.parts, vae),
        clip=dataclasses.replace(card.clip, spatial=2 ** (len(vae["ch_mult"]) - 1), channels=int(vae["z_channels"])),
    )
