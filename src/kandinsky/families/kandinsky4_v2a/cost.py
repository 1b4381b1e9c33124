"""What the networks of Kandinsky 4 V2A cost. No torch."""

from __future__ import annotations

from kandinsky.families.kandinsky4_v2a.params import V2AParams
from kandinsky.families.parts.cost import ENCODER_WORK
from kandinsky.families.parts.unet.cost import Figures
from kandinsky.model.card import Card, Component
from kandinsky.model.cost import Cost, Load, Operations

# 12 s of audio, with 100 tokens of text and 96 frames
UNET = Figures(320, 0.66e8, 1.08e8, 0.73e8, in_stages=0.89, largest=0.30)
# CogVLM2 for 96 frames, and for the black clip that guidance needs: language model and vision tower, 12.5 billion
# weights; 32 layers of language model
CLIP_OPERATIONS, CLIP_LAYERS, CLIP_IN_LAYERS = 3e14, 32, 0.86


def unet(card: Card, component: Component, load: Load) -> Cost:
    """The cost of all passes over the spectrogram of one window."""
    base = V2AParams.from_dict(component.params).block_out_channels[0]
    positions = load.latent.height * load.latent.width
    operations = UNET.operations(base, positions, load.passes)
    return UNET.cost(base, positions, operations, load, tokens=positions)


def clip_encoder(card: Card, component: Component, load: Load) -> Cost:
    """The cost of reading one window's frames and the prompts."""
    operations = Operations(linear=CLIP_OPERATIONS, kernels=20 * CLIP_LAYERS) * load.prompts
    one = CLIP_IN_LAYERS / CLIP_LAYERS
    return Cost(load.weights // ENCODER_WORK, operations, in_blocks=CLIP_IN_LAYERS, block=one, linear=CLIP_IN_LAYERS)
