"""The honest measures on a run of the second Nano, before it is a model of the package.

    python -m kandinsky.lab.nano2.judge --data FOLDER --run runs/nano2 --out runs/nano2/judged [--clips 48]

Clips of each kind of scene against the real ones (plain, motions, cameras, counts, two subjects, places), the number
of steps, image to video with words, with none and with contradicting ones, and the 48 fixed prompts to look at, each
as the reader understands it.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from kandinsky.families.nano.decoder import NanoDecoder
from kandinsky.families.nano.linear import LinearPatches
from kandinsky.families.nano.scene_words import NOTHING, Said, said_of
from kandinsky.families.nano.scenes import ARRANGEMENTS, CAMERAS, MOTIONS, PLACES, TONES, Scene, Subject, plain_scene
from kandinsky.lab.nano.captions import held_colours
from kandinsky.lab.nano2.catalogue import Sources, catalogue
from kandinsky.lab.nano2.compose import render
from kandinsky.lab.nano2.fidelity import Clip, fidelity, jumps
from kandinsky.lab.nano2.measure import fixed_prompts, strips
from kandinsky.lab.nano2.memorise import STEPS, SceneDenoiser, network_params, sample
from kandinsky.lab.nano2.portraits import Portraits
from kandinsky.lab.nano2.reader import read
from kandinsky.lab.nano2.scenes import in_tones


def scene_groups(count: int) -> dict[str, list[Scene]]:
    """Scenes to be measured by kind, before colours that are held out for their concept; the same on every machine."""
    rng = np.random.default_rng(48)
    entries = catalogue()

    def drawn() -> tuple[int, int]:
        concept = int(rng.integers(len(entries)))
        return concept, int(rng.choice(held_colours(entries[concept])))

    def several(arrangement: str, *, same: bool) -> Scene:
        concept, colour = drawn()
        numbers = [concept if same else (concept + 131 * i) % len(entries) for i in range(3)]
        at = ARRANGEMENTS[arrangement]
        subjects = tuple(Subject(n, *place) for n, place in zip(numbers, at, strict=False))
        return Scene(subjects, colours=(colour, None), arrangement=arrangement)

    def placed() -> Scene:
        concept, colour = drawn()
        place = str(rng.choice(list(PLACES)[1:]))
        return replace(plain_scene(concept, colour), subjects=(Subject(concept, *PLACES[place]),), place=place)

    def in_tone(i: int, number: int) -> Scene:
        plain = plain_scene(number, int(rng.choice(held_colours(entries[number]))))
        return replace(plain, subjects=(Subject(number, tone=1 + i % len(TONES)),))

    numbers = [int(i * len(entries) / count) for i in range(count)]
    few = max(1, count // 3)
    people = in_tones()
    return {
        "plain": [plain_scene(n, int(rng.choice(held_colours(entries[n])))) for n in numbers],
        "motions": [replace(plain_scene(*drawn()), motion=MOTIONS[i % len(MOTIONS)]) for i in range(few)],
        "cameras": [replace(plain_scene(*drawn()), camera=CAMERAS[i % len(CAMERAS)]) for i in range(few)],
        "counts": [several(("side by side", "three in a row")[i % 2], same=True) for i in range(few)],
        "two subjects": [several(("side by side", "one above the other")[i % 2], same=False) for i in range(few)],
        "places": [placed() for _ in range(few)],
        "tones": [in_tone(i, people[i * len(people) // few]) for i in range(few)],
    }


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

    @torch.no_grad()
    def round_trip(self, clip: Clip) -> Clip:
        """Encoded and decoded."""
        video = torch.from_numpy(clip.astype(np.float32)).div(127.5).sub(1)[None]
        return to_pixels(self.decode(self.linear.encode(video)))[0]


def judge(trained: Trained, sources: Sources, out: Path, *, count: int = 48) -> dict[str, Any]:
    """All figures; sheets are written into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"step": trained.step, "learned decoder": trained.decoder is not None, "groups": {}}

    def write() -> None:
        (out / "figures.json").write_text(json.dumps(result, indent=1, ensure_ascii=False))

    groups = scene_groups(count)
    for name, scenes in groups.items():
        real = [to_pixels(render(scene, sources)[None])[0] for scene in scenes]
        labels = [" + ".join(catalogue()[s.concept or 0].en for s in scene.subjects) for scene in scenes]
        said = [said_of(scene, still=False) for scene in scenes]
        for steps in (STEPS, 2, 4, 8) if name == "plain" else (STEPS,):
            made = trained.make(said, scenes, steps=steps)
            figures = fidelity(made, real, labels, round_trip=trained.round_trip if steps == STEPS else None)
            result["groups"][f"{name}, {steps} steps"] = asdict(figures)
            logging.info("%s, %d steps: %.2f dB", name, steps, figures.psnr_db)
            if steps == STEPS:
                strips(made[:24], real[:24]).save(out / f"{name.replace(' ', '_')}.png")
        write()
    scenes = groups["plain"][::2]
    real = [to_pixels(render(scene, sources)[None])[0] for scene in scenes]
    images = [render(scene, sources, shown=1) for scene in scenes]
    full = [said_of(scene, still=False) for scene in scenes]
    open_words = [replace(s, words=dict.fromkeys(s.words, 0) | {"kind": 1}) for s in full]
    others = [Said(b.subjects, a.words) for a, b in zip(open_words, [*full[1:], full[0]], strict=True)]
    kinds = {"words that fit": full, "only the subject": open_words, "another subject": others}
    kinds["no words"] = [NOTHING] * len(full)
    result["images"] = {}
    nobody: list[Scene | None] = [None] * len(scenes)
    told: dict[str, list[Scene | None]] = {"no words": nobody, "another subject": [*scenes[1:], scenes[0]]}
    for name, said in kinds.items():
        made = trained.make(said, told.get(name, [*scenes]), images=images)
        result["images"][name] = asdict(jumps(made, real))
    write()
    understood = [(p["text"], read(p["text"])) for p in fixed_prompts()]
    known = [(text, u.scene) for text, u in understood if u.scene is not None]
    made = trained.make([said_of(s, still=False) for _, s in known], [s for _, s in known])
    strips(made).save(out / "fixed.png")
    result["fixed prompts"] = {text: {"ignored": u.ignored, "read": u.scene is not None} for text, u in understood}
    write()
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--average", type=int, default=0, help="0 for the short average of the weights, 1 for the long")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    sources = Sources(options.data)
    judge(Trained(options.run, average=options.average), sources, options.out, count=options.clips)


if __name__ == "__main__":
    main()
