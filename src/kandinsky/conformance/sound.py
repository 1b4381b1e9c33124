"""Runs cases of Kandinsky 4's video to audio through the public networks, samplers and media functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kandinsky.conformance.cases import Case
from kandinsky.diffusion.cogvideox import level_of
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.scaled_linear import Plms, ScaledLinearSchedule
from kandinsky.families.kandinsky4_v2a.denoiser import SoundDenoiser
from kandinsky.families.kandinsky4_v2a.layers import Conditions
from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.families.kandinsky4_v2a.unet import V2AUNet
from kandinsky.media import audio, clip_frames, spectrogram
from kandinsky.media.spectrogram import SpectrogramParams
from kandinsky.weights.read import load_into

INSIDE = "inter."


def run_unet(case: Case) -> dict[str, Tensor]:
    """One pass, with what single layers give."""
    case.refuse_other_calls("timestep")
    net, inputs = _unet(case, case.config), case.inputs()
    names = [name.removeprefix(INSIDE) for name in case.required_outputs() if name.startswith(INSIDE)]
    outputs = _listen(net, names)
    level = torch.tensor([int(case.call["timestep"])] * len(inputs["sample"]))
    conditions = Conditions(inputs["encoder_hidden_states"], inputs["image_embeds"])
    outputs["output"] = net(inputs["sample"].movedim(1, -1), level, conditions).movedim(-1, 1)
    return outputs


def run_scheduler(case: Case) -> dict[str, Tensor]:
    """The loop with recorded answers of a network: the times it visits, and the state after each."""
    case.refuse_other_calls("num_inference_steps", "guidance_scale")
    inputs = case.inputs()
    answers = [iter(_channels_last(inputs[name], frames=2)) for name in ("eps_cond", "eps_uncond")]
    visited: list[Tensor] = []

    def positive(_x: Tensor, t: Tensor) -> Tensor:
        visited.append(level_of(t) - 1)
        return next(answers[0])

    schedule = ScaledLinearSchedule.from_config(case.config)
    times = schedule.twice_at_second(int(case.call["num_inference_steps"]))
    guided = Guidance(float(case.call["guidance_scale"])).guide(positive, lambda _x, _t: next(answers[1]))
    states: list[Tensor] = []
    plms = Plms(schedule, times)

    class Kept:
        """The step, which also keeps what it gives."""

        clean = plms.clean

        def step(self, x: Tensor, noise: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
            states.append(plms.step(x, noise, t, t_next))
            return states[-1]

    sample(guided, _channels_last(inputs["noise"]), times, step=Kept())
    return {"timesteps": torch.stack(visited), "latents": torch.stack([_channels_first(x) for x in states])}


def run_sample(case: Case) -> dict[str, Tensor]:
    """The loop with the network and guidance: row 0 of the states is the negative prompt and the black clip."""
    case.refuse_other_calls("num_inference_steps", "guidance_scale")
    net, inputs = _unet(case, case.config["unet"]), case.inputs()
    text, frames = inputs["prompt_embeds"], inputs["image_embeds"]
    schedule = ScaledLinearSchedule.from_config(case.config["scheduler"])
    times = schedule.twice_at_second(int(case.call["num_inference_steps"]))
    guided = Guidance(float(case.call["guidance_scale"])).guide(
        SoundDenoiser(net, text[1:], frames[1:]), SoundDenoiser(net, text[:1], frames[:1])
    )
    latent = sample(guided, _channels_last(inputs["latents"]), times, step=Plms(schedule, times))
    return {"latent": _channels_first(latent)}


def run_spectrogram(case: Case) -> dict[str, Tensor]:
    """Sound to a picture; the picture to bands, magnitudes, sound, and its loudness."""
    case.refuse_other_calls("max_value", "power", "exif", "target_dBFS", "dBFS_filtered", "dBFS_target")
    params, inputs, call = SpectrogramParams.from_dict(case.config), case.inputs(), case.call
    mel = spectrogram.mel_of_waveform(inputs["waveform_int16"], params)
    image, largest = spectrogram.image_of_mel(mel, params)
    if abs(largest - call["exif"]["MAX_VALUE"]) > 1e-3 * largest:
        raise ValueError(f"the loudest band is {largest}, recorded is {call['exif']['MAX_VALUE']}")
    # as the official code: from the recorded picture, so that one level of grey does not decide what follows
    from_image = spectrogram.mel_of_image(case.required_outputs()["image"], params, max_value=float(call["max_value"]))
    linear = spectrogram.magnitudes_of_mel(from_image, params)
    outputs = {"mel": mel, "image": image, "mel_from_image": from_image, "linear_from_image": linear}
    if "initial_angles" in inputs:
        outputs["mel_filterbank"] = spectrogram.mel_filters(params)
        start = torch.view_as_complex(inputs["initial_angles"].contiguous())
        waveform = spectrogram.griffin_lim(linear, params, angles_CFT=start)
        outputs["griffin_lim_waveform"] = waveform
        recorded = {name: tensor.T.numpy() for name, tensor in case.required_outputs().items() if "pcm" in name}
        filtered = audio.prepare(recorded["pcm_normalized"])
        if abs(audio.loudness(recorded["pcm_filtered"]) - call["dBFS_filtered"]) > 1e-6:
            raise ValueError("the loudness is not the recorded one")
        target = audio.to_loudness(recorded["pcm_filtered"], float(call["target_dBFS"]))
        made = {"pcm_normalized": audio.pcm(waveform.T.numpy()), "pcm_filtered": filtered, "pcm_target": target}
        outputs |= {name: torch.from_numpy(samples.T.copy()) for name, samples in made.items()}
    return outputs


def run_video_preprocess(case: Case) -> dict[str, Tensor]:
    """Which frames of a clip are kept, and which of them are shown to the encoder."""
    case.refuse_other_calls("fps", "num_frames", "max_duration_sec", "duration_sec", "total_frames")
    video, call = case.inputs()["video"], case.call
    seconds, total = clip_frames.whole_seconds(len(video), float(call["fps"]), int(call["max_duration_sec"]))
    if (seconds, total) != (call["duration_sec"], call["total_frames"]):
        raise ValueError(
            f"{seconds} s of {total} frames, recorded are {call['duration_sec']} and {call['total_frames']}"
        )
    numbers = clip_frames.spread(total, int(call["num_frames"]))
    shown = video[:total][numbers].permute(3, 0, 1, 2)
    return {"frame_ids": torch.tensor(numbers), "video_complete": video[:total], "video_input": shown}


def run_frame_transform(case: Case) -> dict[str, Tensor]:
    """Frames as the encoder wants them; the case keeps every few pixels."""
    case.refuse_other_calls("scaled_shape", "subset")
    config = case.config
    mean, std = tuple(config["mean"]), tuple(config["std"])
    frames = case.inputs()["frames"].permute(1, 2, 3, 0)
    made = clip_frames.for_encoder(frames, size=int(config["image_size"]), mean=mean, std=std)
    return {"output_subset": made[:, :, 3::7, 2::5]}


def spectrogram_tolerance(name: str, expected: Tensor, rtol: float, atol: float) -> tuple[float, float]:
    """What the cases' note says: bands and magnitudes within a share of their maximum, pictures within one level, PCM
    within two, the waveform within a hundredth of its maximum."""
    absolute = {"image": 1.0, "pcm_normalized": 2.0, "pcm_filtered": 2.0, "pcm_target": 2.0}
    if name in absolute:
        return 0.0, absolute[name]
    largest = float(expected.abs().max())
    return (0.0, 1e-2 * largest) if name == "griffin_lim_waveform" else (rtol, atol * largest)


def _channels_last(x_BCHW: Tensor, frames: int = 1) -> Tensor:
    """[…, C, H, W] with an axis of one frame put in at ``frames``, and the channels behind: [B, 1, H, W, C]."""
    return x_BCHW.unsqueeze(frames).movedim(frames + 1, -1)


def _channels_first(x_BTHWC: Tensor) -> Tensor:
    return x_BTHWC[:, 0].movedim(-1, 1)


def _unet(case: Case, config: dict[str, Any]) -> V2AUNet:
    with torch.device("meta"):
        net = V2AUNet(V2AParams.from_dict(config))
    load_into(net, case.weights, dtype=case.dtype)
    return net


def _listen(net: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """A table that fills with the outputs of these modules."""
    heard: dict[str, Tensor] = {}
    for name in names:

        def hook(_module: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
            heard[INSIDE + name] = output

        net.get_submodule(name).register_forward_hook(hook)
    return heard
