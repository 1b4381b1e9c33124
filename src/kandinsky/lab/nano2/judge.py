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
from safetensors.torch import load_file
from torch import Tensor

from kandinsky.catalogue import load
from kandinsky.families.nano.decoder import NanoDecoder
from kandinsky.families.nano.linear import LinearPatches
from kandinsky.families.nano.scene_encoder import said_beside_image
from kandinsky.families.nano.scene_transformer import SceneTransformer
from kandinsky.families.nano.scene_words import NOTHING, Said, said_of
from kandinsky.families.nano.scenes import Scene
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
from kandinsky.lab.nano2.objective import STEPS, SceneDenoiser, network_params, sample
from kandinsky.lab.nano2.picture import strips
from kandinsky.lab.nano2.portraits import Portraits
from kandinsky.lab.nano2.reader import read

MODELS = {"text-to-video": "nano2-t2v", "image-to-video": "nano2-i2v"}
"""The shipped ones, by task."""


def to_pixels(video_BTHWC: Tensor) -> list[Clip]:
    """[-1, 1] to clips uint8."""
    return list(((video_BTHWC.clamp(-1, 1) + 1) * 127.5).round().byte().numpy())


class Trained:
    """A run's networks.

    Args:
        run: Folder with ``linear.safetensors``, ``portraits.pt``, ``denoiser/checkpoint.pt`` and, where it is done,
            ``decoder/vae.safetensors``; without it clips show the borders of the linear decoder's patches.
        average: Which of the averaged weights.
    """

    def __init__(self, run: Path, *, average: int = 0) -> None:
        state = torch.load(run / "denoiser" / "checkpoint.pt", weights_only=True, mmap=True)
        self.step = int(state["step"])
        portraits = Portraits.read(run / "portraits.pt")
        self.scale_E = portraits.scale_E
        self.linear = LinearPatches()
        self.linear.load_state_dict(load_file(run / "linear.safetensors"))
        self.network = SceneDenoiser(network_params(), len(portraits.numbers_NPE))
        self.network.take(portraits, self.linear)
        self.network.load_state_dict(dict(self.network.named_buffers()) | state["averages"][average])
        self.network.eval()
        self.decoder: NanoDecoder | None = None
        if (run / "decoder" / "vae.safetensors").exists():
            self.decoder = NanoDecoder(self.linear)
            self.decoder.load_state_dict(load_file(run / "decoder" / "vae.safetensors"))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Video in [-1, 1] by the learned decoder, or by the linear one where there is none yet."""
        if self.decoder is None:
            return self.linear.decode(latents)
        with torch.autocast(latents.device.type, dtype=torch.bfloat16):
            out: Tensor = self.decoder(latents).float()
            return out

    @torch.no_grad()
    def make(
        self,
        said: Sequence[Said],
        places: Sequence[Scene | None],
        *,
        steps: int = STEPS,
        images: Sequence[Tensor] | None = None,
        batch: int = 12,
    ) -> list[Clip]:
        """Clips; ``images`` are first frames [1, H, W, 3] in [-1, 1]."""
        clips: list[Clip] = []
        for at in range(0, len(said), batch):
            first = None
            if images is not None:
                first = torch.cat([self.linear.encode(image[None])[:, 0] for image in images[at : at + batch]])
            part = slice(at, at + batch)
            latents = sample(self.network, said[part], places[part], seed=at, steps=steps, first_BHWC=first)
            clips += to_pixels(self.decode(latents))
        return clips

    def __call__(self, texts: Sequence[str], *, images: Sequence[Clip] | None = None, **fields: Any) -> list[Clip]:
        """One clip a text, as the package's model makes it; ``images`` are first frames."""
        understood = [read(text) for text in texts]
        scenes = [one.scene for one in understood]
        if images is None:
            said = [NOTHING if scene is None else said_of(scene, still=False) for scene in scenes]
            return self.make(said, scenes, **fields)
        frames = [torch.from_numpy(image.astype(np.float32)).div(127.5).sub(1)[None] for image in images]
        return self.make([said_beside_image(one) for one in understood], scenes, images=frames, **fields)

    @torch.no_grad()
    def round_trip(self, clip: Clip) -> Clip:
        """Encoded and decoded."""
        video = torch.from_numpy(clip.astype(np.float32)).div(127.5).sub(1)[None]
        return to_pixels(self.decode(self.linear.encode(video)))[0]


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
