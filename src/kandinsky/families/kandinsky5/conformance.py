"""Runs cases of Kandinsky 5 through the public networks and samplers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kandinsky.diffusion import step_cache
from kandinsky.diffusion.caching import MagCache, magcache_plan, ratio_rows
from kandinsky.diffusion.first_frame import normalize_first_frame
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.sample import sample
from kandinsky.diffusion.schedule import flow_times
from kandinsky.engine.stages import to_pixels, with_frames
from kandinsky.families.kandinsky5.denoiser import bind
from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D
from kandinsky.families.kandinsky5.params import DiTParams
from kandinsky.families.parts.hunyuan import HunyuanAutoencoder
from kandinsky.families.parts.keymaps import DIFFUSERS_INSIDE
from kandinsky.families.parts.params import HunyuanParams
from kandinsky.families.parts.tiles import Tiling
from kandinsky.golden.cases import Case, Runner
from kandinsky.golden.tracking import CaseError, Settings
from kandinsky.media.image import FittedImage, area_size, open_image
from kandinsky.model.card import Component
from kandinsky.model.denoiser import VIDEO, Denoiser, Known, Pass
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention import AttentionSpec
from kandinsky.ops.attention_spec import TILE
from kandinsky.ops.lora import layer_shapes
from kandinsky.ops.nabla import (
    BLOCK,
    KeptBlocks,
    Nabla,
    TileOrder,
    block_means,
    block_probability,
    top_cdf,
    window_mask,
)
from kandinsky.runtime.adapters import Adapters
from kandinsky.weights.lora import Lora, LoraConfig, read_lora
from kandinsky.weights.read import read_metadata

MOST_STEPS = 10_000
MOST_PIXELS = 2**26
# of the tokens that enter the visual blocks, cases with block-sparse attention record so many
RECORDED_TOKENS = 192


def run_dit(case: Case) -> Mapping[str, Tensor]:
    """One forward pass, with its intermediate results."""
    net = transformer(case)
    inside = _listen(net)
    masks = _Masks()
    outputs = {"output": _forward(net, case, masks)}
    if masks.blocks:
        inside["visual_tokens_in"] = inside["visual_tokens_in"][:RECORDED_TOKENS]
    return outputs | {f"intermediate.{name}": tensor for name, tensor in (inside | masks.blocks).items()}


def run_lora(case: Case) -> Mapping[str, Tensor]:
    """One forward pass with an adapter file loaded, and one after it was unloaded again."""
    net, file = transformer(case), case.file(case.call.text("adapter_file"))
    layers = layer_shapes(net)
    config = case.call.table("adapter_config")
    lora = read_lora(
        file,
        layers,
        model=case.component,
        config=LoraConfig.from_dict(config, where="call.adapter_config"),
    )
    lora = _targeted(lora, config)
    if case.call.has("metadata"):
        recorded = {"trigger": lora.trigger} | {
            key: value for key, value in (read_metadata(file) or {}).items() if key != "trigger"
        }
        for key, value in case.call.table("metadata").items():
            if recorded.get(key) != value:
                raise CaseError(f"call.metadata.{key}", f"is `{value}`, the file has `{recorded.get(key)}`")
    adapters = Adapters(case.component, lambda: layers)
    name = adapters.add(lora)
    adapters.apply(net)
    output = _forward(net, case)
    adapters.remove(name)
    adapters.apply(net)
    return {"output": output, "output_without_adapter": _forward(net, case)}


def run_sample(case: Case) -> Mapping[str, Tensor]:
    """A whole sampling loop."""
    inputs, call = case.inputs, case.call
    steps, guidance = call.integer("num_steps", least=1, most=MOST_STEPS), Guidance(call.number("guidance_weight"))
    cache = _step_cache(call, guidance)
    attention, scale = _attention(call, "attention"), call.factors("scale_factor")
    net = transformer(case)
    noise_BTHWC = inputs["noise"][None]
    known = Known()
    if "first_frame" in inputs:
        known = with_frames(known, VIDEO, inputs["first_frame"][None], 0, noise_BTHWC.shape[1])
    elif "source_latent" in inputs:
        known = Known(extra={"source": inputs["source_latent"][None]})

    def denoiser(prefix: str, branch: str) -> Denoiser:
        text = TextEmbeddings(
            inputs[f"{prefix}text_embeds"], inputs[f"{prefix}pooled_embed"], inputs.optional(f"{prefix}attention_mask")
        )
        runner = cache.runner(branch) if cache else None
        return bind(net, known, Pass(text, rope_scale=scale, attention=attention, runner=runner))

    # without guidance the loop takes the embeddings of the negative prompt, where there are any, and ignores them
    has_negative = guidance.is_on or "null_text_embeds" in inputs
    guided = guidance.guide(denoiser("", "conditional"), denoiser("null_", "unconditional") if has_negative else None)
    times = flow_times(steps, call.number("scheduler_scale"))
    states: list[Tensor] = []

    def pin(state: Mapping[str, Tensor], t: Tensor) -> Mapping[str, Tensor]:
        states[:] = [state[VIDEO]]
        return known.pin(state)

    restored = sample(guided, {VIDEO: noise_BTHWC}, times, pin=pin)[VIDEO]  # type: ignore[arg-type]
    outputs = {
        "output": (normalize_first_frame(restored) if known.mask else restored)[0],
        "intermediate.loop_result": states[0][0],
        "intermediate.first_frame_restored": restored[0],
    }
    return outputs | ({"skip": torch.tensor(cache.skips)[:, 0]} if cache else {})


def run_magcache_schedule(case: Case) -> Mapping[str, Tensor]:
    """Passes that ratio tables skip, and the tables for other numbers of steps."""
    case.inputs.documentary("dummy")
    outputs: dict[str, Tensor] = {}
    for entry in case.call.tables("cases"):
        name, steps = entry.text("name"), entry.integer("num_steps", least=1, most=MOST_STEPS)
        settings = _magcache(entry, case.config)
        branches = magcache_plan(settings, steps)[: 1 if entry.flag("no_cfg", False) else 2]
        outputs[f"skip.{name}"] = torch.tensor(branches).T.flatten()
        rows = torch.tensor(ratio_rows(settings.ratios, steps), dtype=torch.float64)
        outputs[f"ratios.{name}"] = rows.T.flatten()
    # the official code has these as constants; a case may give them for all its entries
    for key in ("threshold", "K", "retention_ratio"):
        if all(key in entry for entry in case.call.tables("cases")):
            case.config.documentary(key)
    return outputs


def run_timesteps(case: Case) -> Mapping[str, Tensor]:
    """Schedules, their differences, and the time the network is given."""
    case.inputs.documentary("dummy")
    outputs: dict[str, Tensor] = {}
    for entry in case.call.tables("cases"):
        steps, shift = entry.integer("num_steps", least=1, most=MOST_STEPS), entry.number("scheduler_scale")
        times = flow_times(steps, shift)
        name = f"n{steps}.s{shift:g}"
        outputs |= {f"timesteps.{name}": times, f"dt.{name}": times.diff()}
        outputs[f"time_input.{name}"] = times[:-1] * 1000.0
    return outputs


def run_vae(case: Case) -> Mapping[str, Tensor]:
    """Encode to the unscaled posterior, decode from unscaled latents; whole or in tiles.

    `opt_tiling` is an argument of the official encoder alone: without it, it takes the whole clip as one tile. Without
    `tile`, the official rule chooses one.
    """
    call = case.call
    tiling: Literal["none", "official"] | Tiling = "none"
    if call.has("tile"):
        batch, *tile = call.integers("tile", 4, least=1)
        frames, height, width = call.integers("stride", 3, least=1)
        if batch != 1:
            raise CaseError("call.tile", "is for more than one clip, which is not supported")
        tiling = Tiling((tile[0], tile[1], tile[2]), (frames, height, width))
    elif call.has("stride"):
        raise CaseError("call.stride", "has no effect without `tile`")
    elif call.flag("opt_tiling", False):
        tiling = "official"
    vae = case.network(lambda: HunyuanAutoencoder(HunyuanParams.from_dict(case.config)), keymap=DIFFUSERS_INSIDE)
    operations = _words(call, "ops", ("encode", "decode"))
    if "encode" not in operations:
        call.documentary("opt_tiling")
    outputs: dict[str, Tensor] = {}
    for operation in operations:
        if operation == "encode":
            vae.tiling = tiling if call.flag("opt_tiling", True) else "none"
            mean, logvar = vae.posterior(case.inputs["video"].permute(0, 2, 3, 4, 1))
            outputs |= {"mean": mean.permute(0, 4, 1, 2, 3), "logvar": logvar.permute(0, 4, 1, 2, 3)}
        else:
            vae.tiling = tiling
            latents = case.inputs["latent"].permute(0, 2, 3, 4, 1) * vae.params.scaling_factor
            outputs["sample"] = vae.decode(latents).permute(0, 4, 1, 2, 3)
    return outputs


def run_nabla_mask(case: Case) -> Mapping[str, Tensor]:
    """Blocks kept for given queries and keys, [B, N, Q, K], in tile order."""
    call, inputs = case.call, case.inputs
    _only(call, "block_size", BLOCK)
    mass = call.number("thr" if "thr" in call else "P")
    if call.has("P") and call.number("P") != mass:
        raise CaseError("call.P", f"is {call.number('P'):g} and `thr` is {mass:g}: they are two names of one value")
    sta = call.table("sta")
    T, H, W, wT, wH, wW = (sta.integer(name, least=1, most=4096) for name in ("T", "H", "W", "wT", "wH", "wW"))
    spec = AttentionSpec(type="nabla", P=mass, wT=wT, wH=wH, wW=wW)
    window = window_mask((T, H, W), (wT, wH, wW))[None, None]
    if "sta_mask" in inputs and not torch.equal(inputs["sta_mask"], window):
        raise CaseError("inputs.sta_mask", "is not the window that `call.sta` describes")
    q_BSNK, k_BSNK = inputs["q"].transpose(1, 2), inputs["k"].transpose(1, 2)
    kept = Nabla.of((T, H * TILE, W * TILE), spec).select(q_BSNK, k_BSNK).kept_BNQK
    probability = block_probability(block_means(q_BSNK), block_means(k_BSNK))
    return {
        "block_mask": kept,
        "block_probability": probability,
        "cdf_mask": top_cdf(probability, spec.P),
        "kv_num_blocks": kept.sum(-1),
        "sta_mask": window,
    }


def run_fractal(case: Case) -> Mapping[str, Tensor]:
    """Token order, and the way back."""
    _only(case.call, "pixel_size", TILE)
    x = case.inputs["x"]
    frames, height, width = case.call.integers("shape", 3, least=1)
    if tuple(x.shape[:3]) != (frames, height, width):
        raise CaseError("call.shape", f"is not the shape of `inputs.x`, {list(x.shape[:3])}")
    order = TileOrder.of((frames, height, width))
    rows = x.flatten(0, 2)[None]
    flat = order.arrange(rows)
    if not torch.equal(order.restore(flat), rows):
        raise ValueError("the inverse does not restore the order")
    return {"flat": flat[0], "flat_dense": rows[0], "permutation": order.order_S}


def run_preprocess_image(case: Case) -> Mapping[str, Tensor]:
    """Images [1, 3, H, W] of uint8, resized by either rule."""
    outputs: dict[str, Tensor] = {}
    for number, item in enumerate(case.call.tables("items")):
        image = open_image(case.inputs[f"image.{number}"][0].permute(1, 2, 0).numpy())
        kind = item.text("kind")
        if kind == "i2v":
            area = item.integer("max_area", least=1, most=MOST_PIXELS)
            width, height = area_size(*image.size, area=area, multiple=item.integer("divisibility", least=1, most=4096))
            fitted = FittedImage(image, width, height, how="stretch")
        elif kind == "cover_crop":
            height, width = item.integers("size", 2, least=1, most=8192)
            fitted = FittedImage(image, width, height, how="cover")
        else:
            raise CaseError(f"{item.name}.kind", f"is `{kind}`: use `i2v` or `cover_crop`")
        pixels = to_pixels(fitted.pixels())[:, 0]
        outputs[f"resized.{number}"] = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 3, 1, 2)
    return outputs


def run_normalize_first_frame(case: Case) -> Mapping[str, Tensor]:
    """Latents [T, H, W, C] before and after."""
    reference, clamp = case.call.integer("reference_frames", least=1), case.call.flag("clump_values")
    latents_BTHWC = case.inputs["latents"][None]
    return {"output": normalize_first_frame(latents_BTHWC, reference_frames=reference, clamp=clamp)[0]}


CASES: Mapping[str, Runner] = {
    "kandinsky5.dit": run_dit,
    "kandinsky5.fractal": run_fractal,
    "kandinsky5.lora": run_lora,
    "kandinsky5.magcache_schedule": run_magcache_schedule,
    "kandinsky5.nabla_mask": run_nabla_mask,
    "kandinsky5.normalize_first_frame": run_normalize_first_frame,
    "kandinsky5.preprocess_image": run_preprocess_image,
    "kandinsky5.sample": run_sample,
    "kandinsky5.timesteps": run_timesteps,
    "kandinsky5.vae": run_vae,
}


def transformer(case: Case) -> DiffusionTransformer3D:
    """The network of a case, with its weights."""
    return case.network(lambda: DiffusionTransformer3D(DiTParams.from_dict(case.config)))


class _Masks(KeptBlocks):
    """Keeps what block-sparse attention keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: dict[str, Tensor] = {}

    def note(self, layer: int, kept_BNQK: Tensor) -> None:
        self.blocks[f"block_mask_{layer}"] = kept_BNQK


