"""Which work is split over how many processes: read, chosen and checked before anything heavy is loaded. No torch.

| name | what is split | who holds the weights |
|---|---|---|
| `data` | the clips of a batch | every process all of them |
| `cfg` | the two passes of guidance | every process all of them |
| `ring` | tokens; keys and values travel around a ring | every process all of them |
| `ulysses` | tokens; for attention all of them meet again, heads split | every process all of them |
| `tp` | the width of the blocks: heads and hidden layer | each process its part of the blocks |
| `fsdp` | nothing: weights lie in shards with those who share the tokens, and meet block by block | each a shard |

Their product, without `fsdp`, is the number of processes. `fsdp` is 1 or ring·ulysses. Neither tokens nor heads need
divide: some processes then have one more than others.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from kandinsky.errors import RequestError

# slowest first: neighbours in the last axis are neighbours in a machine
AXES = ("data", "cfg", "ring", "ulysses", "tp")
AUTO = "auto"
EXAMPLE = "`cfg=2,ulysses=2`"
PROCESSES = 65_536  # the most that a layout is made for
# heads may be divided unevenly as long as at least this share of the time is work, not waiting
WORTH_IT = 0.85


@dataclass(frozen=True, slots=True)
class Layout:
    """The number of parts into which each kind of work is split."""

    data: int = 1
    cfg: int = 1
    ring: int = 1
    ulysses: int = 1
    tp: int = 1
    fsdp: int = 1

    @property
    def size(self) -> int:
        """Number of processes it needs."""
        return math.prod(getattr(self, axis) for axis in AXES)

    @property
    def context(self) -> int:
        """Number of processes that share the tokens of a clip."""
        return self.ring * self.ulysses

    @property
    def cuts_weights(self) -> bool:
        """Whether no process holds the whole transformer."""
        return self.tp > 1 or self.fsdp > 1

    def __str__(self) -> str:
        """The inverse of ``read``; `1` if nothing is split."""
        parts = [f"{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self) if getattr(self, f.name) > 1]
        return ",".join(parts) or "1"


@dataclass(frozen=True, slots=True)
class Demand:
    """What there is to split.

    Attributes:
        heads: Heads of a block's attention.
        hidden: Width of a block's feed-forward layer.
        tokens: Tokens that a block sees at once along the split axis.
        is_guided: Whether there are two passes per step.
        is_sparse: Whether not every token sees every other: attention is block-sparse, or causal.
        has_groups: Whether attention is within groups.
        clips: Clips of one batch.
        has_tokens: False for a U-Net, of which only passes and clips can be split.
        alone: Why one process makes it; empty where several may.
        whole: What sees all tokens of a clip, so that these cannot be shared; empty where nothing does.
    """

    heads: int
    hidden: int
    tokens: int
    is_guided: bool = False
    is_sparse: bool = False
    has_groups: bool = False
    clips: int = 1
    has_tokens: bool = True
    alone: str = ""
    whole: str = ""


def read(text: str) -> Layout:
    """Parse a layout such as `cfg=2,ulysses=2`.

    Raises:
        RequestError: A name is unknown, or a number is not valid.
    """
    names = [f.name for f in dataclasses.fields(Layout)]
    known = ", ".join(f"`{name}`" for name in names)
    found: dict[str, int] = {}
    if text.strip() == "1":
        return Layout()
    for entry in text.split(","):
        name, _, number = (part.strip() for part in entry.partition("="))
        if name not in names or name in found:
            raise RequestError(f"layout `{text}` has `{entry.strip()}`: use {known}, each once, such as {EXAMPLE}")
        # long numbers are refused before they are read
        if not number.isdecimal() or len(number) > len(str(PROCESSES)) or not 1 <= int(number) <= PROCESSES:
            raise RequestError(
                f"layout `{text}`: `{name}` needs a whole number from 1 to {PROCESSES:,}, such as {EXAMPLE}"
            )
        found[name] = int(number)
    return Layout(**found)


def check_processes(count: object) -> None:
    """Refuse a number of processes that is not valid, or unrealistic.

    Raises:
        RequestError: It is not an integer from 1 to ``PROCESSES``.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= PROCESSES:
        raise RequestError(f"`{count}` processes cannot share a generation: use 1 to {PROCESSES:,}")


def settle(choice: str | Layout | None, world: int, demand: Demand) -> tuple[Layout, str]:
    """Settle the layout for a number of processes.

    Args:
        choice: The user's choice; None and `auto` select one.
        world: Number of processes that were started.
        demand: What there is to split.

    Returns:
        The layout, and the reason for it.

    Raises:
        RequestError: The layout does not fit the processes or the work.
    """
    check_processes(world)
    if choice is None or choice == AUTO:
        layout, why = choose(world, demand)
    else:
        layout, why = (read(choice) if isinstance(choice, str) else choice), "as asked for"
        if layout.fsdp > 1 and layout.context == 1 and layout.size * layout.fsdp == world:
            layout = dataclasses.replace(_over_tokens(layout, layout.fsdp, demand), fsdp=layout.fsdp)
            why = "as asked for; those who share the weights share the tokens"
    if layout.size != world:
        started = "1 process was" if world == 1 else f"{world} processes were"
        raise RequestError(
            f"layout `{layout}` needs {layout.size} processes, and {started} started: make the product of its numbers "
            f"{world}, or start it with `torchrun --nproc-per-node {layout.size}`",
            hint=_proposal(world, demand),
        )
    check(layout, demand)
    return layout, why


