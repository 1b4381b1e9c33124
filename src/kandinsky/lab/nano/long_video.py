"""How long clips of nano hold together: seams between windows, the subject in every second, and what moves.

    python -m kandinsky.lab.nano.long_video --seconds 8 --steps 10 --clips .cache/nano --sheets runs/long

A seam is the change between the last frame of one window and the first that the next makes, over the median change
between neighbouring frames. The subject is judged by retrieval among all concepts of nano, as in ``measure``: the mean
image of a second against the mean image of each real clip. Drift is the change of that image from the first two seconds
to the last, as PSNR. The ways that are compared differ in what a window is given of the one before.

Legend: T H W frames, rows, columns of pixels; K concepts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import kandinsky
from kandinsky.engine import long
from kandinsky.engine.conditions import pixels_of
from kandinsky.engine.context import Context
from kandinsky.engine.windows import Window
from kandinsky.lab.nano.captions import WHITE, Prompt
from kandinsky.lab.nano.concepts import load_concepts
from kandinsky.lab.nano.emoji import Clips
from kandinsky.lab.nano.measure import NanoJudge, choose_prompts, shrink
from kandinsky.media.video import read_video, write_sheet
from kandinsky.model.values import Request, Video

Carry = Callable[[Context, Window, long.Before], Tensor]


def latents_alone(context: Context, window: Window, before: long.Before) -> Tensor:
    """All of them as they were sampled."""
    return before.latents_1THWC[:, window.start - before.start : window.known - before.start]


def encoded_again(context: Context, window: Window, before: long.Before) -> Tensor:
    """The pixel frames that they were decoded to, encoded as a clip."""
    if before.frames_THWC is None:
        return latents_alone(context, window, before)
    return long.encoded(context, before.frames_THWC)


@dataclass(frozen=True, slots=True)
class Way:
    """What a window is given of the one before.

    Attributes:
        model: Catalogue id.
        carry: The latents it knows.
        options: Further fields of the request.
    """

    model: str
    carry: Carry
    options: dict[str, Any]


WAYS: dict[str, Way] = {
    "latents": Way("nano-t2v", latents_alone, {}),
    "encoded again": Way("nano-t2v", encoded_again, {}),
    "still and latents": Way("nano-t2v", long.carried, {}),
    "overlap 0.3": Way("nano-t2v", long.carried, {"overlap": 0.3}),
    "overlap 1.0": Way("nano-t2v", long.carried, {"overlap": 1.0}),
    "resample 1": Way("nano-t2v", long.carried, {"resample": 1}),
    "nano-i2v": Way("nano-i2v", long.carried, {}),
    "nano-i2v overlap 1.0": Way("nano-i2v", long.carried, {"overlap": 1.0}),
}


@dataclass(frozen=True, slots=True)
class Held:
    """How one clip holds together.

    Attributes:
        seam: Mean change at borders of windows, over the median change.
        worst: The largest of them.
        usual: The same at the other borders of the groups of frames that share a latent, within windows.
        motion: Median change between neighbouring frames, of 255.
        subject: Share of seconds in which the subject is the nearest of all concepts; NaN without real clips.
        drift: PSNR in dB of the mean image of the last two seconds against the first two.
    """

    seam: float
    worst: float
    usual: float
    motion: float
    subject: float
    drift: float


def mean_image(frames_THWC: np.ndarray) -> Tensor:
    """[24·24·3], of all frames."""
    return shrink(frames_THWC).view(len(frames_THWC), -1).mean(dim=0)


def subject_share(judge: NanoJudge, frames_THWC: np.ndarray, prompt: Prompt, second: int) -> float:
    """The share of seconds whose mean image is nearest to that of the concept's real clip, over the same background."""
    real_K = judge.candidates(prompt.colour)
    real_K = real_K.view(len(real_K), -1, mean_image(frames_THWC[:1]).numel()).mean(dim=1)
    hits = []
    for begin in range(0, len(frames_THWC) - second + 1, second):
        distances = (real_K - mean_image(frames_THWC[begin : begin + second])).pow(2).mean(dim=1)
        hits.append(int(distances.argmin()) == prompt.concept_index)
    return float(np.mean(hits))


