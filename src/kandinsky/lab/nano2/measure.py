"""The honest measures, run on a model of the package: ``python -m kandinsky.lab.nano2.measure nano-t2v --data FOLDER``.

Writes ``figures.json`` and contact sheets into ``--out``: fidelity to the real clip with the model's defaults and
with few passes, what the text side understands, the first jump of image to video with words that fit, words that say
nothing of the background, words of something else and no words, and the fixed 48 prompts to look at.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kandinsky.catalogue import load
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.families.nano.text_encoder import NanoTextEncoder
from kandinsky.lab.nano import captions
from kandinsky.lab.nano.captions import Prompt, evaluation_prompts
from kandinsky.lab.nano.concepts import LANGUAGES, Language, load_concepts, plain
from kandinsky.lab.nano.emoji import Clips, Scene, composite
from kandinsky.lab.nano.train_autoencoder import to_unit
from kandinsky.lab.nano2.fidelity import Clip, fidelity, jumps, reading
from kandinsky.model.values import Request

UNKNOWN = {
    "en": (
        "asdfgh",
        "qwertz",
        "a blorptak",
        "democracy",
        "the square root of two",
        "tuesday",
        "an isotope",
        "tax form",
    ),
    "ru": ("ыфвапр", "йцукен", "бырзяк", "демократия", "квадратный корень", "вторник", "изотоп", "налоговый вычет"),
}
"""Texts with nothing in them that can be shown."""


@dataclass(slots=True)
class Made:
    """Clips of a batch of requests."""

    pipe: GenerationPipeline
    batch: int = 8

    def __call__(
        self, texts: Sequence[str], *, images: Sequence[Clip] | None = None, first_seed: int = 0, **fields: Any
    ) -> list[Clip]:
        """One clip a text, seed 0, 1, 2 …, or from another on."""
        clips: list[Clip] = []
        for at in range(0, len(texts), self.batch):
            requests = [
                Request(
                    self.pipe.card.id, text, seed=first_seed + at + i, image=None if images is None else images[at + i]
                )
                for i, text in enumerate(texts[at : at + self.batch])
            ]
            requests = [request.with_values(**fields) for request in requests]
            videos = self.pipe.run_batch([self.pipe.resolve(request) for request in requests])
            clips += [video.frames_THWC for video in videos]
        return clips


def thinned(items: Sequence[Any], count: int) -> list[Any]:
    """Evenly taken from all."""
    keep = min(count, len(items))
    return [items[int(i * len(items) / keep)] for i in range(keep)]


def real_clip(clips: Clips, concept: int, colour: int, side: int) -> Clip:
    """The real clip of a concept over a colour."""
    rgba = np.asarray(clips.rgba_NTHWC[clips.row(load_concepts()[concept].file)])
    return composite(rgba, Scene(captions.COLOURS[colour].rgb), side=side)


def labels(pipe: GenerationPipeline, clips: Clips, count: int) -> tuple[list[str], list[Clip]]:
    """Label prompts over held-out colours, and the real clip of each at the size of the model."""
    side = int(pipe.card.clip.default_size.split("x")[1])
    prompts: list[Prompt] = thinned([p for p in evaluation_prompts() if p.kind == "label"], count)
    return [p.text for p in prompts], [real_clip(clips, p.concept_index, p.colour, side) for p in prompts]


def measure_passes(pipe: GenerationPipeline, clips: Clips, count: int, chosen: Sequence[str]) -> dict[str, Any]:
    """Fidelity by steps and guidance, ``STEPS:GUIDANCE``: what few passes cost, and what a student loses."""
    names, real = labels(pipe, clips, count)
    make = Made(pipe)
    result = {}
    for one in chosen:
        steps, _, guidance = one.partition(":")
        made = make(names, steps=int(steps), guidance=float(guidance or 1))
        result[one] = asdict(fidelity(made, real, names))
        row = ", ".join(f"{key} {result[one][key]:.2f}" for key in ("psnr_db", "over_20", "first_frame_db", "flicker"))
        sys.stdout.write(f"{pipe.card.id} {one}: {row}\n")
    return result


def measure_clips(pipe: GenerationPipeline, clips: Clips, count: int) -> tuple[dict[str, Any], list[Clip], list[Clip]]:
    """Fidelity over label prompts with held-out colours: with the defaults, and with 8 and 2 steps without guidance."""
    names, real = labels(pipe, clips, count)
    make = Made(pipe)
    with pipe.placement.hold("vae") as vae:
        dtype = next(vae.parameters()).dtype

        @torch.no_grad()
        def round_trip(clip: Clip) -> Clip:
            out = vae.decode(vae.encode(to_unit(clip)[None].to(dtype))).float()
            return np.asarray(((out[0].clamp(-1, 1) + 1) * 127.5).to(torch.uint8))

        made = make(names)
        result = {"defaults": asdict(fidelity(made, real, names, round_trip=round_trip))}
    for steps in (8, 2):
        few = make(names, steps=steps, guidance=1.0)
        result[f"{steps} steps without guidance"] = asdict(fidelity(few, real, names))
    return result, made, real


def measure_reading(encoder: NanoTextEncoder, *, sentences: int = 400) -> dict[str, Any]:
    """Concepts chosen for single held-out synonyms, for sentences, and for texts with nothing in them.

    A text with nothing in it is right where the model says so; this one has no way to, so the share is that of texts
    whose surest concept gets less than a tenth.
    """

    @torch.no_grad()
    def chosen(texts: Sequence[str]) -> tuple[list[int], list[float]]:
        ids, mask, _ = encoder.tokenize(texts)
        logits = encoder.network.read(ids, mask).logits["concept"]
        best = (encoder.network.sharpness * logits).softmax(-1).max(-1)
        return best.indices.tolist(), best.values.tolist()

    result: dict[str, Any] = {}
    entries = load_concepts()
    for lang in LANGUAGES:
        pairs = [(plain(tag), i) for i, c in enumerate(entries) for tag in c.tags(lang).held]
        result[f"{lang} single synonyms"] = asdict(reading(chosen([t for t, _ in pairs])[0], [i for _, i in pairs]))
        rng = random.Random(1)
        numbers = [rng.randrange(len(entries)) for _ in range(sentences)]
        texts = [
            captions.caption(entries[i], rng.randrange(12), lang=lang, rng=rng, camera=rng.choice([None, "zoom in"]))
            for i in numbers
        ]
        result[f"{lang} sentences"] = asdict(reading(chosen(texts)[0], numbers))
        sure = [None if p < 0.1 else 0 for p in chosen(UNKNOWN[lang])[1]]
        result[f"{lang} unknown"] = asdict(reading(sure, [None] * len(sure)))
        few = numbers[:50]
        no = ["no {}", "without {}"] if lang == "en" else ["не {}", "без {}"]
        texts = [no[n % 2].format(entries[i].label(lang)) for n, i in enumerate(few)]
        right = [a != b for a, b in zip(chosen(texts)[0], few, strict=True)]
        result[f"{lang} negation"] = {"texts": len(few), "right": float(np.mean(right))}
    return result


def measure_images(pipe: GenerationPipeline, clips: Clips, count: int) -> dict[str, Any]:
    """First frames of concepts over held-out colours, with four kinds of words."""
    side = int(pipe.card.clip.default_size.split("x")[1])
    entries = load_concepts()
    numbers = thinned(range(len(entries)), count)
    colours = [captions.held_colours(entries[i])[i % len(captions.held_colours(entries[i]))] for i in numbers]
    real = [real_clip(clips, i, c, side) for i, c in zip(numbers, colours, strict=True)]
    lang: list[Language] = [LANGUAGES[n % 2] for n in range(len(numbers))]
    labels = [entries[i].label(la) for i, la in zip(numbers, lang, strict=True)]
    others = [entries[(i + 97) % len(entries)].label(la) for i, la in zip(numbers, lang, strict=True)]
    grounds = [captions.background(c, la) for c, la in zip(colours, lang, strict=True)]
    moves = {"en": "moves", "ru": "движется"}
    texts = {
        "words that fit": [f"{a} {b}" for a, b in zip(labels, grounds, strict=True)],
        "no word of the background": [f"{a} {moves[la]}" for a, la in zip(labels, lang, strict=True)],
        "words of something else": others,
        "no words": [""] * len(numbers),
    }
    make = Made(pipe)
    images = [clip[0] for clip in real]
    return {name: asdict(jumps(make(words, images=images), real)) for name, words in texts.items()}


def strips(made: Sequence[Clip], real: Sequence[Clip] | None = None, *, across: int = 3) -> Image.Image:
    """Clips as six frames each; the real ones, where given, above the made."""

    def strip(clip: Clip) -> np.ndarray:
        return np.concatenate([clip[t] for t in np.linspace(0, len(clip) - 1, 6).astype(int)], axis=1)

    cells = [strip(c) if real is None else np.concatenate([strip(real[i]), strip(c)]) for i, c in enumerate(made)]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % across)
    return Image.fromarray(
        np.concatenate([np.concatenate(cells[at : at + across], 1) for at in range(0, len(cells), across)])
    )


def fixed_prompts() -> list[dict[str, str]]:
    """The 48 prompts written down beforehand: ``text``, and what a person must name from its clip."""
    text = resources.files("kandinsky.lab.nano2").joinpath("fixed_prompts.json").read_text("utf-8")
    return list(json.loads(text))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="nano-t2v")
    parser.add_argument("--data", type=Path, required=True, help="folder of `kandinsky data nano`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=48, help="label prompts")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--passes", nargs="+", metavar="STEPS:GUIDANCE", help="only fidelity, at each of these")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    clips = Clips(options.data)
    pipe = load(options.model)
    figures: dict[str, Any] = {}

    def write() -> None:
        (options.out / "figures.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False))

    if options.passes:
        figures["passes"] = measure_passes(pipe, clips, options.clips, options.passes)
        return write()
    with pipe.placement.hold("text") as encoder:
        figures["reading"] = measure_reading(encoder)
    write()
    figures["fidelity"], made, real = measure_clips(pipe, clips, options.clips)
    strips(made, real).save(options.out / "labels.png")
    write()
    strips(Made(pipe)([p["text"] for p in fixed_prompts()])).save(options.out / "fixed.png")
    figures["images"] = measure_images(load(options.model.replace("t2v", "i2v")), clips, options.images)
    write()


if __name__ == "__main__":
    main()
