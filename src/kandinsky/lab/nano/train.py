"""From a recipe file to trained weights: ``kandinsky train recipes/….yaml``.

A recipe's ``kind`` names a builder below; everything else in it is that builder's data. What a recipe does not say is
taken from the one it names as ``base``. A builder returns the objective
and what to write when the loop has ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kandinsky.errors import RequestError
from kandinsky.train import loop

if TYPE_CHECKING:
    from torch import nn


def run_recipe(
    recipe: Path | str,
    *,
    out: Path | str | None = None,
    resume: bool = True,
    steps: int | None = None,
    device: str = "cpu",
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> Path:
    """Run a recipe to its end; a run that was stopped continues from its last checkpoint.

    Args:    out: overrides the recipe's folder.   steps: overrides the recipe's number of steps.
    Returns: the weight file written.   Raises: RequestError for a recipe that cannot be read.
    """
    path = Path(recipe)
    values = read_recipe(path)
    kind = values.get("kind")
    if kind not in BUILDERS:
        raise RequestError(f"recipe `{path}` has kind `{kind}`: use one of {', '.join(BUILDERS)}")
    folder = Path(out or values["out"])
    if steps is not None:
        values.setdefault("loop", {})["steps"] = steps
    return BUILDERS[kind](values, folder, resume=resume, device=device, on_log=on_log)


def read_recipe(path: Path) -> dict[str, Any]:
    """What a recipe says, over what its ``base`` says, a file beside it; whole values replace each other.

    Raises: RequestError for a file that is missing or no table.
    """
    if not path.is_file():
        raise RequestError(f"recipe `{path}` does not exist", hint="shipped recipes stand in the folder `recipes/`")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RequestError(f"recipe `{path}` is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise RequestError(f"recipe `{path}` is no table, so its kind is `None`: use one of {', '.join(BUILDERS)}")
    base = values.pop("base", None)
    return read_recipe(path.with_name(str(base))) | values if base else values


def _autoencoder(values: dict[str, Any], out: Path, *, resume: bool, device: str, on_log: Any) -> Path:
    from kandinsky.families.nano.params import NanoAutoencoderParams
    from kandinsky.lab.nano.captions import COLOURS
    from kandinsky.lab.nano.splits import autoencoder_rows
    from kandinsky.lab.nano.train_autoencoder import AutoencoderObjective
    from kandinsky.weights.write import write_state

    train, _ = autoencoder_rows(Path(values["cache"]), values["held_every"])
    objective = AutoencoderObjective(
        Path(values["cache"]),
        train,
        [colour.rgb for colour in COLOURS],
        NanoAutoencoderParams.from_dict(values["network"]),
        **values["data"],
    )
    _start(objective.network, values)
    settings = loop.LoopSettings.from_dict(values["loop"])
    ema = loop.run(objective, settings, out, resume=resume, device=device, on_log=on_log)
    state = {**objective.network.state_dict(), **ema}
    (out / "config.json").write_text(json.dumps(values["network"]))
    return write_state(state, out / "vae.safetensors", layout="official")


def _denoiser(values: dict[str, Any], out: Path, *, resume: bool, device: str, on_log: Any) -> Path:
    from kandinsky.families.kandinsky5.params import DiTParams
    from kandinsky.families.nano.autoencoder import NanoAutoencoder
    from kandinsky.families.nano.params import NanoAutoencoderParams
    from kandinsky.families.nano.text import NanoTextNetwork, NanoTextParams
    from kandinsky.lab.nano.flow import FlowObjective, Stage, cache_latents
    from kandinsky.weights.read import load_into
    from kandinsky.weights.write import write_state

    out.mkdir(parents=True, exist_ok=True)
    data = values["data"]
    latents = out / "latents.npy"
    if not latents.exists():
        autoencoder = NanoAutoencoder(NanoAutoencoderParams.from_dict(values["autoencoder"]["params"]))
        load_into(autoencoder, Path(values["autoencoder"]["weights"]))
        cache_latents(Path(values["cache"]), autoencoder, latents, **data)
    words = NanoTextNetwork(NanoTextParams.from_dict(values["text"]["params"]))
    load_into(words, Path(values["text"]["weights"]))  # its memory alone is used
    settings = loop.LoopSettings.from_dict(values["loop"])
    objective = FlowObjective(
        latents,
        words,
        DiTParams.from_dict(values["network"]),
        [Stage(**stage) for stage in values["stages"]],
        steps=settings.steps,
        **values["objective"],
    )
    _start(objective.network, values)
    ema = loop.run(objective, settings, out, resume=resume, device=device, on_log=on_log)
    return write_state(ema, out / "dit.safetensors", layout="official")


def _start(network: nn.Module, values: dict[str, Any]) -> None:
    """Begin from a weight file where the recipe names one (``start``), as for more training of shipped weights."""
    if "start" in values:
        import torch

        from kandinsky.weights.read import load_into

        load_into(network, Path(values["start"]), dtype=torch.float32)


def _text(values: dict[str, Any], out: Path, *, resume: bool, device: str, on_log: Any) -> Path:
    from kandinsky.lab.nano.text_encoder import train_text_encoder

    return train_text_encoder(values, out, on_log=on_log)


def _cache(values: dict[str, Any]) -> Path | None:
    """Where the emoji are; null in a recipe of sound: drawn shapes alone."""
    return None if values["cache"] is None else Path(values["cache"])


def _sound_autoencoder(values: dict[str, Any], out: Path, *, resume: bool, device: str, on_log: Any) -> Path:
    from kandinsky.families.nano.params import NanoAutoencoderParams
    from kandinsky.lab.nano.train_sound import SoundAutoencoderObjective, read_pictures
    from kandinsky.weights.write import write_state

    params = NanoAutoencoderParams.from_dict(values["network"])
    objective = SoundAutoencoderObjective(_cache(values), read_pictures(values["pictures"]), params, **values["data"])
    _start(objective.network, values)
    settings = loop.LoopSettings.from_dict(values["loop"])
    ema = loop.run(objective, settings, out, resume=resume, device=device, on_log=on_log)
    return write_state({**objective.network.state_dict(), **ema}, out / "vae.safetensors", layout="official")


def _sound(values: dict[str, Any], out: Path, *, resume: bool, device: str, on_log: Any) -> Path:
    from kandinsky.families.kandinsky4_v2a.params import V2AParams
    from kandinsky.families.nano.autoencoder import NanoAutoencoder
    from kandinsky.families.nano.clip_encoder import NanoClipEncoderParams
    from kandinsky.families.nano.params import NanoAutoencoderParams
    from kandinsky.lab.nano.train_sound import SoundObjective, read_pictures
    from kandinsky.weights.read import load_into
    from kandinsky.weights.write import write_state

    autoencoder = NanoAutoencoder(NanoAutoencoderParams.from_dict(values["autoencoder"]["params"]))
    load_into(autoencoder, Path(values["autoencoder"]["weights"]))
    objective = SoundObjective(
        _cache(values),
        read_pictures(values["pictures"]),
        autoencoder,
        V2AParams.from_dict(values["network"]),
        NanoClipEncoderParams.from_dict(values["clip"]),
        **values["objective"],
    )
    settings = loop.LoopSettings.from_dict(values["loop"])
    ema = loop.run(objective, settings, out, resume=resume, device=device, on_log=on_log)
    for name in ("unet", "clip"):  # the third, which says events, has done its work
        part = {key.removeprefix(f"{name}."): tensor for key, tensor in ema.items() if key.startswith(f"{name}.")}
        target = write_state(part, out / f"{name}.safetensors", layout="official")
    return target


def _package(values: dict[str, Any], out: Path, *, resume: bool, device: str, on_log: Any) -> Path:
    """Put trained weights into the package: bfloat16, and int8 rows where the recipe says so."""
    import shutil

    import torch

    from kandinsky.train.curve import draw_curve
    from kandinsky.weights.read import read_state
    from kandinsky.weights.write import write_state

    out.mkdir(parents=True, exist_ok=True)
    for name, entry in values["weights"].items():
        state = {key: tensor.float() for key, tensor in read_state(Path(entry["from"])).items()}
        least, dims = entry.get("int8_from", 1 << 30), 5 if entry.get("kernels") else 2
        packed = [key for key, t in state.items() if 2 <= t.ndim <= dims and min(t.shape[:2]) >= least]
        half = {key: tensor if key in packed else tensor.to(torch.bfloat16) for key, tensor in state.items()}
        write_state(half, out / f"{name}.safetensors", layout="official", int8=packed)
    for name, source in values.get("copy", {}).items():
        shutil.copyfile(source, out / name)
    for name, entry in values.get("curves", {}).items():
        journals = [Path(journal) for journal in entry["from"]]
        draw_curve(journals, out / name, names=tuple(entry["names"]), title=entry["title"])
    return out


BUILDERS: dict[str, Callable[..., Path]] = {
    "nano-autoencoder": _autoencoder,
    "nano-text": _text,
    "nano-denoiser": _denoiser,
    "nano-sound-autoencoder": _sound_autoencoder,
    "nano-sound": _sound,
    "package": _package,
}
