"""What a generation will need, before anything is fetched or loaded: computed from the card alone.

Exact: parameters, file sizes, latent size, passes of the network. Estimated, and said so: activations, the decoder's
peak, and time, which rests on the rates below.

Legend: S visual tokens of one clip, D width, F hidden width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kandinsky.errors import RequestError
from kandinsky.model.card import UNPUBLISHED, Card, Component, FileSet
from kandinsky.model.values import LatentShape, VideoShape
from kandinsky.runtime import devices, plan_parallel, plan_unet
from kandinsky.runtime.plan_parallel import Company
from kandinsky.runtime.plan_unet import is_unet
from kandinsky.runtime.quantise import SCHEMES
from kandinsky.weights.locate import card_bytes, missing_parts, part_bytes

OFFLOADS = ("none", "module", "block")
OTHER_CARD = "cuda"  # what a card is taken for whose memory alone is given
PROCESS_BYTES = 500_000_000  # Python with torch and its libraries
TILE_FRAMES = 17  # of the official tiling of the HunyuanVideo autoencoder
# Pixel frames in work at once, of autoencoders with 256 channels at full size; CogVideoX's longest piece has nine.
_DECODER_FRAMES = {"hunyuan": TILE_FRAMES, "cogvideox": 9, "movq": 5}
# Decoding layer by layer (families/parts/layered.py): numbers of a chunk, and the bytes that are kept on the device.
LAYER_CHUNK, LAYER_KEPT = 2**26, 2**31
# Share of a text encoder's weights in blocks, and the share of one block: Qwen2.5-VL with 60 blocks, and two
# vocabularies of 152,064 words outside them; T5-XXL with 24 blocks; Flan-UL2 with 32.
_TEXT_SHARES = {"qwen-clip": (0.86, 0.028), "t5": (0.97, 0.041), "t5-projected": (0.98, 0.031)}
_AS_STORED = ("cogvlm2-video",)  # networks that run in the type of their files, whatever the others do
# Sustained matrix-product rates, FLOP/s: what a core with AVX-512 was measured to reach in this library's training
# (82 GFLOP/s in float32, 204 in bfloat16); and what the published 139 s for 5 s of T2V Lite mean for an H100.
_CORE_RATE = {"float32": 80e9, "bfloat16": 200e9, "float16": 80e9}
_GPU_RATE = {"float32": 40e12, "bfloat16": 500e12, "float16": 500e12}
_MPS_RATE = {"float32": 5e12, "bfloat16": 8e12, "float16": 8e12}
_RESERVE = 0.9  # share of free memory that may be planned for
_TIMES = ((60, "seconds"), (600, "minutes"), (3600, "tens of minutes"), (86400, "hours"))


@dataclass(frozen=True, slots=True)
class Need:
    """What one network takes. weights: on its device, whole.   blocks: of those, what is on it at once when its blocks
    are moved one by one.   work: activations at their peak.   block_work: the same under offload `block`."""

    weights: int
    blocks: int
    work: int
    block_work: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Needs of one clip. Bytes are bytes; ``estimates`` names the figures that are not exact.

    download_bytes:    to fetch first; 0 when all is on this machine.   files_bytes: of all files of the model.
    peak_device_bytes: on the accelerator; 0 where the processor computes.   peak_host_bytes: in main memory.
    passes:            calls of the network: steps, twice with guidance.   tokens: visual tokens of one clip.
    seconds:           estimated time of sampling.   time_class: the same in words.
    offload:           placement: `none` keeps all on the device, `module` one component at a time.
    fits:              whether free memory suffices; None where it cannot be told.   why: the reason for the placement.
    components:        for `dit`, `text` and `vae` the bytes of ``Need``.   placements: device bytes of each placement.
    quantize:          schemes asked for, by component.   advice: what to try where nothing fits; empty otherwise.
    processes:         that share the work by ``layout``, for the reason ``layout_why``; on accelerators the memory is
                       that of the first, and ``other_bytes`` of each other; on the processor that of all.
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
    components: dict[str, Need]
    placements: dict[str, int]
    quantize: dict[str, str]
    advice: str = ""
    processes: int = 1
    layout: str = "1"
    layout_why: str = ""
    other_bytes: int = 0
    missing: tuple[str, ...] = ()
    estimates: tuple[str, ...] = (
        "peak_device_bytes",
        "peak_host_bytes",
        "seconds",
        "time_class",
        "components",
        "placements",
    )

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
    quantize: Mapping[str, str] | None = None,
    memory: int | None = None,
    company: Company | None = None,
) -> Plan:
    """What one clip needs; nothing is fetched or loaded. ``pipelines.plan.plan`` starts from a request.

    Args:   root: an official `weights/` folder the files lie in.   device, dtype: None = the best there is.
            offload: None = the placement that fits.   quantize: schemes by component.
            memory: plan for a card of so many bytes, which need not be in this machine.
            company: several processes that make it together, each on a card like that.
    Raises: RequestError or BackendError for a device, type or placement that is not there.
    """
    device = devices.choose_device(device) if memory is None else device or OTHER_CARD
    dtype = devices.choose_dtype(dtype, device)
    if offload is not None:
        check_offload(offload)
    quantize = dict(quantize or {})
    tokens = _tokens(card, latent)
    whole = _needs(card, shape, tokens, devices.dtype_bytes(dtype), quantize)
    needs = whole if company is None else _shared(card, whole, company)
    need = _by_placement(needs)
    other = {} if company is None else _by_placement({name: needs[name] for name in company.everyone if name in needs})
    on_host = device == "cpu"
    free = (memory, memory) if memory is not None else None
    if free is None:
        free = devices.host_memory() if on_host else devices.device_memory(device)
    room = None if free is None else int(free[0] * _RESERVE)
    if company is not None and on_host:  # all share its memory: they are seen as one
        need = {name: size + other[name] * (company.layout.size - 1) for name, size in need.items()}
    if company and company.layout.cuts_weights:
        chosen, why = "none", f"`{company.layout}` needs all networks loaded"
    else:
        chosen, why = _placement(need, room, offload, device)
    fits = None if room is None else need[chosen] <= room
    advice = ""
    if fits is False and company is not None:
        advice = _advice_together(card, whole, company, room)
    elif fits is False:
        advice = _advice(card, shape, tokens, dtype, chosen, room, quantize)
    flops = _flops(card, shape, tokens, passes)
    share = plan_unet.GPU_SHARE if is_unet(card.dit.params) and device.startswith("cuda") else 1.0
    seconds = flops / (share * _rate(device, dtype))
    if company is not None and not on_host:  # processes on one processor share its cores
        seconds /= company.layout.size
    missing = missing_parts(card, root=root)
    peak_host = PROCESS_BYTES + 3 * shape.frames * shape.height * shape.width  # the frames, unless streamed
    if on_host:
        peak_host += need[chosen]
    else:  # what is put away stays on the host; without that, each network passes through it once
        weights = [one.weights for one in needs.values()]
        peak_host += max(weights) if chosen == "none" else sum(weights)
    return Plan(
        model=card.id,
        size=f"{shape.width}x{shape.height}",
        clip_seconds=clip_seconds,
        frames=shape.frames,
        device=device,
        dtype=dtype,
        offload=chosen,
        download_bytes=sum(part.bytes for part in missing if part.repo not in ("package", UNPUBLISHED)),
        files_bytes=card_bytes(card),
        peak_device_bytes=0 if on_host else need[chosen],
        peak_host_bytes=peak_host,
        tokens=tokens,
        passes=passes,
        seconds=seconds,
        time_class=next((name for limit, name in _TIMES if seconds < limit), "days"),
        fits=fits,
        why=why,
        components=needs,
        placements=need,
        quantize=quantize,
        advice=advice,
        processes=1 if company is None else company.layout.size,
        layout="1" if company is None else str(company.layout),
        layout_why="" if company is None else company.why,
        other_bytes=other.get(chosen, 0),
        missing=tuple(_named(part) for part in missing),
    )


def parse_memory(text: str) -> int:
    """`12GB`, `12`, `11.5 GiB` in bytes; a bare number counts gigabytes. Raises: RequestError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(gb|gib|g|mb|mib|m)?\s*", text.lower())
    if found is None or float(found[1]) == 0:
        raise RequestError(f"memory `{text}` is no amount: write it as `12GB` or `11.5GiB`")
    unit = {"g": 10**9, "gb": 10**9, "gib": 2**30, "m": 10**6, "mb": 10**6, "mib": 2**20}[found[2] or "gb"]
    return int(float(found[1]) * unit)


