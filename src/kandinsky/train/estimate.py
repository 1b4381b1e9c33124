"""What a recipe would take, before anything is read: parameters, memory, tokens and time of a step.

The network is built and run forwards and backwards with tensors that have a shape and no contents, so what autograd
keeps is counted, not modelled, for any network; one clip stands for a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from kandinsky.engine.build import bare_network
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.model.card import Card
from kandinsky.model.cost import PROMPT_TOKENS, Operations
from kandinsky.model.denoiser import VIDEO, Known, Pass
from kandinsky.model.values import TextEmbeddings
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.runtime import devices, speed
from kandinsky.runtime.budget import gigabytes

STATES = {"adamw": 8, "muon": 8, "adamw8bit": 2, "rmsprop": 4, "sgd": 0}
"""Bytes of an optimiser's states for each trained number; Muon's matrices have one state, what it leaves has two."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a step works on.

    Attributes:
        latent: Frames, rows, columns, channels of one clip.
        batch: Clips of a step, over all processes and micro-batches.
        at_once: Clips that are in memory together: of one process and micro-batch.
        processes: Processes that share the batch.
        shards: Processes over which weights and states are divided.
    """

    latent: tuple[int, int, int, int]
    batch: int = 1
    at_once: int = 1
    processes: int = 1
    shards: int = 1


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
        tokens: Latent places of a step, over all processes.
        flops: Operations of a step, over all processes.
        weights, gradients, states, average, activations: Bytes.
        processor: What the time is for, and how that is known.
        seconds: Of a step.
        memory: Bytes there are on the device.
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

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.gradients + self.states + self.average + self.activations

    @property
    def runs_out(self) -> str | None:
        """Where memory would run out, and what would help; None where it is enough, or not known."""
        if self.memory is None or self.total <= self.memory:
            return None
        there = 0
        for name, advice in (
            ("weights", "train an adapter, or divide them with `scale.fsdp`"),
            ("states", "use `optimiser: adamw8bit`, an adapter, or `scale.fsdp`"),
            ("average", "set `loop.ema` to 0, or divide it with `scale.fsdp`"),
            ("gradients", "train an adapter, or divide them with `scale.fsdp`"),
            ("activations", "use `scale.activations: full`, a smaller clip, or `loop.accumulate`"),
        ):
            there += getattr(self, name)
            if there > self.memory:
                return f"memory runs out with the {_CALLED.get(name, name)}: {advice}"
        return None

    def lines(self) -> list[str]:
        """For people."""
        parts = ", ".join(
            f"{_CALLED.get(name, name)} {gigabytes(getattr(self, name))}"
            for name in ("weights", "gradients", "states", "average", "activations")
            if getattr(self, name)
        )
        there = "" if self.memory is None else f" of {gigabytes(self.memory)}"
        return [
            f"parameters   {self.parameters / 1e6:,.1f} million, {self.trained / 1e6:,.1f} million trained",
            f"tokens       {self.tokens:,} latent places a step",
            f"operations   {self.flops / 1e12:,.3g} TFLOP a step, forwards and backwards",
            f"memory       {gigabytes(self.total)}{there} for each process: {parts}",
            f"time         about {self.seconds:,.3g} s a step on {self.processor}, an estimate",
            f"fits         {self.runs_out or ('yes' if self.memory is not None else 'not known')}",
        ]


_CALLED = {"states": "optimiser states"}


def estimate(
    network: Callable[[], nn.Module],
    card: Card,
    shape: Shape,
    *,
    attention: AttentionSpec,
    condition: str = "zeros",
    optimiser: str = "adamw",
    average: bool = True,
    bf16: bool = True,
    device: str = "cpu",
    trained: Callable[[nn.Module], None] | None = None,
) -> Estimate:
    """What a step takes.

    Args:
        network: Builds it; called while tensors have no contents.
        card: The model.
        shape: Of the step.
        attention: Of the visual self attention.
        condition: What condition channels hold where nothing is known.
        optimiser: Its name.
        average: Whether an average of the weights is kept.
        bf16: Whether the network computes in bfloat16.
        device: Where it would be trained.
        trained: Marks what is trained, such as adapters; all of it where absent.

    Raises:
        RequestError: The network cannot be traced.
    """
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = network()
        net.requires_grad_(True)
        if trained is not None:
            trained(net)
        traced = trace(net, card, shape.latent, attention=attention, condition=condition, bf16=bf16)
        sizes = [(p.numel(), p.numel() * p.element_size(), p.requires_grad) for p in net.parameters()]
    learning = sum(count for count, _, learns in sizes if learns)
    processor, known = speed.at_hand(device, "bfloat16" if bf16 else "float32")
    work = Operations(linear=traced.flops - traced.attention, attention=traced.attention)
    memory = devices.device_memory(device)
    return Estimate(
        parameters=sum(count for count, _, _ in sizes),
        trained=learning,
        tokens=shape.batch * shape.latent[0] * shape.latent[1] * shape.latent[2],
        flops=traced.flops * shape.batch,
        weights=sum(size for _, size, _ in sizes) // shape.shards,
        gradients=4 * learning // shape.shards,
        states=STATES[optimiser] * learning // shape.shards,
        average=4 * learning // shape.shards if average else 0,
        activations=traced.kept * shape.at_once,
        processor=f"{processor.name} ({known})",
        seconds=processor.seconds(work * (shape.batch / shape.processes), "bfloat16" if bf16 else "float32"),
        memory=memory[1] if memory else None,
    )


def trace(
    net: nn.Module,
    card: Card,
    latent: tuple[int, int, int, int],
    *,
    attention: AttentionSpec,
    condition: str = "zeros",
    bf16: bool = True,
) -> Traced:
    """Count what a pass of one clip keeps and computes. ``net`` has tensors without contents."""
    widths = getattr(getattr(net, "params", None), "text_widths", None)
    bind = card.part("dit").bind
    if widths is None or bind is None:
        raise RequestError(f"`{card.id}`: what its network needs cannot be told before it is read")
    text = TextEmbeddings(torch.randn(1, PROMPT_TOKENS, widths[0]), torch.randn(1, widths[1] or 1))
    x = torch.randn(1, *latent)
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    # what block-sparse attention computes depends on contents: it is counted as dense, and a share of it taken
    sparse, dense = attention.type == "nabla", AttentionSpec(backend="sdpa")
    kept: dict[int, int] = {}
    alive: list[object] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and storage._cdata not in kept:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    try:
        with FlopCounterMode(display=False) as counter:
            with (
                torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
                torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
            ):
                run = Pass(text, condition=condition, attention=dense if sparse else attention)
                out = bind()(net, Known(), run)({VIDEO: x}, torch.rand(1))[VIDEO]
                loss = out.float().pow(2).mean()
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
        patch = getattr(getattr(net, "params", None), "patch_size", (1, 1, 1))
        frames, rows, columns = (size // step for size, step in zip(latent[:3], patch, strict=True))
        attending = int(attending * attention.expected_share((frames, rows, columns)))
    return Traced(sum(kept.values()), others + attending, attending)


def bare(card: Card) -> nn.Module:
    """The denoiser of a card without weights."""
    return bare_network(card.part("dit"), card.dit, Path())
