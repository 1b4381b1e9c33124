"""Runs cases of Kandinsky 3 and Kandinsky Video 1 through the public networks and samplers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kandinsky.conformance.cases import Case, NotBuilt
from kandinsky.diffusion import cosine
from kandinsky.diffusion.cogvideox import Renoise
from kandinsky.diffusion.cosine import Ancestral, CosineSchedule
from kandinsky.diffusion.gaps import around, fill
from kandinsky.diffusion.guidance import Denoising, Guidance, ImageGuidance
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.samplers import sampler
from kandinsky.families.parts import keymaps as shared_keymaps
from kandinsky.families.parts.movq import MovqAutoencoder
from kandinsky.families.parts.params import MovqParams
from kandinsky.families.parts.projected import Projection
from kandinsky.families.parts.unet.denoiser import UNetDenoiser
from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.families.parts.unet.unet import Marks, UNet
from kandinsky.model.values import TextStates
from kandinsky.weights.keymaps import KeyMap
from kandinsky.weights.read import load_into


def run_unet(case: Case) -> dict[str, Tensor]:
    """Kandinsky 3: one pass over images."""
    case.refuse_other_calls()
    inputs, net = case.inputs(), _unet(case, shared_keymaps.UNET)
    return {"sample": _pictures(net(_rows(inputs["x"], 1), inputs["time"], _states(inputs, 1)))}


def run_keyframes(case: Case) -> dict[str, Tensor]:
    """1.0: one pass over clips."""
    case.refuse_other_calls()
    inputs, net = case.inputs(), _unet(case, shared_keymaps.UNET_FRAMES_1_0)
    frames = int(case.config["num_frames"])
    marks = Marks(tuple(inputs["temporal_embed"][:frames].tolist()))
    return {"sample": _over_clips(net, inputs, frames, marks)}


def run_keyframes_1_1(case: Case) -> dict[str, Tensor]:
    """1.1: one pass over clips, and one over images with the same weights."""
    case.refuse_other_calls("num_frames")
    inputs, net = case.inputs(), _unet(case, shared_keymaps.UNET_FRAMES_1_1)
    frames = int(case.call["num_frames"])
    marks = Marks(
        tuple(inputs["temporal_embed"][:frames].tolist()),
        noise_level=float(inputs["noise_aug_time"][0]),
        motion=float(inputs["motion_score"][0]),
    )
    image = net(_rows(inputs["image_x"], 1), inputs["image_time"], _states(inputs, 1, "image_"))
    return {"sample": _over_clips(net, inputs, frames, marks), "image_sample": _pictures(image)}


def run_interpolation(case: Case) -> dict[str, Tensor]:
    """1.0: one pass over the gaps of clips."""
    case.refuse_other_calls("num_temporal_groups")
    inputs, net = case.inputs(), _unet(case, shared_keymaps.UNET_GAPS_1_0)
    marks = Marks(skip=int(inputs["skip_frames"][0]))
    return {"sample": _over_clips(net, inputs, int(case.call["num_temporal_groups"]), marks)}


def run_interpolation_1_1(case: Case) -> dict[str, Tensor]:
    """1.1: the same; clips whose temporal mask is 0 do not know of their neighbouring gaps."""
    case.refuse_other_calls("num_predicted_groups")
    inputs, net = case.inputs(), _unet(case, shared_keymaps.UNET_GAPS_1_1)
    gaps = int(case.call["num_predicted_groups"])
    outputs = []
    for part in range(len(inputs["x"]) // gaps):
        rows = {name: tensor[part * gaps : (part + 1) * gaps] for name, tensor in inputs.items()}
        told = {name: int(rows[name][0]) for name in ("skip_frames", "perturbation_time", "temporal_mask")}
        marks = Marks(
            skip=told["skip_frames"], perturbation=told["perturbation_time"], mixes=bool(told["temporal_mask"])
        )
        outputs.append(_over_clips(net, rows, gaps, marks))
    return {"sample": torch.cat(outputs)}


def run_movq(case: Case) -> dict[str, Tensor]:
    """Images to latents, latents to images; those of a video autoencoder are one clip."""
    case.refuse_other_calls()
    with torch.device("meta"):
        vae = MovqAutoencoder(MovqParams.from_dict(case.config))
    load_into(vae, case.weights, dtype=case.dtype)
    inputs = case.inputs()
    latents = inputs["latent"]
    return {
        "encoded": _pictures(vae.encode(_rows(inputs["image"], 1))),
        "decoded": _pictures(vae.decode_whole(_rows(latents, len(latents)))),
    }


def run_text_condition(case: Case) -> dict[str, Tensor]:
    """Context states of given hidden states."""
    case.refuse_other_calls()
    projection = Projection(int(case.config["model_dim"]), int(case.config["context_dim"]))
    load_into(projection, case.weights, dtype=case.dtype)
    inputs = case.inputs()
    states = projection.context(inputs["last_hidden_state"], inputs["attention_mask"])
    assert states.mask_BL is not None
    return {"context": states.tokens_BLC, "context_mask": states.mask_BL.long()}


def run_sample_kandinsky3(case: Case) -> dict[str, Tensor]:
    """Text to image and inpainting, or the distilled loop."""
    case.refuse_other_calls(
        *("times", "schedule", "num_train_timesteps", "latent_shape"),
        *("flash", "steps", "percentile", "guidance_scale", "eta"),
    )
    inputs, call, net = case.inputs(), case.call, _unet(case, shared_keymaps.UNET)
    schedule = CosineSchedule(_levels(call))
    channels = [_rows(inputs[name], 1) for name in ("mask", "masked_latent") if name in inputs]
    condition = torch.cat(channels, dim=-1) if channels else None
    start, draws = _rows(inputs["noise_init"], 1), _draws(inputs["noise_steps"], 1)

    def bound(states: TextStates) -> Denoising[Tensor]:
        return UNetDenoiser(net, states, condition_BTHWC=condition)

    guided = bound(_states(inputs, 1))
    rules = sampler("kandinsky3-flash" if call["flash"] else "kandinsky3")
    times = rules.times(len(call["times"]), 1.0)
    if not torch.equal(times[:-1], schedule.times(call["times"])):
        raise ValueError("the case's times are not those of its number of steps")
    if call["flash"]:
        start = rules.start(torch.stack((start, draws[0])), times)
        return _recorded(guided, start, times, Renoise(schedule, times, draws[1:]))
    guided = _guidance(call["guidance_scale"]).guide(guided, bound(_nothing(inputs)))
    step = Ancestral(schedule, times, draws[:-1], float(call["percentile"]), float(call["eta"]))
    return _recorded(guided, start, times, step)


def run_sample(case: Case) -> dict[str, Tensor]:
    """1.0: the loop of key frames."""
    case.refuse_other_calls("steps", "schedule", "percentile", "guidance_scale", "latent_shape")
    inputs, call, net = case.inputs(), case.call, _unet(case, shared_keymaps.UNET_FRAMES_1_0)
    frames = int(case.config["num_frames"])
    marks = Marks(tuple(inputs["temporal_positions"].tolist()))
    guided = _guidance(call["guidance_scale"]).guide(
        UNetDenoiser(net, _states(inputs, frames), marks=marks), UNetDenoiser(net, _nothing(inputs), marks=marks)
    )
    schedule, steps = CosineSchedule(_levels(call)), int(call["steps"])
    times, draws = schedule.times(cosine.every_level(steps)), _draws(inputs["noise_steps"], frames)
    step = Ancestral(schedule, times, draws[:-1], float(call["percentile"]))
    return _recorded(guided, _rows(inputs["noise_init"], frames), times, step)


def run_interpolate(case: Case) -> dict[str, Tensor]:
    """1.0: the loop that fills the gaps; no prompt reaches it."""
    case.refuse_other_calls("steps", "schedule", "percentile", "guidance_scale", "skip_frames")
    inputs, call, net = case.inputs(), case.call, _unet(case, shared_keymaps.UNET_GAPS_1_0)
    schedule = CosineSchedule(_levels(call), predicts="v")
    times = schedule.times(cosine.every_level(int(call["steps"])))
    nothing, marks = _nothing(inputs), Marks(skip=int(call["skip_frames"]))
    draws = _draws(inputs["noise_steps"], len(inputs["noise_init"]))
    step = Ancestral(schedule, times, draws[:-1], float(call["percentile"]))
    return _interpolated(case, net, (nothing, nothing), (marks, marks), times, step)


def run_interpolate_1_1(case: Case) -> dict[str, Tensor]:
    """1.1: the same in ten steps, with the prompt, and without neighbours in the unconditional pass."""
    case.refuse_other_calls("guidance_scale", "skip_frames", "perturbation_time", "use_temporal_mask")
    inputs, call, net = case.inputs(), case.call, _unet(case, shared_keymaps.UNET_GAPS_1_1)
    gaps = len(inputs["noise_init"])
    told: dict[str, Any] = {"skip": int(call["skip_frames"]), "perturbation": float(call["perturbation_time"])}
    marks = (Marks(**told), Marks(**told, mixes=not call["use_temporal_mask"]))
    rules = sampler("kandinsky-video-1.1-interpolation")
    draws = _draws(inputs["noise_steps"], gaps)
    times = rules.times(len(draws), 1.0)
    # the draw of the last step, which the official loop makes, has a weight of 1e-10
    step = rules.step(times, 1.0, draws[:-1])
    return _interpolated(case, net, (_states(inputs, gaps), _nothing(inputs)), marks, times, step)


def run_sample_1_1(case: Case) -> dict[str, Tensor]:
    """1.1: the loop of the first frame, and that of a clip from a given first frame."""
    case.refuse_other_calls(
        *("num_frames", "guidance_weight_prompt", "guidance_weight_image", "key_frame_guidance_scale"),
        *("motion_score", "noise_augmentation", "image_latent_shape", "latent_shape"),
    )
    inputs, call, net = case.inputs(), case.call, _unet(case, shared_keymaps.UNET_FRAMES_1_1)
    frames, rules = int(call["num_frames"]), sampler("kandinsky-video-1.1")
    text, nothing = _states(inputs, frames), _nothing(inputs)
    start = _rows(inputs["image_noise_init"], 1)
    draws = _draws(inputs["image_noise_steps"], 1)
    times = rules.times(len(draws) + 1, 1.0)
    empty = torch.zeros_like(torch.cat((start, start[..., :1]), dim=-1))
    guided = _guidance(call["key_frame_guidance_scale"]).guide(
        UNetDenoiser(net, text, condition_BTHWC=empty), UNetDenoiser(net, nothing, condition_BTHWC=empty)
    )
    image = sample(guided, start, times, step=rules.step(times, 1.0, draws))

    level = int(call["noise_augmentation"])
    schedule = CosineSchedule(zero_snr=True)
    key, noise = (inputs[name].movedim(0, -1) for name in ("key_frame", "key_frame_noise"))
    start = _rows(inputs["noise_init"], frames)
    condition = torch.zeros_like(torch.cat((start, start[..., :1]), dim=-1))
    condition[:, 0] = torch.cat(
        (schedule.noised(key, noise, torch.tensor(schedule.time(level))), torch.ones_like(key[..., :1])), dim=-1
    )
    marks = Marks(tuple(range(frames)), noise_level=level, motion=float(call["motion_score"]))
    guidance = ImageGuidance(float(call["guidance_weight_prompt"]), float(call["guidance_weight_image"]))
    three = guidance.guide(
        UNetDenoiser(net, text, condition_BTHWC=condition, marks=marks),
        UNetDenoiser(net, nothing, condition_BTHWC=condition, marks=marks),
        UNetDenoiser(net, nothing, condition_BTHWC=torch.zeros_like(condition), marks=marks),
    )
    step = rules.step(times, 1.0, _draws(inputs["noise_steps"], frames))
    return {"image_latents": _pictures(image), "latents": _pictures(sample(three, start, times, step=step))}


def _interpolated(
    case: Case,
    net: UNet,
    states: tuple[TextStates, TextStates],
    marks: tuple[Marks, Marks],
    times: Tensor,
    step: Ancestral | Any,
) -> dict[str, Tensor]:
    inputs = case.inputs()
    start = _rows(inputs["noise_init"], len(inputs["noise_init"]))
    given = _rows(inputs["keyframes"], len(inputs["keyframes"]))
    left, right = around(given)
    nowhere = torch.zeros_like(left)
    guided = _guidance(case.call["guidance_scale"]).guide(
        UNetDenoiser(net, states[0], before_BTHWC=left, condition_BTHWC=right, marks=marks[0]),
        UNetDenoiser(net, states[1], before_BTHWC=nowhere, condition_BTHWC=nowhere, marks=marks[1]),
    )
    filled = sample(guided, start, times, step=step)
    return {"groups": _pictures(filled), "video": _pictures(fill(given, filled))}


def _recorded(denoiser: Denoising[Tensor], start: Tensor, times: Tensor, step: Any) -> dict[str, Tensor]:
    """Run the loop, and keep the state after every step (of the distilled loop, the estimate)."""
    states: list[Tensor] = []

    def told(number: int, total: int, clean: Tensor) -> None:
        if isinstance(step, Renoise):
            states.append(clean)

    kept = _Keeping(step, states) if not isinstance(step, Renoise) else step
    latents = sample(denoiser, start, times, step=kept, on_step=told)
    return {"latents": _pictures(latents), "trajectory": torch.stack([_pictures(one) for one in states])}


class _Keeping:
    """A step that keeps what it makes."""

    def __init__(self, step: Any, states: list[Tensor]) -> None:
        self._step = step
        self._states = states
        self.clean = step.clean

    def step(self, x: Tensor, velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        self._states.append(self._step.step(x, velocity, t, t_next))
        return self._states[-1]


def _unet(case: Case, keymap: KeyMap) -> UNet:
    with torch.device("meta"):
        net = UNet(UNetParams.from_dict(case.config))
    load_into(net, case.weights, keymap=keymap, dtype=case.dtype)
    return net


def _over_clips(net: UNet, inputs: dict[str, Tensor], frames: int, marks: Marks) -> Tensor:
    time = inputs["time"][::frames]
    return _pictures(net(_rows(inputs["x"], frames), time, _states(inputs, frames), marks))


def _states(inputs: dict[str, Tensor], frames: int, prefix: str = "") -> TextStates:
    """Text states of clips from official rows, which repeat them for every frame."""
    rows, mask = inputs[f"{prefix}context"], inputs[f"{prefix}context_mask"].bool()
    if not torch.equal(rows, rows[::frames].repeat_interleave(frames, dim=0)):
        raise NotBuilt("text that differs from frame to frame of a clip")
    return TextStates(rows[::frames], rows[::frames].mean(dim=1), mask[::frames])


def _nothing(inputs: dict[str, Tensor]) -> TextStates:
    """The learned state for no text: one token, whatever the pooled state asks."""
    null = inputs["null_embedding"][None]
    return TextStates(null[:, None], null)


def _guidance(scale: Any) -> Guidance:
    """Official scales count from 0."""
    return Guidance(float(scale) + 1)


def _levels(call: dict[str, Any]) -> int:
    if call["schedule"] != "cosine":
        raise NotBuilt(f"schedule `{call['schedule']}`: only `cosine` is built")
    return int(call.get("num_train_timesteps", call.get("steps", 0)))


def _rows(rows: Tensor, frames: int) -> Tensor:
    """Official rows [(B·T), C, H, W] → [B, T, H, W, C]."""
    return rows.movedim(1, -1).unflatten(0, (-1, frames))


def _pictures(x_BTHWC: Tensor) -> Tensor:
    return x_BTHWC.flatten(0, 1).movedim(-1, 1)


def _draws(draws: Tensor, frames: int) -> Tensor:
    return torch.stack([_rows(one, frames) for one in draws])
