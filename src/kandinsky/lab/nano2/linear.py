"""Fitting the second Nano's linear encoder: covariances of patches of random scenes, then principal components.

python -m kandinsky.lab.nano2.linear --data FOLDER --run runs/nano2
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kandinsky.families.nano.linear import LinearPatches
from kandinsky.files import replacing
from kandinsky.lab.nano2.catalogue import Sources
from kandinsky.lab.nano2.random_scenes import draw_scene
from kandinsky.lab.nano2.render import render

log = logging.getLogger(__name__)


def fit_linear(
    sources: Sources, target: Path, *, scenes: int = 1200, patches: int = 96, seed: int = 0
) -> LinearPatches:
    """Fit both maps on random scenes and write them; what is there already is read instead.

    Args:
        scenes: How many are drawn, every sixth of an emoji that is no concept.
        patches: How many places of a clip are looked at.
    """
    network = LinearPatches()
    if target.exists():
        network.load_state_dict(load_file(target))
        return network
    rng = np.random.default_rng(seed)
    rows: dict[str, list[Tensor]] = {"still": [], "moving": []}
    sums: dict[str, tuple[int, Tensor | float, Tensor | float]] = {name: (0, 0.0, 0.0) for name in rows}
    for number in range(scenes):
        alone = sources.wordless if number % 6 == 5 and sources.wordless else None
        video = render(draw_scene(rng, concepts=len(sources), wordless=alone), sources)[None]
        for name, part in (("still", video[:, :1]), ("moving", video[:, 1:])):
            seen = network.patchify(part).flatten(0, 3)
            rows[name].append(seen[torch.from_numpy(rng.permutation(len(seen))[:patches])])
        if number % 20 == 19 or number == scenes - 1:  # a sum of products is as large as the covariance: rarely
            for name, parts in rows.items():
                x = torch.cat(parts)
                count, total, products = sums[name]
                sums[name] = (count + len(x), total + x.sum(0), products + x.T @ x)
                parts.clear()
            log.info("looked at %d of %d scenes", number + 1, scenes)
    for name, (count, total, products) in sums.items():
        mean = torch.as_tensor(total) / count
        covariance = torch.as_tensor(products) / count - torch.outer(mean, mean)
        share = (network.still if name == "still" else network.moving).fit(covariance, mean)
        log.info("%s: the components hold %.4f of the variance", name, share)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as written:
        save_file(network.state_dict(), written)
    return network


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="folder that gets linear.safetensors")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    fit_linear(Sources(options.data), options.run / "linear.safetensors")


if __name__ == "__main__":
    main()