def choose(world: int, demand: Demand) -> tuple[Layout, str]:
    """Choose a layout for a number of processes: guidance first, since its passes meet once a step, then the tokens.

    Raises:
        RequestError: None fits.
    """
    if world == 1:
        return Layout(), "one process"
    cfg = 2 if demand.is_guided and world % 2 == 0 else 1
    layout = _over_tokens(Layout(cfg=cfg), world // cfg, demand)
    reasons = ["two passes a step on two groups"] if cfg == 2 else []
    if layout.ulysses > 1:
        uneven = "" if demand.heads % layout.ulysses == 0 else ", not all as many"
        reasons.append(f"{demand.heads} heads over {layout.ulysses}{uneven}")
    if layout.ring > 1:
        reasons.append(f"a ring of {layout.ring} for what the heads do not divide")
    try:
        check(layout, demand)
    except RequestError as error:
        raise RequestError(f"{world} processes are too many for this request: {error}", hint=error.hint) from error
    return layout, "; ".join(reasons)


def _over_tokens(layout: Layout, count: int, demand: Demand) -> Layout:
    """``count`` processes share the tokens: by heads as long as no process waits too long, the rest in a ring."""
    heads = demand.heads // layout.tp
    may_ring = not (demand.is_sparse or demand.has_groups)

    def busy(ulysses: int) -> float:
        return heads / (math.ceil(heads / ulysses) * ulysses)

    fitting = [n for n in range(count, 0, -1) if count % n == 0 and n <= heads and busy(n) >= WORTH_IT]
    ulysses = fitting[0] if may_ring and fitting else count
    return dataclasses.replace(layout, ulysses=ulysses, ring=count // ulysses)


def _proposal(world: int, demand: Demand) -> str | None:
    try:
        return f'`parallel="{choose(world, demand)[0]}"` fits' if world > 1 else None
    except RequestError:
        return None


def check(layout: Layout, demand: Demand) -> None:
    """Check a layout against the work.

    Raises:
        RequestError: The layout does not fit; the message says what was given, what is allowed and what to do.
    """
    given = f"layout `{layout}`"
    if demand.alone and layout.size > 1:
        raise RequestError(f"{demand.alone}: leave `parallel=…` out")
    if demand.whole and layout.context > 1:
        raise RequestError(
            f"{demand.whole} sees all tokens of a clip, and {given} shares them out: leave `ring` and `ulysses` out"
        )
    if layout.cfg > 2:
        raise RequestError(f"{given}: `cfg` is 1 or 2, guidance has two passes")
    if layout.cfg == 2 and not demand.is_guided:
        raise RequestError(f"{given}: guidance is off, there is one pass a step: leave `cfg` out")
    if not demand.has_tokens and (layout.context > 1 or layout.cuts_weights):
        least = f"`cfg=2`{', or `data` for the clips of a batch' if demand.clips != 1 else ''}"
        allowed = least if demand.is_guided else "one process, since guidance is off"
        raise RequestError(
            f"{given}: a U-Net has no tokens or heads to share: use {allowed}",
            hint="many prompts go to many processes: `kandinsky generate --prompts FILE --ray local`",
        )
    if demand.heads % layout.tp or demand.hidden % layout.tp:
        raise RequestError(
            f"{given}: `tp` must divide {demand.heads} heads and the hidden width {demand.hidden}: use one of "
            f"{_divisors(math.gcd(demand.heads, demand.hidden))}, or `ulysses`, which divides nothing"
        )
    if layout.ulysses > demand.heads // layout.tp:
        rest = "use fewer processes" if demand.is_sparse else "use fewer, and a `ring` for the rest"
        raise RequestError(
            f"{given}: `ulysses` can be {demand.heads // layout.tp} at most, the number of heads: {rest}"
        )
    if layout.ring > 1 and demand.is_sparse:
        raise RequestError(
            f"{given}: block-sparse and causal attention need all tokens of a head: use `ulysses` for `ring`"
        )
    if layout.ring > 1 and demand.has_groups:
        raise RequestError(f"{given}: attention in groups needs all tokens of a head: use `ulysses` for `ring`")
    if layout.context > demand.tokens:
        raise RequestError(f"{given}: {demand.tokens} tokens cannot be split over {layout.context}: use fewer")
    if layout.fsdp not in (1, layout.context):
        raise RequestError(
            f"{given}: `fsdp` shards weights over those who share the tokens: use 1 or ring x ulysses, "
            f"here {layout.context}"
        )
    if demand.clips % layout.data:
        raise RequestError(
            f"{given}: `data` must divide the number of clips, {demand.clips}: use another number, or `ulysses`"
        )


def _divisors(number: int) -> str:
    return ", ".join(f"`{n}`" for n in range(1, number + 1) if number % n == 0)
