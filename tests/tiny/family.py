"""The whole family at tiny size, in the official folder layout and in the Diffusers one.

Legend: all weights are random, from one seed, and the same in both layouts.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from kandinsky.nets.kandinsky5.dit import DiffusionTransformer3D, DiTParams
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
    "block_out_channels": [8, 8, 8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    # the mask of the attention grows with the square of the clip; the tests decode 512 × 512
    "mid_block_add_attention": False,
    "scaling_factor": 0.476986,
}


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
def dit() -> DiffusionTransformer3D:
    return randomise(DiffusionTransformer3D(DiTParams.from_dict(DIT_PARAMS)))  # type: ignore[return-value]


@cache
def vae() -> AutoencoderKLHunyuanVideo:
    return randomise(AutoencoderKLHunyuanVideo(**VAE_CONFIG))  # type: ignore[return-value]


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


def official_config(weights: str = "./weights", **changes: Any) -> dict[str, Any]:
    """An official YAML file's values for the tiny family. Keys of ``changes`` replace keys of `model`."""
    model = {
        "checkpoint_path": f"{weights}/model/{CHECKPOINT}",
        "num_steps": 3,
        "guidance_weight": 5.0,
        "dit_params": DIT_PARAMS,
        "attention": {"type": "flash", "causal": False, "local": False, "glob": False, "window": 3},
        "vae": {"checkpoint_path": f"{weights}/vae/", "name": "hunyuan"},
        "text_embedder": {
            "qwen": {"emb_size": QWEN_WIDTH, "checkpoint_path": f"{weights}/text_encoder/", "max_length": 256},
            "clip": {"emb_size": CLIP_WIDTH, "checkpoint_path": f"{weights}/text_encoder2/", "max_length": 77},
        },
    }
    return {"metrics": {"scale_factor": [1.0, 2.0, 2.0], "resolution": 512}, "model": model | changes}


def write_official(folder: Path) -> Path:
    """`folder/weights/{model,vae,text_encoder,text_encoder2}` and `folder/config.yaml`; returns the latter."""
    weights = folder / "weights"
    (weights / "model").mkdir(parents=True)
    save_file(dit().state_dict(), weights / "model" / CHECKPOINT)
    vae().save_pretrained(weights / "vae")
    qwen().save_pretrained(weights / "text_encoder")
    qwen_tokenizer().save_pretrained(weights / "text_encoder")
    clip().save_pretrained(weights / "text_encoder2")
    clip_tokenizer().save_pretrained(weights / "text_encoder2")
    conf = folder / "config.yaml"
    conf.write_text(yaml.safe_dump(official_config(str(weights)), sort_keys=False), encoding="utf-8")
    return conf


def write_diffusers(folder: Path) -> Path:
    """The same family as `Kandinsky5T2VPipeline` saves it; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transformer").mkdir()
    save_file(dit().state_dict(), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "Kandinsky5Transformer3DModel", "_diffusers_version": "0.42.1", **DIT_PARAMS}
    config |= {"attention_type": "regular", "attention_causal": None, "attention_P": None, "attention_wT": None}
    (folder / "transformer" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    vae().save_pretrained(folder / "vae")
    qwen().save_pretrained(folder / "text_encoder")
    qwen_tokenizer().save_pretrained(folder / "tokenizer")
    clip().save_pretrained(folder / "text_encoder_2")
    clip_tokenizer().save_pretrained(folder / "tokenizer_2")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 5.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler), encoding="utf-8")
    index = {
        "_class_name": "Kandinsky5T2VPipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "text_encoder_2": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "Qwen2VLProcessor"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "transformer": ["diffusers", "Kandinsky5Transformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
