"""Our pipelines with images against Diffusers' with the same tiny weights, text states, noise and times.

Where Diffusers deviates from the official code it is brought in line here, each time by name, besides what
``test_pipeline.py`` lists:
- it normalises the first four frames of an image's clip together, the official code one by one (ours is put in; that
  this is the difference is asserted);
- it fits images by another rule and takes a sample of the posterior (the image's latent is handed over);
- it takes sizes off its list to the nearest shape (its list gets ours).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import Kandinsky5Transformer3DModel
from PIL import Image

import kandinsky
from kandinsky.diffusion.first_frame import normalize_first_frame
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.model.values import Request
from tiny import family
from tiny.alignment import OurTimes, exact_rotation, prompts_of

__all__ = ["exact_rotation"]
STEPS, SHIFT, GUIDANCE = 3, 3.0, 4.0
PICTURE = Image.fromarray((np.add.outer(np.arange(64), np.arange(96))[..., None] * [1, 2, 3] % 256).astype(np.uint8))


def theirs(folder: Path, kind: str) -> Any:
    member = family.KINDS[kind]
    pipe = getattr(diffusers, member.pipeline)(
        transformer=Kandinsky5Transformer3DModel.from_pretrained(folder / "transformer"),
        vae=family.flux() if member.is_image else family.vae(),
        text_encoder=family.qwen(),
        tokenizer=None,
        text_encoder_2=family.clip(),
        tokenizer_2=None,
        scheduler=OurTimes(shift=SHIFT),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.resolutions = [(96, 64)]
    return pipe


def ours(folder: Path, kind: str) -> GenerationPipeline:
    pipe = kandinsky.load(folder, device="cpu")
    scale = (1.0, 1.0, 1.0) if family.KINDS[kind].is_image else (1.0, 3.16, 3.16)
    clip = dataclasses.replace(pipe.card.clip, sizes=("96x64",), default_size="96x64")
    sampling = dataclasses.replace(pipe.card.sampling, rope_scale=scale)
    pipe.card = dataclasses.replace(pipe.card, clip=clip, sampling=sampling)
    return pipe


@pytest.mark.usefixtures("exact_rotation")
@pytest.mark.parametrize("kind", ["i2v", "t2i", "i2i"])
def test_latents_and_frames_agree(folder_of: Callable[[str, str], Path], kind: str) -> None:
    folder = folder_of(kind, "diffusers")
    pipe, other = ours(folder, kind), theirs(folder, kind)
    image = None if kind == "t2i" else PICTURE
    request = Request("tiny", "a cat", width=96, height=64, steps=STEPS, shift=SHIFT, guidance=GUIDANCE, image=image)
    job = pipe.resolve(request.with_values(seed=11, seconds=0.9 if kind == "i2v" else 0))
    text, negative = pipe.encode([job])
    assert negative is not None
    noise, known = pipe.noise([job]), pipe.known([job])
    actual = pipe.sample(noise, text, negative, job, known=known)

    given = noise.clone()
    ones = torch.ones_like(noise[..., :1])
    call: dict[str, Any] = {}
    if kind == "i2v":
        given[:, :1] = known.clean["video"][:, :1]
        mask = ones * (torch.arange(noise.shape[1]) == 0)[:, None, None, None]
        given = torch.cat([given, torch.zeros_like(noise), mask], dim=-1)
        call = {"image": image, "num_frames": job.shape.frames}
        together = other.normalize_first_frame
        other.normalize_first_frame = lambda latents: latents
    elif kind == "i2i":
        given = torch.cat([given, known.extra["source"], ones], dim=-1)
        call = {"image": image}
    call |= {"height": 64, "width": 96, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    call |= {"latents": given.clone(), "output_type": "latent", "return_dict": False} | prompts_of(text, negative)
    (expected,) = other(**call)
    if kind == "i2v":
        alone = normalize_first_frame(expected)
        assert (together(expected.clone()) - alone)[:, :4].abs().max() > 1e-3, "they take the four frames together"
        expected = alone
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)

    if kind == "i2v":
        return  # their decoder lays tiles above 16 frames
    (pictures,) = other(**(call | {"latents": given, "output_type": "np"}))
    assert np.abs(pipe.decode(actual)[:, 0] / 255.0 - pictures).max() <= 1.5 / 255
