"""The determinism contract of docs/determinism.md, line by line, on the tiny family with real classes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky.catalogue import load
from kandinsky.engine.pipeline import GenerationPipeline
from kandinsky.model.values import Request


@pytest.fixture(scope="module")
def pipe(official: Path) -> GenerationPipeline:
    return load(official, device="cpu")


def job(pipe: GenerationPipeline, prompt: str = "a cat", seed: int = 7):
    request = Request(model=pipe.name, prompt=prompt, seconds=0.2, width=512, height=512, steps=2, seed=seed)
    found = pipe.resolve(request)
    # a clip of 64 x 64: what is legal for the card is beside the point here
    shape = dataclasses.replace(found.shape, height=64, width=64)
    return dataclasses.replace(found, shape=shape, latent=dataclasses.replace(found.latent, height=8, width=8))


def latents(pipe: GenerationPipeline, *jobs, on_step=None) -> torch.Tensor:
    jobs = jobs or (job(pipe),)
    return pipe.sample(pipe.noise(jobs), *pipe.encode(jobs), jobs[0], on_step=on_step)


def test_the_same_run_gives_the_same_bits(pipe: GenerationPipeline, official: Path) -> None:
    first = latents(pipe)
    assert torch.equal(latents(pipe), first) and torch.equal(latents(load(official, device="cpu")), first)
    assert not torch.equal(latents(pipe, job(pipe, seed=8)), first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("offload", ["module", "block"])
def test_any_offload_mode_gives_the_same_bits(official: Path, offload: str, dtype: str) -> None:
    """In bfloat16 block mode converts each block when it runs: the files are float32."""
    plain, other = (load(official, device="cpu", dtype=dtype, offload=mode) for mode in ("none", offload))
    assert torch.equal(latents(other), latents(plain))


def test_callbacks_change_no_bit(pipe: GenerationPipeline) -> None:
    def scribble(step: int, total: int, preview: torch.Tensor) -> None:
        preview.zero_()

    assert torch.equal(latents(pipe, on_step=scribble), latents(pipe))


def test_noise_and_text_states_are_those_of_a_single_run_in_any_batch(pipe: GenerationPipeline) -> None:
    jobs = [job(pipe), job(pipe, "a very long dog in the snow", seed=8)]
    together, alone = pipe.noise(jobs), pipe.noise(jobs[1:])
    assert torch.equal(together[1:], alone)
    (text, _), (one, _) = pipe.encode(jobs), pipe.encode(jobs[:1])
    length = one.tokens_BLC.shape[1]
    assert torch.equal(text.tokens_BLC[:1, :length], one.tokens_BLC) and torch.equal(text.pooled_BC[:1], one.pooled_BC)
    assert text.mask_BL is not None and text.mask_BL[0].sum() == length


def test_a_batch_gives_the_same_latents_to_rounding(pipe: GenerationPipeline) -> None:
    """Products of several samples are summed in another order, and masked keys stand beside shorter prompts."""
    jobs = [job(pipe), job(pipe, "a very long dog in the snow", seed=8)]
    together = latents(pipe, *jobs)
    for one, found in zip(jobs, together, strict=True):
        torch.testing.assert_close(found, latents(pipe, one)[0], rtol=1e-4, atol=1e-5)


def test_stored_text_states_change_no_bit(official: Path, tmp_path: Path, pipe: GenerationPipeline) -> None:
    for _ in ("made", "taken from the store"):
        assert torch.equal(latents(load(official, device="cpu", text_cache=tmp_path)), latents(pipe))


def test_decoding_later_gives_the_same_frames(pipe: GenerationPipeline, official: Path, tmp_path: Path) -> None:
    kept = tmp_path / "x.latent.safetensors"
    video = pipe.run(job(pipe), keep_latent=kept)
    assert np.array_equal(load(official, device="cpu", only=("vae",)).finish(kept).frames, video.frames)


def test_layered_decoding_moves_a_byte_by_one_at_most(pipe: GenerationPipeline, official: Path) -> None:
    """Frames are not promised to the bit where decoding saves memory; sums are taken in another order."""
    found = latents(pipe)
    frames = (load(official, device="cpu", offload=mode).decode(found).astype(int) for mode in ("none", "block"))
    difference = np.abs(np.subtract(*frames))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
