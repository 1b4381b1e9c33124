"""Makes a run of the second Nano a model of the package: averaged weights, packed as rows of small integers.

    python -m kandinsky.lab.nano2.package --run runs/nano2 --out src/kandinsky/assets/nano2-t2v [--data FOLDER]

Writes `dit.safetensors` and `vae.safetensors`, `linear.safetensors` with the encoder that both need and an index for
each of them, `tones.safetensors` (tones of skin, see `tones.py`), `rows.safetensors` (the memory of words) and
`words.json.xz`, and says how large they are. With ``--data``, the folder of the images, it also measures on the fixed
scenes of `train.py` what packing costs, in decibels against the real clips and against the clips before packing.
Without a learned decoder in the run its place is filled by one that adds nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.evaluate.clips import psnr
from kandinsky.families.nano.decoder import NanoDecoder
from kandinsky.families.nano.scene_words import SceneWords, said_of
from kandinsky.files import replacing
from kandinsky.lab.nano2.catalogue import Sources, catalogue
from kandinsky.lab.nano2.fidelity import Clip
from kandinsky.lab.nano2.measures import to_clip
from kandinsky.lab.nano2.render import render
from kandinsky.lab.nano2.tones import PREFIX, add_to
from kandinsky.lab.nano2.train import probe_scenes
from kandinsky.lab.nano2.trained import Trained
from kandinsky.lab.nano2.word_list import write
from kandinsky.weights.read import read_state
from kandinsky.weights.write import write_state

ENDS = ("out_layer.out_layer", "visual_embeddings", "local.out_layer", "local.in_layer")
MEASURED = 1  # steps of the clips that show what packing costs
LINEAR = "linear."  # names of the encoder's maps, in the denoiser and in the autoencoder alike


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits a number of the matrices of each file; all else is stored in eight, vectors in float32.

    The layers at the denoiser's ends have eight as well: with fewer, plain backgrounds are mottled. What decodes
    portraits and the codes of portraits themselves are no part of this: see ``portraits.py``.
    """

    denoiser: int = 4
    decoder: int = 8
    linear: int = 8
    portraits: int = 8


def package(trained: Trained, out: Path, *, bits: Bits | None = None) -> dict[str, int]:
    """Write the files.

    The linear encoder lies in a file of its own, of which the indexes of denoiser and autoencoder make a part of each.

    Args:
        trained: The run.
        out: Folder that gets them.
        bits: How they are stored.

    Returns:
        Their sizes in bytes by name.
    """
    bits = bits or Bits()
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"step": str(trained.step), "learned decoder": str(trained.decoder is not None)}
    dit = plain(trained.network.dit.state_dict())
    decoder = plain((trained.decoder or NanoDecoder(trained.linear)).state_dict())
    linear = {name: dit.pop(name) for name in list(dit) if name.startswith(LINEAR)}
    decoder = {name: value for name, value in decoder.items() if not name.startswith(LINEAR)}
    dit = {name: value for name, value in dit.items() if not name.startswith(PREFIX)}
    few = {name: bits.portraits if name.startswith("portraits.") else bits.denoiser for name in dit}
    write_few(dit, out / "dit.safetensors", few, metadata)
    write_few(decoder, out / "vae.safetensors", dict.fromkeys(decoder, bits.decoder), metadata)
    write_few(linear, out / "linear.safetensors", dict.fromkeys(linear, bits.linear), metadata)
    for name, own in (("dit", dit), ("vae", decoder)):
        files = dict.fromkeys(own, f"{name}.safetensors") | dict.fromkeys(linear, "linear.safetensors")
        with replacing(out / f"{name}.safetensors.index.json") as part:
            part.write_text(json.dumps({"metadata": {}, "weight_map": files}, indent=0) + "\n", encoding="utf-8")
    add_to(trained.network.dit.portraits.tones, out, metadata)
    words = SceneWords(len(catalogue()), codes=trained.scale_E.numel(), pooled=trained.network.dit.params.in_text_dim2)
    state = plain(trained.network.words.state_dict())
    kept = {name: value[: len(own)] for name, own in words.state_dict().items() for value in [state[name]]}
    matrices = [name for name in kept if name != "memory.codes"]
    write_state(kept, out / "rows.safetensors", metadata=metadata, int8=matrices, xz={"memory.codes": trained.scale_E})
    write(out / "words.json.xz")
    names = (*(f"{name}.safetensors" for name in ("dit", "vae", "linear", "tones", "rows")), "words.json.xz")
    return {name: (out / name).stat().st_size for name in names}


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they can be written."""
    return {name: value.detach().contiguous() for name, value in state.items()}


def write_few(state: Mapping[str, Tensor], path: Path, bits: Mapping[str, int], metadata: Mapping[str, str]) -> None:
    """Write matrices with few bits a number where that can be."""
    chosen: dict[str, list[str]] = {}
    for name, value in state.items():
        if value.ndim > 1:
            packs = value.ndim == 2 and value.shape[1] % 8 == 0 and not name.startswith(ENDS)
            chosen.setdefault(f"int{bits[name] if packs else 8}", []).append(name)
    write_state(state, path, metadata=metadata, **chosen)  # type: ignore[arg-type]


@torch.no_grad()
def cost_of(trained: Trained, folder: Path, sources: Sources, *, count: int = 24) -> dict[str, float]:
    """What packing costs on the fixed scenes: decibels against the real clips, and against the clips before it."""
    scenes = probe_scenes(len(sources))[:count]
    said = [said_of(scene, still=False) for scene in scenes]
    real = [to_clip(render(scene, sources)) for scene in scenes]

    def decibels(made: list[Clip], meant: list[Clip]) -> np.ndarray:
        return np.array([psnr(*pair) for pair in zip(made, meant, strict=True)])

    before = trained.make(said, scenes, steps=MEASURED)
    params = trained.network.dit.params
    trained.network.dit.load_state_dict(read_state(folder / "dit.safetensors.index.json"))
    trained.network.words = SceneWords(len(sources), codes=params.in_text_dim, pooled=params.in_text_dim2)
    trained.network.words.load_state_dict(read_state(folder / "rows.safetensors"))
    decoder = trained.decoder = NanoDecoder(trained.linear)
    decoder.load_state_dict(read_state(folder / "vae.safetensors.index.json"))
    after = trained.make(said, scenes, steps=MEASURED)
    whole, small, apart = decibels(before, real), decibels(after, real), decibels(after, before)
    return {
        "before_db": float(np.median(whole)),
        "after_db": float(np.median(small)),
        "mean_change_db": float((small - whole).mean()),
        "apart_db": float(np.median(apart)),
        "farthest_apart_db": float(apart.min()),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of the images: measure what packing costs")
    parser.add_argument("--average", type=int, default=0, help="0 for the short average of the weights, 1 for the long")
    parser.add_argument("--denoiser-bits", type=int, choices=(4, 5, 6, 8), default=Bits().denoiser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (options.run / "denoiser" / "checkpoint.pt").exists():
        raise RequestError(f"`{options.run}` has no denoiser/checkpoint.pt: give the folder that train.py writes into")
    trained = Trained(options.run, average=options.average)
    sizes = package(trained, options.out, bits=Bits(options.denoiser_bits))
    result = {"step": trained.step, "bytes": sizes, "megabytes": round(sum(sizes.values()) / 1e6, 2)}
    if options.data is not None:
        result["packing"] = cost_of(trained, options.out, Sources(options.data))
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
