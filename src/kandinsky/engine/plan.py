"""What a generation will need, before anything is fetched or loaded: memory, time, download size, placement.

Each network's part says what it costs (``Part.cost``); here that becomes bytes, a placement that fits and a time.
Exact: parameters, file sizes, latent size, passes of the network. Estimated, and marked as such: activations, the
decoder's peak, and time, for the processor that the plan names (``runtime/speed.py``). Avoids importing torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kandinsky.diffusion.caching import computed_share
from kandinsky.engine.attention import attention_for
from kandinsky.engine.conditions import FLOW
from kandinsky.engine.options import RunOptions
from kandinsky.engine.parallel import check_whole, demand_of
from kandinsky.engine.request import Job, latent_of
from kandinsky.engine.upscale import Upscale
from kandinsky.engine.windows import job_of
from kandinsky.model.card import UNPUBLISHED, Card, FileSet
from kandinsky.model.cost import Cost, Load, Operations
from kandinsky.model.values import VideoShape
from kandinsky.runtime import devices, speed
from kandinsky.runtime.budget import OFFLOADS, check_offload, gigabytes, parse_memory
from kandinsky.runtime.parallel.layout import AUTO, Layout, read, settle
from kandinsky.runtime.quantise import SCHEMES, parse
from kandinsky.runtime.speed import Processor
from kandinsky.weights.branch_files import CONTROL, BranchFile
from kandinsky.weights.locate import card_bytes, is_repository, missing_parts, part_bytes
from kandinsky.weights.lora_files import locate_lora, parse_spec

OTHER_CARD = "cuda"  # the GPU assumed if only its memory is given
PROCESS_BYTES = 500_000_000  # Python with torch and its libraries
# Seconds that processes on a CPU take longer to begin than one: the launcher imports torch before it starts them, and
# each of them does so beside the others (docs/benchmarks.md, Processes).
TOGETHER_S = 4.0
# Seconds that the first clip of a process takes besides on a CPU: weights are read, and kernels called for the first
# time. Measured in processor time of one thread on an AMD EPYC, the first clip less those after it: nano2-t2v 0.92,
# 1.00, 0.85 and 0.87 at 0, 0.7, 2 and 10 s, nano-t2v 0.6 at 2 s.
BEGIN_S = 0.8
_RESERVE = 0.9  # share of free memory that plans may use
_TIMES = ((60, "seconds"), (600, "minutes"), (3600, "tens of minutes"), (86400, "hours"))


def loses_by_processes(job: Job, options: RunOptions, layout: Layout) -> str:
    """Whether several processes on a CPU take longer to begin than they save.

    Args:
        job: What they make together.
        options: How it runs.
        layout: How they share the work.

    Returns:
        What they save and cost, in words; empty if they pay, or do not run on a CPU.
    """
    device = options.device
    if (
        layout.size == 1
        or isinstance(device, Mapping)
        or devices.choose_device(None if device is None else str(device)) != "cpu"
    ):
        return ""
    alone_s = plan_resolved(job, options.changed(parallel=None)).seconds
    saved_s = alone_s * (1 - 1 / layout.size)
    if saved_s >= TOGETHER_S:
        return ""
    return (
        f"{layout.size} processes save about {saved_s:.1f} of {alone_s:.1f} s here, and take about {TOGETHER_S:.0f} s "
        "longer to begin: one process is sooner"
    )


@dataclass(frozen=True, slots=True)
class Need:
    """What one network needs.

    Attributes:
        weights: Bytes of its weights, if it is on its device as a whole.
        blocks: Bytes of its weights on the device at once if its blocks are moved one by one.
        work: Peak bytes of activations.
        block_work: Peak bytes of activations under offload `block`.
    """

    weights: int
    blocks: int
    work: int
    block_work: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What one clip needs.

    Attributes:
        model: Catalogue id.
        size: Size of the clip.
        clip_seconds: Duration of the clip.
        frames: Its frames.
        device: Where it runs.
        dtype: Compute type.
        offload: Placement: `none` keeps all on the device, `module` one component at a time.
        download_bytes: Size to fetch first; 0 if everything is on this machine.
        files_bytes: Size of all files of the model.
        peak_device_bytes: Peak memory of the accelerator; 0 on CPU.
        peak_host_bytes: Peak main memory.
        tokens: Visual tokens of one clip.
        passes: Calls of the denoiser: one per step, two with guidance.
        seconds: Estimated time of all networks.
        time_class: That and ``begin_seconds`` in words.
        times: The same for each network.
        timed_on: The processor that times are for.
        timed_why: How that is known.
        attention_kept: Share of attention's blocks that is computed; 1 if it is dense.
        fits: Whether free memory suffices; None if unknown.
        why: The reason for the placement.
        components: For `dit`, `text` and `vae`, the bytes of ``Need``.
        placements: Device bytes of each placement.
        quantize: Quantisation schemes asked for, by component.
        advice: What to try if nothing fits; empty otherwise.
        processes: How many share the work.
        layout: How they share it.
        layout_why: The reason for the layout.
        other_bytes: On accelerators, memory of each process but the first, whose memory the other figures are; on CPU
            they are of all processes together.
        missing: Files that are not on this machine, a line for each place they come from.
        windows: In how many windows the clip is made; memory is that of one, time that of all.
        overlap_seconds: What neighbouring windows share.
        branches: Bytes of the weights of branches, which are counted with `dit`.
        tile: Of a clip that a second stage makes larger, the size of the first stage, and of a tile; else empty.
        tiles: In how many tiles the second stage sees a window; 0 without one.
        upscale_strength: The time that the second stage begins at.
        begin_seconds: What the first clip of a process takes besides, on a CPU.
        estimates: Names of the figures that are not exact.
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
    times: dict[str, float]
    timed_on: str
    timed_why: str
    attention_kept: float
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
    windows: int = 1
    overlap_seconds: float = 0.0
    branches: dict[str, int] = field(default_factory=dict)
    tile: str = ""
    tiles: int = 0
    upscale_strength: float = 0.0
    begin_seconds: float = 0.0
    estimates: tuple[str, ...] = (
        "peak_device_bytes",
        "peak_host_bytes",
        "seconds",
        "begin_seconds",
        "time_class",
        "times",
        "attention_kept",
        "components",
        "placements",
    )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Group:
    """Several processes that generate one clip together.

    Attributes:
        layout: How they share the work.
        why: The reason for the layout.
        everyone: Names of the networks that all of them hold; the first process alone holds the others.
    """

    layout: Layout
    why: str
    everyone: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Working:
    """A branch and how much it works: the sampling steps at which it does, and whether guidance takes a second pass."""

    file: BranchFile
    steps: int
    is_guided: bool


def branches_of(job: Job) -> list[Working]:
    """The branches of a job."""
    return [
        Working(one.branch, round((one.shares[1] - one.shares[0]) * job.steps), job.guidance != 1)
        for one in job.conditions
        if one.branch is not None and one.strength
    ]


@dataclass(frozen=True, slots=True)
class Priced:
    """A card's networks for one job, each with its cost and the bytes of its weights in the compute type."""

    card: Card
    width: int
    costs: dict[str, Cost]
    weights: dict[str, int] = field(default_factory=dict)
    passes: int = 1

    def needs(self, quantize: Mapping[str, str]) -> dict[str, Need]:
        """What each network needs with some of them quantised."""
        return {name: self._need(name, cost, quantize.get(name)) for name, cost in self.costs.items()}

    def with_branches(self, beside: Sequence[Working]) -> Priced:
        """The same with branches beside the denoiser, counted with it: they are held and run together."""
        if not beside:
            return self
        dit, weights = self.costs["dit"], self.weights["dit"]
        blocks = round(dit.in_blocks / dit.block) if dit.block else 1
        operations, more = dit.operations, 0
        for one in beside:
            more += one.file.numbers * self.width
            # every number of a copied block, or of an attention, meets every token once a pass
            own = Operations(linear=2.0 * one.file.numbers * dit.tokens)
            if one.file.kind == CONTROL and not one.file.params.get("slim"):  # copies attend as the blocks do
                copied = float(one.file.params.get("blocks", 1)) / max(blocks, 1) / max(self.passes, 1)
                whole = dit.operations
                own += Operations(attention=whole.attention, scores=whole.scores, sparse=whole.sparse) * copied
            operations += own * (one.steps * (2 if one.file.kind == CONTROL and one.is_guided else 1))
        share = weights / (weights + more)
        cost = replace(
            dit,
            operations=operations,
            in_blocks=dit.in_blocks * share,
            block=dit.block * share,
            linear=dit.linear * share,
        )
        return replace(self, costs={**self.costs, "dit": cost}, weights={**self.weights, "dit": weights + more})

    def _need(self, name: str, cost: Cost, scheme: str | None) -> Need:
        saved = 0.0 if scheme is None else cost.linear * (1 - SCHEMES[scheme].weight_bytes / self.width)
        weights = self.weights[name]
        # blocks are nearly equal: each gets its share of what quantised layers save
        block = cost.block * (1 - saved / cost.in_blocks) if cost.in_blocks else 0.0
        blocks = int(weights * (1 - cost.in_blocks + 2 * block)) if cost.in_blocks else int(weights * (1 - saved))
        block_work = cost.work if cost.block_work is None else cost.block_work
        return Need(int(weights * (1 - saved)), blocks, cost.work, block_work)


