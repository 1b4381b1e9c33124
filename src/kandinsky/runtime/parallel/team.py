"""The processes of one generation: a device mesh with named axes, and what they do together.

A team of one does everything itself, so that a pipeline has only one code path.

Legend: B batch; T H W C frames, rows, columns, channels.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from kandinsky.diffusion.guidance import Denoising, Mixing, X, as_state
from kandinsky.errors import BackendError, KandinskyError, RequestError
from kandinsky.model.autoencoder import VideoAutoencoder
from kandinsky.model.denoiser import each
from kandinsky.runtime.parallel.context import Context, share_tokens
from kandinsky.runtime.parallel.decode import decode_shared
from kandinsky.runtime.parallel.exchange import collect, gather_into, join_parts, own_part, shares, tell, tell_tensors
from kandinsky.runtime.parallel.layout import AXES, Layout
from kandinsky.runtime.parallel.mesh import mesh_of

if TYPE_CHECKING:
    from kandinsky.runtime.parallel.split import SplitRules

log = logging.getLogger(__name__)


class Team:
    """The processes that work on a generation together.

    The attribute ``device`` is that of the transformer on this process.

    Args:
        layout: Its product is the number of processes, which have met (``launch.meet``).
        device: Device of the transformer on this process.
    """

    def __init__(self, layout: Layout | None = None, device: torch.device | None = None) -> None:
        self.layout = layout or Layout()
        self.device = device or torch.get_default_device()
        self.size = self.layout.size
        self.mesh: DeviceMesh | None = None
        if self.size == 1:
            return
        if dist.get_world_size() != self.size:
            raise RequestError(f"layout `{self.layout}` needs {self.size} processes, and {dist.get_world_size()} met")
        self.mesh = mesh_of(self.device.type, AXES, tuple(getattr(self.layout, axis) for axis in AXES))
        self.context = self.mesh["ring", "ulysses"]._flatten("context")  # the processes that share the tokens

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.mesh is None or dist.get_rank() == 0

    def group(self, axis: str) -> dist.ProcessGroup:
        """The processes that differ from this one in one axis only."""
        assert self.mesh is not None
        return self.mesh[axis].get_group()

    def build(
        self, make: Callable[[], nn.Module], dtype: torch.dtype, rules: Callable[[], SplitRules] | None
    ) -> nn.Module:
        """Build a denoising network on this process: whole, or its part of it, with its tokens shared.

        Args:
            make: Reads it, on the host; if weights are cut, as they are stored.
            dtype: Type of its weights.
            rules: Returns how its blocks are shared, called if they are.

        Returns:
            The network.
        """
        net = make()
        if self.mesh is None or not (self.layout.cuts_weights or self.layout.context > 1):
            return net
        if rules is None:
            raise BackendError(f"the work of `{type(net).__name__}` cannot be split: use `cfg` or `data`")
        split = rules()
        if self.layout.cuts_weights:
            # a second of imports that nothing else needs
            from kandinsky.runtime.parallel import sharding
            from kandinsky.runtime.parallel.tensor import cut_block

            blocks = list(split.blocks(net))
            inside = {id(module) for block in blocks for module in block.modules()}
            for module in net.modules():
                if id(module) not in inside:
                    module._apply(lambda t: t.to(dtype) if t.is_floating_point() else t, recurse=False)
            for block in blocks:
                # one at a time: the host never holds a second copy of more than one block
                block.to(dtype)
                if self.layout.tp > 1:
                    cut_block(block, split.cut, self.mesh["tp"])
                if self.layout.fsdp > 1:
                    sharding.shard_block(block, self.context)
            if self.layout.fsdp > 1:
                sharding.shard_rest(net, blocks, self.context)
        if self.layout.context > 1:
            share_tokens(net, Context(self.group("ring"), self.group("ulysses"), self.context.get_group()), split)
        return net

    def guide(self, guidance: Mixing, *passes: Denoising[X] | None) -> Denoising[X]:
        """The guided denoiser; with `cfg=2` two groups compute the passes, and meet once a step.

        Args:
            guidance: How the passes are combined.
            *passes: As for ``guidance.guide``; a single one that is not None means that guidance is off.

        Returns:
            The guided denoiser.
        """
        given = [one for one in passes if one is not None]
        if self.layout.cfg == 1 or len(given) == 1:
            if self.layout.cfg == 2:
                log.warning("guidance is off: both halves of `cfg=2` compute the same")
            return cast("Denoising[X]", guidance.guide(*passes))
        group = self.group("cfg")
        size = group.size()
        own, most = given[group.rank() :: size], math.ceil(len(given) / size)

        def met(*made: Tensor) -> Tensor:
            v = torch.stack(made)
            every = v.new_empty(size * most, *v.shape[1:])
            gather_into(every, v, group=group)
            places = every.unflatten(0, (size, most))
            return guidance.combine(*(places[n % size, n // size] for n in range(len(given))))

        def guided(x: X, t: Tensor) -> X:
            made = [as_state(one(x, t), x) for one in own]
            made += made[:1] * (most - len(made))  # collectives want equal sizes
            return each(met, *made)

        return guided

    def own_clips(self, x_B: Tensor) -> Tensor:
        """This process' share of a batch, by `data`."""
        return x_B if self.layout.data == 1 else own_part(x_B, 0, self.group("data"))

    def all_clips(self, x_B: Tensor, clips: int) -> Tensor:
        """The inverse of ``own_clips``."""
        if self.layout.data == 1:
            return x_B
        return join_parts(x_B, 0, shares(clips, self.layout.data), self.group("data"))

    def agree(self, value: Any) -> Any:
        """A plain value from the first process, on all."""
        return value if self.mesh is None else tell(value, 0, self.device)

    def gather(self, value: Any) -> list[Any]:
        """A plain value from every process."""
        return [value] if self.mesh is None else collect(value, self.device)

    def go_on(self, wanted: bool) -> bool:
        """Whether the work continues: the first process' answer holds for all."""
        return wanted if self.mesh is None else bool(self.agree(wanted))

    def all_passes(self, passes: list[list[bool]]) -> list[list[bool]]:
        """What a step cache skipped, of all branches and clips: for each pass, for each clip."""
        every = self.gather({**self._places, "passes": passes})
        first = [one for one in every if not one["ring"] and not one["ulysses"] and not one["tp"]]
        branches: list[list[bool]] = []
        for branch in range(self.layout.cfg):
            clips = [one["passes"] for one in first if one["cfg"] == branch]  # in order of `data`
            branches += [[clip for part in same for clip in part] for same in zip(*clips, strict=True)]
        return branches

    def all_shares(self, own: list[float | None], heads: int) -> list[float | None]:
        """From means over the heads of this process, one per clip, to means over all heads and passes, of all clips."""
        weight = shares(heads // self.layout.tp, self.layout.ulysses)[self._places["ulysses"]]
        every = self.gather({**self._places, "own": own, "weight": weight})
        found: list[float | None] = []
        for place in range(self.layout.data):
            parts = [one for one in every if one["data"] == place]
            whole = sum(one["weight"] for one in parts)
            for values in zip(*(one["own"] for one in parts), strict=True):
                known = all(value is not None for value in values)
                terms = (one["weight"] * value for one, value in zip(parts, values, strict=True)) if known else ()
                found.append(sum(terms) / whole if known else None)
        return found

    def decode(self, vae: VideoAutoencoder, latents_BTHWC: Tensor) -> Iterator[Tensor]:
        """Pixels of a clip by all processes, see ``decode.py``; the first one's are valid."""
        assert dist.group.WORLD is not None
        return decode_shared(vae, latents_BTHWC, dist.group.WORLD)

    def by_turns(
        self, make: Callable[[Tensor], Tensor], items: Iterable[Tensor], *, everyone: bool
    ) -> list[np.ndarray]:
        """``make`` of each item, on all processes: made by each in turn, or by all, of which the first one's counts."""
        items = list(items)
        owners = [0 if everyone else number % self.size for number in range(len(items))]
        rank = 0 if self.mesh is None else dist.get_rank()
        made = {n: make(item) for n, item in enumerate(items) if everyone or owners[n] == rank}
        told = [
            tell_tensors([made[n]] if owners[n] == rank else None, owners[n], self.device)[0] for n in range(len(items))
        ]
        return [one.cpu().numpy() for one in told if one is not None]

    @property
    def _places(self) -> dict[str, int]:
        """The position of this process on each axis."""
        return {axis: 0 if self.mesh is None else self.mesh[axis].get_local_rank() for axis in AXES}

    def once(self, make: Callable[[], Sequence[Tensor | None]]) -> list[Tensor | None]:
        """Tensors that the first process makes, on all processes.

        Raises:
            KandinskyError: The first process failed; its error is raised on all, with its class as far as that matters.
        """
        if self.mesh is None:
            return list(make())
        made: Sequence[Tensor | None] | None = None
        failure: Exception | None = None
        if self.is_first:
            try:
                made = make()
            except Exception as error:
                failure = error
        told = self.agree(None if failure is None else [isinstance(failure, RequestError), str(failure)])
        if failure is not None:
            raise failure
        if told is not None:
            is_common, text = told
            raise RequestError(text) if is_common else KandinskyError(text)
        return tell_tensors(made, 0, self.device)
