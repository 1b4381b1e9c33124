"""Training on many processes, and in less memory: what a recipe's ``scale`` says, and what the loop asks of it.

The processes form a mesh: *data* (each takes other examples) x *ring* x *ulysses* (they share the tokens of a clip) x
*tp* (they share the width of a block), neighbours last. Weights, gradients, optimiser states and averages lie in shards
over ``fsdp`` of those that differ in data or tokens; where ``fsdp`` is less than all of them, shards are repeated
(HSDP). The schemes are those of generation (``runtime/parallel``); here their exchanges have gradients.

The optimisers, averages, clipping and checkpoints see the part of each weight that this process holds, a plain tensor,
so they know nothing of all this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from kandinsky.errors import RequestError
from kandinsky.runtime.parallel.context import Context, share_tokens
from kandinsky.runtime.parallel.exchange import collect, gather_into
from kandinsky.runtime.parallel.layout import Demand, Layout, check
from kandinsky.runtime.parallel.mesh import mesh_of
from kandinsky.runtime.parallel.places import Place, Split

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

    from kandinsky.runtime.parallel import sharding
    from kandinsky.runtime.parallel.split import Cut, SplitRules

Activations = Literal["kept", "full", "blocks", "operations"]
Dtype = Literal["float32", "bfloat16"]
BUCKET = 2**24  # numbers of gradients that travel together
HOST = torch.device("cpu")
# what the result of a step depends on, besides the order of sums
DECIDES = ("param_dtype", "reduce_dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How a training is spread over processes and what it saves of memory; nothing of it is needed for one process.

    Attributes:
        data: Processes that take other examples; all that the other numbers leave, where absent.
        ring: Processes that share a clip's tokens; keys and values travel round.
        ulysses: Processes that share a clip's tokens; for attention all tokens of some heads meet.
        tp: Processes that share the width of each block (tensor parallelism).
        fsdp: Processes over which weights, gradients, optimiser states and averages lie in shards; all that share no
            block where there are fewer.
        activations: What the forward pass keeps for the backward pass: all; of no block (`full`); not of every
            ``every``-th block (`blocks`); of each block the attention and every second product of matrices
            (`operations`). What is not kept is computed again.
        every: See ``activations``.
        compile: Compile each block by itself.
        param_dtype: In which shards meet for a pass; weights and optimiser states are float32 in any case.
        reduce_dtype: In which gradients are added up over processes with ``fsdp``.
        offload: Shards and optimiser states lie in main memory.
    """

    data: int | None = field(default=None, metadata={"least": 1})
    ring: int = field(default=1, metadata={"least": 1})
    ulysses: int = field(default=1, metadata={"least": 1})
    tp: int = field(default=1, metadata={"least": 1})
    fsdp: int = field(default=1, metadata={"least": 1})
    activations: Activations = "kept"
    every: int = field(default=2, metadata={"least": 1})
    compile: bool = False
    param_dtype: Dtype = "float32"
    reduce_dtype: Dtype = "float32"
    offload: bool = False

    def among(self, layout: Layout) -> Scale:
        """The same, with no more shards than there are processes to hold them."""
        return replace(self, fsdp=min(self.fsdp, layout.data * layout.context))

    def layout(self, world: int) -> Layout:
        """The division of the work among so many processes.

        Raises:
            RequestError: The numbers do not fit them, or each other.
        """
        each = self.ring * self.ulysses * self.tp
        if world % each or (self.data is not None and self.data * each != world):
            product = " x ".join(f"`{name}`" for name in ("data", "ring", "ulysses", "tp"))
            raise RequestError(
                f"`scale`: {product} must be the number of processes, {world}: `ring`, `ulysses` and `tp` are "
                f"{each} together" + ("" if self.data is None else f", `data` is {self.data}")
                + f"; start them with `torchrun --nproc-per-node {(self.data or 1) * each}`"
            )  # fmt: skip
        layout = Layout(data=world // each, ring=self.ring, ulysses=self.ulysses, tp=self.tp)
        if (holders := layout.data * layout.context) > self.fsdp and holders % self.fsdp:
            raise RequestError(
                f"`scale`: `fsdp` is {self.fsdp}, and must divide `data` x `ring` x `ulysses`, here {holders}"
            )
        needs = [name for name in DECIDES if getattr(self, name) != "float32"] + ["offload"] * self.offload
        if needs and self.fsdp == 1:
            raise RequestError(f"`scale`: `{needs[0]}` is a matter of shards: use it with an `fsdp` of 2 or more")
        return layout


@dataclass(frozen=True, slots=True)
class Divisible:
    """A kind of network whose work can be shared.

    Attributes:
        network: Its class.
        rules: How; None where only whole examples can be shared out.
        demand: What there is to share.
    """

    network: type[nn.Module]
    rules: SplitRules | None
    demand: Demand


class Scaling:
    """This process' part of a training.

    Attributes:
        data: Processes that take other examples.
        place: Which of them this one is.
        rank: Of this process among all.
        is_alone: Whether it is the only one.
    """

    def __init__(self, scale: Scale | None = None, device: str = "cpu", divisible: Divisible | None = None) -> None:
        """Form the mesh of all processes, which have met (``launch.meet``).

        Args:
            scale: What the recipe says; one process needs nothing of it.
            device: Of this process.
            divisible: The networks whose blocks are shared, compiled and recomputed.

        Raises:
            RequestError: The numbers fit neither the processes nor the network.
        """
        self.scale, self.device, self.divisible = scale or Scale(), torch.device(device), divisible
        self._splits: WeakKeyDictionary[nn.Module, Mapping[str, Split]] = WeakKeyDictionary()
        self._partial: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
        world = dist.get_world_size() if dist.is_initialized() else 1
        self.layout = self.scale.layout(world)
        self.scale = self.scale.among(self.layout)
        if divisible is not None:
            self._check(divisible)
        self.data, self.place, self.rank = self.layout.data, 0, 0
        self.is_alone = world == 1
        if self.is_alone:
            return
        layout, holders = self.layout, self.layout.data * self.layout.context
        kind = self.device.type
        axes = ("data", "ring", "ulysses", "tp")
        work = mesh_of(kind, axes, tuple(getattr(layout, axis) for axis in axes))
        sizes = (holders // self.scale.fsdp, self.scale.fsdp, layout.tp)
        self._weights = mesh_of(kind, ("replicate", "shard", "tp"), sizes)
        ring, ulysses = (work[axis].get_group() for axis in ("ring", "ulysses"))
        self._context = Context(ring, ulysses, work["ring", "ulysses"]._flatten("context").get_group())
        self._holders = self._weights["replicate", "shard"]._flatten("holders").get_group()
        self._model = self._weights["shard", "tp"]._flatten("model").get_group()
        self._tp = self._weights["tp"].get_group()
        self.place = work["data"].get_local_rank()
        self.rank = dist.get_rank()
        self._copy, self._shard, self._part = (self._weights[axis].get_local_rank() for axis in
                                               ("replicate", "shard", "tp"))  # fmt: skip

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.layout.size

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def _check(self, divisible: Divisible) -> None:
        if divisible.rules is None and (self.layout.context > 1 or self.layout.tp > 1):
            raise RequestError(
                "`scale`: this model's network has no tokens or heads to share: use `data` and `fsdp` alone"
            )
        if divisible.rules is not None:
            try:
                check(self.layout, divisible.demand)
            except RequestError as error:
                raise RequestError(f"`scale`: {error}", hint=error.hint) from error

    # -- networks ------------------------------------------------------------------------------------------------------

    def prepare(self, network: nn.Module, *, trains: bool = True) -> Mapping[str, Split]:
        """Bring a network to its device, and leave this process its part of it, under the same names.

        What learns becomes float32 and memory of its own: it may be mapped from a file, in that file's types. Blocks
        are taken one after the other, so that of what is cut no more than one is there whole.

        Args:
            network: Changed in place, once.
            trains: Whether gradients of its own weights are taken.

        Returns:
            How each of its parameters is divided, by name.

        Raises:
            RequestError: Its layers cannot be cut.
        """
        if network in self._splits:
            return self._splits[network]
        shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
        is_divisible = self.divisible is not None and isinstance(network, self.divisible.network)
        rules = self.divisible.rules if self.divisible is not None and is_divisible else None
        blocks = [] if rules is None else list(rules.blocks(network))
        names = {id(module): name for name, module in network.named_modules()}
        splits = {name: Split(shape) for name, shape in shapes.items()}
        self.spare(blocks, compiles=trains)
        is_sharded = is_divisible and self.scale.fsdp > 1
        place = HOST if is_sharded or (blocks and self.layout.tp > 1) else self.device  # what cuts it moves it
        within = {id(p) for block in blocks for p in block.parameters()}
        rest = [p for p in network.parameters() if id(p) not in within]
        for block in blocks:
            _as_learned(block.parameters(), place)
            if rules is not None and self.layout.tp > 1:
                splits |= self._cut(network, block, names[id(block)], rules, shapes)
            if is_sharded:
                self._shard_block(block)
        _as_learned(rest, place)
        if is_sharded:
            self._shard_rest(network, blocks)
            splits = {name: _sharded(split, self.scale.fsdp) for name, split in splits.items()}
        else:
            network.to(self.device)
        if rules is not None and self.layout.context > 1:
            share_tokens(network, self._context, rules)
        self._splits[network] = splits
        return splits

    def spare(self, blocks: Sequence[nn.Module], *, compiles: bool = True) -> None:
        """Recompute and compile blocks; their hooks stay outside, and so do the gatherings of their weights.

        Gradients go through frozen networks too, such as the one that a discriminator looks through.

        Args:
            blocks: Of one network.
            compiles: Whether they are compiled, where that is asked for.
        """
        for number, block in enumerate(blocks):
            run: Callable[..., Any] = block.forward
            kept, every = self.scale.activations, self.scale.every
            if kept == "full" or (kept == "blocks" and number % every == 0):
                run = partial(_with_gradients, partial(checkpoint, run, use_reentrant=False), run)
            elif kept == "operations":
                sparing = partial(checkpoint, run, use_reentrant=False, context_fn=_contexts)
                run = partial(_with_gradients, sparing, run)
            if self.scale.compile and compiles:
                run = torch.compile(run)
            if run is not block.forward:
                block.forward = run

    @property
    def _mesh(self) -> DeviceMesh:
        """Of the processes that hold shards."""
        is_repeated = self.layout.data * self.layout.context > self.scale.fsdp
        return self._weights["replicate", "shard"] if is_repeated else self._weights["shard"]

    @property
    def _keeping(self) -> sharding.Keeping:
        from kandinsky.runtime.parallel import sharding

        types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        return sharding.Keeping(types[self.scale.param_dtype], types[self.scale.reduce_dtype], self.scale.offload)

    def _shard_block(self, block: nn.Module) -> None:
        from kandinsky.runtime.parallel import sharding

        sharding.shard_block(block, self._mesh, self._keeping)

    def _shard_rest(self, network: nn.Module, blocks: Sequence[nn.Module]) -> None:
        from kandinsky.runtime.parallel import sharding

        sharding.shard_rest(network, blocks, self._mesh, self._keeping)

    def _cut(
        self,
        network: nn.Module,
        block: nn.Module,
        name: str,
        rules: SplitRules,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> dict[str, Split]:
        """Leave this process its part of a block. Returns: how its parameters are divided."""
        from kandinsky.runtime.parallel.tensor import cut_block

        splits = dict(_cuts(block, name, rules, self.layout.tp, shapes))
        self._partial.setdefault(network, [])
        self._cut_adapted(network, block, name, rules.cut, splits)
        cut_block(block, _plain(block, rules.cut), self._weights["tp"])
        return splits

    def _cut_adapted(
        self, network: nn.Module, block: nn.Module, name: str, cut: Cut, splits: Mapping[str, Split]
    ) -> None:
        """Cut the layers of a block that have adapters."""
        from kandinsky.train import adapter_parts

        for layer in (*cut.by_outputs, *cut.by_inputs):
            if adapter_parts.is_adapted(module := block.get_submodule(layer)):
                weight = splits[f"{name}.{layer}.base_layer.weight"]
                self._partial[network] += [
                    f"{name}.{layer}.{key}" for key, p in module.named_parameters() if not key.startswith("base_layer.")
                ]
                adapter_parts.cut(module, weight, self._part, self._tp)

    def per_part(self, network: nn.Module) -> list[str]:
        """Parameters of which a process knows the gradients of its own heads, or its part of a layer, only."""
        if self.layout.tp == 1 or self.divisible is None or not isinstance(network, self.divisible.network):
            return []
        rules = self.divisible.rules
        assert rules is not None
        names = {id(module): name for name, module in network.named_modules()}
        modules = [block.get_submodule(one) for block in rules.blocks(network) for one in rules.cut.per_head]
        per_head = [f"{names[id(module)]}.{key}" for module in modules for key, _ in module.named_parameters()]
        return per_head + self._partial.get(network, [])

    # -- a step --------------------------------------------------------------------------------------------------------

    def sync(self, network: nn.Module, wanted: bool) -> None:
        """Whether the next backward pass adds gradients up over the processes, where that is part of it."""
        if hasattr(network, "set_requires_gradient_sync"):
            cast("FSDPModule", network).set_requires_gradient_sync(wanted)

    def reshard(self, network: nn.Module) -> None:
        """Bring weights that a pass left gathered back into shards.

        What is no block stays gathered until the backward pass. A pass that had none would hand on to the next one
        whether these weights learn, which changes from update to update.
        """
        if hasattr(network, "set_requires_gradient_sync"):
            cast("FSDPModule", network).reshard()

    def add_up(self, network: nn.Module, weights: Mapping[str, Tensor], total: float) -> None:
        """Turn each process' gradients, of losses times weights, into those of the step's mean loss.

        Args:
            network: Whose gradients.
            weights: Its trained parameters.
            total: Sum of the weights of all portions.
        """
        grads = {name: _held_grad(p) for name, p in weights.items() if p.grad is not None}
        if not self.is_alone and not hasattr(network, "set_requires_gradient_sync"):
            self._add_up(weights, grads)
        for grad in grads.values():
            grad.mul_(self.data / total) if not self.is_alone else grad.div_(total)
        for name in self.per_part(network):
            if name in grads:
                dist.all_reduce(grads[name], group=self._tp)

    def _add_up(self, weights: Mapping[str, Tensor], grads: dict[str, Tensor]) -> None:
        """The mean of gradients over the processes that hold the same weights."""
        size = self._holders.size()
        if size == 1:
            return
        found = torch.tensor([float(name in grads) for name in weights], device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._holders)
        for (name, p), has in zip(weights.items(), found.tolist(), strict=True):
            if has and name not in grads:  # of examples that others have
                p.grad = torch.zeros_like(p)
                grads[name] = held(p.grad)
        works = []
        # in the order of the weights, which is the same in all processes
        for bucket in _buckets([grads[name] for name in weights if name in grads]):
            flat = torch.cat([grad.reshape(-1) for grad in bucket])
            works.append((bucket, flat, dist.all_reduce(flat, group=self._holders, async_op=True)))
        for bucket, flat, work in works:
            work.wait()
            flat.div_(size)
            for grad, part in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(part.view_as(grad))

    def clip(self, weights: Mapping[str, Tensor], splits: Mapping[str, Split], most: float) -> Tensor:
        """Scale gradients down to a largest norm. Returns: the norm before."""
        if self.is_alone:
            return torch.nn.utils.clip_grad_norm_(weights.values(), most)
        grads = {name: held(p.grad) for name, p in weights.items() if p.grad is not None}
        own = [grad.float().norm() for name, grad in grads.items() if self.writes(splits[name])]
        total = torch.stack(own).double().square().sum() if own else torch.zeros((), dtype=torch.float64)
        total = total.reshape(1).to(self.device)
        dist.all_reduce(total)
        norm = total.sqrt().float()[0]
        factor = (most / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads.values():
            grad.mul_(factor.to(grad.device))
        return norm

    def gather(self, value: Any) -> list[Any]:
        """A plain value of each process, on all."""
        return [value] if self.is_alone else collect(value, HOST)

    def gather_portions(self, value: Any) -> list[Any]:
        """A plain value of one of the processes that share an example, for each of them, on all."""
        every = self.gather(value)
        return every[:: len(every) // self.data]

    # -- weights -------------------------------------------------------------------------------------------------------

    def place_of(self, split: Split) -> Place:
        """What this process has of a tensor."""
        return split.place() if self.is_alone else split.place(self._shard, self._part)

    def writes(self, split: Split) -> bool:
        """Whether it is this process, of those that have the same part of a tensor, that counts."""
        if self.is_alone:
            return True
        return (
            self._copy == 0 and (split.shards > 1 or self._shard == 0) and (split.axis is not None or self._part == 0)
        )

    def shards(self, parts: Mapping[str, Tensor], splits: Mapping[str, Split]) -> Parts | None:
        """For optimisers that need whole matrices; None where all tensors are whole."""
        return None if all(split.is_whole for split in splits.values()) else Parts(self, parts, splits)

    def whole(self, part: Tensor, split: Split) -> Tensor:
        """A tensor of which each process has its part, on all processes."""
        if self.is_alone or split.is_whole:
            return part
        every = [split.place(*divmod(number, self.layout.tp)) for number in range(self._model.size())]
        most = max(math.prod(place.size) for place in every)
        own = torch.cat((part.to(self.device).reshape(-1), part.new_zeros(most - part.numel(), device=self.device)))
        parts = own.new_empty(len(every) * most)
        gather_into(parts, own, group=self._model)
        whole = part.new_empty(split.shape, device=self.device)
        for place, one in zip(every, parts.split(most), strict=True):
            place.put(one[: math.prod(place.size)].view(place.size), whole)
        return whole

    def result(self, parts: Mapping[str, Tensor], splits: Mapping[str, Split]) -> dict[str, Tensor]:
        """Whole tensors on the first process, which writes them; every process must ask."""
        if self.is_alone:
            return dict(parts)
        whole = ((name, self.whole(part, splits[name])) for name, part in parts.items())
        return {name: tensor.cpu() for name, tensor in whole if self.is_first}

    def state(self, network: nn.Module) -> dict[str, Tensor]:
        """The whole state of a network that was prepared, as ``result``."""
        splits = self._splits.get(network, {})
        parts = {name: held(tensor) for name, tensor in network.state_dict().items()}
        return self.result(parts, {name: splits.get(name, Split(tuple(part.shape))) for name, part in parts.items()})


class Parts:
    """Wholes of the parts that this process holds; see ``muon.Shards``."""

    def __init__(self, scaling: Scaling, parts: Mapping[str, Tensor], splits: Mapping[str, Split]) -> None:
        self._scaling, self._splits = scaling, {id(part): splits[name] for name, part in parts.items()}

    def shape(self, p: Tensor) -> tuple[int, ...]:
        """Of the whole."""
        return self._splits[id(p)].shape

    def whole(self, p: Tensor, x: Tensor) -> Tensor:
        """The whole of which all processes have their parts, laid out as ``p``."""
        return self._scaling.whole(x, self._splits[id(p)])

    def own(self, p: Tensor, whole: Tensor) -> Tensor:
        """This process' part."""
        part = whole.new_empty(p.shape)
        self._scaling.place_of(self._splits[id(p)]).take(whole, part)
        return part


def works_on(network: nn.Module) -> torch.device:
    """Where a network's passes run: where its weights lie, or, of shards that lie in main memory, where they meet."""
    p = next(network.parameters())
    mesh = getattr(p, "device_mesh", None)
    if mesh is None or mesh.device_type == p.device.type:
        return p.device
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())


def held(p: Tensor) -> Tensor:
    """The part of a parameter or gradient that this process holds; a plain tensor is itself."""
    if type(p) in (Tensor, nn.Parameter) or not hasattr(p, "to_local"):
        return p
    with torch.no_grad():
        local: Tensor = p.detach().to_local()  # type: ignore[attr-defined]
    return local


def _as_learned(parameters: Iterable[nn.Parameter], device: torch.device) -> None:
    """Make of those that learn float32 numbers of their own, one after the other."""
    for p in parameters:
        if p.requires_grad:
            p.data = p.data.to(device, torch.float32, copy=True)


def _held_grad(p: Tensor) -> Tensor:
    """The gradient of the part of a parameter that this process holds."""
    grad = p.grad
    assert grad is not None
    placements = getattr(p, "placements", None)
    if placements is not None and grad.placements != placements:  # type: ignore[attr-defined]
        with torch.no_grad():
            p.grad = grad = grad.redistribute(placements=placements)  # type: ignore[attr-defined]
    return held(grad)


def _cuts(
    block: nn.Module, name: str, rules: SplitRules, parts: int, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, Split]]:
    """How tensor parallelism divides the parameters of a block, of a layer with an adapter those below it."""
    cut = rules.cut
    for layer in (*cut.by_outputs, *cut.by_inputs):
        module, below = block.get_submodule(layer), ""
        if isinstance(inner := getattr(module, "base_layer", None), nn.Module):
            module, below = inner, "base_layer."
        for key, _ in module.named_parameters():
            full = f"{name}.{layer}.{below}{key}"
            if layer in cut.by_outputs:
                yield full, Split(shapes[full], 0, cut.fused.get(layer, 1), parts)
            elif key == "weight":
                yield full, Split(shapes[full], 1, 1, parts)


def _plain(block: nn.Module, cut: Cut) -> Cut:
    """What is left to cut of a block whose layers with adapters are cut already."""

    def kept(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if not hasattr(block.get_submodule(name), "base_layer"))

    fused = {name: cut.fused[name] for name in kept(cut.fused)}
    return replace(cut, by_outputs=kept(cut.by_outputs), by_inputs=kept(cut.by_inputs), fused=fused)


def _sharded(split: Split, shards: int) -> Split:
    return Split(split.shape, split.axis, split.fused, split.parts, shards)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type and place, some of them together."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        by_kind.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in by_kind.values():
        bucket: list[Tensor] = []
        for tensor in same:
            bucket.append(tensor)
            if sum(one.numel() for one in bucket) >= BUCKET:
                yield bucket
                bucket = []
        if bucket:
            yield bucket


_ATTENTION = ("_scaled_dot_product", "flex_attention")
_PRODUCTS = ("mm", "addmm", "bmm", "linear")


def _with_gradients(sparing: Callable[..., Any], plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A pass that spares memory, where anything is kept for a backward pass."""
    return (sparing if torch.is_grad_enabled() else plain)(*args, **kwargs)


def _contexts() -> Any:
    """For ``checkpoint``: attention and every second product of matrices are kept."""
    products = {False: 0, True: 0}

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = getattr(op, "__name__", str(op)).split(".")[0]
        if name in _PRODUCTS:
            products[ctx.is_recompute] += 1
            is_kept = products[ctx.is_recompute] % 2 == 0
        else:
            is_kept = any(one in name for one in _ATTENTION)
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
