"""Runs cases of Kandinsky 4's video to audio through the public networks, samplers and media functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kandinsky.diffusion.cogvideox import level_of
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.scaled_linear import Plms, ScaledLinearSchedule
from kandinsky.families.kandinsky4_v2a.denoiser import SoundDenoiser
from kandinsky.families.kandinsky4_v2a.layers import Conditions
from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.families.kandinsky4_v2a.unet import V2AUNet
from kandinsky.golden.cases import Case, Runner
from kandinsky.golden.tracking import CaseError, Settings
from kandinsky.media import audio, clip_frames, spectrogram
from kandinsky.media.spectrogram import SpectrogramParams
from kandinsky.model.card import Component

INSIDE = "inter."
MOST_STEPS = 1000
# tag of an image of a spectrogram → the parameter it records; `MAX_VALUE` is a result
TAGS = {
    "SAMPLE_RATE": "sample_rate",
    "STEREO": "stereo",
    "STEP_SIZE_MS": "step_size_ms",
    "WINDOW_DURATION_MS": "window_duration_ms",
    "PADDED_DURATION_MS": "padded_duration_ms",
    "NUM_FREQUENCIES": "num_frequencies",
    "MIN_FREQUENCY": "min_frequency",
    "MAX_FREQUENCY": "max_frequency",
    "POWER_FOR_IMAGE": "power_for_image",
}
SUBSET = re.compile(r"\s*(\w+)\s*=\s*output\s*\[([-\d:,\s]*)\]\s*")


def run_unet(case: Case) -> Mapping[str, Tensor]:
    """One pass, with the outputs of single layers."""
    net, inputs = _unet(case, case.config), case.inputs
    outputs = _listen(net, [name.removeprefix(INSIDE) for name in case.outputs if name.startswith(INSIDE)])
    level = torch.tensor([case.call.integer("timestep", most=MOST_STEPS - 1)] * len(inputs["sample"]))
    conditions = Conditions(inputs["encoder_hidden_states"], inputs["image_embeds"])
    outputs["output"] = net(inputs["sample"].movedim(1, -1), level, conditions).movedim(-1, 1)
    return outputs


def run_scheduler(case: Case) -> Mapping[str, Tensor]:
    """The loop with recorded predictions of a network: the times it visits, and the state after each."""
    inputs = case.inputs
    answers = [iter(_channels_last(inputs[name], frames=2)) for name in ("eps_cond", "eps_uncond")]
    visited: list[Tensor] = []

    def positive(_x: Tensor, t: Tensor) -> Tensor:
        visited.append(level_of(t) - 1)
        out: Tensor = next(answers[0])
        return out

    schedule = ScaledLinearSchedule.from_config(case.config)
    times = schedule.twice_at_second(case.call.integer("num_inference_steps", least=1, most=MOST_STEPS))
    if (passes := len(times) - 1) != (recorded := len(inputs["eps_cond"])):
        raise CaseError("call.num_inference_steps", f"needs {passes} passes of the network, {recorded} are recorded")
    guided = _guidance(case.call).guide(positive, lambda _x, _t: next(answers[1]))
    states: list[Tensor] = []
    plms = Plms(schedule, times)

    class Kept:
        """The step, which also keeps the state it gives."""

        clean = plms.clean

        def step(self, x: Tensor, noise: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
            states.append(plms.step(x, noise, t, t_next))
            return states[-1]

    sample(guided, _channels_last(inputs["noise"]), times, step=Kept())
    return {"timesteps": torch.stack(visited), "latents": torch.stack([_channels_first(x) for x in states])}


def run_sample(case: Case) -> Mapping[str, Tensor]:
    """The loop with the network and guidance: row 0 of the embeddings is the negative prompt and the black clip."""
    net, inputs = _unet(case, case.config.table("unet")), case.inputs
    text, frames = inputs["prompt_embeds"], inputs["image_embeds"]
    schedule = ScaledLinearSchedule.from_config(case.config.table("scheduler"))
    times = schedule.twice_at_second(case.call.integer("num_inference_steps", least=1, most=MOST_STEPS))
    guided = _guidance(case.call).guide(
        SoundDenoiser(net, text[-1:], frames[-1:]), SoundDenoiser(net, text[:1], frames[:1])
    )
    latent = sample(guided, _channels_last(inputs["latents"]), times, step=Plms(schedule, times))
    return {"latent": _channels_first(latent)}


def run_spectrogram(case: Case) -> Mapping[str, Tensor]:
    """Audio to an image; the image to mel bands, magnitudes, audio, and its loudness.

    Every stage starts from the recorded result of the one before, so that one grey level does not decide the rest.
    """
    params, inputs, call = SpectrogramParams.from_dict(case.config), case.inputs, case.call
    # an argument of the official functions that make and read the image
    of_image = replace(params, power_for_image=call.number("power")) if call.has("power") else params
    mel = spectrogram.mel_of_waveform(inputs["waveform_int16"], params)
    image, largest = spectrogram.image_of_mel(mel, of_image)
    _check_tags(call, params, largest)
    recorded = case.outputs.get("image", image)
    max_value = call.number("max_value") if call.has("max_value") else spectrogram.MAX_VALUE
    from_image = spectrogram.mel_of_image(recorded, of_image, max_value=max_value)
    linear = spectrogram.magnitudes_of_mel(from_image, params)
    outputs = {
        "mel": mel,
        "image": image,
        "mel_from_image": from_image,
        "linear_from_image": linear,
        "mel_filterbank": spectrogram.mel_filters(params),
    }
    if "initial_angles" not in inputs:
        return outputs
    start = torch.view_as_complex(inputs["initial_angles"].contiguous())
    waveform = spectrogram.griffin_lim(linear, params, angles_CFT=start).T.numpy()
    normalized = audio.pcm(waveform)
    filtered = audio.prepare(_pcm(case, "pcm_normalized", normalized))
    from_filtered = _pcm(case, "pcm_filtered", filtered)
    _check_loudness(call, "dBFS_filtered", from_filtered)
    made = {"griffin_lim_waveform": waveform, "pcm_normalized": normalized, "pcm_filtered": filtered}
    if call.has("target_dBFS"):
        made["pcm_target"] = audio.to_loudness(from_filtered, call.number("target_dBFS"))
        _check_loudness(call, "dBFS_target", _pcm(case, "pcm_target", made["pcm_target"]))
    return outputs | {name: torch.from_numpy(samples_SC.T.copy()) for name, samples_SC in made.items()}


def run_video_preprocess(case: Case) -> Mapping[str, Tensor]:
    """Which frames of a clip are kept, and which of them the encoder sees."""
    video, call = case.inputs["video"], case.call
    if not (fps := call.number("fps")) > 0:
        raise CaseError("call.fps", f"is {fps:g}: a number above 0 is needed")
    longest = call.integer("max_duration_sec", least=1)
    seconds, total = clip_frames.whole_seconds(len(video), fps, longest)
    for key, made in (("duration_sec", seconds), ("total_frames", total)):
        if call.has(key) and call.integer(key) != made:
            raise CaseError(f"call.{key}", f"is {call.integer(key)}, computed is {made}")
    numbers = clip_frames.spread(total, call.integer("num_frames", least=1, most=100_000))
    shown = video[:total][numbers].permute(3, 0, 1, 2)
    return {"frame_ids": torch.tensor(numbers), "video_complete": video[:total], "video_input": shown}


def run_frame_transform(case: Case) -> Mapping[str, Tensor]:
    """Frames as the encoder expects them, or the part of them that the case keeps."""
    config, call = case.config, case.call
    frames = case.inputs["frames"].permute(1, 2, 3, 0)
    size = config.integer("image_size", least=1, most=4096)
    mean, std = (tuple(config.numbers(name, 3)) for name in ("mean", "std"))
    scaled = [3, len(frames), *clip_frames.scaled_sides(frames.shape[1], frames.shape[2], size)]
    if call.has("scaled_shape") and call.integers("scaled_shape") != scaled:
        raise CaseError("call.scaled_shape", f"is {call.integers('scaled_shape')}, computed is {scaled}")
    made = clip_frames.for_encoder(frames, size=size, mean=mean, std=std)
    return dict([_subset(call, made)]) if call.has("subset") else {"output": made}


CASES: Mapping[str, Runner] = {
    "kandinsky4.v2a_frame_transform": run_frame_transform,
    "kandinsky4.v2a_sample": run_sample,
    "kandinsky4.v2a_scheduler": run_scheduler,
    "kandinsky4.v2a_spectrogram": run_spectrogram,
    "kandinsky4.v2a_unet": run_unet,
    "kandinsky4.v2a_video_preprocess": run_video_preprocess,
}


def _guidance(call: Settings) -> Guidance:
    """Guidance as in the official pipeline, which applies it only for scales above 1."""
    return Guidance(max(call.number("guidance_scale"), 1.0))


def _check_tags(call: Settings, params: SpectrogramParams, largest: float) -> None:
    """Compare the tags of a recorded image with the parameters, and its largest magnitude with ours."""
    if not call.has("exif"):
        return
    tags = call.table("exif")
    for tag in tags:
        if tag == "MAX_VALUE":
            if abs(largest - tags.number(tag)) > 1e-3 * largest:
                raise CaseError(f"call.exif.{tag}", f"is {tags.number(tag):g}, the largest magnitude is {largest:g}")
        elif tag in TAGS and tags[tag] != (made := getattr(params, TAGS[tag])):
            raise CaseError(f"call.exif.{tag}", f"is `{tags[tag]}`, `{TAGS[tag]}` is `{made}`")


def _pcm(case: Case, name: str, made: np.ndarray) -> np.ndarray:
    """Recorded samples [S, C], or ours if there are none."""
    return case.outputs[name].T.numpy() if name in case.outputs else made


def _check_loudness(call: Settings, key: str, samples_SC: np.ndarray) -> None:
    if call.has(key) and abs((made := audio.loudness(samples_SC)) - call.number(key)) > 1e-6:
        raise CaseError(f"call.{key}", f"is {call.number(key)}, computed is {made}")


def _subset(call: Settings, output: Tensor) -> tuple[str, Tensor]:
    """Name and values of a part, from a text such as `part = output[:, 3::7]`."""
    if not (match := SUBSET.fullmatch(call.text("subset"))):
        raise CaseError("call.subset", f"is `{call.text('subset')}`: use a form such as `part = output[:, 3::7]`")
    parts: list[slice | int] = []
    for text in match[2].split(","):
        numbers = [int(number) if number.strip() else None for number in text.split(":")]
        parts.append(slice(*numbers) if ":" in text else int(text))
    return match[1], output[tuple(parts)]


def _channels_last(x_BCHW: Tensor, frames: int = 1) -> Tensor:
    """[…, C, H, W] with an axis of one frame put in at ``frames``, and the channels behind: [B, 1, H, W, C]."""
    return x_BCHW.unsqueeze(frames).movedim(frames + 1, -1)


def _channels_first(x_BTHWC: Tensor) -> Tensor:
    return x_BTHWC[:, 0].movedim(-1, 1)


def _unet(case: Case, config: Settings) -> V2AUNet:
    return case.network(lambda: V2AUNet(V2AParams.from_dict(config)))


def _listen(net: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """A table that fills with the outputs of these modules."""
    heard: dict[str, Tensor] = {}
    modules = dict(net.named_modules())
    for name in names:
        if name not in modules:
            raise CaseError(f"{INSIDE}{name}", "is the output of a layer that the network does not have")

        def hook(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
            heard[INSIDE + name] = output

        modules[name].register_forward_hook(hook)
    return heard


def component_of(values: Mapping[str, Any]) -> Component | None:
    """The network that a manifest describes, by its hyper-parameters; None for one of another family."""
    config = dict(values.get("config") or {})
    return Component("kandinsky4.v2a-unet", (), config) if "cross_attention_dim" in config else None
