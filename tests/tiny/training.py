"""Recipes of every trainer at tiny size, with data made here: steps of milliseconds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from kandinsky.families.nano.text import NanoTextNetwork, NanoTextParams
from kandinsky.lab.nano.concepts import load_concepts
from kandinsky.lab.nano.emoji import FRAMES, SIDE
from kandinsky.weights.write import write_state

DIT: dict[str, Any] = {
    "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 8, "in_text_dim2": 8, "time_dim": 16, "model_dim": 16,
    "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 1, "axes_dims": [4, 6, 6], "visual_cond": True,
}  # fmt: skip
WORDS = NanoTextParams(
    vocab_size=20, width=16, heads=2, ff_width=16, layers=1, meaning_dim=8, token_dim=8, pooled_dim=8
)
PICTURES = {
    "columns": 216,
    "max_value": 3e6,
    "spectrogram": {
        "sample_rate": 16000, "window_duration_ms": 40, "padded_duration_ms": 64,
        "num_frequencies": 16, "max_frequency": 8000,
    },
}  # fmt: skip
SOUND_VAE = {
    "temporal": 1, "spatial": 8, "latent_channels": 4, "encoder_width": 8, "width": 8, "blocks": 1, "fine_width": 8,
    "fine_blocks": 1,
}  # fmt: skip
SOUND_UNET = {
    "in_channels": 12, "out_channels": 4, "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "cross_attention_dim": 8, "encoder_dim": 8,
}  # fmt: skip
CLIP = {"encoder_dim": 8, "side": 16, "widths": [8, 8], "places": 4, "moments": 1, "words": ["drum", "clap", "bell"]}


def loop(steps: int, **more: Any) -> dict[str, Any]:
    return {"steps": steps, "lr": 3e-3, "warmup": 2, "bf16": False, "log_every": 1, "seed": 1, **more}


def latents(folder: Path) -> Path:
    """Six clips of latents, and what their captions say."""
    rng = np.random.default_rng(0)
    np.save(folder / "latents.npy", rng.standard_normal((6, 3, 4, 4, 4)).astype(np.float16))
    rows = [
        {"concept": i, "colour": i, "position": None, "scale": None, "camera": "zoom in" if i > 3 else None}
        for i in range(6)
    ]
    (folder / "latents.json").write_text(json.dumps(rows))
    return folder / "latents.npy"


def denoiser(folder: Path, steps: int) -> Path:
    """Latents and text memory in ``folder``; half of the clips begin with a given frame. Returns the recipe."""
    folder.mkdir(parents=True)
    latents(folder)
    torch.manual_seed(3)
    words = write_state(NanoTextNetwork(WORDS).state_dict(), folder / "words.safetensors")
    values = {
        "kind": "nano-denoiser",
        "cache": str(folder),
        "out": str(folder),
        "text": {"weights": str(words), "params": asdict(WORDS)},
        "data": {"side": 32, "extras": 0},
        "network": DIT,
        "stages": [{"until": 0.5, "frames": 1, "batch": 4}, {"until": 1.0, "frames": 3, "batch": 2}],
        "objective": {"drop_text": 0.3, "image_share": 0.5, "condition": "coordinates"},
        "loop": loop(steps),
    }
    return _write(folder, values)


def autoencoder(folder: Path, steps: int) -> Path:
    """Clips of noise under the names of all concepts, and some that are none. Returns the recipe."""
    folder.mkdir(parents=True)
    files = [concept.file for concept in load_concepts()] + [f"other-{i}" for i in range(12)]
    clips = np.random.default_rng(1).integers(0, 256, (len(files), 9, 16, 16, 4), dtype=np.uint8)
    clips[..., :3] = np.minimum(clips[..., :3], clips[..., 3:])  # premultiplied
    target = folder / f"clips-{SIDE}x{FRAMES}.npy"
    np.save(target, clips)
    target.with_suffix(".json").write_text(json.dumps({"files": files, "motion": [0.0] * len(files)}))
    values = {
        "kind": "nano-autoencoder",
        "cache": str(folder),
        "out": str(folder),
        "network": {"latent_channels": 8, "encoder_width": 8, "width": 8, "fine_width": 8, "blocks": 1},
        "data": {"side": 16, "frames": 9, "batch": 2, "latent_noise": 0.1, "pca_clips": 12},
        "held_every": 6,
        "loop": loop(steps),
    }
    return _write(folder, values)


def sound_autoencoder(folder: Path, steps: int) -> Path:
    folder.mkdir(parents=True)
    values = {
        "kind": "nano-sound-autoencoder",
        "cache": None,
        "out": str(folder),
        "pictures": PICTURES,
        "network": SOUND_VAE,
        "data": {"batch": 2, "pca_clips": 4},
        "loop": loop(steps),
    }
    return _write(folder, values)


def sound(folder: Path, steps: int, autoencoder: Path) -> Path:
    """``autoencoder``: weights that a recipe of ``sound_autoencoder`` left."""
    folder.mkdir(parents=True)
    values = {
        "kind": "nano-sound",
        "cache": None,
        "out": str(folder),
        "pictures": PICTURES,
        "autoencoder": {"weights": str(autoencoder), "params": SOUND_VAE},
        "network": SOUND_UNET,
        "clip": CLIP,
        "objective": {"batch": 2},
        "loop": loop(steps),
    }
    return _write(folder, values)


def _write(folder: Path, values: dict[str, Any]) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    return recipe
