"""A discriminator of latents: heads on the features of a frozen denoiser, and its hinge loss.

Source: LADD (arXiv 2403.12015); the heads are those of the repositories of Kandinsky 4 and 3, see each family's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kandinsky.errors import BackendError
from kandinsky.train.denoising import Denoising, Given

log = logging.getLogger(__name__)
CERTAIN = 0.98  # share told right, on average, above which a discriminator teaches nothing


class _Seen(Exception):  # noqa: N818
    """All blocks that are looked at have run."""


class Discriminator(nn.Module):
    """Trainable heads behind blocks of a frozen denoiser.

    Args:
        denoising: The door of the denoiser; its family says which blocks are looked at by which heads.
        backbone: The denoiser; it is not a part of this module.

    Raises:
        BackendError: The family has no heads for it.
    """

    def __init__(self, denoising: Denoising, backbone: nn.Module) -> None:
        super().__init__()
        part = denoising.context.part("dit")
        if part.heads is None:
            kind = denoising.context.card.dit.kind
            raise BackendError(f"network `{kind}` has no discriminator heads: distil it with another kind of recipe")
        heads = part.heads()(backbone)
        self.denoising, self.where = denoising, list(heads)
        self.heads = nn.ModuleList(heads.values())
        self._backbone = (backbone,)  # in a tuple: frozen, it is neither trained nor stored with the heads

    @property
    def backbone(self) -> nn.Module:
        """The frozen denoiser."""
        return self._backbone[0]

    def forward(self, noisy_BTHWC: Tensor, t: Tensor, given: Given) -> dict[str, Tensor]:
        """Logits of each head, one for each visual token, above 0 for real; the denoiser runs to the last head.

        One whose weights lie in shards runs to its end.

        Args:
            noisy_BTHWC: Latents at times t.
            t: [B].
            given: Text and what is known.
        """
        found: dict[str, Tensor] = {}
        # a pass that is broken off would leave the shards of a backbone that lies in them (FSDP) gathered, and waiting
        breaks_off = not hasattr(self.backbone, "set_requires_gradient_sync")
        blocks = {name: self.backbone.get_submodule(name) for name in self.where}

        def hook(name: str, head: nn.Module) -> Any:
            def look(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
                found[name] = head(output, *args, **kwargs).float()
                if breaks_off and len(found) == len(blocks):
                    raise _Seen

            return look

        handles = [
            block.register_forward_hook(hook(name, head), with_kwargs=True)
            for (name, block), head in zip(blocks.items(), self.heads, strict=True)
        ]
        try:
            self.denoising.predict(self.backbone, noisy_BTHWC, t, given)
        except _Seen:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return found


def mean(values: Mapping[str, Tensor]) -> Tensor:
    """Mean over the tokens of each head, then over heads."""
    return torch.stack([value.mean() for value in values.values()]).mean()


def of_clips(values: Mapping[str, Tensor], clips: int) -> Tensor:
    """Mean over the tokens of each head and then over heads, of each clip [B]; tokens lie clip by clip."""
    return torch.stack([value.reshape(clips, -1).mean(1) for value in values.values()]).mean(0)


def hinge(real: Mapping[str, Tensor], fake: Mapping[str, Tensor]) -> Tensor:
    """The discriminator's loss: max(0, 1 − real) + max(0, 1 + fake)."""
    return mean({name: F.relu(1 - one) for name, one in real.items()}) + mean(
        {name: F.relu(1 + one) for name, one in fake.items()}
    )


def roughness(logits: Mapping[str, Tensor], moved: Mapping[str, Tensor]) -> Tensor:
    """The R1 penalty by a finite difference: how much logits change with a little noise on real latents.

    Source: adversarial post-training (arXiv 2501.08316), section 3.3; needs no second derivatives. As there, it is not
    divided by the square of the noise's size, which R1 itself would be.
    """
    return mean({name: (one - moved[name]).square() for name, one in logits.items()})


class Alarm(nn.Module):
    """Watches a discriminator: logits of real and fake latents, and the share told right, over all and by head.

    It is carried along in checkpoints, so that a run that goes on says what one that never stopped does.

    Args:
        memory: Share of the former average that a step keeps.
    """

    average: Tensor

    def __init__(self, memory: float = 0.99) -> None:
        super().__init__()
        self.memory, self.rung = memory, False
        self.register_buffer("average", torch.tensor(0.5))

    def forward(self, real: Mapping[str, Tensor], fake: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures for the log; `collapse` is 1 while nearly everything is told right, which is warned of once."""
        with torch.no_grad():
            right = {
                name: float(((real[name] > 0).float().mean() + (fake[name] <= 0).float().mean()) / 2) for name in real
            }
            figures = {"real logit": float(mean(real)), "fake logit": float(mean(fake))}
        accuracy = sum(right.values()) / len(right)
        self.average.mul_(self.memory).add_((1 - self.memory) * accuracy)
        average = float(self.average)
        collapsed = average > CERTAIN
        if collapsed and not self.rung:
            log.warning(
                "the discriminator tells %.1f %% right and teaches nothing any more: lower its learning rate, or "
                "re-noise more",
                100 * average,
            )
        self.rung = collapsed
        by_head = {f"accuracy {number}": value for number, value in enumerate(right.values())}
        return figures | {"accuracy": accuracy, "collapse": float(collapsed)} | by_head
