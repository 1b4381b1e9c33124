"""Runs cases of Kandinsky 4 through the public networks and samplers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from torch import Tensor, nn

from kandinsky.diffusion import noise as noise_rule
from kandinsky.diffusion.cogvideox import CogVideoXSchedule, level_of
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.samplers import sampler
from kandinsky.engine.stages import to_bytes
from kandinsky.families.kandinsky4.denoiser import DiscreteDenoiser
from kandinsky.families.kandinsky4.dit import DiffusionTransformer3D, Pack
from kandinsky.families.kandinsky4.params import DiTParams, Groups
from kandinsky.families.parts.cogvideox import CogVideoXAutoencoder
from kandinsky.families.parts.keymaps import DIFFUSERS_INSIDE
from kandinsky.families.parts.params import CogVideoXParams
from kandinsky.golden.cases import Case, Runner
from kandinsky.golden.tracking import CaseError, Settings
from kandinsky.model.card import Component
from kandinsky.model.values import LatentShape, TextEmbeddings
from kandinsky.ops.rope import Rotation
from kandinsky.text.t5 import PAD, T5Encoder, T5Params
from kandinsky.weights.keymaps import KeyMap

NOISE_RULES = {"none": "float32", "bfloat16": "float32 rounded to bfloat16"}
MOST_STEPS = 1000
# of a T5 encoder; the rest of its configuration is about its decoder, training and bookkeeping
T5_KEYS = (
    *("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "layer_norm_epsilon", "feed_forward_proj"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate"),
)


def run_dit(case: Case) -> Mapping[str, Tensor]:
    """One forward pass over clips concatenated along time, with its intermediate results."""
    inputs = case.inputs
    net = transformer(case, case.config)
    frames = _lengths(inputs["visual_cu_seqlens"], "inputs.visual_cu_seqlens", len(inputs["x"]))
    lengths = _lengths(inputs["text_cu_seqlens"], "inputs.text_cu_seqlens", len(inputs["text_embed"]))
    text = packed_states(inputs["text_embed"], lengths)
    scale = case.call.factors("scale_factor")
    outputs = _listen(net)
    outputs["output"] = net(
        inputs["x"], inputs["time"], text, frames=frames, rope_scale=scale, groups=_groups(case.call)
    )
    grid = outputs["visual_embed"].shape[1:3]
    rotation = Rotation(net.rope_embeddings(Pack(tuple(frames), (grid[0], grid[1])), scale, net.params.rope_angles))
    cos, sin = rotation.table.unbind(-1)
    turns = torch.stack((cos, -sin, sin, cos), dim=-1)
    outputs["rope"] = turns.unflatten(-1, (2, 2)).unflatten(1, grid)
    is_token = torch.ones(text.tokens_BLC.shape[:2], dtype=torch.bool) if text.mask_BL is None else text.mask_BL

    def recorded(name: str, tensor: Tensor) -> Tensor:
        if name.endswith(".visual"):
            out: Tensor = tensor.unflatten(1, grid)
            return out
        return tensor[is_token] if "text" in name else tensor

    return {name: recorded(name, tensor) for name, tensor in outputs.items()}


def run_sample(case: Case) -> Mapping[str, Tensor]:
    """A whole re-noising loop, from the seed."""
    call, inputs = case.call, case.inputs
    net = transformer(case, case.config.table("dit"), groups=_groups(call))
    schedule = CogVideoXSchedule.from_config(case.config.table("scheduler"))
    rounding = call.text("noise_rounding")
    if rounding not in NOISE_RULES:
        raise CaseError("call.noise_rounding", f"is `{rounding}`: use {' or '.join(f'`{n}`' for n in NOISE_RULES)}")
    rule = NOISE_RULES[rounding]
    rules, steps = sampler("cogvideox-renoise"), call.integer("num_steps", least=1, most=MOST_STEPS)
    shape = LatentShape(*call.integers("shape", 4, least=1, most=inputs["noises"].numel()))
    draws = noise_rule.draw_series(shape, [call.integer("seed", most=2**63)], rule, count=rules.draws(steps))
    if not torch.equal(draws[:, 0], inputs["noises"]):
        raise CaseError("inputs.noises", "is not the noise that `call.seed` gives")
    # one draw holds the frames of all clips
    clips = _equal_lengths(call, "visual_cu_seqlens", shape.frames)
    draws = draws[:, 0].unflatten(1, (clips, -1))
    lengths = [len(inputs["text_embed"])]
    if call.has("text_cu_seqlens"):
        bounds = torch.tensor(call.integers("text_cu_seqlens"))
        lengths = _lengths(bounds, "call.text_cu_seqlens", len(inputs["text_embed"]))

    def rounded(x: Tensor) -> Tensor:
        # the rounding that a network of the smaller type makes of its input
        return x.bfloat16().float() if rounding == "bfloat16" else x

    states = packed_states(rounded(inputs["text_embed"]), lengths)
    denoiser = DiscreteDenoiser(net, states, rope_scale=call.factors("scale_factor"))
    outputs: dict[str, Tensor] = {}

    def told(x_BTHWC: Tensor, t: Tensor) -> Tensor:
        step, x_BTHWC = len(outputs) // 3, rounded(x_BTHWC)
        velocity = denoiser(x_BTHWC, t)
        outputs[f"step{step}.model_input"] = x_BTHWC.flatten(0, 1)
        outputs[f"step{step}.time"] = (level_of(t) - 1).expand(clips)
        outputs[f"step{step}.velocity"] = velocity.flatten(0, 1)
        return velocity

    times = rules.times(steps, schedule.snr_shift)
    step = rules.step(times, schedule.snr_shift, draws[rules.unused + 1 :])
    return outputs | {"latent": sample(told, draws[rules.unused], times, step=step).flatten(0, 1)}


def run_scheduler(case: Case) -> Mapping[str, Tensor]:
    """The table of the schedule, noised latents, and clean estimates."""
    schedule, inputs = CogVideoXSchedule.from_config(case.config), case.inputs
    times = schedule.times(case.call.integer("num_inference_steps", least=1, most=MOST_STEPS))[:-1]
    indices = level_of(times) - 1
    clean, noise, velocity = inputs["x0"], inputs["noise"], inputs["velocity"]
    noisy = torch.stack([schedule.noised(clean, noise, t) for t in times])
    return {
        "timesteps": indices,
        "alphas_cumprod_all": schedule.alphas_cumprod,
        "alphas_cumprod_at_timesteps": schedule.alphas_cumprod[indices],
        "noisy": noisy,
        "x0_pred": torch.stack([schedule.clean(x, velocity, t) for x, t in zip(noisy, times, strict=True)]),
    }


def run_text_embedder(case: Case) -> Mapping[str, Tensor]:
    """Text embeddings of given token ids."""
    from transformers import T5Config, T5EncoderModel

    values: dict[str, Any] = {key: case.config[key] for key in T5_KEYS if key in case.config}
    case.config.documentary("is_encoder_decoder", "use_cache", "tie_word_embeddings")
    # the embedding table is one tensor under two names, of which files may hold either or both
    table = KeyMap(stand_ins=(("encoder.embed_tokens.weight", "shared.weight"),))
    net = case.network(lambda: T5EncoderModel(T5Config(**values)), keymap=table)
    numbers = case.inputs["input_ids"]
    if (length := case.call.integer("max_length", least=1)) != numbers.shape[1]:
        raise CaseError("call.max_length", f"is {length}, `inputs.input_ids` has {numbers.shape[1]} tokens a prompt")
    if case.call.has("token_lengths") and case.call.integers("token_lengths") != (numbers != PAD).sum(1).tolist():
        raise CaseError("call.token_lengths", "does not count the tokens of `inputs.input_ids` before the padding")
    return {"last_hidden_state": T5Encoder(net, Tokenizer(Unigram()), T5Params(length)).states(numbers).tokens_BLC}


def run_vae(case: Case) -> Mapping[str, Tensor]:
    """Decode latents to pixels and bytes; encode pixels to moments."""
    inputs = case.inputs
    frames = case.call.integer("num_latent_frames_batch_size", least=1)
    vae = case.network(
        lambda: CogVideoXAutoencoder(CogVideoXParams.from_dict(case.config), latent_piece=frames),
        keymap=DIFFUSERS_INSIDE,
    )
    outputs: dict[str, Tensor] = {}
    if "latent" in inputs:
        pixels = vae.decode(inputs["latent"][None])
        outputs |= {
            "decoded": pixels.permute(0, 4, 1, 2, 3),
            "frames_uint8": to_bytes(pixels).permute(0, 4, 1, 2, 3),
        }
    if "pixels" in inputs:
        moments = (x.permute(0, 4, 1, 2, 3) for x in vae.posterior(inputs["pixels"].permute(0, 2, 3, 4, 1)))
        outputs["encoder_moments"] = torch.cat(tuple(moments), dim=1)
    return outputs


CASES: Mapping[str, Runner] = {
    "kandinsky4.dit": run_dit,
    "kandinsky4.sample": run_sample,
    "kandinsky4.scheduler": run_scheduler,
    "kandinsky4.text_embedder": run_text_embedder,
    "kandinsky4.vae": run_vae,
}


def transformer(case: Case, config: Settings, *, groups: Groups | None = None) -> DiffusionTransformer3D:
    """The network of a case, with its weights. ``config``: its part of the configuration."""
    asked = {} if groups is None else {"num_groups": list(groups)}
    return case.network(lambda: DiffusionTransformer3D(DiTParams.from_dict(dict(config) | asked)))


def _listen(net: DiffusionTransformer3D) -> dict[str, Tensor]:
    """A table that is filled with the token streams of a forward pass, under the official names."""
    heard: dict[str, Tensor] = {}

    def keep(module: nn.Module, *names: str) -> None:
        def hook(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            heard.update(zip(names, output if isinstance(output, tuple) else (output,), strict=True))

        module.register_forward_hook(hook)

    keep(net.time_embeddings, "time_embed")
    keep(net.text_embeddings, "text_embed")
    net.visual_embeddings.register_forward_hook(lambda _module, _inputs, output: heard.update(visual_embed=output[0]))
    for number, block in enumerate(net.blocks()):
        name = f"block{number // 2}.{('local', 'global')[number % 2]}"
        keep(block, f"{name}.visual", f"{name}.text")
    return heard


def _lengths(bounds: Tensor, name: str, total: int) -> list[int]:
    """Lengths of packed sequences from their cumulative sums."""
    ends = bounds.tolist()
    lengths = [end - start for start, end in pairwise(ends)]
    if not lengths or ends[0] != 0 or ends[-1] != total or min(lengths) < 1:
        raise CaseError(name, f"is {ends}: cumulative lengths from 0 to {total} are needed")
    return lengths


def _equal_lengths(call: Settings, key: str, total: int) -> int:
    """How many equally long clips a pack has."""
    if not call.has(key):
        return 1
    lengths = _lengths(torch.tensor(call.integers(key)), f"{call.name}.{key}", total)
    if len(set(lengths)) > 1:
        raise CaseError(f"{call.name}.{key}", "packs clips of different lengths, which the sampler does not support")
    return len(lengths)


def packed_states(packed_LC: Tensor, lengths: list[int]) -> TextEmbeddings:
    """Packed texts as a batch; shorter ones are padded and masked."""
    texts = packed_LC.split(lengths)
    tokens_BLC = nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    mask_BL = torch.arange(tokens_BLC.shape[1])[None] < torch.tensor(lengths)[:, None]
    return TextEmbeddings(tokens_BLC, tokens_BLC.new_zeros(len(texts), 0), None if mask_BL.all() else mask_BL)


def _groups(call: Settings) -> Groups:
    if not call.has("num_groups"):
        return (1, 1, 1)
    t, h, w = call.integers("num_groups", 3, least=1)
    return (t, h, w)


def component_of(values: Mapping[str, Any]) -> Component | None:
    """The network that a manifest describes, by its hyper-parameters; None for one of another family."""
    config = dict(values.get("config") or {})
    if "num_blocks" in config and "model_channels" not in config:
        return Component("kandinsky4.dit", (), config)
    return Component("cogvideox", (), config) if "CogVideoXDownBlock3D" in config.get("down_block_types", ()) else None
