"""The state of one call's step cache, with a runner for each branch of guidance; it lives as long as the call.

A runner takes over where a network runs its blocks and skips some passes. It knows only tokens, not the network, device
or type they belong to. Two calls share nothing, so they may run at the same time.

Legend: B batch, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from kandinsky.diffusion.caching import (
    BRANCHES,
    CacheSettings,
    FirstBlockCache,
    MagCache,
    Plan,
    extrapolation,
    magcache_plan,
    report,
    taylor_plan,
)
from kandinsky.errors import RequestError

Run = Callable[[int, Tensor], Tensor]
# (tokens [B, S, D], number of blocks, (block number, tokens) -> tokens) -> tokens
Runner = Callable[[Tensor, int, Run], Tensor]
# called for each pass in order with the samples of the batch that were skipped
Tell = Callable[[list[bool]], None]


class Branches(Protocol):
    """What a sampling call needs: a runner for each branch of guidance."""

    def runner(self, branch: str) -> Runner: ...


class StepCache:
    """One call's cache.

    Args:
        settings: Its settings; with ratios for MagCache (``caching.choose``).
        steps: Passes of each branch.
    """

    def __init__(self, settings: CacheSettings, *, steps: int) -> None:
        self.settings = settings
        self.steps = steps
        self.skips: list[list[bool]] = []  # for each pass in order, for each sample
        self._runners = {branch: self._build(number) for number, branch in enumerate(BRANCHES)}

    def runner(self, branch: str) -> Runner:
        """The runner of `conditional` or `unconditional`; every call of it is one pass."""
        return self._runners[branch]

    def report(self, sample: int = 0) -> dict[str, Any]:
        """The recipe's entry for one sample of the batch: kind, option, passes computed and skipped."""
        return report(self.settings, [skips[sample] for skips in self.skips])

    def _build(self, branch: int) -> Runner:
        if isinstance(self.settings, FirstBlockCache):
            return FirstBlockRunner(self.settings.threshold, self.skips.append)
        if isinstance(self.settings, MagCache):
            return PlannedRunner(magcache_plan(self.settings, self.steps)[branch], 0, self.skips.append)
        return PlannedRunner(taylor_plan(self.settings, self.steps), self.settings.order, self.skips.append)


def start(settings: CacheSettings | None, *, steps: int) -> StepCache | None:
    """A new cache for one call, or None if none was requested."""
    return None if settings is None else StepCache(settings, steps=steps)


class PlannedRunner:
    """Skips the passes of a plan and extrapolates the residual of the computed ones by a polynomial."""

    def __init__(self, plan: Plan, order: int, tell: Tell) -> None:
        self.plan, self.order, self.tell = plan, order, tell
        self.passes = 0
        self.known: list[tuple[int, Tensor]] = []  # (pass, residual), the latest order + 1

    def __call__(self, x_BSD: Tensor, count: int, run: Run) -> Tensor:
        number, self.passes = self.passes, self.passes + 1
        if number >= len(self.plan):
            raise RequestError(
                f"a cache made for {len(self.plan)} steps was asked for one more: make one for each call"
            )
        leave_out = self.plan[number] and bool(self.known)
        self.tell([leave_out] * x_BSD.shape[0])
        if leave_out:
            return x_BSD + self._predict(number)
        # free what is no longer needed before the blocks run
        self.known = self.known[-self.order :] if self.order else []
        out = _run(x_BSD, 0, count, run)
        self.known.append((number, out - x_BSD))
        return out

    def _predict(self, number: int) -> Tensor:
        if len(self.known) == 1:
            return self.known[0][1]
        weights = extrapolation([node for node, _ in self.known], number)
        # weights of both signs magnify rounding errors
        terms = [weight * residual.float() for weight, (_, residual) in zip(weights, self.known, strict=True)]
        return torch.stack(terms).sum(0).to(self.known[-1][1].dtype)


class FirstBlockRunner:
    """Runs the first block, and the others for the samples whose first residual has changed.

    A batch in which any sample needs the blocks runs them for all, but every sample keeps its own decision and its own
    residual: its result is the same as alone.
    """

    def __init__(self, threshold: float, tell: Tell) -> None:
        self.threshold, self.tell = threshold, tell
        self.first_BSD: Tensor | None = None  # residuals of the last computed pass
        self.rest_BSD: Tensor | None = None
        self._sum: Callable[[Tensor], Tensor] = lambda x: x

    def agree(self, sum_over_shares: Callable[[Tensor], Tensor]) -> None:
        """Decide together with other processes that hold other tokens of the same samples."""
        self._sum = sum_over_shares

    def __call__(self, x_BSD: Tensor, count: int, run: Run) -> Tensor:
        begun = run(0, x_BSD)
        first = begun - x_BSD
        if self.first_BSD is None or self.rest_BSD is None:
            self.tell([False] * x_BSD.shape[0])
            out = _run(begun, 1, count, run)
            self.first_BSD, self.rest_BSD = first, out - begun
            return out
        near_B = _change(first, self.first_BSD, self._sum) < self.threshold
        left_out = [bool(near) for near in near_B.tolist()]
        self.tell(left_out)
        if all(left_out):
            return begun + self.rest_BSD
        out = _run(begun, 1, count, run)
        near = near_B[:, None, None]
        out = torch.where(near, begun + self.rest_BSD, out)
        self.rest_BSD = torch.where(near, self.rest_BSD, out - begun)
        self.first_BSD = torch.where(near, self.first_BSD, first)
        return out


class RatioRecorder:
    """Computes every pass and measures the ratios for MagCache: ‖residual‖ relative to the last one's, per token.

    ``ratios(branch)[i]`` is that of pass i + 1, averaged over tokens and samples.
    Source: the paper of MagCache (arXiv 2506.09045), the magnitude ratio; measured here on the given model.
    """

    def __init__(self) -> None:
        self._measured: dict[str, list[float]] = {branch: [] for branch in BRANCHES}

    def runner(self, branch: str) -> Runner:
        last: Tensor | None = None

        def record(x_BSD: Tensor, count: int, run: Run) -> Tensor:
            nonlocal last
            out = _run(x_BSD, 0, count, run)
            norms_BS = (out - x_BSD).float().norm(dim=-1)
            if last is not None:
                self._measured[branch].append(float((norms_BS / last.clamp_min(1e-12)).mean()))
            last = norms_BS
            return out

        return record

    def ratios(self, branch: str) -> tuple[float, ...]:
        return tuple(self._measured[branch])


def _run(x_BSD: Tensor, begin: int, count: int, run: Run) -> Tensor:
    for number in range(begin, count):
        x_BSD = run(number, x_BSD)
    return x_BSD


def _change(now_BSD: Tensor, before_BSD: Tensor, over_shares: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean absolute change of each sample, relative to its mean absolute value; [B]."""
    now, before = now_BSD.float(), before_BSD.float()
    sums = over_shares(torch.stack(((now - before).abs().sum((1, 2)), before.abs().sum((1, 2)))))
    return sums[0] / sums[1].clamp_min(1e-12)
