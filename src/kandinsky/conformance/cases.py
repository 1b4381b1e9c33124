"""Cases on disk, and how two sets of numbers are compared.

A case folder holds `case.json`, `inputs.safetensors`, `outputs.safetensors` and, where the component has weights,
`weights.safetensors`. A manifest is a JSON file that lists the tensors of a full-size checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kandinsky.errors import RequestError
from kandinsky.weights.read import read_state

OPTIONAL_PREFIX = "intermediate."
# denominators below this do not count as numbers to be relative to
REL_FLOOR = 1e-6
# (output's name, what is expected, the case's rtol and atol) -> rtol and atol of this output
ToleranceRule = Callable[[str, Tensor, float, float], tuple[float, float]]


class Status(StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"
    SKIP = "SKIP"


class NotBuilt(Exception):  # noqa: N818 - a verdict, not a failure
    """The case asks for something this version does not have; it is skipped and counted."""


@dataclass(frozen=True, slots=True)
class Case:
    """One recorded run. ``tolerance``: |a − b| ≤ atol + rtol·|b|; booleans must be equal.

    mean_abs: what the mean of |a − b| of an output must not exceed besides, where the case says so.
    """

    folder: Path
    component: str
    config: dict[str, Any]
    call: dict[str, Any]
    dtype: torch.dtype
    rtol: float
    atol: float
    mean_abs: float | None = None

    @classmethod
    def read(cls, folder: Path) -> Case:
        """Raises: RequestError where `case.json` is not a case."""
        file = folder / "case.json"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            tolerance = values["tolerance"]
            dtype = getattr(torch, values.get("dtype", "float32"))
            return cls(
                folder,
                str(values["component"]),
                dict(values.get("config") or {}),
                dict(values.get("call") or {}),
                dtype,
                float(tolerance["rtol"]),
                float(tolerance["atol"]),
                float(tolerance["mean_abs"]) if "mean_abs" in tolerance else None,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(f"`{file}` is no conformance case: {error!r}") from error

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    def inputs(self) -> dict[str, Tensor]:
        """Floating inputs in the case's type."""
        file = self.folder / "inputs.safetensors"
        tensors = read_state(file) if file.exists() else {}
        return {name: t.to(self.dtype) if t.is_floating_point() else t for name, t in tensors.items()}

    def required_outputs(self) -> dict[str, Tensor]:
        tensors = read_state(self.folder / "outputs.safetensors")
        return {name: t for name, t in tensors.items() if not name.startswith(OPTIONAL_PREFIX)}

    def refuse_other_calls(self, *known: str) -> None:
        """Raises: NotBuilt for a call argument that is set and not known."""
        for key, value in self.call.items():
            if key not in known and value not in (None, False):
                raise NotBuilt(f"call argument `{key}` is not built yet")


@dataclass(frozen=True, slots=True)
class Result:
    """Verdict on one case: the output that is furthest off, or the reason it was skipped or failed."""

    status: Status
    component: str
    path: str
    max_abs: float = 0.0
    max_rel: float = 0.0
    output: str = ""
    reason: str = ""
    seconds: float = field(default=0.0, compare=False)

    def line(self) -> str:
        head = f"{self.status} {self.component} {self.path}"
        if self.status is Status.SKIP:
            return f"{head} ({self.reason})"
        head += f" max_abs={self.max_abs:.3g} max_rel={self.max_rel:.3g} ({self.output or '-'})"
        return f"{head}: {self.reason}" if self.reason else head


def find(path: Path) -> list[Path]:
    """Case folders at or below a path, sorted; or manifests, where the path is one or is a folder of them.

    Raises: RequestError where there is neither.
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


def compare(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    *,
    rtol: float,
    atol: float,
    mean_abs: float | None = None,
    rule: ToleranceRule | None = None,
) -> dict[str, Any]:
    """Compare every required output; returns the fields of a ``Result`` for the one that is furthest off.

    rule: gives each output a tolerance of its own, where a case's note says so.
    """
    worst: dict[str, Any] = {"status": Status.FAIL, "reason": "the case records no output"}
    excess = -1.0
    for name, expected in theirs.items():
        fields, over = _compare_one(
            name, ours.get(name), expected, *(rule(name, expected, rtol, atol) if rule else (rtol, atol))
        )
        if mean_abs is not None and over <= 1.0 and expected.is_floating_point() and expected.numel():
            mean = float((ours[name].double() - expected.double()).abs().mean())
            if mean > mean_abs:
                over = 1.0 + mean / mean_abs
                fields |= {"status": Status.FAIL, "reason": f"mean distance {mean:.3g}, allowed {mean_abs:g}"}
        if over > excess:
            worst, excess = fields, over
    return worst


def _compare_one(
    name: str, actual: Tensor | None, expected: Tensor, rtol: float, atol: float
) -> tuple[dict[str, Any], float]:
    """Result fields, and how far off in units of the tolerance (> 1 fails)."""
    fail = {"status": Status.FAIL, "output": name, "max_abs": float("inf"), "max_rel": float("inf")}
    if actual is None:
        return fail | {"reason": "the output was not made"}, float("inf")
    if actual.shape != expected.shape:
        return fail | {"reason": f"shape {list(actual.shape)}, expected {list(expected.shape)}"}, float("inf")
    if expected.dtype is torch.bool:
        wrong = int((actual.to(expected.dtype) != expected).sum())
        fields = {"status": Status.FAIL if wrong else Status.PASS, "output": name, "max_abs": float(wrong > 0)}
        return fields | ({"reason": f"{wrong} entries differ"} if wrong else {}), float("inf") if wrong else 0.0
    a, b = actual.double(), expected.double()
    same = a == b  # equal infinities are equal
    distance = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=float("inf"))
    allowed = (atol + rtol * b.abs()).clamp_min(1e-300)
    over = float((distance / allowed).max()) if distance.numel() else 0.0
    fields = {
        "status": Status.PASS if over <= 1.0 else Status.FAIL,
        "output": name,
        "max_abs": float(distance.max()) if distance.numel() else 0.0,
        "max_rel": float((distance / b.abs().clamp_min(REL_FLOOR)).max()) if distance.numel() else 0.0,
    }
    return fields, over


def _is_manifest(file: Path) -> bool:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and isinstance(values.get("tensors"), dict)


def totals(results: Iterable[Result]) -> dict[str, int]:
    """How many passed, failed and were skipped."""
    count = dict.fromkeys((s.lower() for s in Status), 0)
    for result in results:
        count[result.status.lower()] += 1
    return count
