"""How official files name the tensors of networks that several families share."""

from __future__ import annotations

from typing import Any

from kandinsky.weights.keymaps import KeyMap

# autoencoders that keep Diffusers' network behind an interface of this library
DIFFUSERS_INSIDE = KeyMap((("{name}", "net.{name}"),))
# Attention along time is called differently in each official class; the layers are the same.
_IN_FILE: dict[str, Any] = {"table": "unet", "beside": ("null_embedding",)}
UNET = KeyMap(**_IN_FILE)
UNET_FRAMES_1_0 = KeyMap(
    (
        (
            "{level}.temporal_attention_block.temporal_attention.{name}",
            "{level}.temporal_attention_block.attention.{name}",
        ),
    ),
    **_IN_FILE,
)
UNET_FRAMES_1_1 = KeyMap(
    (
        *UNET_FRAMES_1_0.pairs,
        ("{level}.temporal_attention_block.temporal_norm.{name}", "{level}.temporal_attention_block.in_norm.{name}"),
        ("{level}.temporal_attention_block.ff_norm.{name}", "{level}.temporal_attention_block.out_norm.{name}"),
    ),
    **_IN_FILE,
)
UNET_GAPS_1_0 = KeyMap(
    (
        ("{block}.temporal_merge", "{block}.mix.temporal_merge"),
        ("{block}.temporal_projection.{name}", "{block}.mix.temporal_projection.{name}"),
    ),
    **_IN_FILE,
)
UNET_GAPS_1_1 = KeyMap((("{block}.temporal_projection_new.{name}", "{block}.mix.{name}"),), **_IN_FILE)

# of text embeddings: the official file has two numbered layers, Diffusers' U-Net two with names
PROJECTION = KeyMap((("projection_linear.{name}", "0.{name}"), ("projection_norm.{name}", "1.{name}")))
