"""Devices and types: the one owner of which network is on which device, and when.

| offload | what stays where |
|---|---|
| `none` | a network goes to its device at first use and stays |
| `module` | a network is on its device only while it is held; then it goes back to the host (freed, if it ran there) |
| `block` | as `module`, and the blocks of a network visit the device one by one (see ``runtime/blocks.py``) |

A placement changes where tensors are, never a result: every mode gives the same bits, except for frames of an
autoencoder that `block` makes decode layer by layer, whose convolutions then round differently.
"""

from __future__ import annotations

import copy
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from kandinsky.errors import OutOfMemory, RequestError
from kandinsky.model.autoencoder import LayeredAutoencoder
from kandinsky.ops import widening
from kandinsky.runtime import devices
from kandinsky.runtime.blocks import BlockSwap
from kandinsky.runtime.budget import check_offload
from kandinsky.runtime.spool import Spool


@dataclass(frozen=True, slots=True)
class Precision:
    """Types a generation runs in.

    Attributes:
        compute: Type of the weights, the matrix products and the token stream.
        islands: Normalisation, modulation, rotation and the sampler's state; fixed (see ``ops/precision.py``).
    """

    compute: torch.dtype
    islands: ClassVar[torch.dtype] = torch.float32

    @classmethod
    def choose(cls, dtype: str | torch.dtype | None, device: torch.device) -> Precision:
        """The requested type; by default bfloat16 on CUDA and float32 elsewhere.

        Raises:
            RequestError: The type is unknown.
        """
        name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
        return cls(getattr(torch, devices.choose_dtype(name, device.type)))

    @property
    def name(self) -> str:
        return str(self.compute).removeprefix("torch.")


def place(device: str | torch.device | None = None) -> torch.device:
    """The requested device, if it is available, or the best one.

    Raises:
        RequestError: The name is unknown.
        BackendError: This machine does not have the device.
    """
    return torch.device(devices.choose_device(None if device is None else str(device)))


