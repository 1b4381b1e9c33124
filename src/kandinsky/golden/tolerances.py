"""How far a result may be from the recorded one: |ours − theirs| ≤ atol + rtol·|theirs|, per output.

A case gives `rtol` and `atol` for all outputs, perhaps `mean_abs`, a limit of the mean distance, and exceptions:

| where | how | meaning |
|---|---|---|
| `tolerance.<output>` | an object with `rtol`, `atol`, `mean_abs` | replaces these; `*` stands for anything |
| `tolerance.<output>` | a number | `atol`, without `rtol` |
| `tolerance.note`, `notes` | `frames_uint8 ±1`, `pcm +-2` | that `atol`, without `rtol` |
| same | `waveform 1e-2 of its maximum` | that share of the largest recorded value, without `rtol` |
| same | `atol is relative to the maximum` | `atol` counts in units of each output's largest recorded value |

A name in prose means the output of this name, or else all outputs whose names continue it after `_` or `.`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from kandinsky.golden.tracking import CaseError, Settings

_NAME, _NUMBER = r"([A-Za-z_][\w.]*)", r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
_PLUS_MINUS = re.compile(rf"{_NAME}[\s:=]*(?:±|\+\s*/?\s*-)\s*{_NUMBER}(?!\w|\s*%|\s+(?:of|times)\b)")
_OF_MAXIMUM = re.compile(
    rf"{_NAME}[\s:=]*(?:within\s+|±\s*|\+\s*/?\s*-\s*)?{_NUMBER}\s*(%?)\s*(?:of|times)\s+(?:its|the|their)\s+max"
)
_RELATIVE = re.compile(r"\batol\s+(?:is|counts|are)?\s*relative\s+to\s+(?:the|its|their)\s+max", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Allowed distance of one output from the recorded one: |ours − theirs| ≤ atol + rtol·|theirs|.

    Attributes:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        mean_abs: Limit of the mean absolute distance; None for no limit.
        relative: Whether ``atol`` is in units of the largest recorded value.
    """

    rtol: float
    atol: float
    mean_abs: float | None = None
    relative: bool = False

    def allowed(self, expected: Tensor) -> Tensor:
        """The largest distance allowed at each place, float64."""
        size = expected.abs()
        unit = float(size.max()) if self.relative and size.numel() else 1.0
        return self.atol * unit + self.rtol * size


def read_tolerances(values: Settings, notes: str, outputs: Iterable[str]) -> dict[str, Tolerance]:
    """Read the tolerance of each output.

    Args:
        values: The case's `tolerance`.
        notes: The case's `notes`.
        outputs: Names of the recorded outputs.

    Returns:
        Output name → tolerance.

    Raises:
        CaseError: A value is not a tolerance, or names no output.
    """
    names = list(outputs)
    base = Tolerance(_limit(values, "rtol"), _limit(values, "atol"), _mean(values))
    note = values.text("note") if values.has("note") else ""
    base = replace(base, relative=bool(_RELATIVE.search(note)))
    found = dict.fromkeys(names, base) | _from_prose(notes, names) | _from_prose(note, names)
    for key in values:
        if key in ("rtol", "atol", "mean_abs", "note"):
            continue
        named = fnmatch.filter(names, key) if "*" in key else [key] if key in found else []
        if not named:
            raise CaseError(f"{values.name}.{key}", "is neither a tolerance nor the name of an output")
        own = _of_output(values, key, base)
        found |= dict.fromkeys(named, own)
    return found


def _of_output(values: Settings, key: str, base: Tolerance) -> Tolerance:
    if not isinstance(values[key], Settings):
        return Tolerance(0.0, _limit(values, key))
    own = values.table(key)
    if unknown := [name for name in own if name not in ("rtol", "atol", "mean_abs")]:
        raise CaseError(f"{own.name}.{unknown[0]}", "is unknown: use `rtol`, `atol` or `mean_abs`")
    chosen: Mapping[str, float] = {name: _limit(own, name) for name in own}
    return replace(base, **chosen, relative=base.relative and "atol" not in own)


def _from_prose(text: str, names: list[str]) -> dict[str, Tolerance]:
    found: dict[str, Tolerance] = {}
    for name, number in _PLUS_MINUS.findall(text):
        found |= dict.fromkeys(_named(name, names), Tolerance(0.0, float(number)))
    for name, number, percent in _OF_MAXIMUM.findall(text):
        share = float(number) / (100 if percent else 1)
        found |= dict.fromkeys(_named(name, names), Tolerance(0.0, share, relative=True))
    return found


def _named(name: str, names: list[str]) -> list[str]:
    return [name] if name in names else [one for one in names if one.startswith((f"{name}_", f"{name}."))]


def _limit(values: Settings, key: str) -> float:
    limit = values.number(key)
    if limit < 0:
        raise CaseError(f"{values.name}.{key}", f"is `{limit}`: a number from 0 is needed")
    return limit


def _mean(values: Settings) -> float | None:
    return _limit(values, "mean_abs") if values.has("mean_abs") else None
