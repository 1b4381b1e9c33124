"""The image family at tiny size: the same encoders, a transformer with or without condition channels, an image VAE."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from tiny import family
from tiny.tokenizers import clip_tokenizer, qwen_tokenizer

DIT_PARAMS: dict[str, dict[str, Any]] = {
    "text-to-image": family.DIT_PARAMS | {"visual_cond": False},
    "image-editing": family.DIT_PARAMS | {"visual_cond": False, "instruct_type": "channel"},
}
SHORT = {"text-to-image": "t2i", "image-editing": "i2i"}
VAE_CONFIG: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 8, 8],
    "layers_per_block": 1,
    "latent_channels": family.CHANNELS,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}


@cache
def dit(task: str) -> DiffusionTransformer3D:
    return family.randomise(DiffusionTransformer3D(DiTParams.from_dict(DIT_PARAMS[task])))  # type: ignore[return-value]


@cache
def vae() -> AutoencoderKL:
    return family.randomise(AutoencoderKL(**VAE_CONFIG))  # type: ignore[return-value]


def checkpoint(task: str) -> str:
    return f"kandinsky5lite_{SHORT[task]}.safetensors"


def write_official(folder: Path, task: str) -> Path:
    """`folder/weights/{model,flux/vae,text_encoder,text_encoder2}` and `folder/config.yaml`; returns the latter."""
    weights = folder / "weights"
    (weights / "model").mkdir(parents=True)
    save_file(dit(task).state_dict(), weights / "model" / checkpoint(task))
    vae().save_pretrained(weights / "flux" / "vae")
    for name, model, tokenizer in (
        ("text_encoder", family.qwen(), qwen_tokenizer()),
        ("text_encoder2", family.clip(), clip_tokenizer()),
    ):
        model.save_pretrained(weights / name)
        tokenizer.save_pretrained(weights / name)
    values = family.official_config(
        str(weights),
        checkpoint_path=str(weights / "model" / checkpoint(task)),
        dit_params=DIT_PARAMS[task],
        vae={"checkpoint_path": str(weights / "flux" / "vae"), "name": "flux"},
        guidance_weight=3.5,
    )
    values["metrics"] = {"scale_factor": [1.0, 1.0, 1.0], "resolution": 1024}
    conf = folder / "config.yaml"
    conf.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return conf


def write_diffusers(folder: Path, task: str) -> Path:
    """The same weights as Diffusers' pipeline saves them; returns the folder."""
    write_diffusers_configs(folder, task, DIT_PARAMS[task])
    save_file(dit(task).state_dict(), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    vae().save_pretrained(folder / "vae")
    family.qwen().save_pretrained(folder / "text_encoder")
    qwen_tokenizer().save_pretrained(folder / "tokenizer")
    family.clip().save_pretrained(folder / "text_encoder_2")
    clip_tokenizer().save_pretrained(folder / "tokenizer_2")
    return folder


PIPELINES = {"text-to-video": "T2V", "image-to-video": "I2V", "text-to-image": "T2I", "image-editing": "I2I"}


def write_diffusers_configs(
    folder: Path, task: str, dit_params: dict[str, Any], *, shift: float | None = 3.0, **attention: Any
) -> Path:
    """`model_index.json` and the configurations of transformer and scheduler, without any weights."""
    config = {key: value for key, value in dit_params.items() if key != "instruct_type"}
    config["visual_cond"] = bool(config.get("visual_cond")) or "instruct_type" in dit_params
    config |= {"_class_name": "Kandinsky5Transformer3DModel", "_diffusers_version": "0.42.1"}
    config |= {"attention_type": "regular", "attention_P": None} | {f"attention_{k}": v for k, v in attention.items()}
    scheduler: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    scheduler |= {} if shift is None else {"shift": shift}
    index = {"_class_name": f"Kandinsky5{PIPELINES[task]}Pipeline", "_diffusers_version": "0.42.1"}
    for path, values in (
        ("model_index.json", index),
        ("transformer/config.json", config),
        ("scheduler/scheduler_config.json", scheduler),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(values), encoding="utf-8")
    return folder
