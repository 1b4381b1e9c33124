"""Step caches as values: which passes may skip a network's blocks, and how users choose one.

| kind | skips a pass if | replacement |
|---|---|---|
| `magcache` | measured magnitude ratios promise a small error | the last computed residual |
| `first-block` | the first block's residual has hardly changed | the last computed residual of the other blocks |
| `taylor` | a fixed interval says so | the residual, extrapolated from those computed |

A residual is the tokens after the blocks minus the tokens before them. ``diffusion/step_cache.py`` holds the state of
one call; this module has only frozen values and plain numbers, without torch, so that a request is refused at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kandinsky.errors import RequestError

BRANCHES = ("conditional", "unconditional")
# (pass of a branch, from 0) -> skipped?
Plan = tuple[bool, ...]


class _Option:
    """Settings read as the option that makes them."""

    __slots__ = ()

    def __str__(self) -> str:
        return describe(self)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class MagCache(_Option):
    """Skip passes while the error that the measured ratios predict stays below ``threshold``.

    Source: kandinskylab/kandinsky-5, kandinsky/magcache_utils.py.

    Attributes:
        threshold: Bound of the sum of |1 - product of ratios|.
        K: Maximum number of passes skipped in a row.
        retention: Share of the steps at the start that are always computed.
        ratios: Magnitude of each residual relative to the one before, conditional and unconditional in turn, from the
            second step on; 0 = not measured, never skipped. Empty = the card's.
        source: File the ratios were read from.
        whole_steps: Round the start up to whole steps. The official code may let it end between the two passes of one
            step; False reproduces that.
    """

    threshold: float = 0.12
    K: int = 2
    retention: float = 0.2
    ratios: tuple[float, ...] = ()
    source: str = ""
    whole_steps: bool = True
    kind: ClassVar[str] = "magcache"

    def __post_init__(self) -> None:
        _check("magcache", "threshold", self.threshold, self.threshold > 0, "a number above 0, such as 0.12")
        _check("magcache", "K", self.K, self.K >= 1, "a whole number from 1")
        _check("magcache", "retention", self.retention, 0 <= self.retention <= 1, "a share from 0 to 1")
        bad = next((ratio for ratio in self.ratios if not (math.isfinite(ratio) and ratio >= 0)), None)
        if bad is not None or len(self.ratios) % 2:
            wrong = f"the ratio `{bad}`" if bad is not None else f"{len(self.ratios)} ratios"
            raise RequestError(f"cache `magcache` cannot use {wrong}: it takes pairs of numbers from 0")


@dataclass(frozen=True, slots=True)
class FirstBlockCache(_Option):
    """Always run the first block, and the others if its residual has changed by ``threshold`` or more, relatively.

    The change is counted from the last computed pass, for every sample of a batch on its own. Needs no calibration.
    """

    threshold: float = 0.1
    kind: ClassVar[str] = "first-block"

    def __post_init__(self) -> None:
        _check("first-block", "threshold", self.threshold, self.threshold > 0, "a number above 0, such as 0.1")


@dataclass(frozen=True, slots=True)
class TaylorCache(_Option):
    """Compute every ``interval``-th step and extrapolate the residual by finite differences in between. No calibration.

    Attributes:
        interval: Distance of computed steps.
        order: 0 repeats the last residual, 1 and 2 extrapolate.
        first: Steps always computed at the start.
        last: Steps always computed at the end.
    """

    order: int = 1
    interval: int = 2
    first: int = 3
    last: int = 1
    kind: ClassVar[str] = "taylor"

    def __post_init__(self) -> None:
        _check("taylor", "order", self.order, self.order in (0, 1, 2), "0, 1 or 2")
        _check("taylor", "interval", self.interval, self.interval >= 2, "a whole number from 2")
        _check("taylor", "first", self.first, self.first >= 1, "a whole number from 1")
        _check("taylor", "last", self.last, self.last >= 0, "a whole number from 0")


CacheSettings = MagCache | FirstBlockCache | TaylorCache
KINDS: dict[str, type[CacheSettings]] = {kind.kind: kind for kind in (MagCache, FirstBlockCache, TaylorCache)}
# What users may set: neither the origin of the ratios nor an official quirk.
OPTIONS = {kind: [f.name for f in dataclasses.fields(cls) if f.name not in ("source", "whole_steps")]
           for kind, cls in KINDS.items()}  # fmt: skip


def parse(text: str) -> CacheSettings | None:
    """Parse a step cache: `none`, or a kind with options: `first-block:threshold=0.1`, `magcache:K=3,ratios=FILE`.

    Returns:
        The settings; None for `none`.

    Raises:
        RequestError: A kind, option or value is not allowed, or a file of ratios cannot be read.
    """
    kind, _, rest = text.partition(":")
    if text == "none":
        return None
    if kind not in KINDS:
        raise RequestError(
            f"cache `{text}` is unknown: use {', '.join(f'`{name}`' for name in KINDS)} or `none`, "
            "with options as in `first-block:threshold=0.1`"
        )
    chosen: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        name, _, value = pair.partition("=")
        if name not in OPTIONS[kind] or not value:
            allowed = ", ".join(f"`{option}=…`" for option in OPTIONS[kind])
            raise RequestError(f"cache `{kind}` has no option `{pair}`: use {allowed}")
        if name in chosen:
            raise RequestError(f"cache option `{name}` is given twice in `{text}`: give it once")
        if name == "ratios":
            chosen |= {"ratios": read_ratios(Path(value)), "source": value}
        else:
            chosen[name] = _number(kind, name, value)
    return KINDS[kind](**chosen)


def describe(settings: CacheSettings) -> str:
    """The option that ``parse`` reads back; ratios without a file, such as a card's, are omitted."""
    chosen = []
    for field in dataclasses.fields(settings):
        if field.name in OPTIONS[settings.kind] and field.name != "ratios":
            value = getattr(settings, field.name)
            chosen += [] if value == field.default else [f"{field.name}={value:g}"]
    if isinstance(settings, MagCache) and settings.source:
        chosen.append(f"ratios={settings.source}")
    return settings.kind + (":" + ",".join(chosen) if chosen else "")