def held(video: Video, borders: Sequence[int], judge: NanoJudge | None, prompt: Prompt, *, group: int = 4) -> Held:
    """Measure a clip.

    Args:
        video: The clip.
        borders: The first frames of windows.
        judge: Judges the subject; None for no judgement.
        prompt: What was asked for.
        group: Pixel frames of a latent frame.
    """
    jumps = np.array([np.abs(a.astype(np.float64) - b).mean() for a, b in pairwise(video.frames)])
    seams = jumps[np.array(borders, int) - 1] / np.median(jumps)
    inside = jumps[np.setdiff1d(np.arange(group, len(jumps), group), np.array(borders, int) - 1)] / np.median(jumps)
    second = round(video.fps)
    error = (mean_image(video.frames[: 2 * second]) - mean_image(video.frames[-2 * second :])).pow(2).mean()
    subject = float("nan") if judge is None else subject_share(judge, video.frames, prompt, second)
    drift = float(-10 * torch.log10(error.clamp_min(1e-9)))
    return Held(float(seams.mean()), float(seams.max()), float(inside.mean()), float(np.median(jumps)), subject, drift)


def of_file(file: Path, judge: NanoJudge | None) -> Held:
    """Measure a clip whose prompt is the label of a concept, with an article."""
    video = read_video(file)
    label = str(video.recipe["prompt"]).removeprefix("a ").removeprefix("an ")
    entries = load_concepts()
    numbers = [i for i, one in enumerate(entries) if one.label("en") == label]
    prompt = Prompt(str(video.recipe["prompt"]), "en", numbers[0] if numbers else 0, WHITE, "label")
    names = ("prompt_at", "fade", "overlap", "loop", "seconds")
    asked = {name: video.recipe[name] for name in names if name in video.recipe}
    model = str(video.recipe["model"])
    pipe = kandinsky.load(model, device="cpu")
    borders = borders_of(pipe, Request(model, str(video.recipe["prompt"]), **asked))
    return held(video, borders, judge if numbers else None, prompt, group=pipe.card.clip.temporal)


def borders_of(pipe: Any, asked: Request) -> list[int]:
    """The first frames that the windows after the first make."""
    job = pipe.resolve(asked)
    assert job.long is not None
    return [pixels_of(window.makes, pipe.card.clip.temporal)[0] for window in job.long.windows[1:]]


def runs(names: Sequence[str]) -> Iterator[tuple[str, Way, Any]]:
    """The ways by name, each with its model."""
    pipes: dict[str, Any] = {}
    for name in names:
        way = WAYS[name]
        if way.model not in pipes:
            pipes[way.model] = kandinsky.load(way.model, device="cpu")
        yield name, way, pipes[way.model]


def main() -> None:
    """Print one line per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--clips", type=Path, help="cache of the real clips; without it the subject is not judged")
    parser.add_argument("--sheets", type=Path)
    parser.add_argument("--file", type=Path, help="judge this clip, of one concept on white, instead")
    asked = parser.parse_args()
    judge = None if asked.clips is None else NanoJudge(Clips(asked.clips), load_concepts(), side=96)
    if asked.file is not None:
        m = of_file(asked.file, judge)
        sys.stdout.write(f"seam {m.seam:.2f}, worst {m.worst:.2f}, usual {m.usual:.2f}, motion {m.motion:.2f}, "
                         f"subject {m.subject:.1%}, drift {m.drift:.1f} dB\n")  # fmt: skip
        return
    prompts = choose_prompts(asked.prompts)["en label"]
    if asked.sheets is not None:
        asked.sheets.mkdir(parents=True, exist_ok=True)
    sys.stdout.write(f"{', '.join(prompt.text for prompt in prompts)}; {torch.get_num_threads()} threads\n")
    sys.stdout.write(f"{'way':21} seam  worst  usual  motion  subject  drift dB\n")
    for name, way, pipe in runs(asked.ways):
        rows = []
        for number, prompt in enumerate(prompts):
            options = {"seconds": asked.seconds, "steps": asked.steps, "seed": 50 + number, **way.options}
            if pipe.card.does.image == "required":
                still = kandinsky.load("nano-t2v", device="cpu")(
                    prompt.text, seconds=0, seed=50 + number, progress=False
                )
                options["image"] = still[0]
            with patch.object(long, "carried", way.carry):
                video = pipe(prompt.text, progress=False, **options)
            rows.append(held(video, borders_of(pipe, Request(way.model, prompt.text, **options)), judge, prompt))
            if asked.sheets is not None:
                file = f"{name}-{number}.png".replace(" ", "-")
                write_sheet(video, asked.sheets / file, columns=max(8, round(asked.seconds)))
        m = Held(*(float(value) for value in np.mean([list(vars_of(row)) for row in rows], axis=0)))
        sys.stdout.write(
            f"{name:21} {m.seam:4.2f}  {m.worst:5.2f}  {m.usual:5.2f}  {m.motion:6.2f}  {m.subject:7.1%}  "
            f"{m.drift:8.1f}\n"
        )
        sys.stdout.flush()


def vars_of(row: Held) -> Iterator[float]:
    """The figures in order."""
    return (getattr(row, name) for name in Held.__slots__)


if __name__ == "__main__":
    main()
