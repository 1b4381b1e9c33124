"""Kandinsky 3 against Diffusers' network, scheduler and pipeline, from the same tiny weights and noise."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet

from kandinsky.bench.run import bench
from kandinsky.diffusion.cosine import Ancestral, CosineSchedule
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.samplers import sampler
from kandinsky.families.kandinsky3.folder import UNET
from kandinsky.families.parts.projected import no_text
from kandinsky.families.parts.unet.denoiser import UNetDenoiser
from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.families.parts.unet.unet import Marks, UNet
from kandinsky.model.values import TextEmbeddings
from tiny.family import randomise

CONTEXT, GROUPS, HEAD, TIME = 24, 4, 8, 32
WIDTHS = (16, 16, 32, 32)


@pytest.fixture(scope="module")
def nets() -> tuple[UNet, Kandinsky3UNet]:
    params = UNetParams(
        model_channels=16,
        init_channels=8,
        time_embed_dim=TIME,
        context_dim=CONTEXT,
        groups=GROUPS,
        head_dim=HEAD,
        dim_mult=(1, 1, 2, 2),
    )
    ours: UNet = randomise(UNet(params))  # type: ignore[assignment]
    with torch.no_grad():  # large answers would make the guided loop chaotic, and any rounding grow
        ours.out_layer[2].weight.mul_(0.2)
    theirs = Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=TIME,
        groups=GROUPS,
        attention_head_dim=HEAD,
        layers_per_block=3,
        block_out_channels=WIDTHS,
        cross_attention_dim=CONTEXT,
        encoder_hid_dim=CONTEXT,
    )
    state = {UNET.to_official(name): tensor for name, tensor in ours.state_dict().items() if name != "null_embedding"}
    report = theirs.load_state_dict(state, strict=False)
    # the projection of text states lies in their network, with the text encoder in ours
    assert not report.unexpected_keys
    assert all(name.startswith("encoder_hid_proj.") for name in report.missing_keys)
    return ours.eval().requires_grad_(False), theirs.eval().requires_grad_(False)


def words(
    theirs: Kandinsky3UNet, seed: int, lengths: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, TextEmbeddings]:
    """Hidden states and mask as they take them, and as we do."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(lengths), 6, CONTEXT, generator=generator)
    mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        tokens = theirs.encoder_hid_proj(hidden)
    return hidden, mask, TextEmbeddings(tokens, tokens.mean(dim=1), mask)


