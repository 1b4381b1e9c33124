"""The whole family at tiny size, in the official folder layout and in the Diffusers one.

Legend: all weights are random, from one seed, and the same in both layouts.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from kandinsky.families.kandinsky5.dit import DiffusionTransformer3D, DiTParams
from tiny.tokenizers import clip_tokenizer, qwen_tokenizer

SEED = 20251121
CHECKPOINT = "kandinsky5lite_t2v_tiny_5s.safetensors"
QWEN_WIDTH, CLIP_WIDTH, CHANNELS = 32, 24, 4
DIT_PARAMS: dict[str, Any] = {
    "in_visual_dim": CHANNELS,
    "out_visual_dim": CHANNELS,
    "in_text_dim": QWEN_WIDTH,
    "in_text_dim2": CLIP_WIDTH,
    "time_dim": 32,
    "patch_size": [1, 2, 2],
    "model_dim": 32,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": [4, 6, 6],
    "visual_cond": True,
}
VAE_CONFIG: dict[str, Any] = {
    "latent_channels": CHANNELS,
    "block_out_channels": [4, 4, 4, 4],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    # the mask of the attention grows with the square of the clip; the tests decode 512 × 512
    "mid_block_add_attention": False,
    "scaling_factor": 0.476986,
}
FLUX_CONFIG: dict[str, Any] = {
    "latent_channels": CHANNELS,
    "block_out_channels": [4, 4, 4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}


@dataclass(frozen=True)
class Kind:
    """One member of the family. Text encoders are the same in all; networks of one shape have the same weights.

    changes: of ``DIT_PARAMS``.   pipeline: Diffusers' class.   config: stem of the official YAML file.
    """

    task: str
    config: str
    checkpoint: str
    pipeline: str
    changes: dict[str, Any] = field(default_factory=dict)
    is_image: bool = False

    @property
    def params(self) -> dict[str, Any]:
        return DIT_PARAMS | self.changes


T2V = Kind("text-to-video", "config", CHECKPOINT, "Kandinsky5T2VPipeline")
I2V = Kind("image-to-video", "k5_tiny_i2v", "kandinsky5lite_i2v_tiny_5s.safetensors", "Kandinsky5I2VPipeline")
T2I = Kind(
    "text-to-image",
    "k5_tiny_t2i",
    "kandinsky5lite_t2i_tiny.safetensors",
    "Kandinsky5T2IPipeline",
    {"visual_cond": False},
    is_image=True,
)
I2I = Kind(
    "image-editing",
    "k5_tiny_i2i",
    "kandinsky5lite_i2i_tiny.safetensors",
    "Kandinsky5I2IPipeline",
    {"visual_cond": False, "instruct_type": "channel"},
    is_image=True,
)
KINDS = {"t2v": T2V, "i2v": I2V, "t2i": T2I, "i2i": I2I}


def randomise(net: torch.nn.Module, seed: int = SEED, scale: float = 0.05) -> torch.nn.Module:
    """Fill every parameter: zero-initialised layers would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            is_scale = p.dim() == 1 and name.endswith("weight")
            p.copy_(
                1 + 0.1 * noise if is_scale else noise * (scale if p.dim() == 1 else max(scale, p[0].numel() ** -0.5))
            )
    return net.eval()


@cache
def dit(kind: str = "t2v") -> DiffusionTransformer3D:
    return randomise(DiffusionTransformer3D(DiTParams.from_dict(KINDS[kind].params)))  # type: ignore[return-value]


@cache
def vae() -> AutoencoderKLHunyuanVideo:
    return randomise(AutoencoderKLHunyuanVideo(**VAE_CONFIG))  # type: ignore[return-value]


@cache
def flux() -> AutoencoderKL:
    return randomise(AutoencoderKL(**FLUX_CONFIG))  # type: ignore[return-value]


def image_processor() -> Qwen2VLImageProcessorPil:
    """Qwen's, with pictures of few tokens."""
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 8})


