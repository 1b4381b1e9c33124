"""Runs cases of Kandinsky Video 1.0 and 1.1 through the public networks and samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kandinsky.diffusion import cosine
from kandinsky.diffusion.cogvideox import LEVELS
from kandinsky.diffusion.cosine import Ancestral, CosineSchedule
from kandinsky.diffusion.gaps import around, fill
from kandinsky.diffusion.guidance import ImageGuidance
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.samplers import sampler
from kandinsky.diffusion.steps import Step
from kandinsky.families.parts import keymaps
from kandinsky.families.parts.movq import MovqAutoencoder
from kandinsky.families.parts.params import MovqParams
from kandinsky.families.parts.projected import Projection
from kandinsky.families.parts.unet import conformance as unet
from kandinsky.families.parts.unet.denoiser import UNetDenoiser
from kandinsky.families.parts.unet.unet import SKIPS, Marks, UNet
from kandinsky.golden.cases import Case, Runner
from kandinsky.golden.tracking import CaseError, Tensors
from kandinsky.model.values import TextEmbeddings

MOST_FRAMES = 10_000


def run_keyframes(case: Case) -> Mapping[str, Tensor]:
    """1.0: one pass over clips."""
    net, frames = unet.network(case, keymaps.UNET_FRAMES_1_0), case.config.integer("num_frames", least=1)
    positions = case.inputs["temporal_embed"].unflatten(0, (-1, frames)).tolist()
    return {"sample": _over_clips(net, case.inputs, frames, lambda clip: Marks(tuple(positions[clip])))}


def run_keyframes_1_1(case: Case) -> Mapping[str, Tensor]:
    """1.1: one pass over clips, and one over images with the same weights."""
    inputs, net = case.inputs, unet.network(case, keymaps.UNET_FRAMES_1_1)
    frames = case.call.integer("num_frames", least=1, most=MOST_FRAMES)
    positions = inputs["temporal_embed"].unflatten(0, (-1, frames)).tolist()
    noise, motion = (unet.per_clip(inputs, name, frames).tolist() for name in ("noise_aug_time", "motion_score"))

    def marks(clip: int) -> Marks:
        return Marks(tuple(positions[clip]), noise_level=float(noise[clip]), motion=float(motion[clip]))

    image = net(unet.clips(inputs["image_x"], 1), inputs["image_time"], unet.text(inputs, 1, "image_"))
    return {"sample": _over_clips(net, inputs, frames, marks), "image_sample": unet.rows(image)}


def run_interpolation(case: Case) -> Mapping[str, Tensor]:
    """1.0: one pass over the gaps of clips."""
    inputs, net = case.inputs, unet.network(case, keymaps.UNET_GAPS_1_0)
    gaps = case.call.integer("num_temporal_groups", least=1, most=MOST_FRAMES)
    skips = unet.per_clip(inputs, "skip_frames", gaps).tolist()
    return {"sample": _over_clips(net, inputs, gaps, lambda clip: Marks(skip=int(skips[clip])))}


def run_interpolation_1_1(case: Case) -> Mapping[str, Tensor]:
    """1.1: the same; the gaps of a clip whose temporal mask is 0 are computed without each other."""
    inputs, net = case.inputs, unet.network(case, keymaps.UNET_GAPS_1_1)
    gaps = case.call.integer("num_predicted_groups", least=1, most=MOST_FRAMES)
    skips, perturbations, masks = (
        unet.per_clip(inputs, name, gaps).tolist() for name in ("skip_frames", "perturbation_time", "temporal_mask")
    )
    if not set(masks) <= {0, 1}:
        raise CaseError("inputs.temporal_mask", "has values other than 0 and 1")

    def marks(clip: int) -> Marks:
        return Marks(skip=int(skips[clip]), perturbation=float(perturbations[clip]), mixes=bool(masks[clip]))

    return {"sample": _over_clips(net, inputs, gaps, marks)}


def run_movq(case: Case) -> Mapping[str, Tensor]:
    """Images to latents, latents to images; the latents of a video autoencoder are one clip."""
    vae = case.network(lambda: MovqAutoencoder(MovqParams.from_dict(case.config)))
    inputs, outputs = case.inputs, dict[str, Tensor]()
    if "image" in inputs:
        outputs["encoded"] = unet.rows(vae.encode(unet.clips(inputs["image"], 1)))
    if "latent" in inputs:
        outputs["decoded"] = unet.rows(vae.decode_whole(unet.clips(inputs["latent"], len(inputs["latent"]))))
    return outputs


def run_text_condition(case: Case) -> Mapping[str, Tensor]:
    """Text embeddings of given hidden states of the text encoder."""
    width, out = (case.config.integer(name, least=1) for name in ("model_dim", "context_dim"))
    projection = case.network(lambda: Projection(width, out))
    states = projection.context(case.inputs["last_hidden_state"], case.inputs["attention_mask"])
    assert states.mask_BL is not None
    return {"context": states.tokens_BLC, "context_mask": states.mask_BL.long()}


def run_sample(case: Case) -> Mapping[str, Tensor]:
    """1.0: the loop of keyframes."""
    inputs, call, net = case.inputs, case.call, unet.network(case, keymaps.UNET_FRAMES_1_0)
    frames = case.config.integer("num_frames", least=1)
    unet.check_shape(call, "latent_shape", inputs["noise_init"])
    marks = Marks(tuple(inputs["temporal_positions"].tolist()))
    guided = unet.guidance(call).guide(
        UNetDenoiser(net, unet.text(inputs, frames), marks=marks),
        UNetDenoiser(net, unet.negative_text(inputs, frames), marks=marks),
    )
    schedule = unet.schedule(call, "steps")
    draws = _draws(case, "noise_steps", schedule.levels, frames)
    times = schedule.times(cosine.every_level(schedule.levels))
    step = Ancestral(schedule, times, draws[:-1], unet.quantile(call))
    return unet.run_recorded(guided, unet.clips(inputs["noise_init"], frames), times, step)


def run_interpolate(case: Case) -> Mapping[str, Tensor]:
    """1.0: the loop that fills the gaps between keyframes; no prompt reaches it."""
    inputs, call, net = case.inputs, case.call, unet.network(case, keymaps.UNET_GAPS_1_0)
    schedule = unet.schedule(call, "steps", predicts="v")
    times = schedule.times(cosine.every_level(schedule.levels))
    nothing, marks = unet.no_text(inputs), Marks(skip=call.integer("skip_frames", most=SKIPS - 1))
    draws = _draws(case, "noise_steps", schedule.levels, len(inputs["noise_init"]))
    step = Ancestral(schedule, times, draws[:-1], unet.quantile(call))
    return _interpolated(case, net, (nothing, nothing), (marks, marks), times, step)


def run_interpolate_1_1(case: Case) -> Mapping[str, Tensor]:
    """1.1: the same in ten steps, with the prompt; the unconditional pass computes every gap separately."""
    inputs, call, net = case.inputs, case.call, unet.network(case, keymaps.UNET_GAPS_1_1)
    gaps = len(inputs["noise_init"])
    skip, perturbation = call.integer("skip_frames", most=SKIPS - 1), call.number("perturbation_time")
    marks = (
        Marks(skip=skip, perturbation=perturbation),
        Marks(skip=skip, perturbation=perturbation, mixes=not call.flag("use_temporal_mask")),
    )
    rules = sampler("kandinsky-video-1.1-interpolation")
    draws = unet.noises(inputs["noise_steps"], gaps)
    times = rules.times(len(draws), 1.0)
    # the draw of the last step, which the official loop makes, has a weight of 1e-10
    step = rules.step(times, 1.0, draws[:-1])
    return _interpolated(case, net, (unet.text(inputs, gaps), unet.no_text(inputs)), marks, times, step)


def run_sample_1_1(case: Case) -> Mapping[str, Tensor]:
    """1.1: the loop of the first frame, and that of a clip from a given first frame."""
    inputs, call, net = case.inputs, case.call, unet.network(case, keymaps.UNET_FRAMES_1_1)
    frames, rules = call.integer("num_frames", least=1, most=MOST_FRAMES), sampler("kandinsky-video-1.1")
    unet.check_shape(call, "image_latent_shape", inputs["image_noise_init"])
    unet.check_shape(call, "latent_shape", inputs["noise_init"])
    text, nothing = unet.text(inputs, frames), unet.no_text(inputs)
    start = unet.clips(inputs["image_noise_init"], 1)
    draws = unet.noises(inputs["image_noise_steps"], 1)
    times = rules.times(len(draws) + 1, 1.0)
    empty = torch.zeros_like(torch.cat((start, start[..., :1]), dim=-1))
    guided = unet.guidance(call, "key_frame_guidance_scale").guide(
        UNetDenoiser(net, text, condition_BTHWC=empty), UNetDenoiser(net, nothing, condition_BTHWC=empty)
    )
    image = sample(guided, start, times, step=rules.step(times, 1.0, draws))

    level = call.integer("noise_augmentation", most=LEVELS - 1)
    schedule = CosineSchedule(zero_snr=True)
    key, noise = (inputs[name].movedim(0, -1) for name in ("key_frame", "key_frame_noise"))
    start = unet.clips(inputs["noise_init"], frames)
    condition = torch.zeros_like(torch.cat((start, start[..., :1]), dim=-1))
    condition[:, 0] = torch.cat(
        (schedule.noised(key, noise, torch.tensor(schedule.time(level))), torch.ones_like(key[..., :1])), dim=-1
    )
    marks = Marks(tuple(range(frames)), noise_level=level, motion=call.number("motion_score"))
    three = ImageGuidance(call.number("guidance_weight_prompt"), call.number("guidance_weight_image")).guide(
        UNetDenoiser(net, text, condition_BTHWC=condition, marks=marks),
        UNetDenoiser(net, nothing, condition_BTHWC=condition, marks=marks),
        UNetDenoiser(net, nothing, condition_BTHWC=torch.zeros_like(condition), marks=marks),
    )
    draws = unet.noises(inputs["noise_steps"], frames)
    times = rules.times(len(draws) + 1, 1.0)
    latents = sample(three, start, times, step=rules.step(times, 1.0, draws))
    return {"image_latents": unet.rows(image), "latents": unet.rows(latents)}


CASES: Mapping[str, Runner] = {
    "kandinsky_video1.interpolate": run_interpolate,
    "kandinsky_video1.interpolate_v11": run_interpolate_1_1,
    "kandinsky_video1.interpolation_unet": run_interpolation,
    "kandinsky_video1.interpolation_unet_v11": run_interpolation_1_1,
    "kandinsky_video1.movq": run_movq,
    "kandinsky_video1.sample": run_sample,
    "kandinsky_video1.sample_v11": run_sample_1_1,
    "kandinsky_video1.text_condition": run_text_condition,
    "kandinsky_video1.unet": run_keyframes,
    "kandinsky_video1.unet_v11": run_keyframes_1_1,
    "kandinsky_video1.video_movq": run_movq,
}


def _over_clips(net: UNet, inputs: Tensors, frames: int, marks: Callable[[int], Marks]) -> Tensor:
    """One pass over each clip with the marks of its own, in official rows."""
    x, times = unet.clips(inputs["x"], frames), unet.per_clip(inputs, "time", frames)
    states = unet.text(inputs, frames)
    made = []
    for clip in range(len(x)):
        one = slice(clip, clip + 1)
        assert states.mask_BL is not None
        text = TextEmbeddings(states.tokens_BLC[one], states.pooled_BC[one], states.mask_BL[one])
        made.append(net(x[one], times[one], text, marks(clip)))
    return unet.rows(torch.cat(made))


def _draws(case: Case, name: str, steps: int, frames: int) -> Tensor:
    draws = unet.noises(case.inputs[name], frames)
    if len(draws) != steps:
        raise CaseError("call.steps", f"is {steps}, `inputs.{name}` has {len(draws)} draws")
    return draws


def _interpolated(
    case: Case,
    net: UNet,
    states: tuple[TextEmbeddings, TextEmbeddings],
    marks: tuple[Marks, Marks],
    times: Tensor,
    step: Step,
) -> Mapping[str, Tensor]:
    """Fill the gaps: conditional and unconditional text and marks."""
    inputs = case.inputs
    start = unet.clips(inputs["noise_init"], len(inputs["noise_init"]))
    given = unet.clips(inputs["keyframes"], len(inputs["keyframes"]))
    left, right = around(given)
    nowhere = torch.zeros_like(left)
    guided = unet.guidance(case.call).guide(
        UNetDenoiser(net, states[0], before_BTHWC=left, condition_BTHWC=right, marks=marks[0]),
        UNetDenoiser(net, states[1], before_BTHWC=nowhere, condition_BTHWC=nowhere, marks=marks[1]),
    )
    filled = sample(guided, start, times, step=step)
    return {"groups": unet.rows(filled), "video": unet.rows(fill(given, filled))}
