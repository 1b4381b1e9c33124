"""Builders and readers of Nano's own networks, as ``family.py`` refers to them."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from kandinsky.model.card import Component
from kandinsky.model.family import Files
from kandinsky.runtime.placement import Precision


def autoencoder(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.nano.autoencoder import NanoAutoencoder
    from kandinsky.families.nano.params import NanoAutoencoderParams

    return NanoAutoencoder(NanoAutoencoderParams.from_dict(component.params))


def clip_encoder(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.nano.clip_encoder import NanoClipEncoder, NanoClipEncoderParams

    return NanoClipEncoder(NanoClipEncoderParams.from_dict(component.params))


def text_encoder(component: Component, files: Files, precision: Precision) -> object:
    from kandinsky.families.nano.text_encoder import NanoTextEncoder

    return NanoTextEncoder.from_files(
        files["network"], files["tokenizer"], component.params, files.get("words"), files.get("steering")
    )


def vocabulary(component: Component, files: Files, text: str) -> list[tuple[str, ...]]:
    """Names of what can be shown, in English and Russian, as far as a text speaks of it."""
    from kandinsky.families.nano.known_words import KnownWords

    return KnownWords.read(files["words"]).found(text) if "words" in files else []