def plan_resolved(
    job: Job,
    options: RunOptions | None = None,
    *,
    root: Path | None = None,
    memory: str | None = None,
    gpus: int | None = None,
    branches: Sequence[BranchFile] = (),
) -> Plan:
    """Plan a job that was already checked against its card; nothing is fetched or loaded.

    Args:
        job: The job.
        options: Device, type, placement, attention, quantisation and layout; an ``offload`` of None is chosen.
        root: As in ``model.card.Source``.
        memory: `12GB`: plan for a GPU of that size instead of this machine's.
        gpus: Number of processes, each on a GPU of its own; the layout is chosen if only their number is given.
        branches: Files of branches that work beside the network, besides those of the job's own conditions.

    Returns:
        The plan.

    Raises:
        RequestError: A generation with these options would be refused.
        BackendError: A device or attention backend is not available.
    """
    options = options or RunOptions()
    quantize, given_memory = parse(options.quantize), None if memory is None else parse_memory(memory)
    if options.offload is not None:
        check_offload(options.offload)
    for name, _ in map(parse_spec, options.loras):
        if not is_repository(name):  # one that is not downloaded yet is no error of a plan
            locate_lora(name)
    card = options.applied_to(job.card)
    group = _group(job, options, gpus)
    asked = str(options.device) if options.device is not None and not isinstance(options.device, Mapping) else None
    device = devices.choose_device(asked) if given_memory is None else asked or OTHER_CARD
    dtype = devices.choose_dtype(None if options.dtype is None else str(options.dtype).removeprefix("torch."), device)
    on_host = device == "cpu"
    if given_memory is None:
        free = devices.host_memory() if on_host else devices.device_memory(device)
        processor, timed_why = speed.at_hand(device, dtype)
    else:
        free = (given_memory, given_memory)
        processor, timed_why = speed.at_hand(device, dtype) if on_host else speed.of_memory(given_memory)
    room = None if free is None else int(free[0] * _RESERVE)

    whole_job, job = job, _longest(job)
    beside = [*branches_of(job), *(Working(one, job.steps, job.guidance != 1) for one in branches)]
    priced = price(card, job, options.attention, devices.dtype_bytes(dtype)).with_branches(beside)
    second = None if job.upscale is None else _second_stage(priced, job, job.upscale, options.attention)
    if second is not None:  # the larger clip is decoded as a whole
        work = max(priced.costs["vae"].work, second.costs["vae"].work)
        priced = replace(priced, costs={**priced.costs, "vae": replace(priced.costs["vae"], work=work)})
    whole = priced.needs(quantize)
    needs = whole if group is None else _shared(priced, whole, group.layout)
    need = _by_placement(needs)
    other = {} if group is None else _by_placement({name: needs[name] for name in group.everyone if name in needs})
    if group is not None and on_host:  # all share its memory: they are seen as one
        need = {name: size + other[name] * (group.layout.size - 1) for name, size in need.items()}
    if group is not None and group.layout.cuts_weights:
        chosen, why = "none", f"`{group.layout}` needs all networks loaded"
    else:
        chosen, why = _placement(need, room, options.offload, device)
    fits = None if room is None else need[chosen] <= room
    advice = ""
    if fits is False and group is not None:
        advice = _advice_together(priced, whole, group.layout, room)
    elif fits is False:
        advice = _advice(priced, chosen, room, quantize)

    times = _times(priced, job, needs, processor, dtype, chosen, None if on_host else group)
    long = whole_job.long
    if long is not None:  # the text encoder runs once for all
        runs = sum(window.frames for window in long.windows) / job.latent.frames
        texts = len(long.script.prompts)
        times = {name: one * (texts if name == "text" else runs) for name, one in times.items()}
    passes = _passes(job) * (1 if long is None else len(long.windows))
    if second is not None and job.upscale is not None:
        more = _times(second, job, needs, processor, dtype, chosen, None)
        if job.upscale.source is not None:  # there is no first stage
            passes, times = 0, {name: one for name, one in times.items() if name == "text"}
        runs = sum(window.frames for window in job.upscale.long.windows) / job.latent.frames
        times = {name: times.get(name, 0.0) + more.get(name, 0.0) * runs for name in {**times, **more}}
        passes += round(second.passes * len(job.upscale.long.windows))
    seconds, begin = sum(times.values()), BEGIN_S if on_host else 0.0
    shape, missing = job.shape, missing_parts(card, root=root)
    upscale = job.upscale
    width, height = (shape.width, shape.height) if upscale is None else (upscale.width, upscale.height)
    peak_host = PROCESS_BYTES + 3 * shape.frames * height * width  # the frames, unless streamed
    if on_host:
        peak_host += need[chosen]
    else:  # offloaded networks stay on the host; otherwise each passes through it once
        weights = [one.weights for one in needs.values()]
        peak_host += max(weights) if chosen == "none" else sum(weights)
    return Plan(
        model=card.id,
        size=f"{width}x{height}",
        clip_seconds=whole_job.seconds,
        frames=whole_job.frames,
        device=device,
        dtype=dtype,
        offload=chosen,
        download_bytes=sum(part.bytes for part in missing if part.repo not in ("package", UNPUBLISHED)),
        files_bytes=card_bytes(card),
        peak_device_bytes=0 if on_host else need[chosen],
        peak_host_bytes=peak_host,
        tokens=priced.costs["dit"].tokens,
        passes=passes,
        seconds=seconds,
        time_class=next((name for limit, name in _TIMES if begin + seconds < limit), "days"),
        times=times,
        timed_on=processor.name,
        timed_why=timed_why,
        attention_kept=priced.costs["dit"].kept,
        fits=fits,
        why=why,
        components=needs,
        placements=need,
        quantize=quantize,
        advice=advice,
        processes=1 if group is None else group.layout.size,
        layout="1" if group is None else str(group.layout),
        layout_why="" if group is None else group.why,
        other_bytes=other.get(chosen, 0),
        missing=tuple(_listed(missing)),
        windows=1 if long is None else len(long.windows),
        overlap_seconds=0.0 if long is None else long.overlap,
        tile="" if upscale is None else f"{shape.width}x{shape.height}",
        tiles=0 if upscale is None else upscale.tiles(job.latent, card.clip.spatial),
        upscale_strength=0.0 if upscale is None else upscale.strength,
        begin_seconds=begin,
        branches={f"{one.file.kind} branch": one.file.numbers * priced.width for one in beside},
    )


