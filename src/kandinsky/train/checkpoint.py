"""Checkpoints of a training: written whole or not at all, some before kept, read only where they fit the recipe.

A checkpoint is a folder, `checkpoint-STEP`: `state.json`, and for each process that had something to write a
safetensors file with its parts of the tensors. Their headers say where the parts belong, in the form of PyTorch's
`HuggingFaceStorageWriter`, so that `torch.distributed.checkpoint` reads them too. Nothing in them is ever executed.
One process and many write and read the same, each reading what it needs, so a run goes on with any number of them.

A checkpoint is copied to main memory between two steps, and written beside its place while the next steps run; when all
processes have written their files, it is renamed.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from kandinsky.errors import RequestError, WeightsError
from kandinsky.files import beside, check_writable, flush, not_writable, remove, sweep
from kandinsky.printing import escaped
from kandinsky.runtime.parallel.places import Place, Split
from kandinsky.train.scale import Scaling, held
from kandinsky.weights.untrusted import read_table, reading, shown
from kandinsky.weights.write import DTYPE_NAMES, raw, serialised

if TYPE_CHECKING:
    from kandinsky.train.loop import Learner

log = logging.getLogger(__name__)
FORMAT = 4
STATE, LOCK = "state.json", ".lock"
OLDER = ("checkpoint.pt", "checkpoint.previous.pt")  # of versions before this format
# in headers, as torch/distributed/checkpoint/_hf_utils.py has them
SHARDING, OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
_NAME = re.compile(r"checkpoint-(0|[1-9]\d{0,17})")
ADVICE = "begin anew without resuming, or use another folder"


def name_of(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"checkpoint-{step}"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands: steps taken, and seconds spent on them."""

    step: int = 0
    seconds: float = 0.0