def choose(cache: str | CacheSettings | None, *, model: str, ratios: Sequence[float]) -> CacheSettings | None:
    """Settings of a cache for a model: MagCache takes the model's ratios unless it has its own.

    Args:
        cache: As for ``parse``, or settings; None for no cache.
        model: Its id, for the message.
        ratios: ``sampling.mag_ratios`` of its card.

    Returns:
        The settings; None for no cache.

    Raises:
        RequestError: ``cache`` cannot be parsed, or the model has no calibration.
    """
    settings = parse(cache) if isinstance(cache, str) else cache
    if not isinstance(settings, MagCache) or settings.ratios:
        return settings
    if not ratios:
        raise RequestError(
            f"`{model}` has no MagCache calibration: measure one with `kandinsky calibrate {model} -o ratios.toml` and "
            "use cache `magcache:ratios=ratios.toml`, or use `first-block` or `taylor`, which need none"
        )
    return dataclasses.replace(settings, ratios=tuple(ratios))


def read_ratios(file: Path) -> tuple[float, ...]:
    """The list `mag_ratios` of a JSON or TOML file, as `kandinsky calibrate` writes it, or as a card has it.

    Raises:
        RequestError: The file cannot be read, or has no such list.
    """
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
        found = values.get("mag_ratios") or values.get("sampling", {})["mag_ratios"]
        return tuple(float(ratio) for ratio in found)
    except OSError as error:
        raise RequestError(f"ratios `{file}` cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(
            f"`{file}` holds no list `mag_ratios` in TOML or JSON: write one with `kandinsky calibrate ID -o FILE`"
        ) from error


