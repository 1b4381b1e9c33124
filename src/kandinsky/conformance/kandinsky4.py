"""Runs cases of Kandinsky 4 through the public networks and samplers."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from torch import Tensor, nn

from kandinsky.conformance.cases import Case, NotBuilt
from kandinsky.diffusion import noise as noise_rule
from kandinsky.diffusion.cogvideox import CogVideoXSchedule, level_of
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.samplers import sampler
from kandinsky.engine.stages import to_bytes
from kandinsky.families.kandinsky4.denoiser import DiscreteDenoiser
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D, Pack
from kandinsky.families.kandinsky4.params import DiTParams, Groups
from kandinsky.families.parts import keymaps as shared_keymaps
from kandinsky.families.parts.cogvideox import CogVideoXAutoencoder
from kandinsky.families.parts.params import LATENT_PIECE, CogVideoXParams
from kandinsky.model.values import LatentShape, TextStates
from kandinsky.ops.rope import Rotation
from kandinsky.text.t5 import T5Encoder, T5Params
from kandinsky.weights import keymaps
from kandinsky.weights.read import assign_state, load_into, read_state

NOISE_RULES = {"none": "float32", "bfloat16": "float32 rounded to bfloat16"}


def run_dit(case: Case) -> dict[str, Tensor]:
    """One forward pass over clips that stand one behind the other, with what goes on inside."""
    case.refuse_other_calls("num_groups", "scale_factor")
    net, inputs = _dit(case, case.config), case.inputs()
    frames = inputs["visual_cu_seqlens"].diff().tolist()
    (length,) = set(inputs["text_cu_seqlens"].diff().tolist())
    scale = _triple(case.call.get("scale_factor"))
    outputs = _listen(net)
    outputs["output"] = net(
        inputs["x"],
        inputs["time"],
        _states(inputs["text_embed"].unflatten(0, (-1, length))),
        frames=frames,
        rope_scale=scale,
        groups=_groups(case.call),
    )
    grid = outputs["visual_embed"].shape[1:3]
    rotation = Rotation(net.rope_embeddings(Pack(tuple(frames), (grid[0], grid[1])), scale, net.params.rope_angles))
    cos, sin = rotation.table.unbind(-1)
    turns = torch.stack((cos, -sin, sin, cos), dim=-1)
    outputs["rope"] = turns.unflatten(-1, (2, 2)).unflatten(1, grid)
    return {
        name: tensor.unflatten(1, grid)
        if name.endswith(".visual")
        else tensor.flatten(0, 1)
        if "text" in name
        else tensor
        for name, tensor in outputs.items()
    }


def run_sample(case: Case) -> dict[str, Tensor]:
    """A whole re-noising loop, from the seed."""
    case.refuse_other_calls(
        "num_steps",
        "seed",
        "shape",
        "num_groups",
        "scale_factor",
        "noise_rounding",
        "visual_cu_seqlens",
        "text_cu_seqlens",
    )
    call, inputs = case.call, case.inputs()
    net = _dit(case, case.config["dit"] | {"num_groups": list(_groups(call))})
    schedule = CogVideoXSchedule.from_config(case.config["scheduler"])
    rule = NOISE_RULES[call["noise_rounding"]]
    rounds = rule != "float32"

    def rounded(x: Tensor) -> Tensor:
        # the rounding that a network of the smaller type makes of its input
        return x.bfloat16().float() if rounds else x

    states = _states(rounded(inputs["text_embed"])[None])
    denoiser = DiscreteDenoiser(net, states, rope_scale=_triple(call.get("scale_factor")))
    outputs: dict[str, Tensor] = {}

    def told(x_BTHWC: Tensor, t: Tensor) -> Tensor:
        step, x_BTHWC = len(outputs) // 3, rounded(x_BTHWC)
        velocity = denoiser(x_BTHWC, t)
        outputs[f"step{step}.model_input"] = x_BTHWC[0]
        outputs[f"step{step}.time"] = level_of(t)[None] - 1
        outputs[f"step{step}.velocity"] = velocity[0]
        return velocity

    rules, steps = sampler("cogvideox-renoise"), int(call["num_steps"])
    draws = noise_rule.draw_series(LatentShape(*call["shape"]), [int(call["seed"])], rule, count=rules.draws(steps))
    if not torch.equal(draws[:, 0], inputs["noises"]):
        raise ValueError("the seed does not give the recorded noise")
    times = rules.times(steps, schedule.snr_shift)
    first = rules.unused + 1
    step = rules.step(times, schedule.snr_shift, draws[first:])
    return outputs | {"latent": sample(told, draws[rules.unused], times, step=step)[0]}


def run_scheduler(case: Case) -> dict[str, Tensor]:
    """The table of the schedule, noised latents, and clean estimates."""
    case.refuse_other_calls("num_inference_steps")
    schedule, inputs = CogVideoXSchedule.from_config(case.config), case.inputs()
    times = schedule.times(int(case.call["num_inference_steps"]))[:-1]
    indices = level_of(times) - 1
    noisy = torch.stack([schedule.noised(inputs["x0"], inputs["noise"], t) for t in times])
    return {
        "timesteps": indices,
        "alphas_cumprod_all": schedule.alphas_cumprod,
        "alphas_cumprod_at_timesteps": schedule.alphas_cumprod[indices],
        "noisy": noisy,
        "x0_pred": torch.stack([schedule.clean(x, inputs["velocity"], t) for x, t in zip(noisy, times, strict=True)]),
    }


def run_text_embedder(case: Case) -> dict[str, Tensor]:
    """States of given token numbers."""
    case.refuse_other_calls("token_lengths", "max_length")
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        net = T5EncoderModel(T5Config(**case.config))
    state = read_state(case.weights)
    # the table of words is one tensor under two names
    state |= {name: state["shared.weight"] for name in net.state_dict() if name == "encoder.embed_tokens.weight"}
    assign_state(net, state, dtype=case.dtype, where=str(case.weights))
    encoder = T5Encoder(net, Tokenizer(Unigram()), T5Params(int(case.call["max_length"])))
    return {"last_hidden_state": encoder.states(case.inputs()["input_ids"]).tokens_BLC}


def run_vae(case: Case) -> dict[str, Tensor]:
    """Decode latents to pixels and bytes; encode pixels to moments."""
    case.refuse_other_calls("num_latent_frames_batch_size")
    inputs = case.inputs()
    pieces = int(case.call["num_latent_frames_batch_size"])
    if pieces != LATENT_PIECE and len(inputs["latent"]) != 1:
        raise NotBuilt(f"pieces of {pieces} latent frames are not built: the released autoencoder takes {LATENT_PIECE}")
    with torch.device("meta"):
        vae = CogVideoXAutoencoder(CogVideoXParams.from_dict(case.config))
    load_into(vae, case.weights, keymap=shared_keymaps.DIFFUSERS_INSIDE, dtype=case.dtype)
    pixels = vae.decode(inputs["latent"][None])
    mean, logvar = (x.permute(0, 4, 1, 2, 3) for x in vae.posterior(inputs["pixels"].permute(0, 2, 3, 4, 1)))
    return {
        "decoded": pixels.permute(0, 4, 1, 2, 3),
        "frames_uint8": to_bytes(pixels).permute(0, 4, 1, 2, 3),
        "encoder_moments": torch.cat((mean, logvar), dim=1),
    }


def _dit(case: Case, config: dict[str, Any]) -> DiffusionTransformer3D:
    with torch.device("meta"):
        net = DiffusionTransformer3D(DiTParams.from_dict(config))
    load_into(net, case.weights, keymap=keymaps.IDENTITY, dtype=case.dtype)
    return net


def _listen(net: DiffusionTransformer3D) -> dict[str, Tensor]:
    """A table that fills with the streams of a forward pass, under the official names."""
    heard: dict[str, Tensor] = {}

    def keep(module: nn.Module, *names: str) -> None:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            heard.update(zip(names, output if isinstance(output, tuple) else (output,), strict=True))

        module.register_forward_hook(hook)

    keep(net.time_embeddings, "time_embed")
    keep(net.text_embeddings, "text_embed")
    net.visual_embeddings.register_forward_hook(lambda _module, _inputs, output: heard.update(visual_embed=output[0]))
    for number, block in enumerate(net.blocks()):
        name = f"block{number // 2}.{('local', 'global')[number % 2]}"
        keep(block, f"{name}.visual", f"{name}.text")
    return heard


def _states(tokens_BLC: Tensor) -> TextStates:
    return TextStates(tokens_BLC, tokens_BLC.new_zeros(len(tokens_BLC), 0))


def _groups(call: dict[str, Any]) -> Groups:
    t, h, w = (int(entry) for entry in call.get("num_groups") or (1, 1, 1))
    return (t, h, w)


def _triple(values: Any) -> tuple[float, float, float]:
    t, h, w = (float(value) for value in values or (1.0, 1.0, 1.0))
    return (t, h, w)
