"""Tokens shared by several processes, by hooks on the plain networks.

Between the patches and the output layer every process has its share of the tokens (axis 1 of the stream: of the clip,
or of each frame). All of a block works on tokens one by one, except the attention among them. There all processes of a
*Ulysses* group trade: each gives its tokens' heads away and gets all tokens of its own heads. Block-sparse attention
chooses per head, so it is exact. Processes of a *ring* keep their tokens, and keys and values travel (``ring.py``).
Both together: a ring of Ulysses groups. The text is small: every process has all of it.

Legend: B batch, S tokens, L text tokens, N heads, K head width, F frames, P tokens of a frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kandinsky.errors import BackendError, RequestError
from kandinsky.families.kandinsky4 import dit as kandinsky4
from kandinsky.families.kandinsky5 import dit as kandinsky5
from kandinsky.families.kandinsky5.dit import BlockRunner, Mix, run_all
from kandinsky.runtime.parallel.exchange import Group, join_parts, narrow, own_part, shares, span, trade
from kandinsky.runtime.parallel.ring import ring_attention

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
        """All tokens of the Ulysses group and some heads, of some tokens and all heads; [.., tokens, heads, K]."""
        if self.ulysses.size() == 1:
            return list(parts)
        heads = shares(parts[0].shape[HEADS], self.ulysses.size())
        x = torch.stack(list(parts))
        x = trade(x, split=x.dim() + HEADS, join=x.dim() + TOKENS, split_counts=heads,
                  join_counts=self._group_counts(tokens), group=self.ulysses)  # fmt: skip
        return list(x.unbind(0))

    def to_tokens(self, x: Tensor, tokens: int, heads: int) -> Tensor:
        """The inverse, of one tensor; ``heads`` of all processes together."""
        if self.ulysses.size() == 1:
            return x
        return trade(x, split=x.dim() + TOKENS, join=x.dim() + HEADS, split_counts=self._group_counts(tokens),
                     join_counts=shares(heads, self.ulysses.size()), group=self.ulysses)  # fmt: skip

    def _group_counts(self, tokens: int) -> list[int]:
        size = self.ulysses.size()
        first = self.ring.rank() * size
        return self.counts(tokens)[first : first + size]

    def runner(self, inner: BlockRunner | None) -> BlockRunner:
        """Runs blocks on the own tokens, and joins what all made. A step cache inside sees the own tokens."""
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
        """Attention among the tokens of all, of one that expects them all in one place."""

        def shared(q_BSNK: Tensor, k_BSNK: Tensor, v_BSNK: Tensor) -> Tensor:
            q, k, v = self.to_heads((q_BSNK, k_BSNK, v_BSNK), tokens)
            if self.ring.size() > 1:
                mixed = ring_attention(q, k, v, self.ring_counts(tokens), self.ring)
            else:
                mixed = mix(q, k, v)
            return self.to_tokens(mixed, tokens, q_BSNK.shape[HEADS])

        return shared

    def joint_mix(self, tokens: int) -> kandinsky4.JointMix:
        """The same for Kandinsky 4: every process has its share of each frame, and the whole text."""

        def shared(
            visual: Sequence[Tensor], text: Sequence[Tensor], where: kandinsky4.Where, kind: kandinsky4.Kind
        ) -> tuple[Tensor, Tensor]:
            heads = visual[0].shape[HEADS]
            head_counts = shares(heads, self.ulysses.size())
            own_heads = span(head_counts, self.ulysses.rank())
            visual = self.to_heads(visual, tokens)
            text = [narrow(x, x.dim() + HEADS, own_heads) for x in text]
            if self.ring.size() > 1:
                seen, heard = self._joint_ring(visual, text, where, tokens)
            else:
                seen, heard = kandinsky4.attend_jointly(visual, text, where, kind)
            if self.ulysses.size() > 1:
                heard = join_parts(heard, HEADS, head_counts, self.ulysses)
            return self.to_tokens(seen, tokens, heads), heard

        return shared

    def _joint_ring(
        self, visual: Sequence[Tensor], text: Sequence[Tensor], where: kandinsky4.Where, tokens: int
    ) -> tuple[Tensor, Tensor]:
        pack = where.pack
        if len(pack.buckets) > 1:
            raise RequestError(
                f"clips of {list(pack.frames)} frames cannot share a ring: use equal lengths or `ulysses`"
            )
        frames = pack.frames[0]
        q, k, v = (x.unflatten(0, (pack.count, frames)).flatten(1, 2) for x in visual)
        queries = torch.cat((q, text[0]), dim=1)
        counts = [frames * count for count in self.ring_counts(tokens)]
        mixed = ring_attention(queries, k, v, counts, self.ring, beside=(text[1], text[2], where.mask_BL))
        seen, heard = mixed.split((q.shape[1], text[0].shape[1]), dim=1)
        return seen.unflatten(1, (frames, -1)).flatten(0, 1), heard


def share_tokens(net: nn.Module, context: Context) -> None:
    """Hook a transformer so that its blocks run on the own tokens. Its parameters and its call stay what they are.

    Raises: BackendError for a network without an entry.
    """
    entry = next((shared for kind, shared in SHARED.items() if isinstance(net, kind)), None)
    if entry is None:
        raise BackendError(f"tokens of `{type(net).__name__}` cannot be shared: use `cfg` or `data`")

    def with_runner(_net: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "runner": context.runner(kwargs.get("runner"))}

    net.register_forward_pre_hook(with_runner, with_kwargs=True)
    for block in entry.blocks(net):
        block.register_forward_pre_hook(lambda _block, args: entry.arguments(context, args))


@dataclass(frozen=True, slots=True)
class Shared:
    """How one kind of network is hooked. blocks: its blocks.   arguments: of a block, for the own tokens."""

    blocks: Callable[[Any], Any]
    arguments: Callable[[Context, tuple[Any, ...]], tuple[Any, ...]]


def _kandinsky5_arguments(context: Context, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x_BSD, text_BLD, e_BE, rotation, mask_BL, mix = args
    tokens = rotation.table.shape[-4]
    own = context.own(tokens)
    part = rotation.part(own.start, own.stop - own.start)
    return x_BSD, text_BLD, e_BE, part, mask_BL, context.mix(mix, tokens)


def _kandinsky4_arguments(context: Context, args: tuple[Any, ...]) -> tuple[Any, ...]:
    visual_FPD, text_BLD, e_BE, where = args
    tokens = where.rotation.table.shape[-4]
    own = context.own(tokens)
    part = where.rotation.part(own.start, own.stop - own.start)
    return visual_FPD, text_BLD, e_BE, dataclasses.replace(where, rotation=part, mix=context.joint_mix(tokens))


SHARED: dict[type[nn.Module], Shared] = {
    kandinsky5.DiffusionTransformer3D: Shared(lambda net: net.visual_transformer_blocks, _kandinsky5_arguments),
    kandinsky4.DiffusionTransformer3D: Shared(lambda net: net.blocks(), _kandinsky4_arguments),
}
