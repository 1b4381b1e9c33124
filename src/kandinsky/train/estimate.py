"""What a recipe would take, before anything is read: parameters, memory, tokens and time of a step.

The network is built and run forwards and backwards with tensors that have a shape and no contents, so what is kept for
the way back is counted, not modelled, for any network; one clip stands for a batch. Further networks of an objective,
such as a teacher, are not in it, but named.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from kandinsky import catalogue
from kandinsky.engine.attention import attention_for
from kandinsky.engine.build import bare_network
from kandinsky.engine.lesson import LATENT, Lesson
from kandinsky.engine.plan import loaded_bytes
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.files import local_path
from kandinsky.model.card import Card
from kandinsky.model.cost import PROMPT_TOKENS, Operations
from kandinsky.model.denoiser import AUDIO, VIDEO, Known, Pass
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.runtime import devices, speed
from kandinsky.runtime.budget import gigabytes
from kandinsky.train import branch
from kandinsky.train.adapter import add as add_adapters
from kandinsky.train.data.dataset import MANIFEST
from kandinsky.train.model_recipe import ModelRecipe, check, job_of, lesson_of
from kandinsky.train.scale import Scaling
from kandinsky.train.sound import SoundRecipe, card_of

STATES = {"adamw": 8, "muon": 8, "adamw8bit": 2, "rmsprop": 4, "sgd": 0}
"""Bytes of an optimiser's states for each trained number; Muon's matrices have one state, what it leaves has two."""
PARTS = ("weights", "gradients", "states", "average", "autoencoder", "activations")
FROZEN_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a step works on.

    Attributes:
        latent: Frames, rows, columns, channels of one clip.
        batch: Clips of a step, over all processes and micro-batches.
        at_once: Clips that are in memory together: of one process and micro-batch.
        processes: Processes that share the batch.
        shards: Processes over which weights and states are divided.
        context: Processes that share the tokens of a clip, and so what is kept of them.
    """

    latent: tuple[int, int, int, int]
    batch: int = 1
    at_once: int = 1
    processes: int = 1
    shards: int = 1
    context: int = 1


@dataclass(frozen=True, slots=True)
class Subject:
    """What a network learns, where that is not a clip from its prompt.

    Attributes:
        part: The network.
        track: Of the state.
        known: What it is told, of one example; of tensors of more than two axes the shape alone counts.
    """

    part: str = "dit"
    track: str = VIDEO
    known: Known = field(default_factory=Known)