def _longest(job: Job) -> Job:
    """The longest window of a job that is made in windows; else the job itself."""
    return job if job.long is None else job_of(job, max(job.long.windows, key=lambda window: window.frames))


def price(card: Card, job: Job, attention: str, width: int) -> Priced:
    """What each network of a card costs in a job.

    Args:
        card: The model.
        job: The job.
        attention: As in ``RunOptions``.
        width: Bytes of a number of the compute type.

    Returns:
        The costs.

    Raises:
        RequestError: The attention does not suit the card.
    """
    spec = attention_for(card, job.sampling, attention)
    load = Load(job.shape, job.latent, job.steps, job.guidance != 1, width, spec)
    costs: dict[str, Cost] = {}
    weights: dict[str, int] = {}
    for name, component in card.components.items():
        own = devices.dtype_bytes(component.dtype) if component.dtype else width
        size = own * card.parameters if name == "dit" else loaded_bytes(card, name, own)
        shape = _first_frame(card, job.shape) if name == "image_vae" else job.shape
        asked = replace(load, shape=shape, width=own, weights=size)
        price_of = card.part(name).cost
        cost = _guess(card, asked) if price_of is None else price_of()(card, component, asked)
        if cost is None:  # the job does not use it, and it is not read
            continue
        if name == "dit":
            computed = computed_share(job.cache, job.steps, is_guided=load.is_guided)
            cost = replace(cost, operations=cost.operations * (computed * _passes(job) / load.passes))
        costs[name], weights[name] = cost, size
    return Priced(card, width, costs, weights, load.passes)