def test_the_network(nets: tuple[UNet, Kandinsky3UNet]) -> None:
    ours, theirs = nets
    hidden, mask, text = words(theirs, 1, (4, 6))
    x, time = torch.randn(2, 4, 16, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([611.0, 20.0])
    with torch.no_grad():
        expected = theirs(x, time, encoder_hidden_states=hidden, encoder_attention_mask=mask.float()).sample
        made = ours(x.permute(0, 2, 3, 1)[:, None], time, text)[:, 0].permute(0, 3, 1, 2)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_the_pipeline(nets: tuple[UNet, Kandinsky3UNet]) -> None:
    """Their loop: 'leading' times, the same guidance; states are given, as their own empty prompt differs (FACTS 8)."""
    ours, theirs = nets
    steps, scale = 5, 3.0
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=True, variance_type="fixed_small")
    pipe = Kandinsky3Pipeline(tokenizer=None, text_encoder=None, unet=theirs, scheduler=scheduler, movq=None)
    pipe.set_progress_bar_config(disable=True)
    (hidden, mask, text), (hidden_n, mask_n, nothing) = words(theirs, 3, (5,)), words(theirs, 4, (2,))
    expected = pipe(
        prompt_embeds=hidden,
        negative_prompt_embeds=hidden_n,
        attention_mask=mask.float(),
        negative_attention_mask=mask_n.float(),
        num_inference_steps=steps,
        guidance_scale=scale,
        height=64,
        width=128,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images
    generator = torch.Generator().manual_seed(7)
    draws = [torch.randn(1, 4, *expected.shape[-2:], generator=generator) for _ in range(steps)]
    draws_NBTHWC = torch.stack([one.permute(0, 2, 3, 1)[:, None] for one in draws])
    schedule = CosineSchedule()
    times = schedule.times([i * (1000 // steps) for i in reversed(range(steps))] + [-1])
    guided = Guidance(scale + 1).guide(UNetDenoiser(ours, text), UNetDenoiser(ours, nothing))
    step = Ancestral(schedule, times, draws_NBTHWC[1:])
    made = sample(guided, draws_NBTHWC[0], times, step=step)[:, 0].permute(0, 3, 1, 2)
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("kandinsky-video-1.1", {"timestep_spacing": "leading", "prediction_type": "epsilon", "steps": 50}),
        (
            "kandinsky-video-1.1-interpolation",
            {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "steps": 10},
        ),
    ],
)
def test_every_step_of_the_schedulers_of_kandinsky_video_1_1(name: str, settings: dict[str, object]) -> None:
    settings = dict(settings)
    steps = int(settings.pop("steps"))  # type: ignore[call-overload]
    theirs = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        rescale_betas_zero_snr=True,
        variance_type="fixed_small_log",
        thresholding=True,
        clip_sample=False,
        sample_max_value=1.0,
        **settings,
    )
    theirs.set_timesteps(steps)
    rules = sampler(name)
    times = rules.times(steps, 1.0)
    assert torch.equal((times[:-1] * 1000).round().long() - 1, theirs.timesteps)
    generator = torch.Generator().manual_seed(1)
    x, predicted = (torch.randn(1, 1, 4, 4, 2, generator=generator) for _ in range(2))
    draws = torch.randn(steps - 1, 1, 1, 4, 4, 2, generator=generator)
    ours = rules.step(times, 1.0, draws)
    for i, level in enumerate(theirs.timesteps):
        made = ours.step(x, predicted, times[i], times[i + 1])
        # theirs draws from a generator in channels-first order: the same noise is added here by hand
        quiet = theirs.step(predicted, level, x, generator=torch.Generator().manual_seed(i)).prev_sample
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
        spread = theirs._get_variance(level) if level > 0 else torch.zeros(())
        expected = quiet - spread * drawn + (spread * draws[i] if i < steps - 1 else 0)
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=2e-5)


def test_both_passes_of_guidance_at_once(nets: tuple[UNet, Kandinsky3UNet]) -> None:
    ours, theirs = nets
    (_, _, text), nothing = words(theirs, 3, (5,)), no_text(CONTEXT)
    x, t = torch.randn(2, 1, 8, 16, 4, generator=torch.Generator().manual_seed(5)), torch.tensor(0.5)
    one, other = UNetDenoiser(ours, text), UNetDenoiser(ours, nothing)
    both = one.pair(other)
    assert both is not None
    with torch.no_grad():
        for made, alone in zip(both(x, t), (one(x, t), other(x, t)), strict=True):
            torch.testing.assert_close(made, alone, rtol=1e-4, atol=1e-5)
    # clips are large enough, and what stands beside the state must be the same
    assert UNetDenoiser(ours, text, marks=Marks((0.0,))).pair(other) is None
    assert UNetDenoiser(ours, text, condition_BTHWC=x).pair(other) is None


@pytest.mark.slow
def test_bench_stands_against_diffusers() -> None:
    sizes = {
        "model_channels": 16,
        "init_channels": 8,
        "time_embed_dim": 16,
        "context_dim": 16,
        "groups": 4,
        "head_dim": 8,
    }
    changes = {f"dit.{name}": value for name, value in sizes.items()} | {"dit.dim_mult": [1, 1, 1, 1], "vae.ch": 32}
    report = bench(
        "kandinsky3.0",
        stages=("dit", "vae"),
        repeats=1,
        device="cpu",
        random_weights=True,
        changes=changes,
        against="diffusers",
        request={"width": 64, "height": 64, "steps": 1},
    )
    for stage in report.stages[1:]:
        assert stage.against is not None
        assert (stage.against.reason, len(stage.against.seconds)) == ("", 1)
