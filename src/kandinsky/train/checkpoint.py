"""Checkpoints of a training: written whole or not at all, the one before kept, read only where they fit the recipe."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from kandinsky.errors import RequestError, WeightsError
from kandinsky.files import check_writable, not_writable, replacing
from kandinsky.printing import escaped
from kandinsky.weights.untrusted import reading, shown

if TYPE_CHECKING:
    from kandinsky.train.loop import Learner

log = logging.getLogger(__name__)
FORMAT = 3
NAME, PREVIOUS, LOCK = "checkpoint.pt", "checkpoint.previous.pt", ".lock"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands: steps taken, and seconds spent on them."""

    step: int = 0
    seconds: float = 0.0


class State:
    """What a checkpoint holds: trained weights, their averages, the optimisers, and networks that are carried along.

    Args:
        learners: By update; names of tensors begin with the update's.
        carried: Networks that change without a gradient.
    """

    def __init__(self, learners: Sequence[Learner], carried: Mapping[str, nn.Module]) -> None:
        self.learners, self.carried = {one.update.name: one for one in learners}, carried

    @property
    def weights(self) -> dict[str, Tensor]:
        """Trained weights, and those of carried networks."""
        trained = {f"{name}.{key}": p for name, one in self.learners.items() for key, p in one.weights.items()}
        kept = {f"{name}.{key}": t for name, network in self.carried.items() for key, t in network.state_dict().items()}
        return trained | kept

    @property
    def ema(self) -> dict[str, Tensor]:
        """Averaged weights."""
        return {f"{name}.{key}": t for name, one in self.learners.items() for key, t in one.ema.items()}

    def is_finite(self) -> bool:
        """Whether no weight is infinite or NaN."""
        return all(bool(torch.isfinite(p.detach()).all()) for p in self.weights.values())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a run folder, which is made where it is absent, to one training.

    Raises:
        RequestError: Another training runs there, or the folder cannot be written.
    """
    check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("a+b")
    except OSError as error:
        raise not_writable(folder, error) from error
    with stream:
        if not _lock(stream):
            raise RequestError(f"another training runs in `{folder}`: wait for it, or choose another folder for `out`")
        yield  # the lock goes with the open file, so also with a killed process


def _lock(stream: io.BufferedRandom) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        log.warning("this file system has no locks: let no other training use the folder of this one")
    return True


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        folder: Where they lie.
        told: What decides the result, by name; a checkpoint of other values is not resumed.
    """

    def __init__(self, folder: Path, told: Mapping[str, Any]) -> None:
        self.path, self.previous, self.folder = folder / NAME, folder / PREVIOUS, folder
        self.told = {name: _plain(value) for name, value in told.items()}
        self._last: int | None = None

    def last_step(self) -> int | None:
        """The step of the last checkpoint that was written or restored."""
        return self._last

    def clear(self) -> None:
        """Remove what an earlier run left."""
        for path in (self.path, self.previous):
            path.unlink(missing_ok=True)

    def save(self, at: Position, state: State) -> None:
        """Write a checkpoint; the one before it stays beside it.

        Raises:
            RequestError: It cannot be written, such as on a full disk; the one before stays.
        """
        values = {
            "format": FORMAT,
            "step": at.step,
            "seconds": at.seconds,
            "recipe": self.told,
            "weights": {name: p.detach() for name, p in state.weights.items()},
            "ema": state.ema,
            "optimisers": {name: one.optimisers.state_dict() for name, one in state.learners.items()},
        }
        with replacing(self.path) as part:
            with part.open("wb") as stream:
                _save(values, stream)
            if self.path.exists():
                self.path.replace(self.previous)
        self._last = at.step

    def restore(self, state: State, steps: int, device: str) -> Position | None:
        """Bring back the last checkpoint that can be read; one that cannot is named, and the one before it is used.

        Args:
            state: Filled in place.
            steps: Length of the run; a checkpoint may not be beyond it.
            device: Of the tensors.

        Returns:
            Where the run stands; None where there is no checkpoint.

        Raises:
            RequestError: None of them can be read, or the one that can belongs to another recipe or network.
        """
        broken: list[str] = []
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                values = _read(path, device)
            except WeightsError as error:
                broken.append(str(error))
                continue
            for one in broken:
                log.warning("%s: using `%s` of step %d", one, path.name, values["step"])
            self._check(values, state, steps)
            _fill(path, values, state)
            self._last = values["step"]
            return Position(values["step"], float(values["seconds"]))
        if broken:
            raise RequestError(
                f"{broken[0]}, and there is no other to use: begin anew without resuming, or use another folder"
            )
        return None

    def _check(self, values: Mapping[str, Any], state: State, steps: int) -> None:
        """Refuse to resume something else. Raises: RequestError naming what changed."""
        advice = "begin anew without resuming, or use another folder"
        before = values["recipe"]
        changed = [
            f"`{escaped(name)}` was `{shown(before.get(name))}` and is `{shown(self.told.get(name))}`"
            for name in dict.fromkeys((*self.told, *before))
            if before.get(name) != self.told.get(name)
        ]
        if changed:
            raise RequestError(f"`{self.folder}` holds the training of another recipe, {', '.join(changed)}: {advice}")
        if any(_shapes(values[part]) != _shapes(getattr(state, part)) for part in ("weights", "ema")):
            raise RequestError(f"`{self.folder}` holds the checkpoint of another network: {advice}")
        if values["step"] > steps:
            raise RequestError(f"the training in `{self.folder}` has taken {values['step']} steps, more than {steps}")