def ratio_rows(ratios: Sequence[float], steps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Ratios of each branch for ``steps`` steps; the first step has ratio 1.

    Args:
        ratios: As in ``MagCache``. Another number of steps takes the nearest measured one, ties to even.
        steps: Sampling steps.

    Returns:
        Those of the conditional and of the unconditional branch.
    """
    rows = []
    for branch in range(2):
        row = (1.0, *ratios[branch::2])
        if len(row) != steps:
            row = tuple(row[_nearest(i, len(row), steps)] for i in range(steps))
        rows.append(row)
    return rows[0], rows[1]


def _nearest(index: int, source: int, target: int) -> int:
    # one step: the official resampling takes the last entry
    return source - 1 if target == 1 else round(index * (source - 1) / (target - 1))


def magcache_plan(settings: MagCache, steps: int) -> tuple[Plan, Plan]:
    """Which passes of the conditional and the unconditional branch are skipped.

    Source: kandinskylab/kandinsky-5, kandinsky/magcache_utils.py, magcache_forward; there, one counter runs through
        the passes of both branches.
    """
    start = int(settings.retention * 2 * steps)
    if settings.whole_steps:
        start += start % 2
    plans = []
    for branch, row in enumerate(ratio_rows(settings.ratios, steps)):
        plan, ratio, error, skipped = [], 1.0, 0.0, 0
        for step, measured in enumerate(row):
            leave_out = False
            # the first pass has nothing to repeat, whatever the retention
            if step > 0 and 2 * step + branch >= start:
                ratio, skipped = ratio * measured, skipped + 1
                error += abs(1.0 - ratio)
                leave_out = error < settings.threshold and skipped <= settings.K
                if not leave_out:
                    ratio, error, skipped = 1.0, 0.0, 0
            plan.append(leave_out)
        plans.append(tuple(plan))
    return plans[0], plans[1]


def computed_share(settings: CacheSettings | None, steps: int, *, is_guided: bool) -> float:
    """The share of passes that are not skipped, for plans; 1 if that depends on the clip.

    Args:
        settings: The cache; None for none.
        steps: Sampling steps.
        is_guided: Whether an unconditional pass runs beside each conditional one.

    Returns:
        The share, 0 to 1.
    """
    plans: tuple[Plan, ...] = ()
    if isinstance(settings, MagCache):
        plans = magcache_plan(settings, steps)[: 1 + is_guided]
    elif isinstance(settings, TaylorCache):
        plans = (taylor_plan(settings, steps),)
    passes = [leave_out for plan in plans for leave_out in plan]
    return 1 - sum(passes) / len(passes) if passes else 1.0


def taylor_plan(settings: TaylorCache, steps: int) -> Plan:
    """Which passes of either branch are skipped."""
    plan, since = [], 0
    for step in range(steps):
        exact = step < settings.first or step >= steps - settings.last or since == settings.interval - 1
        since = 0 if exact else since + 1
        plan.append(not exact)
    return tuple(plan)


def extrapolation(nodes: Sequence[float], place: float) -> tuple[float, ...]:
    """Weights of the values at ``nodes`` whose sum extrapolates their polynomial to ``place``.

    For equal distances this is the finite-difference form of Taylor's series; other distances are supported.
    """
    return tuple(math.prod((place - other) / (node - other) for other in nodes if other != node) for node in nodes)


def report(settings: CacheSettings, skips: Sequence[bool]) -> dict[str, Any]:
    """What a recipe says of the passes of one sample: which cache, how many computed, how many skipped."""
    skipped = sum(skips)
    return {
        "kind": settings.kind,
        "option": describe(settings),
        "computed": len(skips) - skipped,
        "skipped": skipped,
    }


def option_of(recipe: Mapping[str, Any]) -> str | None:
    """The `--cache` option for a recipe that has a report."""
    found = recipe.get("cache")
    return str(found["option"]) if isinstance(found, Mapping) and found.get("option") else None


def _number(kind: str, name: str, value: str) -> float:
    whole = next(f.type for f in dataclasses.fields(KINDS[kind]) if f.name == name) == "int"
    try:
        number: float = int(value) if whole else float(value)
    except ValueError:
        number = math.nan
    _check(kind, name, value, math.isfinite(number), "a whole number" if whole else "a number")
    return number


def _check(kind: str, name: str, value: object, allowed: bool, use: str) -> None:
    if not allowed:
        raise RequestError(f"cache `{kind}` cannot use {name} `{value}`: use {use}")
