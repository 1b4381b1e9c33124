"""What a generation will need, before anything is fetched or loaded: computed from the card alone.

Exact: parameters, file sizes, latent size, passes of the network. Estimated, and said so: activations, the decoder's
peak, and time, which rests on the rates below.

Legend: S visual tokens of one clip, D width, F hidden width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kandinsky.cards import Card, Component, Part
from kandinsky.errors import RequestError
from kandinsky.runtime import devices
from kandinsky.types import LatentShape, VideoShape
from kandinsky.weights.locate import card_bytes, missing_parts, part_bytes

OFFLOADS = ("none", "module", "block")
PROCESS_BYTES = 500_000_000  # Python with torch and its libraries
TILE_FRAMES = 17  # of the official tiling of the HunyuanVideo autoencoder
# Sustained matrix-product rates, FLOP/s: what a core with AVX-512 was measured to reach in this library's training
# (82 GFLOP/s in float32, 204 in bfloat16); and what the published 139 s for 5 s of T2V Lite mean for an H100.
_CORE_RATE = {"float32": 80e9, "bfloat16": 200e9, "float16": 80e9}
_GPU_RATE = {"float32": 40e12, "bfloat16": 500e12, "float16": 500e12}
_MPS_RATE = {"float32": 5e12, "bfloat16": 8e12, "float16": 8e12}
_RESERVE = 0.9  # share of free memory that may be planned for
_TIMES = ((60, "seconds"), (600, "minutes"), (3600, "tens of minutes"), (86400, "hours"))


@dataclass(frozen=True, slots=True)
class Plan:
    """Needs of one clip. Bytes are bytes; ``estimates`` names the figures that are not exact.

    download_bytes:    to fetch first; 0 when all is on this machine.   files_bytes: of all files of the model.
    peak_device_bytes: on the accelerator; 0 where the processor computes.   peak_host_bytes: in main memory.
    passes:            calls of the network: steps, twice with guidance.   tokens: visual tokens of one clip.
    seconds:           estimated time of sampling.   time_class: the same in words.
    offload:           placement: `none` keeps all on the device, `module` one component at a time.
    fits:              whether free memory suffices; None where it cannot be told.   why: the reason for the placement.
    """

    model: str
    size: str
    clip_seconds: float
    frames: int
    device: str
    dtype: str
    offload: str
    download_bytes: int
    files_bytes: int
    peak_device_bytes: int
    peak_host_bytes: int
    tokens: int
    passes: int
    seconds: float
    time_class: str
    fits: bool | None
    why: str
    missing: tuple[str, ...] = ()
    estimates: tuple[str, ...] = ("peak_device_bytes", "peak_host_bytes", "seconds", "time_class")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_offload(name: str) -> None:
    """Raises: RequestError for a placement that is none."""
    if name not in OFFLOADS:
        raise RequestError(f"offload `{name}` is not available: use `none`, `module` or `block`")


def plan_clip(
    card: Card,
    shape: VideoShape,
    latent: LatentShape,
    *,
    root: Path | None = None,
    clip_seconds: float,
    passes: int,
    device: str | None = None,
    dtype: str | None = None,
    offload: str | None = None,
) -> Plan:
    """What one clip needs; nothing is fetched or loaded. ``pipelines.plan.plan`` starts from a request.

    Args:   root: an official `weights/` folder the files lie in.   device, dtype: None = the best there is.
            offload: None = the placement that fits.
    Raises: RequestError or BackendError for a device, type or placement that is not there.
    """
    device = devices.choose_device(device)
    dtype = devices.choose_dtype(dtype, device)
    if offload is not None:
        check_offload(offload)
    width = devices.dtype_bytes(dtype)
    weights = {
        "dit": card.parameters * width,
        "text": _loaded_bytes(card.text, width),
        "vae": _loaded_bytes(card.vae, width),
    }
    tokens = _tokens(card, latent)
    work = {
        "dit": _denoiser_bytes(card, tokens, width),
        "text": weights["text"] // 20,
        "vae": _decoder_bytes(card, shape, width),
    }
    need = {
        "none": sum(weights.values()) + max(work.values()),
        "module": max(weights[name] + work[name] for name in weights),
    }
    on_host = device == "cpu"
    free = devices.host_memory() if on_host else devices.device_memory(device)
    chosen, why = _placement(need, None if free is None else int(free[0] * _RESERVE), offload, device)
    seconds = _flops(card, tokens, passes) / _rate(device, dtype)
    missing = missing_parts(card, root=root)
    peak_host = PROCESS_BYTES + 3 * shape.frames * shape.height * shape.width  # the finished frames, always
    if on_host:
        peak_host += need[chosen]
    else:  # what is put away stays on the host; without that, each network passes through it once
        peak_host += sum(weights.values()) if chosen == "module" else max(weights.values())
    return Plan(
        model=card.id,
        size=f"{shape.width}x{shape.height}",
        clip_seconds=clip_seconds,
        frames=shape.frames,
        device=device,
        dtype=dtype,
        offload=chosen,
        download_bytes=sum(part.bytes for part in missing if part.repo != "package"),
        files_bytes=card_bytes(card),
        peak_device_bytes=0 if on_host else need[chosen],
        peak_host_bytes=peak_host,
        tokens=tokens,
        passes=passes,
        seconds=seconds,
        time_class=next((name for limit, name in _TIMES if seconds < limit), "days"),
        fits=None if free is None else need[chosen] <= free[0] * _RESERVE,
        why=why,
        missing=tuple(_named(part) for part in missing),
    )


def _placement(need: dict[str, int], room: int | None, asked: str | None, device: str) -> tuple[str, str]:
    if asked is not None:
        return asked, "asked for"
    if room is None:
        return "none", f"the free memory of `{device}` cannot be told"
    free = f"{gigabytes(room)} of `{device}` may be used"
    if need["none"] <= room:
        return "none", f"all networks together need {gigabytes(need['none'])}, and {free}"
    if need["module"] <= room:
        together, alone = gigabytes(need["none"]), gigabytes(need["module"])
        return "module", f"all networks together need {together}, one at a time {alone}, and {free}"
    return "module", f"even one network at a time needs {gigabytes(need['module'])}, and only {free}"


def _named(part: Part) -> str:
    listed = ", ".join(part.files[:2]) + (" …" if len(part.files) > 2 else "")
    return f"{part.repo}: {listed}" + (" (gated: needs a token, HF_TOKEN)" if part.gated else "")


def _loaded_bytes(component: Component, width: int) -> int:
    """Size of a component's files once its numbers have the compute type."""
    return sum(part_bytes(part) * width // devices.dtype_bytes(part.dtype) for part in component.parts)


def _tokens(card: Card, latent: LatentShape) -> int:
    t, h, w = card.dit.params.get("patch_size", (1, 2, 2))
    return (latent.frames // t) * (latent.height // h) * (latent.width // w)


def _denoiser_bytes(card: Card, tokens: int, width: int) -> int:
    """Peak of one pass without gradients: the stream and its float32 sum, q, k, v and result, and the hidden layer."""
    D, F = card.dit.params.get("model_dim", 1792), card.dit.params.get("ff_dim", 7168)
    return tokens * (D * (6 * width + 2 * 4) + F * 2 * width)


def _decoder_bytes(card: Card, shape: VideoShape, width: int) -> int:
    """Peak of the last, widest layer: two times 256 channels and their padded copy at full size (HunyuanVideo).

    Other autoencoders work on patches and stay far below; for them the frames in float32 count, four times over.
    """
    pixels = shape.frames * shape.height * shape.width
    if card.vae.kind != "hunyuan":
        return pixels * 3 * 4 * 4
    # Beyond one tile in time only a tile is in work.
    return min(shape.frames, TILE_FRAMES) * shape.height * shape.width * 256 * 3 * width


def _flops(card: Card, tokens: int, passes: int) -> float:
    """Two operations a parameter and token, and attention's two products of every token with every other."""
    D, layers = card.dit.params.get("model_dim", 1792), card.dit.params.get("num_visual_blocks", 32)
    # A ninth of the parameters makes the modulation, evaluated once a pass and not once a token: not worth a case.
    return passes * (2.0 * card.parameters * tokens + 4.0 * tokens * tokens * D * layers)


def _rate(device: str, dtype: str) -> float:
    if device.startswith("cuda"):
        return _GPU_RATE[dtype]
    return _MPS_RATE[dtype] if device == "mps" else _CORE_RATE[dtype] * devices.processor_count()


def gigabytes(count: float) -> str:
    """Bytes for people: `0.04 GB`, `24.2 GB`."""
    value = count / 1e9
    return f"{value:.2f} GB" if value < 1 else f"{value:.1f} GB"
