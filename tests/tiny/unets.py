"""Kandinsky Video 1.0 and 1.1 and Kandinsky 3 at tiny size in the official files: pickled tables of tables.

All weights are random, from one seed; networks along time do not start at zero, so that every part has a say. ``write``
also leaves cards of the shipped models' ids, so that the official calls and `load` find the tiny models where
`KANDINSKY_CARDS` names their folder.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from kandinsky import catalogue
from kandinsky.families.parts.movq import MovqAutoencoder, MovqParams
from kandinsky.families.parts.projected import Projection
from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.families.parts.unet.unet import UNet
from kandinsky.weights.keymaps import keymap_of
from tiny.family import randomise
from tiny.kandinsky4 import PIECES, spiece

HIDDEN, CONTEXT = 24, 32
UNET: dict[str, Any] = {
    "model_channels": 16,
    "init_channels": 8,
    "num_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 32,
    "context_dim": CONTEXT,
    "groups": 4,
    "head_dim": 8,
    "dim_mult": [1, 1, 2, 2],
    "num_blocks": [2, 2, 2, 2],
    "add_cross_attention": [False, True, True, True],
    "add_self_attention": [False, True, True, True],
}
KEYFRAMES, KEYFRAMES_1_1 = {"num_frames": 4}, {"num_channels": 9, "noise_augmentation": True, "motion_score": True}
GAPS = {"num_channels": 20, "out_channels": 12}
INTERPOLATION, INTERPOLATION_1_1 = {**GAPS, "interpolation": True}, {**GAPS, "time_downsample": [False] * 4}
MOVQ: dict[str, Any] = {
    "z_channels": 4,
    "ch": 32,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "resolution": 64,
    "attn_resolutions": [8],
}
VIDEO_MOVQ = {**MOVQ, "temporal": True, "temporal_attention_block": True}
# file → tables in it; U-Nets by their further arguments
UNETS = {
    "kandinsky_video.pt": KEYFRAMES,
    "kandinsky_video_interpolation.pt": INTERPOLATION,
    "t2v.pt": KEYFRAMES_1_1,
    "interpolation.pt": INTERPOLATION_1_1,
    "kandinsky3.pt": {},
    "kandinsky3_flash.pt": {},
    "kandinsky3_inpainting.pt": {"num_channels": 9},
}
MODELS = ("kandinsky-video-1.0", "kandinsky-video-1.1", "kandinsky3.0", "kandinsky3.1-flash", "kandinsky3.0-inpaint")


@cache
def unet(file: str) -> UNet:
    net: UNet = randomise(UNet(UNetParams.from_dict(UNET | UNETS[file])))  # type: ignore[assignment]
    with torch.no_grad():  # a network that answers with large numbers would drown what a test compares
        net.out_layer[2].weight.mul_(0.3)
        net.null_embedding.copy_(torch.randn(CONTEXT, generator=torch.Generator().manual_seed(len(file))))
    return net


@cache
def movq(temporal: bool = False) -> nn.Module:
    return randomise(MovqAutoencoder(MovqParams.from_dict(VIDEO_MOVQ if temporal else MOVQ)))


@cache
def projection(gaps: bool = False) -> nn.Module:
    return randomise(Projection(HIDDEN, CONTEXT), seed=12 if gaps else 11)


@cache
def t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(PIECES) + 100,
        d_model=HIDDEN,
        d_kv=6,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-silu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return randomise(T5EncoderModel(config))  # type: ignore[return-value]


def official_state(file: str) -> dict[str, Tensor]:
    """The tensors of a U-Net under their official names."""
    net = unet(file)
    keymap = keymap_of(catalogue.part(net.params.kind))
    return {keymap.to_official(name): tensor for name, tensor in net.state_dict().items()}


def write(folder: Path) -> Path:
    """`folder/weights` with the official files and `folder/cards`; returns ``folder``."""
    weights = folder / "weights"
    weights.mkdir(parents=True)
    for file in UNETS:
        state = official_state(file)
        null = state.pop("null_embedding")
        # official files have it with and without an axis of one
        tables: dict[str, Any] = {"unet": state, "null_embedding": null[None] if "video" in file else null}
        if file == "kandinsky_video.pt":
            tables["projections"] = {"t5": projection().state_dict()}
        torch.save(tables, weights / file)
    for file, temporal in (("movq.pt", False), ("video_movq.pt", True)):
        torch.save(movq(temporal).state_dict(), weights / file)
    both = {"projection_base": projection().state_dict(), "projection_interpolation": projection(True).state_dict()}
    torch.save(both, weights / "t5_projections.pt")
    for name in ("flan-ul2", "flan_ul2_encoder"):
        t5().save_pretrained(weights / name)
        (weights / name / "spiece.model").write_bytes(spiece())
        (weights / name / "tokenizer_config.json").write_text("{}")
    for name in ("projection.pt", "projection_flash.pt", "projection_inpainting.pt"):
        torch.save(projection().state_dict(), weights / "flan_ul2_encoder" / name)
    (folder / "cards").mkdir()
    for model in MODELS:
        (folder / "cards" / f"{model}.toml").write_text(card(model), encoding="utf-8")
    return folder


def card(model: str) -> str:
    """The shipped card with tiny networks."""
    head = f'base = "{model}"\nid = "{model}"\n'
    t5_part = '[[text.parts]]\nname = "t5"\nrepo = "nobody/tiny"\nfiles = ["config.json", "model.safetensors"]\n'
    channels = UNETS["kandinsky3_inpainting.pt"] if model.endswith("inpaint") else {}
    more = _video(model) if "video" in model else f"[dit]\nparams = {_toml(UNET | channels)}\n"
    vae = VIDEO_MOVQ if model == "kandinsky-video-1.1" else MOVQ
    text = "" if "video" not in model else t5_part + 'local = "flan-ul2/"\n' + _text_parts(model)
    size = '[clip]\nsizes = ["128x64", "64x64", "64x128"]\ndefault_size = "64x64"\n'
    return f"{head}\n[vae]\nparams = {_toml(vae)}\n\n{more}\n{size}\n{text}"


def _text_parts(model: str) -> str:
    file = {
        "kandinsky-video-1.0": "kandinsky_video.pt",
        "kandinsky-video-1.1": "t5_projections.pt",
    }[model]
    entries = {"tokenizer": (["spiece.model", "tokenizer_config.json"], "flan-ul2/"), "projection": ([file], file)}
    return "".join(
        f'[[text.parts]]\nname = "{name}"\nrepo = "nobody/tiny"\nfiles = {json.dumps(files)}\nlocal = "{local}"\n'
        for name, (files, local) in entries.items()
    )


def _video(model: str) -> str:
    is_first = model.endswith("1.0")
    keyframes, gaps = (KEYFRAMES, INTERPOLATION) if is_first else (KEYFRAMES_1_1, INTERPOLATION_1_1)
    made = f"[dit]\nparams = {_toml(UNET | keyframes)}\n\n[keyframes]\ncount = 4\n\n"
    made += f"[keyframes.interpolation]\nparams = {_toml(UNET | gaps)}\n"
    return made if is_first else f"{made}\n[keyframes.first_frame.vae]\nparams = {_toml(MOVQ)}\n"


def _toml(values: dict[str, Any]) -> str:
    return "{ " + ", ".join(f"{key} = {_value(value)}" for key, value in values.items()) + " }"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