def _first_frame(card: Card, shape: VideoShape) -> VideoShape:
    """The one image that an image autoencoder beside a video autoencoder decodes."""
    first = None if card.keyframes is None else card.keyframes.first_frame
    scale = 1 if first is None else first.scale
    return VideoShape(1, shape.height * scale, shape.width * scale)


def _guess(card: Card, load: Load) -> Cost:
    """Cost of a network whose part does not say.

    Two operations for each parameter and place of the latent, and activations of four copies of the clip in float32.
    """
    places = load.latent.frames * load.latent.height * load.latent.width
    shape = load.shape
    work = shape.frames * shape.height * shape.width * 3 * 4 * 4
    return Cost(work, Operations(linear=2.0 * load.weights / load.width * places) * load.passes, places)


def _second_stage(priced: Priced, job: Job, upscale: Upscale, attention: str) -> Priced:
    """What making one window larger costs: tiles of the first stage's size through the remaining steps.

    The autoencoder encodes the tiles and decodes the whole; an encoder is counted as its decoder.
    """
    card = priced.card
    tiles = upscale.tiles(job.latent, card.clip.spatial)
    shape = VideoShape(job.shape.frames, upscale.height, upscale.width)
    large = price(card, replace(job, shape=shape, latent=latent_of(shape, card)), attention, priced.width)
    share = upscale.share(job.steps, job.shift, is_flow=job.sampling.sampler == FLOW)
    alone = replace(job, conditions=(), cache=None, resample=0)
    dit = price(card, alone, attention, priced.width).costs["dit"]
    dit = replace(dit, operations=dit.operations * (share * tiles))
    vae, of_tile = large.costs["vae"], priced.costs["vae"]
    vae = replace(vae, operations=vae.operations + of_tile.operations * tiles)
    passes = round(_passes(alone) * share * tiles)
    return replace(priced, costs={"dit": dit, "vae": vae}, passes=passes)


