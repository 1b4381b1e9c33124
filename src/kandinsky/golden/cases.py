"""Cases on disk, and how two sets of tensors are compared.

A case folder holds `case.json`, `outputs.safetensors` and, if the component has them, `inputs.safetensors`,
`weights.safetensors` and files that `call` names. A manifest is a JSON file that lists the tensors of a full-size
checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from kandinsky.errors import KandinskyError, RequestError, WeightsError
from kandinsky.golden.tolerances import Tolerance, read_tolerances
from kandinsky.golden.tracking import CaseError, Settings, Tensors
from kandinsky.weights.keymaps import IDENTITY, KeyMap
from kandinsky.weights.read import assign_state, read_state

KEYS = ("component", "config", "call", "dtype", "tolerance", "source", "notes")
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16", "uint8", "int64")}
# smaller denominators are too small to be relative to
REL_FLOOR = 1e-6
# integers of a configuration larger than this and than the number of weights describe no real network
SIZE_LIMIT = 100_000
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Case:
    """One recorded run of a component, as mappings that record what a runner reads.

    Attributes:
        folder: The case's folder.
        component: Name of what is run, such as `kandinsky5.dit`.
        config: Official hyper-parameters.
        call: Arguments of the run.
        dtype: Type of the run; floating inputs and weights are cast to it.
        inputs: Input tensors.
        weights: Weights under their official names; empty for a component without weights.
        outputs: Recorded results. Reading one here does not count as producing it.
        tolerances: Tolerance of each output.
    """

    folder: Path
    component: str
    config: Settings
    call: Settings
    dtype: torch.dtype
    inputs: Tensors
    weights: Tensors
    outputs: Mapping[str, Tensor]
    tolerances: Mapping[str, Tolerance]
    _files: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, folder: Path) -> Case:
        """Read a case folder.

        Args:
            folder: The folder with `case.json`.

        Returns:
            The case.

        Raises:
            CaseError: A file is missing or damaged, or a value has the wrong type.
        """
        raw = _read_json(folder / "case.json")
        values = Settings(raw, "")
        if unknown := [key for key in values if key not in KEYS]:
            raise CaseError(unknown[0], f"is not a key of a case: use {', '.join(KEYS)}")
        component = values.text("component")
        if not re.fullmatch(r"[\w.-]+", component):
            raise CaseError("component", f"is `{component}`, which is not a name")
        name = values.text("dtype") if values.has("dtype") else "float32"
        if name not in DTYPES:
            raise CaseError("dtype", f"is `{name}`: use one of {', '.join(DTYPES)}")
        dtype: torch.dtype = DTYPES[name]
        outputs = _read_tensors(folder, "outputs", needed=True)
        if not any(tensor.numel() for tensor in outputs.values()):
            raise CaseError("outputs.safetensors", "records no values")
        notes = values.text("notes") if values.has("notes") else ""
        inputs = {key: _cast(tensor, dtype) for key, tensor in _read_tensors(folder, "inputs").items()}
        return cls(
            folder,
            component,
            _part(raw, "config"),
            _part(raw, "call"),
            dtype,
            Tensors(inputs, "inputs"),
            Tensors(_read_tensors(folder, "weights"), "weights"),
            outputs,
            read_tolerances(_part(raw, "tolerance", needed=True), notes, outputs),
        )

    def network(self, build: Callable[[], Net], *, keymap: KeyMap = IDENTITY) -> Net:
        """Build a network and give it the case's weights, strictly.

        Args:
            build: Makes the network; called on the meta device.
            keymap: Official names ↔ names in the network.

        Returns:
            The network with its weights, in the case's type.

        Raises:
            CaseError: The configuration does not describe a network, or the weights are not those of the network; a
                tensor that is missing, left over or of another shape is named.
        """
        if not self.dtype.is_floating_point:
            raise CaseError("dtype", "is not a floating-point type, which a network needs")
        self._check_sizes()
        try:
            with torch.device("meta"):
                net = build()
        except (KandinskyError, ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError) as error:
            raise CaseError("config", f"describes no network: {_first_line(error)}") from error
        state = keymap.own(self.weights.peek())
        for name in self.weights:
            # a key map may leave out what belongs to other networks: that stays unread
            if name in state or name.removeprefix(f"{keymap.table}.") in state or name in keymap.beside:
                tensor = self.weights[name]
                if not tensor.isfinite().all():
                    raise CaseError(f"weights.{name}", "holds values that are not finite")
        try:
            assign_state(net, state, keymap=keymap, dtype=self.dtype, where="weights.safetensors")
        except WeightsError as error:
            raise CaseError("weights", f"are not those of the network: {error}") from error
        return net

    def file(self, name: str) -> Path:
        """Find another file of the case.

        Args:
            name: Its name in the folder.

        Returns:
            Its path.

        Raises:
            CaseError: The file does not exist.
        """
        if Path(name).name != name or not (path := self.folder / name).is_file():
            raise CaseError(name, "is not a file of the case")
        self._files.add(name)
        return path

    def unread(self) -> list[str]:
        """Names of all settings, tensors and weight files that the run did not use."""
        known = {"inputs.safetensors", "outputs.safetensors", "weights.safetensors", *self._files}
        files = sorted(path.name for path in self.folder.glob("*.safetensors") if path.name not in known)
        return [*self.config.unread(), *self.call.unread(), *self.inputs.unread(), *self.weights.unread(), *files]

    def _check_sizes(self) -> None:
        """Refuse absurd sizes: a wrong digit must be an error, not a network that takes a day to build."""
        values = sum(tensor.numel() for tensor in self.weights.peek().values())
        for name, value in self.config.leaves():
            is_depth = "block" in name or "layer" in name
            limit = len(self.weights) if is_depth else max(values, SIZE_LIMIT)
            if isinstance(value, int) and value > limit:
                raise CaseError(name, f"is {_short(value)}: more than the weights have room for")


# Runs a case through the public networks and samplers; returns its results under the names of the recorded outputs.
Runner = Callable[[Case], Mapping[str, Tensor]]


def find(path: Path) -> list[Path]:
    """Find cases or manifests.

    Args:
        path: A case folder, any folder above such folders, a manifest, or a folder of manifests.

    Returns:
        Case folders, sorted; or manifests.

    Raises:
        RequestError: There is neither.
    """
    if path.is_file() and path.suffix == ".json":
        return [path.parent] if path.name == "case.json" else [path]
    if path.is_dir():
        if cases := sorted(file.parent for file in path.rglob("case.json")):
            return cases
        if manifests := sorted(file for file in path.glob("*.json") if _is_manifest(file)):
            return manifests
    what = "has no conformance cases" if path.exists() else "is not there"
    raise RequestError(f"`{path}` {what}: give a folder with a `case.json`, or any folder above such folders")


@dataclass(frozen=True, slots=True)
class Distance:
    """How far one output is from the recorded one.

    Attributes:
        output: Name of the output.
        max_abs: Largest absolute difference.
        max_rel: Largest relative difference.
        over: Distance in units of the tolerance; above 1 fails.
        reason: Why it fails, if the numbers do not say so.
    """

    output: str
    max_abs: float
    max_rel: float
    over: float
    reason: str = ""


def compare(ours: Mapping[str, Tensor], case: Case) -> Distance:
    """Compare all recorded outputs with ours.

    Args:
        ours: Our outputs by name.
        case: The case with the recorded ones.

    Returns:
        The output that is furthest off, in units of its tolerance.
    """
    distances = [_compare_one(name, ours.get(name), case.outputs[name], case.tolerances[name]) for name in case.outputs]
    return max(distances, key=lambda distance: distance.over)


def _compare_one(name: str, actual: Tensor | None, expected: Tensor, tolerance: Tolerance) -> Distance:
    def failed(reason: str) -> Distance:
        return Distance(name, float("inf"), float("inf"), float("inf"), reason)

    if actual is None:
        return failed("no result of the runner has this name")
    if actual.shape != expected.shape:
        return failed(f"shape {list(actual.shape)}, recorded is {list(expected.shape)}")
    if expected.dtype is torch.bool or actual.dtype is torch.bool:
        wrong = int((actual != expected).sum())
        return Distance(name, float(wrong > 0), float(wrong > 0), wrong * float("inf") if wrong else 0.0,
                        f"{wrong} entries differ" if wrong else "")  # fmt: skip
    a, b = actual.double(), expected.double()
    for values, whose in ((b, "recorded"), (a, "computed")):
        if values.isnan().any():
            return failed(f"the {whose} values are not all numbers")
    if not b.numel():
        return Distance(name, 0.0, 0.0, 0.0)
    distance = torch.where(a == b, 0.0, (a - b).abs())  # equal infinities are equal
    over = float((distance / tolerance.allowed(b).clamp_min(1e-300)).nan_to_num(nan=float("inf")).max())
    reason = ""
    if over <= 1 and tolerance.mean_abs is not None and expected.is_floating_point():
        mean = float(distance.mean())
        if mean > tolerance.mean_abs:
            over = 1 + mean / max(tolerance.mean_abs, 1e-300)
            reason = f"mean distance {mean:.3g}, allowed is {tolerance.mean_abs:g}"
    return Distance(name, float(distance.max()), float((distance / b.abs().clamp_min(REL_FLOOR)).max()), over, reason)


def _read_json(file: Path) -> dict[str, object]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read as JSON: {error}"
        raise CaseError(file.name, problem) from error
    if not isinstance(values, dict):
        raise CaseError(file.name, "holds no JSON object")
    return values


def _read_tensors(folder: Path, name: str, *, needed: bool = False) -> dict[str, Tensor]:
    file = folder / f"{name}.safetensors"
    if not file.exists() and not needed:
        return {}
    if not file.is_file():
        raise CaseError(file.name, "is missing")
    try:
        return read_state(file)
    except KandinskyError as error:
        raise CaseError(file.name, f"cannot be read: {error}") from error


def _part(values: Mapping[str, object], key: str, *, needed: bool = False) -> Settings:
    """An object of `case.json`; an empty one if it is absent or null."""
    part = values.get(key)
    if part is None and not needed:
        return Settings({}, key)
    if not isinstance(part, dict):
        raise CaseError(key, "is not an object" if key in values else "is missing")
    return Settings(part, key)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() and dtype.is_floating_point else tensor


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:17]}..."


def _is_manifest(file: Path) -> bool:
    try:
        values = _read_json(file)
    except CaseError:
        return False
    return isinstance(values.get("tensors"), dict)
