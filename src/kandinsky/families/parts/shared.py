"""The networks that several families share, as values. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kandinsky.model.family import Depth, Part
from kandinsky.model.lazy import Lazy

if TYPE_CHECKING:
    from kandinsky.weights.keymaps import KeyMap

_HERE = "kandinsky.families.parts"
_INSIDE: Lazy[KeyMap] = Lazy(f"{_HERE}.keymaps:DIFFUSERS_INSIDE")
# What LoRAs change of Kandinsky 3's U-Net: the attention of its blocks, not that which pools the text.
UNET_ADAPTS = tuple(
    f"{block}.attention.{name}"
    for block in ("self_attention_block", "resnet_attn_blocks.*")
    for name in ("to_query", "to_key", "to_value", "output_layer")
)
HUNYUAN = Part(
    network=Lazy(f"{_HERE}.networks:hunyuan"),
    keymap=_INSIDE,
    tilings=("none", "auto", "official"),
    decodes_together=True,
    carries=True,
    cost=Lazy(f"{_HERE}.cost:hunyuan"),
    rivals={"diffusers": Lazy(f"{_HERE}.rivals:hunyuan")},
)
FLUX = Part(network=Lazy(f"{_HERE}.networks:flux"), keymap=_INSIDE, cost=Lazy(f"{_HERE}.cost:flux"))
STABLE_DIFFUSION = Part(
    network=Lazy(f"{_HERE}.networks:stable_diffusion"), keymap=_INSIDE, cost=Lazy(f"{_HERE}.cost:stable_diffusion")
)
COGVIDEOX = Part(network=Lazy(f"{_HERE}.networks:cogvideox"), keymap=_INSIDE, cost=Lazy(f"{_HERE}.cost:cogvideox"))
MOVQ = Part(
    network=Lazy(f"{_HERE}.networks:movq"),
    spellings=(Lazy("kandinsky.families.kandinsky3.folder:movq_of"),),
    cost=Lazy(f"{_HERE}.cost:movq"),
    rivals={"diffusers": Lazy(f"{_HERE}.rivals:movq")},
)
T5 = Part(
    reader=Lazy(f"{_HERE}.networks:t5"),
    tensors=("t5",),
    made_up=Lazy(f"{_HERE}.made_up:random_t5"),
    cost=Lazy(f"{_HERE}.cost:t5"),
    depth=Depth("num_layers", 2, Lazy(f"{_HERE}.cost:t5_layers")),
)
T5_PROJECTED = Part(
    reader=Lazy(f"{_HERE}.networks:t5_projected"),
    tensors=("t5", "projection"),
    contrasting=True,
    made_up=Lazy(f"{_HERE}.made_up:random_projected_t5"),
    cost=Lazy(f"{_HERE}.cost:t5_projected"),
    depth=Depth("num_layers", 2, Lazy(f"{_HERE}.cost:projected_layers")),
)