def _placement(need: dict[str, int], room: int | None, asked: str | None, device: str) -> tuple[str, str]:
    if asked is not None:
        return asked, "asked for"
    if room is None:
        return "none", f"the free memory of `{device}` cannot be told"
    free = f"{gigabytes(room)} of `{device}` may be used"
    together, alone, block = (gigabytes(need[name]) for name in OFFLOADS)
    if need["none"] <= room:
        return "none", f"all networks together need {together}, and {free}"
    if need["module"] <= room:
        return "module", f"all networks together need {together}, one at a time {alone}, and {free}"
    if need["block"] <= room:
        return "block", f"one network at a time needs {alone}, block by block {block}, and {free}"
    return "block", f"even block by block {block} are needed, and only {free}"


def _by_placement(needs: Mapping[str, Need]) -> dict[str, int]:
    """Bytes on the device under each placement."""
    return {
        "none": sum(one.weights for one in needs.values()) + max(one.work for one in needs.values()),
        "module": max(one.weights + one.work for one in needs.values()),
        "block": max(one.blocks + one.block_work for one in needs.values()),
    }


def _advice(
    card: Card,
    shape: VideoShape,
    tokens: int,
    dtype: str,
    chosen: str,
    room: int | None,
    quantize: Mapping[str, str],
) -> str:
    """The first step down that fits: a further placement, then int8 weights, then a smaller clip."""
    width = devices.dtype_bytes(dtype)
    for schemes in (dict(quantize), {"dit": "int8"}, {"dit": "int8", "text": "int8"}):
        need = _by_placement(_needs(card, shape, tokens, width, schemes))
        for offload in OFFLOADS[OFFLOADS.index(chosen) :]:
            if room is not None and need[offload] <= room:
                given = ",".join(f"{part}={scheme}" for part, scheme in schemes.items())
                return f"try --offload {offload}" + (f" --quantize {given}" if given else "")
    return "it will not fit: take a smaller size, fewer seconds or another device"


