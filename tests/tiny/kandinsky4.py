"""Kandinsky 4 at tiny size in the official folder layout: a pickled transformer, T5, CogVideoX's autoencoder.

All weights are random, from one seed. ``write`` also leaves a card of the shipped model's id, so that the official call
and `load` find the tiny model where `KANDINSKY_CARDS` names its folder.
"""

from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX
from transformers import T5Config, T5EncoderModel

from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D, DiTParams
from tiny.family import randomise

MODEL = "kandinsky4-t2v-flash"
CHECKPOINT = "kandinsky4_distil_512.pt"
WIDTH, CHANNELS = 24, 4
DIT_PARAMS = {
    "in_visual_dim": CHANNELS,
    "in_text_dim": WIDTH,
    "time_dim": 16,
    "out_visual_dim": CHANNELS,
    "patch_size": [1, 2, 2],
    "model_dim": 32,
    "ff_dim": 48,
    "num_blocks": 1,
    "axes_dims": [4, 6, 6],
    "num_groups": [1, 1, 1],
    "rope_angles": "bfloat16",
}
VAE_CONFIG = {
    "latent_channels": CHANNELS,
    "block_out_channels": [8, 8, 8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.7,
}
SIZE = "64x48"
CARD = f"""
base = "{MODEL}"
id = "{MODEL}"

[dit]
params = {{ {", ".join(f"{key} = {value!r}" for key, value in DIT_PARAMS.items())} }}

[text]
[[text.parts]]
name = "t5"
repo = "nobody/tiny"
files = ["text_encoder/config.json", "text_encoder/model.safetensors"]
local = "text_encoder/"

[[text.parts]]
name = "tokenizer"
repo = "nobody/tiny"
files = ["tokenizer/spiece.model", "tokenizer/tokenizer_config.json"]
local = "tokenizer/"

[clip]
sizes = ["{SIZE}", "48x64", "512x512", "736x352", "352x736", "672x384", "384x672", "544x480", "480x544"]
channels = {CHANNELS}
"""


@cache
def dit() -> DiffusionTransformer3D:
    return randomise(DiffusionTransformer3D(DiTParams.from_dict(DIT_PARAMS)))  # type: ignore[return-value]


@cache
def vae() -> AutoencoderKLCogVideoX:
    return randomise(AutoencoderKLCogVideoX(**VAE_CONFIG))  # type: ignore[return-value]


@cache
def t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(PIECES) + 100,
        d_model=WIDTH,
        d_kv=6,
        d_ff=32,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return randomise(T5EncoderModel(config))  # type: ignore[return-value]


# (piece, score, kind): 2 unknown, 3 control, 1 an ordinary piece
PIECES = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁", -3.0, 1)]
PIECES += [(f"▁{word}", -4.0 - i / 10, 1) for i, word in enumerate(("a", "cat", "in", "red", "hat", "snow"))]
PIECES += [(letter, -6.0 - i / 10, 1) for i, letter in enumerate("etaoinshrdlucmfwypvbgkjqxz")]


def spiece(pieces: list[tuple[str, float, int]] | None = None, model_type: int = 1) -> bytes:
    """A SentencePiece file: pieces, then the kind of model; without a table of characters."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    out = b""
    for text, score, kind in PIECES if pieces is None else pieces:
        number = torch.tensor(score, dtype=torch.float32).numpy().tobytes()
        out += field(1, field(1, text.encode()) + bytes([2 << 3 | 5]) + number + bytes([3 << 3, kind]))
    return out + field(2, bytes([3 << 3, model_type]))


def write(folder: Path) -> Path:
    """`folder/weights` in the official layout and `folder/cards`; returns ``folder``."""
    weights = folder / "weights"
    weights.mkdir(parents=True)
    # the angles may be missing from a file: this one has none
    state = {name: tensor for name, tensor in dit().state_dict().items() if "rope_embeddings" not in name}
    torch.save(state, weights / CHECKPOINT)
    t5().save_pretrained(weights / "text_encoder")
    vae().save_pretrained(weights / "vae")
    (weights / "tokenizer").mkdir()
    (weights / "tokenizer" / "spiece.model").write_bytes(spiece())
    (weights / "tokenizer" / "tokenizer_config.json").write_text("{}")
    (folder / "cards").mkdir()
    (folder / "cards" / "tiny.toml").write_text(CARD, encoding="utf-8")
    return folder
