"""Evaluation of an autoencoder: what clips lose by being coded and decoded, and what their latents are like.

Legend: B batch; T H W C frames, rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kandinsky.errors import RequestError
from kandinsky.evaluate import clips, distance
from kandinsky.evaluate.extractors import EXTRACTORS, Tools
from kandinsky.evaluate.latents import LatentStatistics
from kandinsky.evaluate.measuring import figure_of
from kandinsky.media.video import read_video

if TYPE_CHECKING:
    from kandinsky.model.autoencoder import VideoAutoencoder

KINDS = {"AutoencoderKLHunyuanVideo": "hunyuan", "AutoencoderKLCogVideoX": "cogvideox"}  # by Diffusers' class
NEEDED = ("lpips", "i3d")
WINDOW = 11  # of SSIM
FRAMES = 17
ABOUT = {
    "psnr": ("higher", "dB"),
    "lowest frame": ("higher", "PSNR of the worst frame, dB"),
    "ssim": ("higher", "of luma"),
    "lpips": ("lower", "AlexNet"),
    "temporal error": ("lower", "mean absolute error of the differences between frames, levels"),
    "flicker ratio": ("near 1", "second differences in time, of those of the clips"),
    "rfvd": ("lower", "Fréchet distance of decoded clips from the clips, I3D"),
}


@dataclass(frozen=True, slots=True)
class Coder:
    """An autoencoder that is ready.

    Attributes:
        network: It.
        temporal: Frames of a latent frame.
        spatial: Rows and columns of a latent place.
        device: Where it runs.
        most_frames: Of a clip; None for any number.
    """

    network: VideoAutoencoder
    temporal: int
    spatial: int
    device: str
    most_frames: int | None = None


@contextmanager
def opened(model: str, *, device: str | None = None, dtype: str | None = None) -> Iterator[Coder]:
    """The autoencoder of a model, or of a folder in Diffusers' layout such as training writes.

    Args:
        model: Catalogue id or whatever else ``kandinsky.load`` takes, or the folder of an autoencoder.
        device: Where it runs; default: the best available.
        dtype: float32, bfloat16 or float16; default: float32 for a folder, and as the model runs otherwise.

    Raises:
        RequestError: The model has no autoencoder of clips, or the folder is of another class.
        WeightsError: Weights are missing or broken.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        yield _of_folder(folder, device, dtype)
        return
    from kandinsky import catalogue

    card = catalogue.source_of(model).card
    if card.does.makes == "sound":
        raise RequestError(f"`{model}` makes sound: name a model of clips or images, or the folder of an autoencoder")
    pipe: Any = catalogue.load(model, only=("vae",), device=device, dtype=dtype)
    most = 1 if card.does.makes == "image" else None
    with pipe.context.placement.hold("vae") as network:
        yield Coder(network, card.clip.temporal, card.clip.spatial, str(pipe.context.placement.device("vae")), most)


def _of_folder(folder: Path, device: str | None, dtype: str | None) -> Coder:
    import torch

    from kandinsky import catalogue
    from kandinsky.engine.build import bare_network
    from kandinsky.model.card import Component
    from kandinsky.runtime.devices import choose_device
    from kandinsky.weights.keymaps import keymap_of
    from kandinsky.weights.read import load_into
    from kandinsky.weights.untrusted import read_table

    name = str(read_table(folder / "config.json").get("_class_name"))
    if (kind := KINDS.get(name)) is None:
        raise RequestError(f"`{folder}` is of the class `{name}`: use one of {', '.join(f'`{one}`' for one in KINDS)}")
    part, where = catalogue.part(kind), choose_device(device)
    kept = getattr(torch, dtype or "float32")
    network: Any = bare_network(part, Component(kind, ()), folder)
    load_into(network, folder, keymap=keymap_of(part), dtype=kept)
    network = network.to(where, kept).eval().requires_grad_(False)
    halvings = len(network.params.block_out_channels) - 1
    return Coder(network, network.params.temporal_compression_ratio, 2**halvings, where)


