"""Kandinsky 4's video to audio at tiny size: the true U-Net and autoencoder, and an encoder with code of its own.

All weights are random, from one seed. The encoder stands in `encoder/` as a repository with remote code would: its
class is not this library's, and importing it leaves a file behind, `ran`, so that a test can see that it ran.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler
from safetensors.torch import save_file

from kandinsky.families.kandinsky4_v2a.clip_embeddings import ClipEmbeddings, write_embeddings
from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.families.kandinsky4_v2a.unet import V2AUNet
from kandinsky.media.video import write_video
from kandinsky.model.values import Video
from tiny.family import SEED, randomise
from tiny.tokenizers import clip_tokenizer

MODEL = "tiny-v2a"
WIDTH = 8  # of the encoder's states
UNET = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "encoder_dim": WIDTH,
}
VAE = {
    "latent_channels": 4,
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
# spectrograms of a few numbers, windows of two seconds
CARD = f"""
base = "kandinsky4-v2a"
id = "{MODEL}"

[dit]
params = {{ {", ".join(f"{key} = {value!r}" for key, value in UNET.items())} }}
parts = [{{ repo = "./", files = ["unet/"] }}]

[text]
parts = [{{ repo = "./", files = ["encoder/"], name = "model" }}]
params = {{ max_words = 6 }}

[vae]
parts = [{{ repo = "./", files = ["vae/"] }}]

[sampling]
steps = 2
noise = "float32"

[sound]
window_s = 2.0
least_s = 0.5
overlap_s = 0.5
frames = 4
multiple = 8
[sound.spectrogram]
sample_rate = 8000
step_size_ms = 20
window_duration_ms = 40
padded_duration_ms = 64
num_frequencies = 32
max_frequency = 4000
num_griffin_lim_iters = 2

[clip]
sizes = ["104x32"]
default_size = "104x32"
"""
CODE = """
import pathlib
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

pathlib.Path({ran!r}).touch()
PLACES = 3


class TinyConfig(PretrainedConfig):
    model_type = "tiny_films"

    def __init__(self, width=8, words=1000, **others):
        self.width, self.words = width, words
        super().__init__(**others)


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, hidden_states):
        return hidden_states + self.linear(hidden_states).tanh()


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.words, config.width)
        self.see = nn.Linear(3, config.width)
        self.layers = nn.ModuleList([Layer(config.width) for _ in range(3)])


class TinyFilms(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Decoder(config)
        self.head = nn.Linear(config.width, config.words)
        self.post_init()

    def build_conversation_input_ids(self, tokenizer, *, query, images, history, template_version):
        assert template_version == "base" and history == [] and len(images) < 2
        frames = [film.permute(1, 0, 2, 3).float().mean(dim=(2, 3)) / 255 for film in images]
        seen = PLACES * len(frames[0]) if frames else 0
        words = tokenizer(query, add_special_tokens=False).input_ids
        ids = [1] + [0] * seen + words
        kinds = [0] + [1] * seen + [0] * len(words)
        return {{"input_ids": torch.tensor(ids), "token_type_ids": torch.tensor(kinds),
                "attention_mask": torch.ones(len(ids)), "images": frames}}

    def forward(self, input_ids, token_type_ids, attention_mask, images=None, output_hidden_states=False):
        x = self.model.embed(input_ids)
        if images is not None:
            x = x.clone()
            x[token_type_ids == 1] = self.model.see(images[0][0]).repeat_interleave(PLACES, dim=0)
        states = [x]
        for layer in self.model.layers:
            states.append(layer(hidden_states=states[-1]))
        if output_hidden_states:
            return states
        raise RuntimeError("the head is never needed")
"""


def unet(**changes) -> V2AUNet:
    return randomise(V2AUNet(V2AParams.from_dict(UNET | changes)))  # type: ignore[return-value]


def write_official(folder: Path) -> Path:
    """`unet/`, `vae/` and `scheduler/` as the official repository has them; returns the folder."""
    (folder / "unet").mkdir(parents=True)
    save_file(unet().state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.31.0", "act_fn": "silu", **UNET}
    (folder / "unet" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    randomise(AutoencoderKL(**VAE)).save_pretrained(folder / "vae")
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    return folder


def write_encoder(folder: Path) -> Path:
    """A repository with a model, a tokenizer, and the code of the model's class; returns the folder."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(SEED)
    shapes = {"model.embed.weight": (1000, WIDTH), "model.see.weight": (WIDTH, 3), "model.see.bias": (WIDTH,),
              "head.weight": (1000, WIDTH), "head.bias": (1000,)}  # fmt: skip
    for i in range(3):
        shapes |= {f"model.layers.{i}.linear.weight": (WIDTH, WIDTH), f"model.layers.{i}.linear.bias": (WIDTH,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "tiny_films",
        "width": WIDTH,
        "auto_map": {"AutoConfig": "films.TinyConfig", "AutoModelForCausalLM": "films.TinyFilms"},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "films.py").write_text(CODE.format(ran=str(folder.parent / "ran")), encoding="utf-8")
    clip_tokenizer().save_pretrained(folder)
    return folder


def write(folder: Path) -> Path:
    """The whole model with a card, `card.toml`, for small spectrograms; returns the folder."""
    write_official(folder)
    write_encoder(folder / "encoder")
    (folder / "card.toml").write_text(CARD, encoding="utf-8")
    return folder


def states_file(path: Path, windows: int = 1, **changes: torch.Tensor) -> Path:
    """Random states of films with so many windows; ``changes`` of ``ClipEmbeddings``."""
    generator = torch.Generator().manual_seed(5)
    text, film = (torch.randn(n, length, WIDTH, generator=generator) for n, length in ((1, 6), (windows, 4)))
    states = ClipEmbeddings(film, text, torch.zeros(1, 4, WIDTH), torch.zeros(1, 6, WIDTH))
    return write_embeddings(dataclasses.replace(states, **changes), path)


def film(path: Path, *, seconds: float = 2.0, fps: float = 8, seed: int = 1) -> Path:
    """A clip of moving colours."""
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 255, (max(1, round(seconds * fps)), 3, 4, 3), np.uint8)
    return write_video(Video(np.repeat(np.repeat(few, 16, 1), 16, 2), fps=fps, seed=0), path)