def _passes(job: Job) -> int:
    """Passes of the network; a source that is begun from late takes fewer."""
    each = (1 if job.guidance == 1 else 2) + (job.source_prompt is not None)
    return job.steps * (1 + job.resample) * each


def _times(
    priced: Priced,
    job: Job,
    needs: Mapping[str, Need],
    processor: Processor,
    dtype: str,
    offload: str,
    group: Group | None,
) -> dict[str, float]:
    """Seconds of each network: its operations, or the transfer of its weights to the device if that takes longer."""
    times = {}
    for name, cost in priced.costs.items():
        seconds = processor.seconds(cost.operations, priced.card.component(name).dtype or dtype)
        if group is not None and name in group.everyone:
            seconds /= group.layout.size
        if offload != "none" and processor.memory:
            moving = needs[name].weights / speed.LINK
            if offload == "block":  # blocks travel while others run, in every pass anew
                seconds = max(seconds, moving * (_passes(job) if name == "dit" else 1))
            else:
                seconds += moving
        times[name] = seconds
    return times


def _group(job: Job, options: RunOptions, gpus: int | None) -> Group | None:
    """The processes that would share the work.

    Raises:
        RequestError: The number of processes or the layout does not fit.
    """
    parallel = options.parallel
    if parallel in (None, AUTO) and gpus is None:
        return None
    card = job.card
    count = gpus
    if count is None:
        asked = parallel if isinstance(parallel, Layout) else read(parallel or AUTO)
        # as `settle` reads it: shards alone also split the tokens
        count = asked.size * (asked.fsdp if asked.context == 1 else 1)
    demand = demand_of(job, attention_for(card, job.sampling, options.attention), clips=0)
    layout, why = settle(parallel, count, demand)
    if layout.cuts_weights:
        check_whole(layout, offload=options.offload or "none", lora=None, quantize=bool(options.quantize))
    if card.keyframes is not None:  # every process runs all stages
        return Group(layout, why, tuple(card.components))
    return Group(layout, why, ("dit", "vae") if card.part("vae").decodes_together else ("dit",))