class State:
    """What a checkpoint holds: trained weights, their averages, the optimisers, and networks that are carried along.

    Of each tensor this process has its part.

    Args:
        learners: By update; names of tensors begin with the update's.
        carried: Networks that change without a gradient.
        splits: How their parameters are divided, by network and parameter; whole where absent.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        carried: Mapping[str, nn.Module],
        splits: Mapping[str, Mapping[str, Split]] | None = None,
    ) -> None:
        self.learners, self.carried = {one.update.name: one for one in learners}, carried
        self._splits = splits or {}

    @property
    def weights(self) -> dict[str, Tensor]:
        """Trained weights, and those of carried networks."""
        trained = {f"{name}.{key}": p for name, one in self.learners.items() for key, p in one.held.items()}
        kept = {
            f"{name}.{key}": held(t)
            for name, network in self.carried.items()
            for key, t in network.state_dict().items()
        }
        return trained | kept

    @property
    def ema(self) -> dict[str, Tensor]:
        """Averaged weights."""
        return {f"{name}.{key}": t for name, one in self.learners.items() for key, t in one.ema.items()}

    def named(self) -> dict[str, tuple[Tensor, Split]]:
        """Every weight and average, under its name in checkpoints, and how it is divided."""
        found = {f"weights.{name}": (t, self._split(name, t)) for name, t in self.weights.items()}
        return found | {f"average.{name}": (t, self._split(name, t)) for name, t in self.ema.items()}

    def remembered(self) -> dict[str, tuple[Tensor, Split]]:
        """What the optimisers remember, likewise."""
        return {
            f"optimiser.{update}.{name}.{key}": (tensor, self.split_like(update, name, tensor))
            for update, one in self.learners.items()
            for name, memory in one.optimisers.state().items()
            for key, tensor in memory.items()
        }

    def split_like(self, update: str, name: str, tensor: Tensor) -> Split:
        """How a memory is divided: as its weight, where it has a number for each of the weight's, or of its blocks."""
        held, split = self.learners[update].held[name], self.learners[update].splits[name]
        if tensor.shape == held.shape:
            return split
        if tensor.ndim == 2 and len(tensor) == len(held) and tensor.numel():  # blocks within rows
            block = held.numel() // tensor.numel()
            return replace(split, shape=(split.shape[0], math.prod(split.shape[1:]) // block))
        return Split(tuple(tensor.shape))

    def _split(self, name: str, tensor: Tensor) -> Split:
        update, _, key = name.partition(".")
        of = self.learners[update].splits if update in self.learners else self._splits.get(update, {})
        return of.get(key, Split(tuple(tensor.shape)))

    def is_finite(self) -> bool:
        """Whether no weight that this process holds is infinite or NaN."""
        return all(bool(torch.isfinite(p.detach()).all()) for p in self.weights.values())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a run folder, which is made where it is absent, to one run.

    Raises:
        RequestError: Another run works there, or the folder cannot be written.
    """
    check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / LOCK).open("a+b")
    except OSError as error:
        raise not_writable(folder, error) from error
    with stream:
        if not _lock(stream):
            raise RequestError(f"another run works in `{folder}`: wait for it, or choose another folder")
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
        folder: Where they lie; the same for all processes.
        told: What decides the result, by name; a checkpoint of other values is not resumed.
        scaling: The processes that write and read together.
        keep: How many are kept.
        keep_every: Those of every so many-th step are kept besides.
    """

    def __init__(
        self,
        folder: Path,
        told: Mapping[str, Any],
        scaling: Scaling | None = None,
        *,
        keep: int = 2,
        keep_every: int | None = None,
    ) -> None:
        self.folder, self.scaling, self.keep, self.keep_every = folder, scaling or Scaling(), keep, keep_every
        self.told = {name: _plain(value) for name, value in told.items()}
        self._last: int | None = None
        self._writing: _Writing | None = None
        if self.scaling.is_first:
            sweep(folder)

    def last_step(self) -> int | None:
        """The step of the last checkpoint that was written or restored."""
        return self._last

    def steps(self) -> list[int]:
        """Of the checkpoints that lie there, the last first."""
        with suppress(OSError):
            found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
            return sorted((int(one[1]) for one in found if one), reverse=True)
        return []

    def clear(self) -> None:
        """Remove what an earlier run left."""
        if self.scaling.is_first:
            for step in self.steps():
                self._remove(step)
            for name in OLDER:
                (self.folder / name).unlink(missing_ok=True)
        self.scaling.gather(None)  # nobody writes before it is gone

    # -- writing -------------------------------------------------------------------------------------------------------

    def save(self, at: Position, state: State) -> None:
        """Begin to write a checkpoint, once the one before is written; ``settle`` ends it.

        Raises:
            RequestError: The one before could not be written.
        """
        self.wait()
        path = self.folder / name_of(at.step)
        (part, *_) = self.scaling.gather(str(beside(path)) if self.scaling.is_first else None)
        everything = {**state.named(), **state.remembered()}
        own = {name: (t, split) for name, (t, split) in everything.items() if self.scaling.writes(split)}
        copies = {name: (_copied(t), self.scaling.place_of(split)) for name, (t, split) in own.items()}
        table = {
            "format": FORMAT,
            "step": at.step,
            "seconds": at.seconds,
            "recipe": self.told,
            "tensors": {name: [DTYPE_NAMES[t.dtype], list(split.shape)] for name, (t, split) in everything.items()},
        }
        rank = self.scaling.rank
        self._writing = _Writing(path, Path(part), copies, f"process-{rank:05d}", at.step, table)

    def progress(self) -> Any:
        """What this process says to ``settle``: nothing, or what became of its files."""
        return None if self._writing is None else self._writing.outcome

    def settle(self, told: Sequence[Any]) -> None:
        """End the writing of a checkpoint if all processes have written their files.

        Args:
            told: What ``progress`` said, of each process.

        Raises:
            RequestError: It cannot be written, such as on a full disk; those before stay.
        """
        writing = self._writing
        if writing is None or any(one is None for one in told):
            return
        self._writing = None
        failure = next((one["failed"] for one in told if "failed" in one), None)
        if self.scaling.is_first and failure is None:
            try:
                files = {name: size for one in told for name, size in one["files"].items()}
                (writing.part / STATE).write_text(json.dumps({**writing.table, "files": files}), encoding="utf-8")
                flush(writing.part)
                self._remove(writing.step)  # one that could not be read
                writing.part.replace(writing.path)
                flush(self.folder, shallow=True)
            except OSError as error:
                failure = _failed(writing.path, error)
        if self.scaling.is_first and failure is not None:
            remove(writing.part)
        failure = self.scaling.gather(failure)[0]
        if failure is not None:
            raise RequestError(failure)
        self._last = writing.step
        if self.scaling.is_first:
            self._prune(writing.step)

    def wait(self) -> None:
        """Have the checkpoint that is being written end. Raises: RequestError as ``settle``."""
        if self._writing is not None:
            self._writing.join()
            self.settle(self.scaling.gather(self.progress()))

    def abandon(self) -> None:
        """Leave no half-written checkpoint, nor a thread that writes one: something else ends the run."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.join()
            if self.scaling.is_first:
                remove(writing.part)

    def _prune(self, last: int) -> None:
        kept = [step for step in self.steps() if step <= last][: self.keep]
        for step in self.steps():
            is_due = self.keep_every is not None and step <= last and step % self.keep_every == 0
            if step not in kept and not is_due:  # those beyond the last could not be read
                self._remove(step)

    def _remove(self, step: int) -> None:
        """Remove a checkpoint, which is none any more at once."""
        path = self.folder / name_of(step)
        if path.exists() or path.is_symlink():
            away = beside(path)
            path.replace(away)
            remove(away)

    # -- reading -------------------------------------------------------------------------------------------------------

    def restore(self, state: State, steps: int) -> Position | None:
        """Bring back the last checkpoint that can be read; one that cannot is named, and the one before it is used.

        Args:
            state: Filled in place.
            steps: Length of the run; a checkpoint may not be beyond it.

        Returns:
            Where the run stands; None where there is no checkpoint.

        Raises:
            RequestError: None of them can be read, or the one that can belongs to another recipe or network.
        """
        broken: list[str] = []
        for step in self.scaling.gather(self.steps() if self.scaling.is_first else None)[0]:
            error = None
            try:
                found = _Stored.open(self.folder / name_of(step))
                self._check(found, state, steps)
                found.fill(state, self.scaling)
            except WeightsError as said:
                error = str(said)
            if failed := [one for one in self.scaling.gather(error) if one is not None]:
                broken.append(failed[0])
                continue
            if self.scaling.is_first:
                for one in broken:
                    log.warning("%s: using `%s`", one, name_of(step))
            self._last = step
            return Position(step, found.seconds)
        if broken:
            raise RequestError(f"{broken[0]}, and there is no other to use: {ADVICE}")
        if any((self.folder / name).exists() for name in OLDER):
            raise RequestError(f"`{self.folder}` holds the checkpoint of an older version of this library: {ADVICE}")
        return None

    def _check(self, found: _Stored, state: State, steps: int) -> None:
        """Refuse to resume something else. Raises: RequestError naming what changed."""
        changed = [
            f"`{escaped(name)}` was `{shown(found.recipe.get(name))}` and is `{shown(self.told.get(name))}`"
            for name in dict.fromkeys((*self.told, *found.recipe))
            if found.recipe.get(name) != self.told.get(name)
        ]
        if changed:
            raise RequestError(f"`{self.folder}` holds the training of another recipe, {', '.join(changed)}: {ADVICE}")
        own = {name: (DTYPE_NAMES.get(t.dtype, ""), split.shape) for name, (t, split) in state.named().items()}
        if own != {name: one for name, one in found.tensors.items() if not name.startswith("optimiser.")}:
            raise RequestError(f"`{self.folder}` holds the checkpoint of another network: {ADVICE}")
        if found.step > steps:
            raise RequestError(f"the training in `{self.folder}` has taken {found.step} steps, more than {steps}")


class _Writing:
    """A checkpoint on its way to the disk, in a thread.

    Attributes:
        outcome: None until this process' files are written; then their sizes, or why they could not be.
    """

    def __init__(
        self,
        path: Path,
        part: Path,
        copies: Mapping[str, tuple[Tensor, Place]],
        stem: str,
        step: int,
        table: Mapping[str, Any],
    ) -> None:
        self.path, self.part, self.step, self.table = path, part, step, table
        self.outcome: dict[str, Any] | None = None
        self._copies, self._stem = copies, stem
        self._thread = threading.Thread(target=self._run, name="kandinsky-checkpoint", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for it."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self.part.mkdir(exist_ok=True)  # the first process that comes makes it
            outcome: dict[str, Any] = {"files": dict(self._write())}
        except OSError as error:
            outcome = {"failed": _failed(self.path, error)}
        except Exception as error:  # said by the training, which else would wait for ever
            outcome = {"failed": f"`{self.path}` cannot be written: {type(error).__name__}: {error}"}
        self._copies = {}
        self.outcome = outcome

    def _write(self) -> Iterator[tuple[str, int]]:
        """Files of all parts, and their sizes; what lies in several stretches of a tensor goes into several files."""
        number = 0
        pieces: dict[str, list[tuple[Tensor, list[int]]]] = {}
        for name, (tensor, place) in self._copies.items():
            rest = [0] * max(0, len(place.shape))
            if not place.shape:
                pieces[name] = [(tensor, [])]
                continue
            pieces[name] = [
                (tensor[own], [*(one.start for one in box), *rest[len(box) :]]) for own, box in place.boxes()
            ]
        while True:
            now = {name: those[number] for name, those in pieces.items() if len(those) > number}
            if not now:
                return
            name = f"{self._stem}{f'-{number}' if number else ''}.safetensors"
            offsets = json.dumps({key: {OFFSETS: at} for key, (_, at) in now.items()})
            metadata = {"format": "pt", "DCP_VERSION": "1.0", SHARDING: offsets}
            with (self.part / name).open("wb") as stream:
                for piece in serialised({key: t for key, (t, _) in now.items()}, metadata):
                    stream.write(raw(piece))
            flush(self.part / name)
            yield name, (self.part / name).stat().st_size
            number += 1


@dataclass(frozen=True, slots=True)
class _Stored:
    """A checkpoint that was found.

    Attributes:
        tensors: Type and shape of each whole tensor.
        files: Those with tensors.
    """

    path: Path
    step: int
    seconds: float
    recipe: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    files: Sequence[Path]

    @classmethod
    def open(cls, path: Path) -> _Stored:
        """Read what it says of itself. Raises: WeightsError for a folder that is none, or not whole."""
        where = f"checkpoint `{path}`"
        if not path.is_dir():
            raise WeightsError(f"{where} is no folder")
        if not (path / STATE).is_file():
            raise WeightsError(f"{where} is empty" if not any(path.iterdir()) else f"{where} has no `{STATE}`")
        values = read_table(path / STATE)
        with reading(path, "is no checkpoint, or a damaged one"):
            if values.get("format") != FORMAT:
                raise ValueError("it was not written by this library, or by another version")
            kinds = {"step": int, "seconds": (int, float), "recipe": dict, "tensors": dict, "files": dict}
            if any(not isinstance(values.get(name), kind) for name, kind in kinds.items()):  # type: ignore[arg-type]
                raise ValueError("its entries are not those of a checkpoint")
            if name_of(values["step"]) != path.name:
                raise ValueError(f"it is of step {values['step']}")
            tensors = {name: (str(dtype), tuple(map(int, shape))) for name, (dtype, shape) in values["tensors"].items()}
            for name, size in values["files"].items():
                file = path / name
                if Path(name).name != name or not file.is_file():
                    raise ValueError(f"file `{shown(name)}` is missing")
                if file.stat().st_size != size:
                    raise ValueError(f"file `{shown(name)}` has {file.stat().st_size} bytes, not {size}")
        return cls(path, values["step"], float(values["seconds"]), values["recipe"], tensors,
                   [path / name for name in values["files"]])  # fmt: skip

    def fill(self, state: State, scaling: Scaling) -> None:
        """Put the stored values into weights, averages and optimisers; each process reads its parts.

        Raises:
            WeightsError: Something is missing, is of another kind, or is no finite number.
        """
        wanted = state.named()
        stored = {name for name in self.tensors if name.startswith("optimiser.")}
        remembered = {name.rsplit(".", parts)[0] for name in stored for parts in (1, 2)}
        for update, learner in state.learners.items():
            learner.optimisers.forget()
            for name, part in learner.held.items():
                prefix = f"optimiser.{update}.{name}"
                if not part.numel():  # of a weight with fewer rows than shards
                    stored -= {one for one in stored if one.startswith(f"{prefix}.")}
                elif prefix in remembered:
                    memory = learner.optimisers.begin(name)
                    wanted |= {f"{prefix}.{key}": (t, state.split_like(update, name, t)) for key, t in memory.items()}
        with reading(self.path, "holds the state of another optimiser"):
            if stored != {name for name in wanted if name.startswith("optimiser.")}:
                raise ValueError("it remembers other things")
        with reading(self.path, "is no checkpoint, or a damaged one"):
            self._read({name: (t, scaling.place_of(split)) for name, (t, split) in wanted.items()})
            if not state.is_finite() or not all(bool(torch.isfinite(t).all()) for t in state.ema.values()):
                raise ValueError("its weights are no finite numbers")

    def _read(self, wanted: Mapping[str, tuple[Tensor, Place]]) -> None:
        missing = {name: tensor.numel() for name, (tensor, _) in wanted.items()}
        for path in self.files:
            with safe_open(path, framework="pt") as file, torch.no_grad():
                offsets = json.loads((file.metadata() or {})[SHARDING])
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    if name not in wanted:
                        continue
                    tensor, place = wanted[name]
                    stored = file.get_slice(name)
                    if stored.get_dtype() != DTYPE_NAMES[tensor.dtype]:
                        raise ValueError(f"`{shown(name)}` has another type")
                    if not place.shape:
                        tensor.copy_(file.get_tensor(name))
                        missing[name] -= 1
                        continue
                    for own, box in _common(place, offsets[name][OFFSETS], stored.get_shape()):
                        tensor[own].copy_(stored[box])
                        missing[name] -= tensor[own].numel()
        if lacking := [name for name, count in missing.items() if count]:
            raise ValueError(f"parts of `{shown(lacking[0])}` are missing")


Slices = tuple[slice, ...]


def _common(place: Place, start: Sequence[int], size: Sequence[int]) -> Iterator[tuple[Slices, Slices]]:
    """What a part and a stored piece have in common: where it stands in either."""
    across = len(place.shape) > 1
    columns = place.columns or (0, place.shape[1] if across else 1)
    left, right = (max(columns[0], start[1]), min(columns[1], start[1] + size[1])) if across else (0, 1)
    for own, box in place.boxes():
        first, last = max(box[0].start, start[0]), min(box[0].stop, start[0] + size[0])
        if first >= last or left >= right:
            continue
        at = own.start + first - box[0].start
        here: Slices = (slice(at, at + last - first),)
        there: Slices = (slice(first - start[0], last - start[0]),)
        if across:
            here += (slice(left - columns[0], right - columns[0]),)
            there += (slice(left - start[1], right - start[1]),)
        yield here, there


def _copied(tensor: Tensor) -> Tensor:
    """A copy in main memory, which later steps do not change."""
    return tensor.detach().to("cpu", copy=True)


def _failed(path: Path, error: OSError) -> str:
    said = not_writable(path, error)
    return f"{said}; {said.hint}" if said.hint else str(said)


def _plain(value: Any) -> Any:
    """A value of a recipe as plain data, so that it compares equal when it has been stored."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
