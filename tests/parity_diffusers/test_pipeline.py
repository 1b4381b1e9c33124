"""Our pipeline against ``diffusers.Kandinsky5T2VPipeline`` with the same tiny weights, text states, noise and times.

Where Diffusers deviates from the official code it is brought in line here, each time by name:
- rotary results are rounded to bfloat16 (lifted), and timesteps are cast to the model's type (float32 here, so exact);
- its schedule is another one (ours is put in; the distance is asserted below);
- its templates, cropping and prompt cleaning differ (text states are handed over);
- its rotary scale follows the size of the clip (our card is given the same);
- guidance below 1 is not applied (not compared);
- its autoencoder tiles in time above 16 frames (the clip here has 5).
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel

import kandinsky
from kandinsky.diffusion.schedule import flow_times
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.engine.request import Job
from kandinsky.model.values import Request, TextEmbeddings
from tiny import family
from tiny.alignment import OurTimes, exact_rotation, prompts_of

__all__ = ["exact_rotation"]
STEPS, SHIFT = 3, 5.0


@pytest.fixture
def theirs(diffusers_folder: Path) -> Kandinsky5T2VPipeline:
    """Diffusers' pipeline, its transformer read by Diffusers from the folder we read too."""
    pipe = Kandinsky5T2VPipeline(
        transformer=Kandinsky5Transformer3DModel.from_pretrained(diffusers_folder / "transformer"),
        vae=family.vae(),
        text_encoder=family.qwen(),
        tokenizer=None,
        text_encoder_2=family.clip(),
        tokenizer_2=None,
        scheduler=OurTimes(shift=SHIFT),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def ours(diffusers_folder: Path) -> GenerationPipeline:
    pipe = kandinsky.load(diffusers_folder, device="cpu")
    pipe.card = dataclasses.replace(
        pipe.card,
        clip=dataclasses.replace(pipe.card.clip, sizes=("64x96",), default_size="64x96"),
        sampling=dataclasses.replace(pipe.card.sampling, rope_scale=(1.0, 3.16, 3.16)),
    )
    return pipe


def resolved(pipe: GenerationPipeline, guidance: float) -> Job:
    request = Request(
        model="tiny", prompt="a cat", seconds=0.2, width=64, height=96, steps=STEPS, shift=SHIFT, guidance=guidance
    )
    return pipe.resolve(request.with_values(seed=11))


def run_theirs(
    pipe: Kandinsky5T2VPipeline, job: Job, noise, text: TextEmbeddings, negative: TextEmbeddings, output: str
):
    latents = torch.cat([noise, torch.zeros(*noise.shape[:-1], family.CHANNELS + 1)], dim=-1)
    return pipe(
        height=job.shape.height,
        width=job.shape.width,
        num_frames=job.shape.frames,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        latents=latents,
        **prompts_of(text, negative),
        output_type=output,
    ).frames


@pytest.mark.usefixtures("exact_rotation")
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_latents_agree(ours: GenerationPipeline, theirs: Kandinsky5T2VPipeline, guidance: float) -> None:
    text, negative = ours.encode([resolved(ours, 5.0)])
    assert negative is not None
    job = resolved(ours, guidance)
    noise = ours.noise([job])
    expected = run_theirs(theirs, job, noise.clone(), text, negative, "latent")
    actual = ours.sample(noise, text, negative if guidance > 1 else None, job)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("exact_rotation")
def test_frames_agree(ours: GenerationPipeline, theirs: Kandinsky5T2VPipeline) -> None:
    job = resolved(ours, 5.0)
    text, negative = ours.encode([job])
    assert negative is not None
    noise = ours.noise([job])
    expected = run_theirs(theirs, job, noise.clone(), text, negative, "np")
    actual = ours.decode(ours.sample(noise, text, negative, job))
    # theirs is in 0..1; ours is cut to bytes
    assert actual.shape == expected.shape == (1, 5, 96, 64, 3)
    assert np.abs(actual / 255.0 - expected).max() <= 1.5 / 255


def test_rounded_rotation_is_what_keeps_them_apart(ours: GenerationPipeline, theirs: Kandinsky5T2VPipeline) -> None:
    job = resolved(ours, 5.0)
    text, negative = ours.encode([job])
    assert negative is not None
    noise = ours.noise([job])
    expected = run_theirs(theirs, job, noise.clone(), text, negative, "latent")
    distance = (ours.sample(noise, text, negative, job) - expected).abs().max()
    assert 1e-4 < distance < 0.5


@pytest.mark.parametrize(("shift", "last", "distance"), [(5.0, 0.0244, 0.068), (10.0, 0.0910, 0.078)])
def test_their_schedule_is_another_one(shift: float, last: float, distance: float) -> None:
    """Ours is the official one; theirs shifts between two already shifted ends."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(50)
    times = flow_times(50, shift)
    assert scheduler.sigmas[-2].item() == pytest.approx(last, abs=2e-3)
    assert (scheduler.sigmas - times).abs().max().item() == pytest.approx(distance, abs=2e-3)