def _shared(priced: Priced, needs: Mapping[str, Need], layout: Layout) -> dict[str, Need]:
    """The first process' needs, from those of a process alone; cut widths leave the residual stream whole."""
    dit, cost = needs["dit"], priced.costs["dit"]
    in_blocks, block = int(cost.in_blocks * dit.weights), int(cost.block * dit.weights)
    weights = dit.weights - in_blocks + in_blocks // layout.tp
    if layout.fsdp > 1:
        # its shard of everything, plus the running block and the next, which is being fetched, as a whole
        weights = weights // layout.fsdp + 2 * block // layout.tp
    work, block_work = (bytes_ // layout.context for bytes_ in (dit.work, dit.block_work))
    return {**needs, "dit": Need(weights, min(weights, dit.blocks), work, block_work)}


def _by_placement(needs: Mapping[str, Need]) -> dict[str, int]:
    """Bytes on the device under each placement."""
    return {
        "none": sum(one.weights for one in needs.values()) + max(one.work for one in needs.values()),
        "module": max(one.weights + one.work for one in needs.values()),
        "block": max(one.blocks + one.block_work for one in needs.values()),
    }


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


def _advice(priced: Priced, chosen: str, room: int | None, quantize: Mapping[str, str]) -> str:
    """The first reduction that fits: another placement, then int8 weights, then a smaller clip."""
    for schemes in (dict(quantize), {"dit": "int8"}, {"dit": "int8", "text": "int8"}):
        need = _by_placement(priced.needs(schemes))
        for offload in OFFLOADS[OFFLOADS.index(chosen) :]:
            if room is not None and need[offload] <= room:
                given = ",".join(f"{part}={scheme}" for part, scheme in schemes.items())
                return f'try `offload="{offload}"`' + (f' and `quantize="{given}"`' if given else "")
    return "it will not fit: take a smaller size, fewer seconds or another device"


def _advice_together(priced: Priced, needs: Mapping[str, Need], layout: Layout, room: int | None) -> str:
    """Sharded weights, if that fits."""
    sharded = replace(layout, fsdp=layout.context)
    if room is not None and _by_placement(_shared(priced, needs, sharded))["none"] <= room:
        return f'try `parallel="{sharded}"`'
    return "it will not fit: take more processes, a smaller size or fewer seconds"


def _listed(parts: Sequence[FileSet]) -> Iterator[str]:
    """A line for each set of files, each file in only one of them."""
    seen: dict[str, set[str]] = {}
    for part in parts:
        before = seen.setdefault(part.repo, set())
        names = [name for name in part.files if not any(_covers(folder, name) for folder in before)]
        before.update(names)
        if names:
            listed = ", ".join(names[:2]) + (" …" if len(names) > 2 else "")
            yield f"{part.repo}: {listed}" + (" (gated: needs a token, HF_TOKEN)" if part.gated else "")


def _covers(entry: str, name: str) -> bool:
    """Whether an entry of a list of files is a file, or a folder it lies in; `./` is everything."""
    return entry in (name, "./") or (entry.endswith("/") and name.startswith(entry))


def loaded_bytes(card: Card, name: str, width: int) -> int:
    """Size of a component's files once its numbers have the compute type, if it takes that."""
    sizes = ((part.loaded or part_bytes(part), part.dtype) for part in card.component(name).parts)
    if card.part(name).stored_dtype:
        return sum(size for size, _ in sizes)
    return sum(size * width // devices.dtype_bytes(dtype) for size, dtype in sizes)