def prepared(frames_THWC: np.ndarray, coder: Coder, *, size: tuple[int, int] | None, frames: int) -> np.ndarray:
    """The beginning of a clip that the coder takes: 1 + whole latent frames, sides in whole latent places.

    Args:
        frames_THWC: A clip, uint8.
        coder: For whom.
        size: Width and height; None for the clip's own, less what is no whole place.
        frames: At most so many.

    Returns:
        [T, H, W, 3], uint8.

    Raises:
        RequestError: The clip is smaller than one latent place.
    """
    from PIL import Image

    from kandinsky.media.image import cover

    most = min(len(frames_THWC), frames, coder.most_frames or frames)
    kept = frames_THWC[: 1 + (most - 1) // coder.temporal * coder.temporal]
    height, width = kept.shape[1:3]
    wide, high = size or (width // coder.spatial * coder.spatial, height // coder.spatial * coder.spatial)
    if not wide or not high or wide % coder.spatial or high % coder.spatial:
        wide, high = size or (width, height)
        raise RequestError(f"{wide}x{high} does not fit: use a size of multiples of {coder.spatial}")
    if size is None:
        top, left = (height - high) // 2, (width - wide) // 2
        return np.ascontiguousarray(kept[:, top : top + high, left : left + wide])
    return np.stack([np.asarray(cover(Image.fromarray(one), wide, high)) for one in kept])


def coded(coder: Coder, clip_THWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents as denoisers see them, [t, h, w, C], and the clip that they decode to, uint8."""
    import torch

    network: Any = coder.network
    kept = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    with torch.inference_mode():
        x = torch.from_numpy(np.ascontiguousarray(clip_THWC)).to(coder.device).float() / 127.5 - 1
        z = network.encode(x[None].to(kept))
        made = network.decode(z).float()[0]
        pixels = ((made.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.asarray(z[0].float().cpu().numpy()), np.asarray(pixels.cpu().numpy())


def measured(clip: np.ndarray, made: np.ndarray, tools: Tools) -> dict[str, float]:
    """What one clip lost, by metric; those that do not apply to it are left out."""
    errors = np.square(clip.astype(np.float32) - made).mean(axis=(1, 2, 3), dtype=np.float64)
    found = {
        "psnr": clips.psnr(clip, made),
        "lowest frame": min(clips.EQUAL_DB, float(10 * np.log10(clips.MOST**2 / max(float(errors.max()), 1e-9)))),
    }
    if min(clip.shape[1:3]) >= WINDOW:
        found["ssim"] = clips.ssim(clip, made)
    if "lpips" in tools.loaded:
        found["lpips"] = tools.loaded["lpips"].distance(clip, made)
    if len(clip) > 1:
        steps, others = (np.diff(one.astype(np.int16), axis=0) for one in (clip, made))
        found["temporal error"] = float(np.abs(steps - others).mean())
    if len(clip) > 2 and (own := clips.flicker(clip)) > 0:
        found["flicker ratio"] = clips.flicker(made) / own
    return found


def evaluate(
    coder: Coder,
    files: Mapping[str, Path],
    tools: Tools,
    *,
    size: tuple[int, int] | None = None,
    frames: int = FRAMES,
    on_clip: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Any]:
    """Code and decode clips.

    Args:
        coder: The autoencoder.
        files: Clips by name.
        tools: Networks at hand, of ``NEEDED``.
        size: Width and height; None for each clip's own.
        frames: Of a clip, at most.
        on_clip: Called with (done, total) after each clip.

    Returns:
        Plain values: `metrics` with value, interval and number of clips, `unavailable` with reasons, `latents`
        (see ``LatentStatistics.result``), and `clips`.

    Raises:
        RequestError: A clip cannot be read, or does not fit.
    """
    rows: list[dict[str, Any]] = []
    statistics = LatentStatistics()
    features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    unavailable = {name: tools.missing.get(name, EXTRACTORS[name].missing("not loaded")) for name in NEEDED
                   if name not in tools.loaded}  # fmt: skip
    for done, (name, path) in enumerate(files.items(), 1):
        try:
            clip = prepared(read_video(path).frames_THWC, coder, size=size, frames=frames)
        except RequestError as error:
            raise RequestError(f"clip `{path.name}`: {error}") from error
        latents, made = coded(coder, clip)
        statistics.add(latents, clip)
        values = measured(clip, made, tools)
        rows.append({"name": name, "frames": len(clip), "size": f"{clip.shape[2]}x{clip.shape[1]}", "values": values})
        if "i3d" not in unavailable:
            try:
                for kept, one in zip(features, (clip, made), strict=True):
                    kept.append(tools.loaded["i3d"].clip(one))
            except RequestError as error:
                unavailable["i3d"] = f"`{path.name}`: {error}"
        on_clip(done, len(files))
    figures = _figures(rows)
    if "i3d" in unavailable:
        unavailable["rfvd"] = unavailable.pop("i3d")
    elif len(rows) < 2:
        unavailable["rfvd"] = "one clip: a distance of sets needs two or more"
    else:
        value = distance.frechet(np.stack(features[1]), np.stack(features[0]))
        figures["rfvd"] = {"value": value, "low": None, "high": None, "clips": len(rows)}
    return {"metrics": figures, "unavailable": unavailable, "latents": statistics.result(), "clips": rows}


def _figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    names = [row["name"] for row in rows]
    figures = {}
    for name in ABOUT:
        figure = figure_of([row["values"].get(name) for row in rows], names)
        if figure is not None:
            figures[name] = {"value": figure.value, "low": figure.low, "high": figure.high, "clips": figure.clips}
    return figures


def table(result: Mapping[str, Any]) -> str:
    """The figures as lines of text."""
    lines = []
    for name, one in result["metrics"].items():
        ends = "" if one["low"] is None else f"  [{one['low']:.4g}, {one['high']:.4g}]"
        lines.append(f"  {name:<16} {one['value']:>9.4f}{ends}  {', '.join(ABOUT[name])}")
    latents = result["latents"]
    shares = latents["high_share"]
    lines += [
        f"  latents: {len(latents['channels'])} channels as good as {latents['effective_channels']:.1f} equal ones, "
        f"deviation {latents['deviation']:.3f}",
        f"  high frequencies: {shares['latents']:.1%} of the latents' power, {shares['pixels']:.1%} of the pixels', "
        f"{shares['pixels made as small']:.1%} of pixels made as small; excess {latents['excess_db']:+.1f} dB",
    ]
    lines += [f"  {name} is unavailable: {why}" for name, why in result["unavailable"].items()]
    return "\n".join(lines)