@cache
def qwen() -> Qwen2_5_VLForConditionalGeneration:
    tokenizer = qwen_tokenizer()
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": QWEN_WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": QWEN_WIDTH,
            "fullatt_block_indexes": [0],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return randomise(Qwen2_5_VLForConditionalGeneration(config))  # type: ignore[return-value]


@cache
def clip() -> CLIPTextModel:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=CLIP_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return randomise(CLIPTextModel(config))  # type: ignore[return-value]


def official_config(weights: str = "./weights", kind: str = "t2v", **changes: Any) -> dict[str, Any]:
    """An official YAML file's values for the tiny family. Keys of ``changes`` replace keys of `model`."""
    member = KINDS[kind]
    vae_folder, vae_name = ("flux/vae", "flux") if member.is_image else ("vae", "hunyuan")
    max_length = 512 if member.is_image else 256
    model = {
        "checkpoint_path": f"{weights}/model/{member.checkpoint}",
        "num_steps": 3,
        "guidance_weight": 3.5 if member.is_image else 5.0,
        "dit_params": member.params,
        "attention": {"type": "flash", "causal": False, "local": False, "glob": False, "window": 3},
        "vae": {"checkpoint_path": f"{weights}/{vae_folder}/", "name": vae_name},
        "text_embedder": {
            "qwen": {"emb_size": QWEN_WIDTH, "checkpoint_path": f"{weights}/text_encoder/", "max_length": max_length},
            "clip": {"emb_size": CLIP_WIDTH, "checkpoint_path": f"{weights}/text_encoder2/", "max_length": 77},
        },
    }
    metrics = {"scale_factor": [1.0, 1.0, 1.0] if member.is_image else [1.0, 2.0, 2.0]}
    return {"metrics": metrics | {"resolution": 1024 if member.is_image else 512}, "model": model | changes}


def write_official(folder: Path, kind: str = "t2v") -> Path:
    """`folder/weights/{model,vae,text_encoder,text_encoder2}` and a YAML file; returns the latter."""
    member, weights = KINDS[kind], folder / "weights"
    (weights / "model").mkdir(parents=True)
    save_file(dit(kind).state_dict(), weights / "model" / member.checkpoint)
    if member.is_image:
        flux().save_pretrained(weights / "flux" / "vae")
    else:
        vae().save_pretrained(weights / "vae")
    qwen().save_pretrained(weights / "text_encoder")
    qwen_tokenizer().save_pretrained(weights / "text_encoder")
    image_processor().save_pretrained(weights / "text_encoder")
    clip().save_pretrained(weights / "text_encoder2")
    clip_tokenizer().save_pretrained(weights / "text_encoder2")
    conf = folder / f"{member.config}.yaml"
    conf.write_text(yaml.safe_dump(official_config(str(weights), kind), sort_keys=False), encoding="utf-8")
    return conf


def write_diffusers(folder: Path, kind: str = "t2v") -> Path:
    """The same as Diffusers' pipeline saves it; returns the folder."""
    member = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transformer").mkdir()
    save_file(dit(kind).state_dict(), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    params = dict(member.params)
    if params.pop("instruct_type", None) == "channel":
        params["visual_cond"] = True
    config = {"_class_name": "Kandinsky5Transformer3DModel", "_diffusers_version": "0.42.1", **params}
    config |= {"attention_type": "regular", "attention_causal": None, "attention_P": None, "attention_wT": None}
    (folder / "transformer" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (flux() if member.is_image else vae()).save_pretrained(folder / "vae")
    qwen().save_pretrained(folder / "text_encoder")
    qwen_tokenizer().save_pretrained(folder / "tokenizer")
    image_processor().save_pretrained(folder / "tokenizer")
    clip().save_pretrained(folder / "text_encoder_2")
    clip_tokenizer().save_pretrained(folder / "tokenizer_2")
    (folder / "scheduler").mkdir()
    shift = 3.0 if member.is_image else 5.0
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": shift}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler), encoding="utf-8")
    index = {
        "_class_name": member.pipeline,
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "text_encoder_2": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "Qwen2VLProcessor"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "Kandinsky5Transformer3DModel"],
        "vae": ["diffusers", "AutoencoderKL" if member.is_image else "AutoencoderKLHunyuanVideo"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
