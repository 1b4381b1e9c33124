"""Tokens shared by several processes, by hooks on the plain networks.

Between the patches and the output layer every process has its share of the tokens (axis 1 of the stream: of the clip,
or of each frame). Everything in a block works on tokens one by one, except the attention among them. There all
processes of a *Ulysses* group trade: each gives its tokens' heads away and gets all tokens of its own heads.
Block-sparse attention chooses per head, so it is exact. Processes of a *ring* keep their tokens, and keys and values
travel (``ring.py``). Both can be combined: a ring of Ulysses groups. The text is small: every process has all of it.

Legend: B batch, S tokens, L text tokens, N heads, K head width, F frames, P tokens of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kandinsky.ops.blocks import BlockRunner, Mix, run_all
from kandinsky.runtime.parallel.exchange import Group, join_parts, own_part, shares, span, trade
from kandinsky.runtime.parallel.ring import ring_attention

if TYPE_CHECKING:
    from kandinsky.runtime.parallel.split import SplitRules

TOKENS, HEADS = -3, -2


@dataclass(frozen=True, slots=True)
class Context:
    """The processes that share a clip's tokens: a ring of Ulysses groups, and all of them (ring first)."""

    ring: Group
    ulysses: Group
    everyone: Group

    def counts(self, tokens: int) -> list[int]:
        """Tokens of each process."""
        return shares(tokens, self.everyone.size())

    def own(self, tokens: int) -> slice:
        return span(self.counts(tokens), self.everyone.rank())

    def ring_counts(self, tokens: int) -> list[int]:
        """Tokens of each Ulysses group."""
        counts, size = self.counts(tokens), self.ulysses.size()
        return [sum(counts[i : i + size]) for i in range(0, len(counts), size)]

    def to_heads(self, parts: Sequence[Tensor], tokens: int) -> list[Tensor]:
        """From some tokens and all heads to all tokens of the Ulysses group and some heads; [.., tokens, heads, K]."""
        if self.ulysses.size() == 1:
            return list(parts)
        heads = shares(parts[0].shape[HEADS], self.ulysses.size())
        x = torch.stack(list(parts))
        x = trade(x, split=x.dim() + HEADS, join=x.dim() + TOKENS, split_counts=heads,
                  join_counts=self.group_counts(tokens), group=self.ulysses)  # fmt: skip
        return list(x.unbind(0))

    def to_tokens(self, x: Tensor, tokens: int, heads: int) -> Tensor:
        """The inverse, of one tensor; ``heads`` is the number on all processes together."""
        if self.ulysses.size() == 1:
            return x
        return trade(x, split=x.dim() + TOKENS, join=x.dim() + HEADS, split_counts=self.group_counts(tokens),
                     join_counts=shares(heads, self.ulysses.size()), group=self.ulysses)  # fmt: skip

    def group_counts(self, tokens: int) -> list[int]:
        size = self.ulysses.size()
        first = self.ring.rank() * size
        return self.counts(tokens)[first : first + size]

    def runner(self, inner: BlockRunner | None) -> BlockRunner:
        """Runs blocks on the own tokens, and joins the results of all; a step cache inside sees the own tokens."""
        agree = getattr(inner, "agree", None)
        if agree is not None:
            agree(self.sum)

        def run(x_BSD: Tensor, count: int, block: Callable[[int, Tensor], Tensor]) -> Tensor:
            counts = self.counts(x_BSD.shape[1])
            made = (inner or run_all)(own_part(x_BSD, 1, self.everyone), count, block)
            return join_parts(made, 1, counts, self.everyone)

        return run

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the processes, the same bits on all."""
        x = x.clone()
        dist.all_reduce(x, group=self.everyone)
        return x

    def mix(self, mix: Mix, tokens: int) -> Mix:
        """Attention among the tokens of all processes, from one that expects them in one place."""

        def shared(q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor) -> Tensor:
            q, k, v = self.to_heads((q_BSNK, k_BSNK, v_BSNK), tokens)
            if self.ring.size() > 1:
                mixed = ring_attention(q, k, v, self.ring_counts(tokens), self.ring)
            else:
                mixed = mix(q, k, v)
            return self.to_tokens(mixed, tokens, q_BSNK.shape[HEADS])

        return shared


def share_tokens(net: nn.Module, context: Context, rules: SplitRules) -> None:
    """Hook a network so that its blocks run on the own tokens; its parameters and signature stay the same."""

    def with_runner(_net: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "runner": context.runner(kwargs.get("runner"))}

    net.register_forward_pre_hook(with_runner, with_kwargs=True)
    for block in rules.blocks(net):
        block.register_forward_pre_hook(lambda _block, args: rules.arguments(context, args))
