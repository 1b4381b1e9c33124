"""``kandinsky calibrate ID``: the magnitude ratios MagCache needs, measured on the model itself."""

from __future__ import annotations

import re
import statistics
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kandinsky
from kandinsky.catalogue import load
from kandinsky.diffusion.caching import BRANCHES, MagCache, magcache_plan
from kandinsky.diffusion.guidance import Guidance
from kandinsky.diffusion.step_cache import RatioRecorder
from kandinsky.errors import RequestError
from kandinsky.files import replacing
from kandinsky.model.values import Request

PROMPTS = (
    "a panda waves on a blue background",
    "a red balloon rises into a white sky",
    "the moon over the sea at night",
    "a cat dances on a yellow background",
)
DIGITS = 5  # decimals of the published tables
PER_LINE = 14


@dataclass(frozen=True, slots=True)
class Calibration:
    """Ratios of one model at one number of steps.

    Attributes:
        model: Catalogue id.
        steps: Sampling steps.
        rows: Ratios of the conditional and the unconditional pass, from the second step on, averaged over all runs.
            Unconditional ones are 0 if guidance is off, which MagCache reads as "never skip".
        spread: Standard deviation over runs, in the same layout.
        setting: What they were measured with, in words.
    """

    model: str
    steps: int
    rows: tuple[tuple[float, ...], tuple[float, ...]]
    spread: tuple[tuple[float, ...], tuple[float, ...]]
    setting: str

    @property
    def ratios(self) -> tuple[float, ...]:
        """Both rows interleaved, as a card's ``sampling.mag_ratios``."""
        return tuple(round(ratio, DIGITS) for pair in zip(*self.rows, strict=True) for ratio in pair)


def calibrate(
    model: str,
    *,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (0, 1),
    request: dict[str, Any] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offload: str = "none",
    on_run: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Measure every prompt with every seed, one clip at a time.

    Args:
        model: As for ``load``.
        prompts: Prompts of the clips.
        seeds: Seeds; each prompt is run with each.
        request: Further fields of ``Request``, such as steps, guidance, width and height, or an image.
        device: As for ``load``.
        dtype: As for ``load``.
        offload: As for ``load``.
        on_run: Called with (done, total) after each run.

    Returns:
        The ratios, averaged over all runs.

    Raises:
        RequestError: There is no prompt, no seed or fewer than two steps, or a generation would be refused.
        WeightsError: A file of the model is missing or broken.
        BackendError: A device or package is not available.
    """
    if not prompts or not seeds:
        raise RequestError("a calibration needs at least one prompt and one seed")
    pipe = load(model, device=device, dtype=dtype, offload=offload)
    jobs = [
        pipe.resolve(Request(model=model, prompt=prompt, seed=seed, **(request or {})))
        for prompt in prompts
        for seed in seeds
    ]
    first = jobs[0]
    if first.steps < 2:
        raise RequestError(f"`{first.steps}` step has no ratio: use 2 or more")
    measured: dict[str, list[tuple[float, ...]]] = {branch: [] for branch in BRANCHES}
    for done, job in enumerate(jobs):
        if on_run:
            on_run(done, len(jobs))
        recorder = RatioRecorder()
        text, negative = pipe.encode([job])
        pipe.sample(
            pipe.noise([job]),
            text,
            negative,
            job,
            known=pipe.known([job]),
            fresh_NBTHWC=pipe.fresh_noise([job]),
            cache=recorder,
        )
        for branch in BRANCHES:
            measured[branch].append(recorder.ratios(branch) or (0.0,) * (first.steps - 1))
    rows = [tuple(map(statistics.fmean, zip(*measured[branch], strict=True))) for branch in BRANCHES]
    spread = [tuple(map(statistics.pstdev, zip(*measured[branch], strict=True))) for branch in BRANCHES]
    size = f"{first.shape.width}x{first.shape.height}, {first.shape.frames} frames"
    guidance = f"guidance {first.guidance:g}" if Guidance(first.guidance).is_on else "no guidance"
    setting = (
        f"{first.steps} steps, {guidance}, shift {first.shift:g}, {size}, {pipe.precision.name}; "
        f"{len(prompts)} prompts x {len(seeds)} seeds; "
        f"weights {pipe.context.revision}, kandinsky {kandinsky.__version__}"
    )
    return Calibration(model, first.steps, (rows[0], rows[1]), (spread[0], spread[1]), setting)


def to_toml(found: Calibration) -> str:
    """Write the ratios as a TOML file that ``caching.read_ratios`` reads."""
    return f"# MagCache ratios of {found.model}: {found.setting}\n{_list(found.ratios)}\n"


def write_into_card(found: Calibration, card: Path) -> Path:
    """Put the ratios into the `[sampling]` table of a card's file, in place of those it has.

    Args:
        found: The measured ratios.
        card: The card's TOML file.

    Returns:
        The file.

    Raises:
        RequestError: The file is not a card of this model; it is left as it was.
    """
    try:
        text = card.read_text(encoding="utf-8")
        before = tomllib.loads(text)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"card `{card}` cannot be read: {error}") from error
    if before.get("id") != found.model or not isinstance(before.get("sampling"), dict):
        raise RequestError(f"`{card}` is not a card of `{found.model}` with a table [sampling]")
    block = f"# MagCache, by `kandinsky calibrate`: {found.setting}\n{_list(found.ratios)}"
    old = r"(?:^# MagCache.*\n)*^mag_ratios\s*=\s*(?:\[[^\]]*\]|\"[^\"]*\")"
    after, count = re.subn(old, lambda _: block, text, count=1, flags=re.MULTILINE)
    if not count:
        after = re.sub(r"^\[sampling\]\n", lambda m: m[0] + block + "\n", text, count=1, flags=re.MULTILINE)
    before["sampling"]["mag_ratios"] = list(found.ratios)
    if tomllib.loads(after) != before:
        raise RequestError(f"card `{card}` is laid out in a way that is not understood: put the list in by hand")
    with replacing(card) as part:
        part.write_text(after, encoding="utf-8")
    return card


def table(found: Calibration) -> str:
    """Format the ratios, their spread over runs, and the passes MagCache skips with its usual settings."""
    plans = magcache_plan(MagCache(ratios=found.ratios), found.steps)
    lines = [f"{'step':>4}  {'conditional':>18}  {'unconditional':>18}  left out"]
    for step in range(1, found.steps):
        cells = [f"{found.rows[b][step - 1]:.5f} ± {found.spread[b][step - 1]:.5f}" for b in range(2)]
        left = " and ".join(name for name, plan in zip(BRANCHES, plans, strict=True) if plan[step])
        lines.append(f"{step + 1:>4}  {cells[0]:>18}  {cells[1]:>18}  {left}".rstrip())
    branches = 2 if any(found.rows[1]) else 1
    skipped = sum(sum(plan) for plan in plans[:branches])
    lines += [f"{found.model}: {found.setting}", f"leaves out {skipped} of {branches * found.steps} passes"]
    return "\n".join(lines)


def _list(ratios: Sequence[float]) -> str:
    lines = [", ".join(map(str, ratios[i : i + PER_LINE])) for i in range(0, len(ratios), PER_LINE)]
    return "mag_ratios = [\n" + "".join(f"    {line},\n" for line in lines) + "]"