@dataclass(frozen=True, slots=True)
class Traced:
    """One clip's pass forwards and backwards.

    Attributes:
        kept: Bytes that autograd keeps for the way back.
        flops: Floating-point operations both ways.
        attention: Of them, those of attention.
    """

    kept: int
    flops: int
    attention: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one process needs, and how long a step takes.

    Attributes:
        parameters: Of the network.
        trained: Of them, those that are trained.
        tokens: Patches that the network sees in a step, over all processes; those of the log.
        flops: Operations of a step, over all processes.
        weights, gradients, states, average, activations: Bytes.
        processor: What the time is for, and how that is known.
        seconds: Of a step.
        memory: Bytes there are on the device.
        others: Networks that are at work too, and are in none of the numbers.
        autoencoder: Bytes of that which decodes while the training goes on.
        encoding: Bytes of the encoders of a raw folder, the largest; they are gone before the training begins.
    """

    parameters: int
    trained: int
    tokens: int
    flops: int
    weights: int
    gradients: int
    states: int
    average: int
    activations: int
    processor: str
    seconds: float
    memory: int | None
    others: tuple[str, ...] = ()
    autoencoder: int = 0
    encoding: int = 0

    @property
    def total(self) -> int:
        """Bytes in all, while the training goes on."""
        return sum(getattr(self, name) for name in PARTS)

    @property
    def runs_out(self) -> str | None:
        """Where memory would run out, and what would help; None where it is enough, or not known."""
        if self.memory is None or max(self.total, self.encoding) <= self.memory:
            return None
        if self.encoding > self.memory:
            return "memory runs out with the encoders: encode the data before, with `kandinsky data encode`"
        there = 0
        for name, advice in (
            ("weights", "train an adapter, or divide them with `scale.fsdp`"),
            ("states", "use `optimiser: adamw8bit`, an adapter, or `scale.fsdp`"),
            ("average", "set `loop.ema` to 0, or divide it with `scale.fsdp`"),
            ("gradients", "train an adapter, or divide them with `scale.fsdp`"),
            ("autoencoder", "leave `samples` out"),
            ("activations", "use `scale.activations: full`, a smaller clip, or `loop.accumulate`"),
        ):
            there += getattr(self, name)
            if there > self.memory:
                return f"memory runs out with the {_CALLED.get(name, name)}: {advice}"
        return None

    def lines(self) -> list[str]:
        """For people."""
        parts = ", ".join(
            f"{_CALLED.get(name, name)} {gigabytes(getattr(self, name))}" for name in PARTS if getattr(self, name)
        )
        fits = "yes" if self.memory is not None else "not known"
        if self.others:
            fits = f"not known: the figures are the network's alone, without {', '.join(self.others)}"
        there = "" if self.memory is None else f" of {gigabytes(self.memory)}"
        before = f"; before it {gigabytes(self.encoding)} for encoders" if self.encoding else ""
        return [
            f"parameters   {self.parameters / 1e6:,.1f} million, {self.trained / 1e6:,.1f} million trained",
            f"tokens       {self.tokens:,} patches a step",
            f"operations   {self.flops / 1e12:,.3g} TFLOP a step, forwards and backwards",
            f"memory       {gigabytes(self.total)}{there} for each process: {parts}{before}",
            f"time         about {self.seconds:,.3g} s a step on {self.processor}, an estimate",
            f"fits         {self.runs_out or fits}",
        ]


_CALLED = {"states": "optimiser states"}


def estimate(
    card: Card,
    shape: Shape,
    *,
    attention: AttentionSpec,
    condition: str = "zeros",
    optimiser: str = "adamw",
    average: bool = True,
    bf16: bool = True,
    device: str = "cpu",
    memory: int | None = None,
    trained: Callable[[nn.Module], None] | None = None,
    frozen_bytes: int | None = None,
    subject: Subject | None = None,
    every: int = 1,
) -> Estimate:
    """What a step takes.

    Args:
        card: The model.
        shape: Of the step.
        attention: Of the visual self attention.
        condition: What condition channels hold where nothing is known.
        optimiser: Its name.
        average: Whether an average of the weights is kept.
        frozen_bytes: Of each weight that is not trained; as it is where absent.
        bf16: Whether the network computes in bfloat16.
        device: Where it would be trained.
        memory: Bytes of a GPU to plan for, instead of the device.
        trained: Marks what is trained, such as adapters; all of it where absent.
        subject: The network, and what it is told besides a prompt.
        every: ``trained`` treats every so many blocks alike.

    Raises:
        RequestError: The network cannot be traced.
    """
    subject = subject or Subject()

    def network(blocks: int | None = None) -> nn.Module:
        with torch.device("meta"):
            net = bare(card, subject.part, blocks).requires_grad_(True)
            if trained is not None:
                trained(net)
        return net

    def traced_with(blocks: int | None) -> Traced:
        return trace(network(blocks), card, shape.latent, subject, attention=attention, condition=condition, bf16=bf16)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced, net = traced_in_depth(traced_with, card, subject.part, every), network()
        sizes = [(p.numel(), p.numel() * p.element_size(), p.requires_grad) for p in net.parameters()]
    learning = sum(count for count, _, learns in sizes if learns)
    dtype = "bfloat16" if bf16 else "float32"
    processor, known = speed.at_hand(device, dtype) if memory is None else speed.of_memory(memory)
    work = Operations(linear=traced.flops - traced.attention, attention=traced.attention)
    there = devices.device_memory(device) if device.startswith("cuda") else devices.host_memory()
    weights = sum(size if frozen_bytes is None or learns else count * frozen_bytes for count, size, learns in sizes)
    return Estimate(
        parameters=sum(count for count, _, _ in sizes),
        trained=learning,
        tokens=shape.batch * math.prod(shape.latent[:3]) // math.prod(patch_of(net)),
        flops=traced.flops * shape.batch,
        weights=weights // shape.shards,
        gradients=4 * learning // shape.shards,
        states=STATES[optimiser] * learning // shape.shards,
        average=4 * learning // shape.shards if average else 0,
        activations=traced.kept * shape.at_once // shape.context,
        processor=f"{processor.name} ({known})",
        seconds=processor.seconds(work * (shape.batch / shape.processes), dtype),
        memory=memory if memory is not None else there[1] if there else None,
    )


def traced_in_depth(traced_with: Callable[[int | None], Traced], card: Card, part: str, every: int = 1) -> Traced:
    """Trace a network whose blocks are alike with a few of them, and add as much for each of the others.

    Args:
        traced_with: Traces it with so many blocks; with all of them where None.
        card: The model.
        part: Which of its networks.
        every: Blocks are alike in groups of so many.
    """
    depth = card.part(part).depth
    blocks = 0 if depth is None else depth.count()(card.component(part))
    few = every + blocks % every
    if blocks <= few + every:
        return traced_with(None)
    less, more = traced_with(few), traced_with(few + every)
    groups = (blocks - few) // every
    return Traced(*(a + groups * (b - a) for a, b in zip(astuple(less), astuple(more), strict=True)))


def trace(
    net: nn.Module,
    card: Card,
    latent: tuple[int, int, int, int],
    subject: Subject,
    *,
    attention: AttentionSpec,
    condition: str = "zeros",
    bf16: bool = True,
) -> Traced:
    """Count what a pass of one clip keeps and computes. ``net``'s tensors are replaced by such without contents."""
    widths = getattr(getattr(net, "params", None), "text_widths", None)
    bind, track = card.part(subject.part).bind, subject.track
    if widths is None or bind is None:
        raise RequestError(f"`{card.id}`: what its network needs cannot be told before it is read")
    mode = FakeTensorMode()
    with mode:
        _without_contents(net)
        text = TextEmbeddings(torch.randn(1, PROMPT_TOKENS, widths[0]), torch.randn(1, widths[1] or 1))
        x = torch.randn(1, *latent)
        extra = {name: torch.randn(shown.shape) for name, shown in subject.known.extra.items() if shown.ndim > 2}
    # what block-sparse attention computes depends on contents: it is counted as dense, and a share of it taken
    sparse, dense = attention.type == "nabla", AttentionSpec(backend="sdpa")
    made = _Made()
    try:
        # marks are read as numbers, which tensors without contents have not
        known = Known(extra={**subject.known.extra, **extra})
        besides = branch.beside_of(net, known.extra)
        run = Pass(text, condition=condition, attention=dense if sparse else attention, branches=besides)
        denoiser = bind()(net, known, run)
        with mode, FlopCounterMode(display=False) as counter:
            with made, torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                out = denoiser({track: x}, torch.rand(1))[track]
                loss = out.float().pow(2).mean()
            kept = made.alive(besides=(p.untyped_storage()._cdata for p in net.parameters()))
            loss.backward()
    except KandinskyError:
        raise
    except Exception as error:  # networks outside this package may do what tensors without contents cannot
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(f"`{card.id}`: its network cannot be traced without contents: {reason}") from error
    counts = counter.get_flop_counts().get("Global", {})
    attending = sum(count for name, count in counts.items() if "attention" in str(name))
    others = counter.get_total_flops() - attending
    if sparse:
        frames, rows, columns = (size // step for size, step in zip(latent[:3], patch_of(net), strict=True))
        attending = int(attending * attention.expected_share((frames, rows, columns)))
    return Traced(kept, others + attending, attending)


def _without_contents(net: nn.Module) -> None:
    """Put CPU tensors without contents in the place of those of the meta device, which some layers cannot use."""
    made: dict[int, Tensor] = {}
    for module in net.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_weight = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
                held[name] = made[id(tensor)]  # type: ignore[assignment]


class _Made(TorchDispatchMode):
    """Remembers what was made within it, without keeping it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                self._found[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def alive(self, besides: Iterable[int] = ()) -> int:
        """Bytes of it that something still needs, without storages that were there before, such as of weights."""
        others = set(besides)
        return sum(size for key, (ref, size) in self._found.items() if key not in others and not ref.expired())


def bare(card: Card, part: str = "dit", blocks: int | None = None) -> nn.Module:
    """A network of a card without weights; with fewer or more blocks, of one that has ``Part.depth``."""
    component, depth = card.component(part), card.part(part).depth
    if blocks is not None and depth is not None:
        component = replace(component, params={**component.params, depth.name: blocks})
    return bare_network(card.part(part), component, Path())


def patch_of(net: nn.Module) -> tuple[int, int, int]:
    """Frames, rows and columns of a latent that are one token of a network."""
    patch: tuple[int, int, int] = getattr(getattr(net, "params", None), "patch_size", (1, 1, 1))
    return patch


def of_recipe(recipe: ModelRecipe, *, device: str = "cpu", memory: int | None = None, processes: int = 1) -> Estimate:
    """What a recipe of a catalogue model takes in each step. Nothing is read but the model's card.

    Args:
        recipe: As it was read.
        device: Where it would be trained.
        memory: Bytes of a GPU to plan for, instead of the device.
        processes: That would train together.

    Raises:
        RequestError: The model cannot be trained this way, the scale does not fit the processes, or the network cannot
            be traced.
    """
    root = None if recipe.weights is None else local_path(recipe.weights, "weights folder")
    card = catalogue.source_of(recipe.model, weights=root).card
    check(recipe, card, processes)
    layout, lesson = recipe.scale.layout(processes), lesson_of(recipe, card)
    job, adapter, part = lesson.job(job_of(recipe, card)), recipe.adapter, card.part(recipe.part)
    with torch.device("meta"):
        patch = patch_of(bare(card, recipe.part))
    empty = {name: torch.zeros(shape) for name, shape in lesson.shapes(job).items()}
    clean, known = lesson.given(job, empty, torch.Generator().manual_seed(0))
    frames, rows, columns, channels = clean.shape[1:]
    tokens = frames * rows * columns // math.prod(patch)
    data = recipe.data
    budget = data.tokens if data.sequence is None else data.sequence * data.batch
    batch = data.batch if budget is None else max(1, budget // max(1, tokens))
    attention = attention_for(card, job.sampling, "auto")

    if recipe.branch is not None:
        known = replace(known, extra={**known.extra, **lesson.beside(empty)})

    def trained(net: nn.Module) -> None:
        if adapter is not None:
            add_adapters(net, replace(adapter, base_dtype="float32"), part.adapts)
        if recipe.branch is not None:
            net.requires_grad_(False)
            net.add_module(branch.NAME, branch.built(recipe.branch, card))
        alone = replace(recipe.scale, data=None, ring=1, ulysses=1, tp=1, fsdp=1, compile=False, offload=False)
        alone = replace(alone, param_dtype="float32", reduce_dtype="float32")
        if part.split is not None:
            Scaling(alone).spare(list(part.split.rules().blocks(net)))

    shape = Shape(
        (frames, rows, columns, channels),
        batch=batch,
        at_once=-(-batch // (layout.data * recipe.loop.accumulate)),
        processes=processes,
        shards=recipe.scale.among(layout).fsdp * recipe.scale.tp,
        context=layout.context,
    )
    made = estimate(
        card,
        shape,
        attention=attention,
        condition=job.sampling.condition,
        subject=Subject(recipe.part, known=known),
        optimiser=recipe.loop.optimiser,
        average=recipe.loop.ema > 0,
        bf16=recipe.loop.computes_bf16(device) if memory is None else recipe.loop.bf16 is not False,  # GPUs do
        device=device,
        memory=memory,
        trained=trained,
        every=recipe.scale.every if recipe.scale.activations == "blocks" else 1,
        frozen_bytes=FROZEN_BYTES[frozen.base_dtype] if (frozen := adapter or recipe.branch) else None,
    )
    decodes = recipe.samples is not None or "autoencoder" in recipe.helpers
    others = tuple(name for name in (*recipe.helpers, *recipe.learners[1:]) if name != "autoencoder")
    return replace(
        made,
        others=others,
        autoencoder=_loaded(card, ("vae",), 4) if decodes else 0,
        encoding=_encoding(recipe, card, lesson, 4 if memory is None and not device.startswith("cuda") else 2),
    )


def _encoding(recipe: ModelRecipe, card: Card, lesson: Lesson, width: int) -> int:
    """Bytes of the encoders that are in memory together before the training begins.

    Args:
        recipe: What is trained.
        card: The model.
        lesson: What its network is taught.
        width: Bytes of a number of the text encoder.
    """
    is_encoded = (Path(recipe.data.source) / MANIFEST).is_file()
    text = 0 if is_encoded and recipe.samples is None else _loaded(card, ("text",), width)
    return max(text, 0 if is_encoded else _loaded(card, lesson.encoders, 4))


def _loaded(card: Card, names: Sequence[str], width: int) -> int:
    return sum(loaded_bytes(card, name, width) for name in names if name in card.components)


def of_sound(recipe: SoundRecipe, *, device: str = "cpu", memory: int | None = None) -> Estimate:
    """What a recipe of kind `sound` takes in each step, of examples as long as the model's own windows.

    Args:
        recipe: As it was read.
        device: Where it would be trained.
        memory: Bytes of a GPU to plan for, instead of the device.

    Raises:
        RequestError: The model makes no sound, or the network cannot be traced.
    """
    card, adapter = card_of(recipe).card, recipe.adapter
    assert card.does.examples is not None
    shapes, part = card.does.examples().shapes(card), card.part("dit")

    def trained(net: nn.Module) -> None:
        if adapter is not None:
            add_adapters(net, replace(adapter, base_dtype="float32"), part.adapts)

    _, frames, rows, columns, channels = shapes[LATENT]
    batch = recipe.data.batch
    return estimate(
        card,
        Shape((frames, rows, columns, channels), batch=batch, at_once=-(-batch // recipe.loop.accumulate)),
        attention=AttentionSpec(),
        subject=Subject(track=AUDIO, known=Known(extra={"frames": torch.zeros(shapes[VIDEO])})),
        optimiser=recipe.loop.optimiser,
        average=recipe.loop.ema > 0,
        bf16=recipe.loop.computes_bf16(device) if memory is None else recipe.loop.bf16 is not False,
        device=device,
        memory=memory,
        trained=trained,
        frozen_bytes=None if adapter is None else FROZEN_BYTES[adapter.base_dtype],
    )