def _listen(net: DiffusionTransformer3D) -> dict[str, Tensor]:
    """A table that is filled with the token streams of a forward pass of one clip, under the official names."""
    heard: dict[str, Tensor] = {}

    def before(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        x_BSD, text_BLD, e_BE = given[:3]
        heard.update(visual_tokens_in=x_BSD[0], text_embed=text_BLD, time_embed=e_BE)

    for number, block in enumerate(net.visual_transformer_blocks):
        if number == 0:
            block.register_forward_pre_hook(before)

        def after(_module: nn.Module, _given: object, x_BSD: Tensor, name: str = f"visual_block_{number}") -> None:
            heard[name] = x_BSD[0]

        block.register_forward_hook(after)
    return heard


def _forward(net: DiffusionTransformer3D, case: Case, kept: KeptBlocks | None = None) -> Tensor:
    inputs, call = case.inputs, case.call
    mask = inputs.optional("attention_mask") if _is_input(call, "attention_mask", "input", None) else None
    visual: tuple[Tensor, Tensor, Tensor] | None = None
    if _is_input(call, "visual_rope_pos", "input", "arange") and "visual_rope_pos.0" in inputs:
        visual = (inputs["visual_rope_pos.0"], inputs["visual_rope_pos.1"], inputs["visual_rope_pos.2"])
    text = inputs.optional("text_rope_pos") if _is_input(call, "text_rope_pos", "input", "arange") else None
    velocity = net(
        inputs["x"][None],
        inputs["time"],
        TextEmbeddings(inputs["text_embed"], inputs["pooled_text_embed"], mask),
        rope_scale=call.factors("scale_factor"),
        attention=_attention(call, "sparse"),
        positions=visual,
        text_positions=text,
        kept=kept,
    )
    out: Tensor = velocity[0]
    return out


def _is_input(call: Settings, key: str, given: str, absent: str | None) -> bool:
    """Whether an argument is among the inputs; if the call does not say, it may be."""
    if key not in call:
        return True
    if (value := call[key]) not in (given, absent):
        raise CaseError(f"{call.name}.{key}", f"is `{value}`: use `{given}` or `{absent or 'null'}`")
    return value == given


def _step_cache(call: Settings, guidance: Guidance) -> step_cache.StepCache | None:
    if not call.has("magcache"):
        return None
    values = call.table("magcache")
    if values.has("no_cfg") and values.flag("no_cfg") == guidance.is_on:
        # the official counters then take one branch's passes for the other's
        raise CaseError(f"{values.name}.no_cfg", f"does not fit a guidance weight of {guidance.weight:g}")
    steps = values.integer("num_steps", least=1, most=MOST_STEPS) if values.has("num_steps") else None
    return step_cache.start(_magcache(values), steps=steps or call.integer("num_steps", least=1, most=MOST_STEPS))


def _magcache(own: Settings, common: Settings | None = None) -> MagCache:
    """Official settings; those that an entry does not have are the common ones."""

    def where(key: str) -> Settings:
        return common if common is not None and key not in own else own

    return MagCache(
        threshold=where("threshold").number("threshold"),
        K=where("K").integer("K"),
        retention=where("retention_ratio").number("retention_ratio"),
        ratios=tuple(where("mag_ratios").numbers("mag_ratios")),
        whole_steps=False,
    )


def _targeted(lora: Lora, config: Settings) -> Lora:
    """Only the layers that the configuration names, by PEFT's rule: a name's end, or a pattern of the whole name."""
    if config.has("bias") and config["bias"] != "none":
        raise CaseError(f"{config.name}.bias", f"is `{config['bias']}`: only `none` is supported")
    config.documentary("lora_dropout", "inference_mode", "task_type")  # of training
    if not config.has("target_modules"):
        return lora
    targets = config["target_modules"]
    if isinstance(targets, list):
        ends = tuple(f".{name}" for name in targets)
        chosen: Iterable[str] = [name for name in lora.updates if f".{name}".endswith(ends)]
    else:
        pattern = re.compile(config.text("target_modules"))
        chosen = [name for name in lora.updates if pattern.fullmatch(name)]
    return replace(lora, updates={name: lora.updates[name] for name in chosen})


def _attention(call: Settings, key: str) -> AttentionSpec:
    if not call.has(key):
        return AttentionSpec()
    values = call.table(key)
    if not values.flag("to_fractal", True):
        raise CaseError(f"{values.name}.to_fractal", "is false: block-sparse attention needs tokens in tile order")
    return AttentionSpec.from_dict({name: values[name] for name in values if name != "to_fractal"})


def _only(call: Settings, key: str, value: int) -> None:
    if call.has(key) and call[key] != value:
        raise CaseError(f"{call.name}.{key}", f"is `{call[key]}`: only {value} is supported")


def _words(call: Settings, key: str, known: tuple[str, ...]) -> list[str]:
    """A list of known words."""
    value = call[key]
    if not isinstance(value, list) or not value or not all(word in known for word in value):
        raise CaseError(f"{call.name}.{key}", f"must be a list of {' and '.join(f'`{word}`' for word in known)}")
    return value


def component_of(values: Mapping[str, Any]) -> Component | None:
    """The network that a manifest describes, by its hyper-parameters; None for one of another family."""
    if "dit_params" in values:
        return Component("kandinsky5.dit", (), dict(values["dit_params"]))
    blocks = set((values.get("config") or {}).get("down_block_types", ()))
    kinds = {"HunyuanVideoDownBlock3D": "hunyuan", "DownEncoderBlock2D": "flux"}
    kind = next((kind for block, kind in kinds.items() if block in blocks), None)
    return None if kind is None else Component(kind, (), dict(values["config"]))
