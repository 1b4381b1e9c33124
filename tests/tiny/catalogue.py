"""Every tiny model of the family under an id of its own, so that `kandinsky.load` finds it by name.

``write`` leaves the weights in folders of their own and one folder of cards, for `KANDINSKY_CARDS`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tiny import family, kandinsky4, sound, unets

# id → kind of ``family.KINDS``, shipped card it differs from, further lines of its card
SMALL = 'sizes = ["64x64", "96x64", "64x96"]\ndefault_size = "64x64"'
KANDINSKY5: dict[str, tuple[str, str, str]] = {
    "tiny-t2v": ("t2v", "kandinsky5-lite-t2v-sft-5s", f"[clip]\n{SMALL}"),
    "tiny-t2v-nabla": (
        "t2v",
        "kandinsky5-lite-t2v-sft-10s",
        '[sampling.attention]\nP = 0.6\nwT = 1\nwH = 1\nwW = 1\n[clip]\nsizes = ["256x128"]\ndefault_size = "256x128"',
    ),
    "tiny-i2v": (
        "i2v",
        "kandinsky5-lite-i2v-5s",
        f"[classes.sd]\narea = {64 * 96}\nmultiple = 16\n[clip]\n{SMALL}",
    ),
    "tiny-t2i": ("t2i", "kandinsky5-lite-t2i", f"[clip]\n{SMALL}"),
    "tiny-i2i": ("i2i", "kandinsky5-lite-i2i", f"[clip]\n{SMALL}"),
}
GUIDED4 = "tiny-k4-guided"  # the undistilled sampler of Kandinsky 4


def write(folder: Path) -> Path:
    """Weights of all tiny models below ``folder``, and `folder/cards`; returns ``folder``."""
    cards = folder / "cards"
    cards.mkdir(parents=True)
    for kind in dict.fromkeys(kind for kind, _, _ in KANDINSKY5.values()):
        family.write_official(folder / kind, kind)
    for model, (kind, base, more) in KANDINSKY5.items():
        (cards / f"{model}.toml").write_text(card5(model, kind, base, more, folder / kind / "weights"))
    kandinsky4.write(folder / "k4")
    guided = kandinsky4.CARD.replace(f'id = "{kandinsky4.MODEL}"', f'id = "{GUIDED4}"')
    guided += '\n[sampling]\nsampler = "cogvideox-ddim"\nsteps = 6\nguidance = 4.0\n'
    (cards / f"{GUIDED4}.toml").write_text(guided)
    unets.write(folder / "unets")
    for made in ("k4", "unets"):
        for card in (folder / made / "cards").glob("*.toml"):
            shutil.copy(card, cards / card.name)
    sound.write(folder / "v2a")
    lora(folder / "lora.safetensors")
    return folder


def card5(model: str, kind: str, base: str, more: str, weights: Path) -> str:
    """The shipped card with a tiny network of Kandinsky 5 and its files."""
    member, repo = family.KINDS[kind], json.dumps(str(weights))
    vae = "flux/vae/" if member.is_image else "vae/"
    return f"""base = "{base}"
id = "{model}"
[dit]
params = {{ {", ".join(f"{key} = {json.dumps(value)}" for key, value in member.params.items())} }}
parts = [{{ repo = {repo}, files = ["model/{member.checkpoint}"] }}]
[text]
parts = [
    {{ name = "qwen", repo = {repo}, files = ["text_encoder/"] }},
    {{ name = "clip", repo = {repo}, files = ["text_encoder2/"] }},
]
[vae]
parts = [{{ repo = {repo}, files = ["{vae}"] }}]
{more}
channels = {family.CHANNELS}
"""


def lora(path: Path) -> Path:
    """A file of PEFT's kind for the attention of `tiny-t2v`'s visual blocks."""
    generator, state = torch.Generator().manual_seed(4), dict[str, Any]()
    for name, weight in family.dit("t2v").state_dict().items():
        if "visual_transformer_blocks" in name and name.endswith("to_query.weight"):
            layer, (outputs, inputs) = name.removesuffix(".weight"), weight.shape
            state[f"{layer}.lora_A.weight"] = torch.randn(2, inputs, generator=generator) / inputs**0.5
            state[f"{layer}.lora_B.weight"] = torch.randn(outputs, 2, generator=generator)
    save_file(state, path)
    return path
