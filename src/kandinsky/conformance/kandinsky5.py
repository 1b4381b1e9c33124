"""Runs cases of Kandinsky 5 through the public networks and samplers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from kandinsky.conformance.cases import Case, NotBuilt
from kandinsky.diffusion import step_cache
from kandinsky.diffusion.caching import MagCache, magcache_plan, ratio_rows
from kandinsky.diffusion.first_frame import normalize_first_frame
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.schedule import flow_times
from kandinsky.engine.stages import with_frames
from kandinsky.errors import WeightsError
from kandinsky.families.kandinsky5.denoiser import bind
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.parts import keymaps as shared_keymaps
from kandinsky.families.parts.hunyuan import HunyuanAutoencoder
from kandinsky.families.parts.params import HunyuanParams
from kandinsky.families.parts.tiling import Tiling
from kandinsky.model.denoiser import VIDEO, Denoiser, Known, Pass
from kandinsky.model.values import TextStates
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.lora import layer_shapes
from kandinsky.runtime.adapters import Adapters
from kandinsky.weights import keymaps
from kandinsky.weights.lora import LoraConfig, read_lora
from kandinsky.weights.read import load_into

FORWARD_CALLS = ("scale_factor", "attention_mask", "sparse", "visual_rope_pos", "text_rope_pos")


def run_dit(case: Case) -> dict[str, Tensor]:
    """One forward pass."""
    case.refuse_other_calls(*FORWARD_CALLS)
    return {"output": _forward(_dit(case), case)}


def _forward(net: DiffusionTransformer3D, case: Case) -> Tensor:
    spec, inputs = _spec(case.call.get("sparse")), case.inputs()
    positions = [inputs.get(f"visual_rope_pos.{axis}") for axis in range(3)]
    given = [p for p in positions if p is not None]
    velocity = net(
        inputs["x"][None],
        inputs["time"],
        TextStates(inputs["text_embed"], inputs["pooled_text_embed"], inputs.get("attention_mask")),
        rope_scale=_scale(case.call),
        attention=spec,
        positions=(given[0], given[1], given[2]) if len(given) == 3 else None,
        text_positions=inputs.get("text_rope_pos"),
    )
    return velocity[0]


def run_lora(case: Case) -> dict[str, Tensor]:
    """One forward pass with an adapter file loaded, and one after it was unloaded again."""
    case.refuse_other_calls("adapter_config", "adapter_file", "metadata", *FORWARD_CALLS)
    net, file = _dit(case), case.folder / case.call["adapter_file"]
    layers = layer_shapes(net)
    config = LoraConfig.from_dict(case.call["adapter_config"], where=str(case.folder))
    lora = read_lora(file, layers, model=case.component, config=config, keymap=keymaps.IDENTITY)
    if lora.trigger != (trigger := (case.call.get("metadata") or {}).get("trigger", "")):
        raise WeightsError(f"trigger `{lora.trigger}` was read from `{file}`, expected `{trigger}`")
    adapters = Adapters(case.component, lambda: layers)
    name = adapters.add(lora)
    adapters.apply(net)
    output = _forward(net, case)
    adapters.remove(name)
    adapters.apply(net)
    return {"output": output, "output_without_adapter": _forward(net, case)}


def run_sample(case: Case) -> dict[str, Tensor]:
    """A whole sampling loop."""
    case.refuse_other_calls("num_steps", "guidance_weight", "scheduler_scale", "scale_factor", "attention", "magcache")
    inputs, call = case.inputs(), case.call
    cache = None
    if settings := _magcache(call.get("magcache")):
        cache = step_cache.start(settings, steps=int(call["num_steps"]))
    spec = _spec(call.get("attention"))
    net = _dit(case)
    noise_BTHWC = inputs["noise"][None]
    known = Known()
    if (first := inputs.get("first_frame")) is not None:
        known = with_frames(known, VIDEO, first[None], 0, noise_BTHWC.shape[1])
    if (source := inputs.get("source_latent")) is not None:
        known = Known(extra={"source": source[None]})

    def denoiser(prefix: str, branch: str) -> Denoiser:
        states = TextStates(
            inputs[f"{prefix}text_embeds"], inputs[f"{prefix}pooled_embed"], inputs.get(f"{prefix}attention_mask")
        )
        runner = cache.runner(branch) if cache else None
        return bind(net, known, Pass(states, rope_scale=_scale(call), attention=spec, runner=runner))

    guidance = Guidance(float(call["guidance_weight"]))
    guided = guidance.guide(denoiser("", "conditional"), denoiser("null_", "unconditional") if guidance.is_on else None)
    times = flow_times(int(call["num_steps"]), float(call["scheduler_scale"]))
    latents_BTHWC = sample(guided, {VIDEO: noise_BTHWC}, times, pin=known.pin)[VIDEO]  # type: ignore[arg-type]
    outputs = {"output": (normalize_first_frame(latents_BTHWC) if known.mask else latents_BTHWC)[0]}
    return outputs | ({"skip": torch.tensor(cache.skips)[:, 0]} if cache else {})


def run_magcache_schedule(case: Case) -> dict[str, Tensor]:
    """Which passes official ratio tables leave out, and the tables for other numbers of steps."""
    outputs: dict[str, Tensor] = {}
    for entry in case.call["cases"]:
        steps, name = int(entry["num_steps"]), entry["name"]
        settings = _magcache(case.config | {"mag_ratios": entry["mag_ratios"]})
        assert settings is not None
        branches = magcache_plan(settings, steps)[: 1 if entry.get("no_cfg") else 2]
        outputs[f"skip.{name}"] = torch.tensor(branches).T.flatten()
        rows = torch.tensor(ratio_rows(settings.ratios, steps), dtype=torch.float64)
        outputs[f"ratios.{name}"] = rows.T.flatten()
    return outputs


def run_timesteps(case: Case) -> dict[str, Tensor]:
    """Schedules, their differences, and the time the network is told."""
    outputs: dict[str, Tensor] = {}
    for entry in case.call["cases"]:
        steps, shift = int(entry["num_steps"]), float(entry["scheduler_scale"])
        times = flow_times(steps, shift)
        name = f"n{steps}.s{shift:g}"
        outputs |= {f"timesteps.{name}": times, f"dt.{name}": times.diff()}
        outputs[f"time_input.{name}"] = times[:-1] * 1000.0
    return outputs


def run_vae(case: Case) -> dict[str, Tensor]:
    """Encode to the unscaled posterior, decode from unscaled latents; whole or in the official tiles."""
    case.refuse_other_calls("ops", "tile", "stride", "opt_tiling")
    call, inputs = case.call, case.inputs()
    tiling: Literal["none"] | Tiling = "none"
    if call.get("tile"):
        _, *tile = call["tile"]
        tiling = Tiling((tile[0], tile[1], tile[2]), tuple(call["stride"]))
    with torch.device("meta"):
        vae = HunyuanAutoencoder(HunyuanParams.from_dict(case.config), tiling=tiling)
    load_into(vae, case.weights, keymap=shared_keymaps.DIFFUSERS_INSIDE, dtype=case.dtype)
    outputs: dict[str, Tensor] = {}
    if "encode" in call["ops"]:
        mean, logvar = vae.posterior(inputs["video"].permute(0, 2, 3, 4, 1))
        outputs |= {"mean": mean.permute(0, 4, 1, 2, 3), "logvar": logvar.permute(0, 4, 1, 2, 3)}
    if "decode" in call["ops"]:
        latents = inputs["latent"].permute(0, 2, 3, 4, 1) * vae.params.scaling_factor
        outputs["sample"] = vae.decode(latents).permute(0, 4, 1, 2, 3)
    return outputs


def _magcache(values: dict[str, Any] | None) -> MagCache | None:
    """Official settings; ``no_cfg`` follows from the guidance, and the number of steps from the call."""
    if not values:
        return None
    return MagCache(
        threshold=float(values["threshold"]),
        K=int(values["K"]),
        retention=float(values["retention_ratio"]),
        ratios=tuple(float(ratio) for ratio in values["mag_ratios"]),
        whole_steps=False,
    )


def _dit(case: Case) -> DiffusionTransformer3D:
    with torch.device("meta"):
        net = DiffusionTransformer3D(DiTParams.from_dict(case.config))
    load_into(net, case.weights, keymap=keymaps.IDENTITY, dtype=case.dtype)
    return net


def _spec(values: dict[str, Any] | None) -> AttentionSpec:
    if not values:
        return AttentionSpec()
    if values.get("to_fractal") is False:
        raise NotBuilt("block-sparse attention of tokens that are not in tile order")
    return AttentionSpec.from_dict({key: value for key, value in values.items() if key != "to_fractal"})


def _scale(call: dict[str, Any]) -> tuple[float, float, float]:
    t, h, w = (float(value) for value in call.get("scale_factor") or (1.0, 1.0, 1.0))
    return (t, h, w)
