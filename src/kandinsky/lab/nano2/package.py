"""Makes a run of the second Nano a model of the package: averaged weights, packed as rows of small integers.

    python -m kandinsky.lab.nano2.package --run runs/nano2 --out src/kandinsky/assets/nano2-t2v [--data FOLDER]

Writes `dit.safetensors`, `rows.safetensors` (what the encoder of portraits answers for each concept),
`vae.safetensors` and `words.json`, and says how large they are. With ``--data``, the folder of the images, it also
measures on the fixed scenes of `train.py` what packing costs, in decibels against the real clips and against the clips
before packing. Without a learned decoder in the run its place is filled by one that adds nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.families.nano.decoder import NanoDecoder
from kandinsky.families.nano.scene_words import RowMemory, SceneWords, said_of
from kandinsky.files import replacing
from kandinsky.lab.nano2.catalogue import Sources, catalogue
from kandinsky.lab.nano2.compose import render
from kandinsky.lab.nano2.judge import Trained
from kandinsky.lab.nano2.memorise import sample
from kandinsky.lab.nano2.portraits import PLACES
from kandinsky.lab.nano2.reader import scene_words
from kandinsky.lab.nano2.train import probe_scenes, psnr
from kandinsky.weights.read import read_state
from kandinsky.weights.write import write_state

ENDS = ("out_layer.out_layer", "visual_embeddings", "local.out_layer", "local.in_layer")
MEASURED = 1  # steps of the clips that show what packing costs


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits a number of the matrices of each file; all else is stored in eight, vectors in float32.

    The layers at the denoiser's ends have eight as well: with fewer, plain backgrounds are mottled.
    """

    denoiser: int = 4
    rows: int = 4
    autoencoder: int = 6


@torch.no_grad()
def rows_of(words: SceneWords, concepts: int, *, batch: int = 64) -> SceneWords:
    """The memory that a release keeps: what the encoder of portraits answers for each concept, and for none."""
    dim = words.place.shape[1]
    kept = SceneWords(RowMemory(concepts, tokens=PLACES, dim=dim), tokens=PLACES, dim=dim)
    kept.load_state_dict(words.state_dict(), strict=False)
    memory = kept.memory
    assert isinstance(memory, RowMemory)
    tokens = memory.tokens.unflatten(0, (concepts + 1, PLACES))
    for at in range(0, concepts + 1, batch):
        made, pooled = words.memory(torch.arange(at, min(at + batch, concepts + 1))[None])
        tokens[at : at + batch], memory.pooled[at : at + batch] = made[0], pooled[0]
    return kept


def package(trained: Trained, out: Path, *, bits: Bits | None = None) -> dict[str, int]:
    """Write the files.

    Args:
        trained: The run.
        out: Folder that gets them.
        bits: How they are stored.

    Returns:
        Their sizes in bytes by name.
    """
    bits = bits or Bits()
    out.mkdir(parents=True, exist_ok=True)
    decoder = trained.decoder or NanoDecoder(trained.linear)
    metadata = {"step": str(trained.step), "learned decoder": str(trained.decoder is not None)}
    parts: dict[str, tuple[nn.Module, int]] = {
        "dit.safetensors": (trained.network.dit, bits.denoiser),
        "rows.safetensors": (rows_of(trained.network.words, len(catalogue())), bits.rows),
        "vae.safetensors": (decoder, bits.autoencoder),
    }
    for name, (network, few) in parts.items():
        state = {key: value.detach().contiguous() for key, value in network.state_dict().items()}
        matrices = [key for key, value in state.items() if value.ndim > 1]
        small = [key for key in matrices if few == 8 or _packs(key, state[key])]
        chosen: dict[str, list[str]] = {}
        for key in matrices:
            own = few if key in small and not key.startswith(ENDS) else 8
            chosen.setdefault(f"int{own}", []).append(key)
        write_state(state, out / name, metadata=metadata, **chosen)  # type: ignore[arg-type]
    with replacing(out / "words.json") as part:
        part.write_text(json.dumps(scene_words(), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return {name: (out / name).stat().st_size for name in (*parts, "words.json")}


def _packs(name: str, value: Tensor) -> bool:
    """Whether a tensor is large and may have few bits: words have one row each, and there are few of them."""
    return value.ndim == 2 and value.shape[1] % 8 == 0 and not name.startswith(("word_", "which", "place", "memory.po"))


@torch.no_grad()
def cost_of(trained: Trained, folder: Path, sources: Sources, *, count: int = 24) -> dict[str, float]:
    """What packing costs on the fixed scenes: decibels against the real clips, and against the clips before it."""
    scenes = probe_scenes(len(sources))[:count]
    said = [said_of(scene, still=False) for scene in scenes]
    real = torch.stack([render(scene, sources) for scene in scenes])

    def clips() -> Tensor:
        made = [
            trained.decode(sample(trained.network, said[at : at + 12], scenes[at : at + 12], steps=MEASURED, seed=at))
            for at in range(0, len(said), 12)
        ]
        return torch.cat(made).clamp(-1, 1)

    before = clips()
    trained.network.dit.load_state_dict(read_state(folder / "dit.safetensors"))
    trained.network.words = rows_of(trained.network.words, len(sources))
    trained.network.words.load_state_dict(read_state(folder / "rows.safetensors"))
    decoder = trained.decoder = NanoDecoder(trained.linear)
    decoder.load_state_dict(read_state(folder / "vae.safetensors"))
    after = clips()
    whole, small, apart = (np.array(psnr(a, b)) for a, b in ((before, real), (after, real), (after, before)))
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
    parser.add_argument("--row-bits", type=int, choices=(4, 5, 6, 8), default=Bits().rows)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (options.run / "denoiser" / "checkpoint.pt").exists():
        raise RequestError(f"`{options.run}` has no denoiser/checkpoint.pt: give the folder that train.py writes into")
    trained = Trained(options.run, average=options.average)
    sizes = package(trained, options.out, bits=Bits(options.denoiser_bits, options.row_bits))
    result = {"step": trained.step, "bytes": sizes, "megabytes": round(sum(sizes.values()) / 1e6, 2)}
    if options.data is not None:
        result["packing"] = cost_of(trained, options.out, Sources(options.data))
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
