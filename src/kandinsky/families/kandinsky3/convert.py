"""Kandinsky 3 as a whole: from the official files to a Diffusers folder and back."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError
from kandinsky.families.kandinsky3 import folder as kandinsky3_folder
from kandinsky.families.kandinsky3.family import FAMILY
from kandinsky.families.parts.keymaps import PROJECTION
from kandinsky.families.parts.movq import MovqAutoencoder
from kandinsky.families.parts.params import MovqParams
from kandinsky.families.parts.unet.params import UNetParams
from kandinsky.families.parts.unet.unet import UNet
from kandinsky.files import replacing
from kandinsky.model.card import Card
from kandinsky.weights.keymaps import keymap_for
from kandinsky.weights.locate import locate_parts
from kandinsky.weights.read import assign_state, read_state, weight_files
from kandinsky.weights.write import write_state

log = logging.getLogger(__name__)
PREFIX = f"{kandinsky3_folder.PROJECTION['table']}."
NULL = "null_embedding"
ENCODER = "flan_ul2_encoder"  # official folder of text encoder, tokenizer and projection
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class Files:
    """Where the files of a model's parts are, in either layout.

    Attributes:
        projection: The official file, or the U-Net's folder, which holds it in the Diffusers layout.
    """

    unet: Path
    movq: Path
    projection: Path
    encoder: Path
    tokenizer: Path


def write_diffusers(files: Files, target: Path, *, unet: Mapping[str, Any], movq: Mapping[str, Any]) -> Path:
    """Write a folder that Diffusers' ``Kandinsky3Pipeline`` loads.

    Args:
        unet: Hyper-parameters of the U-Net, by official name.
        movq: Hyper-parameters of the autoencoder, by official name.

    Raises:
        WeightsError: The tensors do not fit the network.
        RequestError: The target exists already.
        BackendError: Diffusers' class cannot represent the network.
    """
    with _made_beside(target) as folder:
        projection = _projection(files.projection)
        state = kandinsky3_folder.UNET.as_file(_unet(unet, files.unet).state_dict())
        if torch.equal(state[NULL].float(), projection["1.bias"].float()):
            del state[NULL]  # what Diffusers uses in its place is the same
        else:
            log.warning("Diffusers has no state for no text: without a negative prompt its images will differ")
        state |= {PREFIX + PROJECTION.to_official(name): tensor for name, tensor in projection.items()}
        config = kandinsky3_folder.unet_config(
            dataclasses.asdict(UNetParams.from_dict(unet)), projection["0.weight"].shape[1]
        )
        write_state(state, folder / "unet", layout="diffusers", config=config)
        sizes = MovqParams.from_dict(movq)
        vae = kandinsky3_folder.movq(len(sizes.ch_mult)).as_file(_movq(movq, files.movq).state_dict())
        vae["quantize.embedding.weight"] = torch.zeros(1, sizes.z_channels)  # present, but never used
        config = kandinsky3_folder.movq_config(dataclasses.asdict(sizes)) | {"num_vq_embeddings": 1}
        write_state(vae, folder / "movq", layout="diffusers", config=config)
        _copy_encoder(files.encoder, folder / "text_encoder")
        _copy(files.tokenizer, folder / "tokenizer", TOKENIZER_FILES)
        for name, values in kandinsky3_folder.OTHER_FILES.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return target


def write_official(files: Files, target: Path, *, unet: Mapping[str, Any], movq: Mapping[str, Any]) -> Path:
    """Write an official `weights/` folder: `kandinsky3.pt`, `movq.pt`, `flan_ul2_encoder/`.

    Arguments and errors are those of ``write_diffusers``.
    """
    with _made_beside(target) as folder:
        state = _unet(unet, files.unet).state_dict()
        torch.save({"unet": {n: t for n, t in state.items() if n != NULL}, NULL: state[NULL]}, folder / "kandinsky3.pt")
        torch.save(_movq(movq, files.movq).state_dict(), folder / "movq.pt")
        _copy_encoder(files.encoder, folder / ENCODER)
        _copy(files.tokenizer, folder / ENCODER, TOKENIZER_FILES)
        torch.save(_projection(files.projection), folder / ENCODER / "projection.pt")
    return target


def _unet(params: Mapping[str, Any], path: Path) -> nn.Module:
    with torch.device("meta"):
        net = UNet(UNetParams.from_dict(params))
    return _filled(net, "kandinsky3.unet", path)


def _movq(params: Mapping[str, Any], path: Path) -> nn.Module:
    with torch.device("meta"):
        net = MovqAutoencoder(MovqParams.from_dict(params))
    return _filled(net, "movq", path)


def _filled(net: nn.Module, kind: str, path: Path) -> nn.Module:
    state = read_state(path)
    assign_state(net, state, keymap=keymap_for(FAMILY.part(kind), state), where=str(path))
    return net


def _projection(path: Path) -> dict[str, Tensor]:
    """The projection's tensors under their official names."""
    state = read_state(path)
    inner = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    return {PROJECTION.to_ours(name): tensor for name, tensor in (inner or state).items()}


def _copy_encoder(source: Path, target: Path) -> None:
    shards = weight_files(source)
    names = [path.name for path in (source / "config.json", *shards, *source.glob("model.safetensors.index.json"))]
    _copy(source, target, names)


def _copy(source: Path, target: Path, names: list[str] | tuple[str, ...]) -> None:
    target.mkdir(exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@contextmanager
def _made_beside(target: Path) -> Iterator[Path]:
    """A new folder that gets the target's name when it is complete."""
    if target.exists():
        raise RequestError(f"target `{target}` is there already: name a folder that is not")
    with replacing(target, folder=True) as folder:
        yield folder


def convert(source: Path, target: Path, to: str, card: Card | None) -> Path:
    """Write the model in a folder in the other layout; see ``model.family.Convert``."""
    assert card is not None
    writers = {"official": write_official, "diffusers": write_diffusers}
    if to not in writers:
        raise RequestError(f"unknown layout `{to}`: use `official` or `diffusers`")
    (unet,), (movq,) = (locate_parts(part, root=source).values() for part in (card.dit, card.vae))
    text = locate_parts(card.text, root=source)
    files = Files(unet, movq, text["projection"], text["t5"], text["tokenizer"])
    return writers[to](files, target, unet=card.dit.params, movq=card.vae.params)