def _shared(card: Card, needs: Mapping[str, Need], company: Company) -> dict[str, Need]:
    """The first process' needs, of those of a process alone."""
    in_blocks, one_block, _ = _dit_blocks(card)
    dit, layout = needs["dit"], company.layout
    bytes_each = dit.weights / card.parameters
    weights = plan_parallel.dit_weights(
        dit.weights, int(in_blocks * bytes_each), int(one_block * bytes_each), layout
    )  # fmt: skip
    work, block_work = (plan_parallel.dit_work(bytes_, layout) for bytes_ in (dit.work, dit.block_work))
    return {**needs, "dit": Need(weights, min(weights, dit.blocks), work, block_work)}


def _advice_together(card: Card, needs: Mapping[str, Need], company: Company, room: int | None) -> str:
    """Weights in shards, where that fits."""
    sharded = replace(company, layout=replace(company.layout, fsdp=company.layout.context))
    if room is not None and _by_placement(_shared(card, needs, sharded))["none"] <= room:
        return f"try --parallel {sharded.layout}"
    return "it will not fit: take more processes, a smaller size or fewer seconds"


def _needs(card: Card, shape: VideoShape, tokens: int, width: int, quantize: Mapping[str, str]) -> dict[str, Need]:
    """What each network takes, from the card alone. ``width``: bytes of a number of the compute type."""
    in_blocks, one_block, products = _dit_blocks(card)
    saved = 1 - SCHEMES[quantize["dit"]].weight_bytes / width if "dit" in quantize else 0.0
    # blocks are nearly equal: each gets its share of what quantised products save
    kept = 1 - saved * products / in_blocks
    dit = int(width * (card.parameters - saved * products))
    dit_resident = int(width * (card.parameters - in_blocks + 2 * one_block * kept))
    text = _loaded_bytes(card.text, width)
    in_layers, one_layer = _TEXT_SHARES.get(card.text.kind, _TEXT_SHARES["qwen-clip"])
    vae = _loaded_bytes(card.vae, width)
    if "text" in quantize:
        text = int(text * (1 - in_layers * (1 - SCHEMES[quantize["text"]].weight_bytes / width)))
    work, text_work = _denoiser_bytes(card, shape, tokens, width), text // 20
    resident = int(text * (1 - in_layers + 2 * one_layer))
    needs = {
        "dit": Need(dit, dit_resident, work, work),
        "text": Need(text, resident, text_work, text_work),
        "vae": Need(vae, vae, _decoder_bytes(card, shape, width), _layered_bytes(card, shape, width)),
    }
    for name, component in card.components.items():
        if name == "interpolation" and card.keyframes and shape.frames <= card.keyframes.count:
            continue  # no gap is filled, and the network is not read
        if name not in needs:
            whole, at_once = _loaded_bytes(component, width), _decoder_bytes(card, replace(shape, frames=1), width)
            part = whole
            if is_unet(component.params):
                part = int(whole * (1 - plan_unet.IN_STAGES + 2 * plan_unet.LARGEST_STAGE))
                at_once = plan_unet.work_bytes(component.params, max(1, shape.frames // 4), tokens, width)
            needs[name] = Need(whole, part, at_once, at_once)
    return needs


def _dit_blocks(card: Card) -> tuple[int, int, int]:
    """Weights in all blocks, in the largest block, and in the products that can be quantised."""
    params = card.dit.params
    if is_unet(params):
        shares = (*plan_unet.stages(card.dit.kind), plan_unet.linear(card.dit.kind))
        in_stages, largest, linear = (int(share * card.parameters) for share in shares)
        return in_stages, largest, linear
    if "num_blocks" in params:  # Kandinsky 4: one make of block, in pairs, with a modulation for each of two streams
        D, layers = params["model_dim"], _layers(card)
        products = 4 * D * D + 2 * D * params["ff_dim"]
        one = products + 12 * D * (params["time_dim"] + 1)
        return layers * one, one, layers * products
    D, F, E = params.get("model_dim", 1792), params.get("ff_dim", 7168), params.get("time_dim", 512)
    num_visual, num_text = params.get("num_visual_blocks", 32), params.get("num_text_blocks", 2)
    visual, text = 8 * D * D + 2 * D * F, 4 * D * D + 2 * D * F
    products = num_visual * visual + num_text * text
    in_blocks = products + (num_visual * 9 + num_text * 6) * D * (E + 1)
    if in_blocks > card.parameters:  # blocks of another make: the usual shares
        in_blocks, products = int(0.9 * card.parameters), int(0.8 * card.parameters)
        return in_blocks, in_blocks // max(1, num_visual), products
    return in_blocks, visual + 9 * D * (E + 1), products


def _named(part: FileSet) -> str:
    listed = ", ".join(part.files[:2]) + (" …" if len(part.files) > 2 else "")
    return f"{part.repo}: {listed}" + (" (gated: needs a token, HF_TOKEN)" if part.gated else "")


def _loaded_bytes(component: Component, width: int) -> int:
    """Size of a component's files once its numbers have the compute type, where it takes that."""
    if component.kind in _AS_STORED:
        return sum(part.loaded or part_bytes(part) for part in component.parts)
    sizes = ((part.loaded or part_bytes(part), part.dtype) for part in component.parts)
    return sum(size * width // devices.dtype_bytes(dtype) for size, dtype in sizes)


def _tokens(card: Card, latent: LatentShape) -> int:
    if is_unet(card.dit.params):  # its own measure: pixels of a latent frame
        return latent.height * latent.width
    t, h, w = card.dit.params.get("patch_size", (1, 2, 2))
    return (latent.frames // t) * (latent.height // h) * (latent.width // w)


def _denoiser_bytes(card: Card, shape: VideoShape, tokens: int, width: int) -> int:
    """Peak of one pass without gradients: the stream and its float32 sum, q, k, v and result, and the hidden layer."""
    if is_unet(card.dit.params):
        frames = card.keyframes.count if card.keyframes is not None else shape.frames
        return plan_unet.work_bytes(card.dit.params, frames, tokens, width)
    D, F = card.dit.params.get("model_dim", 1792), card.dit.params.get("ff_dim", 7168)
    return tokens * (D * (6 * width + 2 * 4) + F * 2 * width)


def _decoder_bytes(card: Card, shape: VideoShape, width: int) -> int:
    """Peak of the last, widest layer: two times 256 channels and their padded copy at full size.

    Other autoencoders work on patches and stay far below; for them the frames in float32 count, four times over.
    """
    pixels = shape.frames * shape.height * shape.width
    if card.vae.kind not in _DECODER_FRAMES:
        return pixels * 3 * 4 * 4
    # Beyond one tile or piece in time only that is in work.
    return min(shape.frames, _DECODER_FRAMES[card.vae.kind]) * shape.height * shape.width * 256 * 3 * width


def _layered_bytes(card: Card, shape: VideoShape, width: int) -> int:
    """Peak of decoding layer by layer: what is kept on the device, and six copies of a chunk, at least of one frame."""
    if card.vae.kind != "hunyuan":
        return _decoder_bytes(card, shape, width)
    area = shape.height * shape.width
    kept = min(shape.frames, TILE_FRAMES) * area * 128 * width * 3 // 2
    return min(kept, LAYER_KEPT) + 6 * max(LAYER_CHUNK, 256 * area) * width


def _layers(card: Card) -> int:
    """Blocks that the visual tokens pass; Kandinsky 4 counts pairs."""
    params = card.dit.params
    return 2 * params["num_blocks"] if "num_blocks" in params else params.get("num_visual_blocks", 32)


def _flops(card: Card, shape: VideoShape, tokens: int, passes: int) -> float:
    """Two operations a parameter and token, and attention's two products of every token with every other."""
    if is_unet(card.dit.params):
        return plan_unet.flops(card, shape.frames, tokens, max(1, passes // 2), passes)
    D, layers = card.dit.params.get("model_dim", 1792), _layers(card)
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
