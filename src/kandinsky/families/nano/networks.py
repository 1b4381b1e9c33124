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


def scene_transformer(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.kandinsky5.params import DiTParams
    from kandinsky.families.nano.scene_transformer import SceneTransformer

    return SceneTransformer(DiTParams.from_dict(component.params))


def patch_autoencoder(component: Component, path: Path) -> nn.Module:
    from kandinsky.families.nano.decoder import NanoDecoder
    from kandinsky.families.nano.linear import LinearPatches
    from kandinsky.families.nano.params import NanoPatchParams

    params = NanoPatchParams.from_dict(component.params)
    return NanoDecoder(LinearPatches(params.linear), params.decoder)


def scene_encoder(component: Component, files: Files, precision: Precision) -> object:
    from kandinsky.families.nano.scene_encoder import NanoSceneEncoder

    return NanoSceneEncoder.from_files(files["rows"], files["words"], component.params)


def scene_vocabulary(component: Component, files: Files, text: str) -> list[tuple[str, ...]]:
    """Names of what the second Nano can show, in English and Russian, as far as a text speaks of it."""
    from kandinsky.families.nano.reader import SceneReader

    return SceneReader.of(files["words"]).found(text)


def check_scene(component: Component, files: Files, prompt: str) -> None:
    """Refuse a prompt of which the second Nano can show nothing."""
    from kandinsky.families.nano.unknown import check

    check(files["words"], prompt)
