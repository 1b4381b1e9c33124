"""The U-Net as a denoiser: what the sampling loop calls, for generation and conformance alike.

Legend: B clips; T H W C latent frames (or gaps), rows, columns, channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kandinsky.diffusion.cogvideox import level_of
from kandinsky.errors import BackendError
from kandinsky.families.parts.two_passes import together
from kandinsky.families.parts.unet.unet import Marks, UNet
from kandinsky.model.denoiser import VIDEO, Denoiser, Known, OnTrack, Pass
from kandinsky.model.values import TextEmbeddings


class UNetDenoiser:
    """A network bound to one prompt batch; callable as ``(x_BTHWC, t) -> prediction_BTHWC``.

    Args:
        text: Embeddings of B prompts, or of one prompt for any B.
        before_BTHWC: Channels in front of the state's own.
        condition_BTHWC: Channels behind the state's own.
        marks: Further inputs of a video network; None for images.
    """

    def __init__(
        self,
        net: UNet,
        text: TextEmbeddings,
        *,
        before_BTHWC: Tensor | None = None,
        condition_BTHWC: Tensor | None = None,
        marks: Marks | None = None,
    ) -> None:
        self.net = net
        self.text = text
        self.before_BTHWC = before_BTHWC
        self.condition_BTHWC = condition_BTHWC
        self.marks = marks

    def __call__(self, x_BTHWC: Tensor, t: Tensor) -> Tensor:
        """Noise or v prediction at time t in [0, 1]; the network's own time is t·1000 − 1."""
        return self._pass(self._around(x_BTHWC), t, self.text.expand(len(x_BTHWC)))

    def pair(self, other: object) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """This pass and another of the same images as one of twice the batch; None if that gains nothing.

        A pass over one image is many small steps, so that two together cost little more on small images. Clips are
        large enough, and would take twice the memory.
        """
        if not isinstance(other, UNetDenoiser) or other.net is not self.net or self.marks or other.marks:
            return None
        if self.before_BTHWC is not other.before_BTHWC or self.condition_BTHWC is not other.condition_BTHWC:
            return None
        both = together(self._pass, self.text, other.text)
        return lambda x_BTHWC, t: both(self._around(x_BTHWC), t)

    def _around(self, x_BTHWC: Tensor) -> Tensor:
        around = (self.before_BTHWC, x_BTHWC, self.condition_BTHWC)
        return torch.cat([one.to(x_BTHWC) for one in around if one is not None], dim=-1)

    def _pass(self, x_BTHWC: Tensor, t: Tensor, text: TextEmbeddings) -> Tensor:
        out: Tensor = self.net(x_BTHWC, (level_of(t) - 1).to(x_BTHWC.device).expand(len(x_BTHWC)), text, self.marks)
        return out


def bind(net: nn.Module, known: Known, run: Pass) -> Denoiser:
    """The U-Net as a denoiser of the track `video`; see ``model/denoiser.Bind``.

    Of ``known.extra`` it takes `before` and `behind`, channels around the state's own, `kept` in the place of the
    latter, and what ``told`` makes of a video network's marks.

    Raises:
        BackendError: There is a step cache: the U-Net's levels are not a sequence of blocks.
    """
    assert isinstance(net, UNet)
    if run.runner is not None:
        raise BackendError("step caches are not supported for U-Nets: use `none`")
    extra = known.extra
    inner = UNetDenoiser(
        net,
        run.text,
        before_BTHWC=extra.get("before"),
        condition_BTHWC=extra.get("kept", extra.get("behind")),
        marks=marks_of(known),
    )
    return OnTrack(VIDEO, inner, "noise", together=run.together)


def told(marks: Marks) -> dict[str, Tensor]:
    """Marks as tensors of ``Known.extra``: `positions` [1, T], and `marks` [1, 5] with the rest in its order."""
    rest = (marks.noise_level, marks.motion, marks.skip, marks.perturbation, marks.mixes)
    return {"positions": torch.tensor([list(marks.positions)]), "marks": torch.tensor([list(map(float, rest))])}


def marks_of(known: Known) -> Marks | None:
    """The inverse of ``told``, of all clips together; None where nothing was told."""
    if "marks" not in known.extra:
        return None
    places, rest = known.extra["positions"], known.extra["marks"]
    assert bool((places == places[:1]).all() and (rest == rest[:1]).all()), "clips of a batch have the same marks"
    noise_level, motion, skip, perturbation, mixes = rest[0].tolist()
    return Marks(tuple(places[0].tolist()), noise_level, motion, int(skip), perturbation, bool(mixes))