def _save(values: Mapping[str, Any], stream: Any) -> None:
    """``torch.save``, whose own writer hides why a disk takes no more."""
    failed: list[OSError] = []

    class Told(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            try:
                return int(stream.write(data))
            except OSError as error:
                failed.append(error)
                raise

    try:
        torch.save(dict(values), cast("IO[bytes]", Told()))
        stream.flush()
    except RuntimeError as error:
        if failed:
            raise failed[0] from error
        raise


def _read(path: Path, device: str) -> dict[str, Any]:
    """The values of a checkpoint. Nothing in it is executed. Raises: WeightsError for a file that is none."""
    if not path.is_file() or path.stat().st_size == 0:
        raise WeightsError(f"checkpoint `{path}` is empty" if path.is_file() else f"checkpoint `{path}` is no file")
    with reading(path, "is no checkpoint, or a damaged one"):
        values = torch.load(path, map_location=device, weights_only=True)
        kinds = {"step": int, "seconds": float, "recipe": dict, "weights": dict, "ema": dict, "optimisers": dict}
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError("it was not written by this library, or by an older version")
        if any(not isinstance(values.get(name), kind) for name, kind in kinds.items()) or values["step"] < 0:
            raise ValueError("its entries are not those of a checkpoint")
        tensors = (*values["weights"].values(), *values["ema"].values())
        if not all(isinstance(one, Tensor) and bool(torch.isfinite(one).all()) for one in tensors):
            raise ValueError("its weights are no finite numbers")
        averaged = _shapes(values["ema"])
        if averaged != {name: shape for name, shape in _shapes(values["weights"]).items() if name in averaged}:
            raise ValueError("its weights and their average do not fit each other")
    return values


def _fill(path: Path, values: Mapping[str, Any], state: State) -> None:
    with reading(path, "holds the state of another optimiser"):
        for name, learner in state.learners.items():
            learner.optimisers.load_state_dict(values["optimisers"][name])
    with torch.no_grad():
        for part in ("weights", "ema"):
            for name, tensor in getattr(state, part).items():
                tensor.copy_(values[part][name])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _plain(value: Any) -> Any:
    """A value of a recipe as plain data, so that it compares equal when it has been stored."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
