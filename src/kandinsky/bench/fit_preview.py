"""Fit the colours of previews: the linear map from an autoencoder's latents to pixels that is nearest in least squares.

    python -m kandinsky.bench.fit_preview nano-t2v --seeds 2

makes a clip of each prompt and seed, compares each latent vector with the mean colour of the pixels it stands for, and
prints the table `[preview]` of a card, with the remaining error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from kandinsky.bench.calibrate import PROMPTS
from kandinsky.catalogue import load
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.preview import fit
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.model.card import LatentRGB
from kandinsky.model.values import Request

DIGITS = 4


def fit_preview(
    model: str,
    *,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (0,),
    device: str | None = None,
    first: bool = True,
) -> tuple[LatentRGB, float]:
    """Fit the map for a model's latents.

    Args:
        model: As for ``load``.
        prompts: Prompts of the clips.
        seeds: Seeds; each prompt is run with each.
        device: As for ``load``.
        first: Whether the first latent frame of a clip counts. Where it has latents of its own kind it should not: a
            preview shows the middle one.

    Returns:
        The map, and the root-mean-square error of its colours, which are 0 to 1.

    Raises:
        RequestError: The model does not generate clips or images.
    """
    pipe = load(model, device=device)
    if not isinstance(pipe, GenerationPipeline):
        raise RequestError(f"`{model}` makes no images: its previews are spectrograms, which are grey")
    latents, colours = [], []
    for prompt in prompts:
        for seed in seeds:
            some, seen = samples(pipe, prompt, seed, first=first)
            latents.append(some)
            colours.append(seen)
    given, wanted = torch.cat(latents), torch.cat(colours)
    weights, bias = fit(given, wanted)
    rows = tuple(tuple(round(value, DIGITS) for value in row) for row in weights)
    red, green, blue = (round(value, DIGITS) for value in bias)
    error = given @ torch.tensor(rows, dtype=given.dtype) + torch.tensor((red, green, blue), dtype=given.dtype) - wanted
    return LatentRGB(rows, (red, green, blue)), float(error.square().mean().sqrt())


def samples(pipe: GenerationPipeline, prompt: str, seed: int, *, first: bool = True) -> tuple[Tensor, Tensor]:
    """Generate one clip and pair its latents with colours.

    Args:
        pipe: The model.
        prompt: Prompt of the clip.
        seed: Its seed.
        first: As for ``fit_preview``.

    Returns:
        Latent vectors [N, C], and for each the mean colour [N, 3] of the pixels it stands for, 0 to 1.

    Raises:
        RequestError: The prompt or the seed is not valid.
    """
    job = pipe.resolve(Request(pipe.card.id, prompt, seed=seed))
    latents_THWC = pipe.sample(pipe.noise([job]), *pipe.encode([job]), job)[0].cpu()
    frames = torch.from_numpy(pipe.decode(latents_THWC[None])[0]).float() / 255
    temporal, spatial = pipe.card.clip.temporal, pipe.card.clip.spatial
    # the first latent frame stands for one pixel frame
    frames = torch.cat([frames[:1].expand(temporal, -1, -1, -1), frames[1:]])
    cells = frames.unflatten(2, (-1, spatial)).unflatten(1, (-1, spatial)).unflatten(0, (-1, temporal))
    begin = 0 if first else 1
    return latents_THWC[begin:].flatten(0, 2).float(), cells.mean((1, 3, 5))[begin:].flatten(0, 2)


def to_toml(rgb: LatentRGB) -> str:
    """Write the map as the table `[preview]` of a card."""
    rows = "\n".join(f"    [{', '.join(f'{value:g}' for value in row)}]," for row in rgb.weights)
    return f"[preview]\nbias = [{', '.join(f'{value:g}' for value in rgb.bias)}]\nweights = [\n{rows}\n]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command described above."""
    parser = argparse.ArgumentParser(prog="python -m kandinsky.bench.fit_preview", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt", action="append", help="repeatable; by default a few are used")
    parser.add_argument("--seeds", type=int, default=1, help="clips of each prompt")
    parser.add_argument("--device")
    parser.add_argument(
        "--without-first", action="store_true", help="the first latent frame of a clip has latents of its own kind"
    )
    given = parser.parse_args(arguments)
    try:
        rgb, error = fit_preview(
            given.model,
            prompts=given.prompt or PROMPTS,
            seeds=range(given.seeds),
            device=given.device,
            first=not given.without_first,
        )
    except KandinskyError as failure:
        sys.stderr.write(f"error: {failure}\n")
        return failure.exit_code
    how = f"{given.model}{' --without-first' if given.without_first else ''}"
    head = f"# by `python -m kandinsky.bench.fit_preview {how}`: a cell's mean colour is off by {error:.3f} of 1"
    sys.stdout.write(f"{head}\n{to_toml(rgb)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