class Placement:
    """Builds networks at first use and holds them on their device while they run.

    Args:
        builders: For each name, how to build a network on the host, with its weights; an object whose attributes are
            networks is allowed.
        device: For networks that ``places`` does not name.
        offload: `none`, `module` or `block`.
        types: Compute types of networks whose builder, for `block`, leaves weights as they were read.
        quantized: Whether weights are quantised already, for the advice when memory runs out.

    Raises:
        RequestError: The offload mode is unknown, or a device is given for a network that does not exist.
    """

    def __init__(
        self,
        builders: Mapping[str, Callable[[], Any]],
        *,
        device: torch.device,
        places: Mapping[str, torch.device] | None = None,
        offload: str = "none",
        types: Mapping[str, torch.dtype] | None = None,
        quantized: bool = False,
    ) -> None:
        check_offload(offload)
        self.offload = offload
        self._builders = dict(builders)
        self._devices = {name: device for name in builders} | dict(places or {})
        if unknown := sorted(set(self._devices) - set(builders)):
            raise RequestError(f"device given for `{unknown[0]}`: use one of {', '.join(builders)}")
        self._types = dict(types or {})
        self.quantized = quantized
        self._built: dict[str, Any] = {}
        self._swaps: dict[str, list[BlockSwap]] = {}
        self._held: Counter[str] = Counter()
        self._lent: dict[str, Callable[[], AbstractContextManager[Any]]] = {}

    def lending(self, name: str, lend: Callable[[], AbstractContextManager[Any]], device: torch.device) -> Placement:
        """The same networks, but for one that somebody else holds, such as a training.

        Args:
            name: Of that network; it need not have been there.
            lend: Gives it for as long as it is held.
            device: Where it is.

        Returns:
            A placement that shares everything else with this one.
        """
        other = copy.copy(self)
        other._lent = {**self._lent, name: lend}
        other._devices = {**self._devices, name: device}
        return other

    def add(self, name: str, builder: Callable[[], Any], *, beside: str) -> None:
        """Take in another network, in the place of one that is there; nothing is built yet.

        Args:
            name: Its name; one of that name already stays.
            builder: How it is built; as for the class.
            beside: The network whose device and compute type it shares.
        """
        if name not in self._devices:
            self._builders[name] = builder
            self._devices[name] = self._devices[beside]
            if beside in self._types:
                self._types[name] = self._types[beside]

    def drop(self, name: str) -> None:
        """Forget a network that was taken in. Raises: RequestError while it is held."""
        if self._held[name]:
            raise RequestError("networks cannot be unloaded while they run: wait for the result")
        for table in (self._built, self._swaps, self._builders, self._devices, self._types):
            table.pop(name, None)

    def is_held(self, name: str) -> bool:
        """Whether a network runs at present."""
        return self._held[name] > 0

    def __contains__(self, name: str) -> bool:
        return name in self._devices

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the networks."""
        return tuple(self._devices)

    def move(self, device: torch.device) -> None:
        """Run everything on one device from now on.

        Raises:
            RequestError: A network is currently held.
        """
        if any(self._held.values()):
            raise RequestError("networks cannot be moved while they run: wait for the result")
        self._devices = dict.fromkeys(self._devices, device)
        if self.offload == "block":  # block offload is bound to one device
            self._built.clear()
            self._swaps.clear()

    @property
    def bytes(self) -> int:
        """Bytes of the weights that are in memory now."""
        held = (one for built in self._built.values() for one in networks(built))
        return sum(tensor.nbytes for net in held for tensor in (*net.parameters(), *net.buffers()))

    def release(self) -> None:
        """Forget the networks that are in memory and not held; the next who holds one has it built again."""
        for name in [name for name in self._built if not self._held[name]]:
            del self._built[name]
            self._swaps.pop(name, None)
        gc.collect()  # they may be held by reference cycles

    def device(self, name: str) -> torch.device:
        """Where a network runs."""
        return self._devices[name]

    def swaps(self, name: str) -> list[BlockSwap]:
        """The block offload of the networks of this name at present; empty for other placements."""
        return self._swaps.get(name, [])

    @contextmanager
    def hold(self, name: str) -> Iterator[Any]:
        """Hold a network on its device for the duration of a `with` block.

        Raises:
            OutOfMemory: Memory ran out, also inside the block; the message names the placement to try.
        """
        with self._memory_errors(name):
            if name in self._lent:
                with self._lent[name]() as net:
                    yield net
                return
            if (net := self._built.get(name)) is None:
                gc.collect()  # freed networks may still be held by reference cycles
                net = self._built[name] = self._builders[name]()
                if self._devices[name].type == "cpu":
                    for one in networks(net):
                        widening.use(one, self._types.get(name))
                if self.offload == "block":
                    self._swaps[name] = [self._swap(name, one) for one in networks(net)]
            self._held[name] += 1
            try:
                self._move(name, net, self._devices[name])
                yield net
            finally:
                self._held[name] -= 1
                if self.offload != "none" and not self._held[name]:
                    self._put_away(name, net)

    def _swap(self, name: str, net: nn.Module) -> BlockSwap:
        if isinstance(net, LayeredAutoencoder):  # its blocks are convolutions: memory goes to their outputs
            net.layered, net.allocate = True, Spool()
        return BlockSwap(net, self._devices[name], dtype=self._types.get(name))

    def _move(self, name: str, net: Any, device: torch.device) -> None:
        if self.offload != "block":
            for network in networks(net):
                network.to(device)
        for swap in self.swaps(name):
            swap.enter() if device == self._devices[name] else swap.leave()

    def _put_away(self, name: str, net: Any) -> None:
        device = self._devices[name]
        if device.type == "cpu":
            # the host is the device: only freeing makes room, and reading again is cheap
            del self._built[name]
            self._swaps.pop(name, None)
        else:
            self._move(name, net, torch.device("cpu"))
            if device.type == "cuda":
                torch.cuda.empty_cache()

    @contextmanager
    def _memory_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"memory of `{self._devices[name]}` ran out in `{name}`: {self._advice()}") from error
        except MemoryError as error:
            raise OutOfMemory(f"the host's memory ran out in `{name}`: {self._advice()}") from error
        except RuntimeError as error:
            # PyTorch's CPU allocator has no exception of its own
            if "DefaultCPUAllocator" not in str(error) and "not enough memory" not in str(error):
                raise
            raise OutOfMemory(f"the host's memory ran out in `{name}`: {self._advice()}") from error

    def _advice(self) -> str:
        """The next placement to try: none → module → block → quantised weights → a smaller clip."""
        if self.offload == "none":
            return 'try `offload="module"`, a smaller size or fewer seconds'
        if self.offload == "module":
            return 'try `offload="block"`, a smaller size or fewer seconds'
        if not self.quantized:
            return 'try `quantize="int8"`, a smaller size or fewer seconds'
        return "try a smaller size or fewer seconds"


def networks(held: Any) -> list[nn.Module]:
    """The networks of what a builder returned: itself, or its attributes."""
    return [held] if isinstance(held, nn.Module) else [v for v in vars(held).values() if isinstance(v, nn.Module)]
