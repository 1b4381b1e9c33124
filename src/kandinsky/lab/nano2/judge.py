"""The honest measures on the shipped second Nano, or on a run of it before it is a model of the package.

    python -m kandinsky.lab.nano2.judge --data FOLDER --out judged                       # as it ships, packed
    python -m kandinsky.lab.nano2.judge --data FOLDER --out judged --run runs/nano2
    python -m kandinsky.lab.nano2.judge --data FOLDER --out judged --without-network     # drafts alone, decoded

``measures.py`` says what is measured; beside it are the number of steps, sheets of all clips, and the 48 fixed prompts
to look at, each as the reader understands it. Without ``--data`` clips are compared with the model's own portraits.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kandinsky.catalogue import load
from kandinsky.families.nano.scene_transformer import SceneTransformer
from kandinsky.lab.nano2.catalogue import Images, open_sources
from kandinsky.lab.nano2.evaluate import REFERENCES, Made, inside
from kandinsky.lab.nano2.fidelity import Clip
from kandinsky.lab.nano2.measures import (
    CLIPS,
    GROUPS,
    MEASURES,
    Make,
    PortraitImages,
    Read,
    Reference,
    RoundTrip,
    Session,
    caption_of,
    clip_figures,
    fixed_prompts,
    scene_groups,
)
from kandinsky.lab.nano2.picture import strips
from kandinsky.lab.nano2.trained import Trained
from kandinsky.lab.nano2.word_list import read

MODELS = {"text-to-video": "nano2-t2v", "image-to-video": "nano2-i2v"}
"""The shipped ones, by task."""


@torch.no_grad()
def silence(net: SceneTransformer) -> None:
    """Take from a network what it adds to a draft: clips are then decoded drafts."""
    net.local.out_layer.weight.zero_()
    net.out_layer.out_layer.weight.zero_()
    if net.out_layer.out_layer.bias is not None:
        net.out_layer.out_layer.bias.zero_()


@dataclass(frozen=True, slots=True)
class Judged:
    """What is judged: how it makes clips of words and beside images, and what its measures need of it.

    Args:
        told: What the figures say of it.
        portraits: Its own images of all concepts.
    """

    told: dict[str, Any]
    make: Make
    animate: Make
    read: Read
    round_trip: RoundTrip
    portraits: Images

    @classmethod
    def run(cls, folder: Path, *, average: int = 0, network: bool = True) -> Judged:
        """A run's networks; see ``Trained``."""
        trained = Trained(folder, average=average)
        dit = trained.network.dit
        if not network:
            silence(dit)
        portraits = PortraitImages(dit.portraits, trained.network.words)
        told = {"step": trained.step, "learned decoder": trained.decoder is not None, "network": network}
        return cls(told, trained, trained, read, trained.round_trip, portraits)

    @classmethod
    def shipped(cls, *, network: bool = True) -> Judged:
        """The models of the package, by its own pipelines."""
        pipe, beside = load(MODELS["text-to-video"]), load(MODELS["image-to-video"])
        if not network:
            for one in (pipe, beside):
                with one.placement.hold("dit") as dit:
                    silence(dit)
        told = {"model": pipe.card.id, "dtype": pipe.precision.name, "network": network}
        return cls(told, Made(pipe), Made(beside), *inside(pipe))


FARTHEST = 10
"""Plain clips on a sheet of their own, the worst first."""


def judge(
    judged: Judged, sources: Images | None, out: Path, *, count: int = CLIPS, groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """All figures; they and sheets are written into ``out``.

    Args:
        judged: A run or the shipped models.
        sources: The real images; None for the model's own portraits.
        out: The folder.
        count: Plain clips.
        groups: Only these of ``measures.GROUPS``; None for all, further steps and the 48 fixed prompts.
    """
    out.mkdir(parents=True, exist_ok=True)
    reference = Reference.of(judged.portraits if sources is None else sources, are_real=sources is not None)
    result: dict[str, Any] = dict(judged.told) | {"compared with": REFERENCES[sources is not None]}

    def write() -> None:
        (out / "figures.json").write_text(json.dumps(result, indent=1, ensure_ascii=False))

    def seen(name: str, made: list[Clip], meant: list[Clip]) -> None:
        logging.info("%s: %d clips", name, len(made))
        strips(made[:24], meant[:24]).save(out / f"{name.replace(' ', '_')}.png")
        if name == "plain":
            apart = [np.square(one.astype(float) - other).mean() for one, other in zip(made, meant, strict=True)]
            worst = np.argsort(apart)[: -FARTHEST - 1 : -1]
            sheet = strips([made[n] for n in worst], [meant[n] for n in worst], across=2)
            sheet.resize((sheet.width // 2, sheet.height // 2)).save(out / "farthest.webp", quality=75)

    session = Session(judged.make, reference, judged.read, count, None, judged.round_trip, groups, seen)
    for task, make in (("text-to-video", judged.make), ("image-to-video", judged.animate)):
        if groups is None or set(groups) & set(GROUPS[task]):
            result[task] = MEASURES[task](replace(session, make=make))
            write()
    if groups is None:
        scenes = scene_groups(count)["plain"]
        texts = [caption_of(scene, number) for number, scene in enumerate(scenes)]
        for steps in (2, 4, 8):
            result[f"plain, {steps} steps"] = clip_figures("plain", judged.make(texts, steps=steps), scenes, reference)
            write()
        texts = [prompt["text"] for prompt in fixed_prompts()]
        strips(judged.make(texts)).save(out / "fixed.png")
        result["fixed prompts, ignored"] = {text: ignored for text in texts if (ignored := judged.read(text).ignored)}
        write()
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of `kandinsky data nano`; without it: the model's portraits")
    parser.add_argument("--run", type=Path, help="a run; default: the shipped models")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--average", type=int, default=0, help="0 for the short average of the weights, 1 for the long")
    parser.add_argument("--without-network", action="store_true", help="decode drafts, without what is added to them")
    parser.add_argument("--group", action="append", choices=sum(GROUPS.values(), ()), help="only this group")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    sources = None if options.data is None else open_sources(options.data)
    network = not options.without_network
    if options.run is None:
        judged = Judged.shipped(network=network)
    else:
        judged = Judged.run(options.run, average=options.average, network=network)
    judge(judged, sources, options.out, count=options.clips, groups=options.group)


if __name__ == "__main__":
    main()
