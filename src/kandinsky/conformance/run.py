"""Finds cases, hands each to its component's runner, and judges the results."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from pathlib import Path

import torch

from kandinsky import catalogue
from kandinsky.errors import KandinskyError
from kandinsky.golden.cases import Case, Runner, compare, find
from kandinsky.golden.tracking import CaseError
from kandinsky.model.checks import unknown
from kandinsky.printing import escaped


class Status(StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Result:
    """Verdict on one case.

    Attributes:
        status: Whether the case passed.
        component: Name of what was run, such as `kandinsky5.dit`.
        path: The case's folder.
        max_abs: Largest absolute difference of the output named.
        max_rel: Largest relative difference of the output named.
        output: The output that is furthest off in units of its tolerance; or the setting, tensor or file at fault.
        reason: Why it failed, if the numbers do not say so.
        seconds: Time the case took.
    """

    status: Status
    component: str
    path: str
    max_abs: float = float("inf")
    max_rel: float = float("inf")
    output: str = "-"
    reason: str = ""
    seconds: float = field(default=0.0, compare=False)

    def line(self) -> str:
        """`PASS|FAIL <component> <folder> max_abs=… max_rel=… (<output name>)`, the reason behind the name."""
        named = f"{self.output}: {self.reason}" if self.reason else self.output
        line = f"{self.status} {self.component} {self.path} max_abs={self.max_abs:.3g} max_rel={self.max_rel:.3g}"
        return escaped(f"{line} ({named})")


def check(paths: Iterable[Path]) -> Iterator[Result]:
    """Run all cases at or below the paths, each once.

    Args:
        paths: Case folders, folders above them, or manifests.

    Yields:
        One result per case, as soon as it is ready.

    Raises:
        RequestError: A path has no cases; raised before the first case runs.
    """
    found = list(dict.fromkeys(entry for path in paths for entry in find(path)))
    return (_check_one(entry) for entry in found)


@cache
def runners() -> Mapping[str, Runner]:
    """The runners of all families by component.

    Raises:
        ValueError: Two families have a runner for the same component.
    """
    joined: dict[str, Runner] = {}
    for family in catalogue.families():
        cases = {} if family.cases is None else family.cases()
        if twice := joined.keys() & cases.keys():
            raise ValueError(f"component `{min(twice)}` has two runners")
        joined |= cases
    return joined


def totals(results: Iterable[Result]) -> dict[str, int]:
    """Count how many cases passed and how many failed."""
    count = {status.lower(): 0 for status in Status}
    for result in results:
        count[result.status.lower()] += 1
    return count


def _check_one(entry: Path) -> Result:
    start = time.perf_counter()
    result = _check_manifest(entry) if entry.is_file() else _check_case(entry)
    return replace(result, seconds=time.perf_counter() - start)


def _check_case(folder: Path) -> Result:
    component = "unknown"
    try:
        case = Case.read(folder)
        component = case.component
        if component not in runners():
            raise CaseError("component", str(unknown(component, sorted(runners()), "component")))
        with torch.inference_mode():
            furthest = compare(runners()[component](case), case)
    # a case that breaks its runner has failed, and the others still run
    except Exception as error:
        return _failed(component, folder, error)
    result = Result(
        Status.PASS if furthest.over <= 1 else Status.FAIL,
        component,
        str(folder),
        furthest.max_abs,
        furthest.max_rel,
        furthest.output,
        furthest.reason,
    )
    if unread := case.unread():
        reason = f"not used by `{component}`"
        if len(unread) > 1:
            reason += f", nor are {', '.join(unread[1:])}"
        if result.status is Status.FAIL:
            reason += f"; and {result.output} is not as recorded"
        return replace(result, status=Status.FAIL, output=unread[0], reason=reason)
    return result


def _check_manifest(file: Path) -> Result:
    from kandinsky.conformance.manifests import COMPONENT, check_manifest

    try:
        held = check_manifest(file)
    except Exception as error:
        return _failed(COMPONENT, file, error)
    return Result(Status.PASS, COMPONENT, str(file), 0.0, 0.0, held)


def _failed(component: str, path: Path, error: Exception) -> Result:
    if isinstance(error, CaseError):
        return Result(Status.FAIL, component, str(path), output=error.name, reason=error.problem)
    reason = str(error).strip().partition("\n")[0]
    if not reason or not isinstance(error, ValueError | RuntimeError | KandinskyError):
        reason = f"{type(error).__name__}: {reason}"
    return Result(Status.FAIL, component, str(path), reason=reason)
