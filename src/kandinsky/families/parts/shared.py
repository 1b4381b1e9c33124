"""The networks that several families share, as values. No torch."""

from __future__ import annotations

from kandinsky.model.family import Part
from kandinsky.model.lazy import Lazy

_HERE = "kandinsky.families.parts"
HUNYUAN = Part(
    network=Lazy(f"{_HERE}.networks:hunyuan"),
    keymap=Lazy(f"{_HERE}.keymaps:DIFFUSERS_INSIDE"),
    tilings=("none", "auto", "official"),
    decodes_together=True,
)
FLUX = Part(network=Lazy(f"{_HERE}.networks:flux"), keymap=Lazy(f"{_HERE}.keymaps:DIFFUSERS_INSIDE"))
STABLE_DIFFUSION = Part(
    network=Lazy(f"{_HERE}.networks:stable_diffusion"), keymap=Lazy(f"{_HERE}.keymaps:DIFFUSERS_INSIDE")
)
COGVIDEOX = Part(network=Lazy(f"{_HERE}.networks:cogvideox"), keymap=Lazy(f"{_HERE}.keymaps:DIFFUSERS_INSIDE"))
MOVQ = Part(network=Lazy(f"{_HERE}.networks:movq"), spellings=(Lazy("kandinsky.families.kandinsky3.folder:movq_of"),))
T5 = Part(reader=Lazy(f"{_HERE}.networks:t5"), tensors=("t5",), made_up=Lazy(f"{_HERE}.made_up:random_t5"))
T5_PROJECTED = Part(
    reader=Lazy(f"{_HERE}.networks:t5_projected"),
    tensors=("t5", "projection"),
    contrasting=True,
    made_up=Lazy(f"{_HERE}.made_up:random_projected_t5"),
)
