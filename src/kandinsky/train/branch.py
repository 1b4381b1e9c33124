"""Branches in training: a frozen network with a new branch beside its blocks, and the file that it is written to.

The branch is a part of the network under the name `branch`, so that the loop, its checkpoints and its averages see
nothing but more weights; ``Denoising`` tells it what the examples say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kandinsky.engine.build import bare_network
from kandinsky.engine.lesson import LATENT, Lesson
from kandinsky.engine.told import told_of_frames
from kandinsky.errors import RequestError
from kandinsky.media.signals import EDGES, SIGNALS
from kandinsky.model.card import Card, Component
from kandinsky.ops.branches import Beside
from kandinsky.train.adapter import freeze
from kandinsky.train.loop import seeded
from kandinsky.weights.branch_files import CONTROL, LATENTS, REFERENCE, BranchFile, read_branch
from kandinsky.weights.read import load_into
from kandinsky.weights.write import write_state

if TYPE_CHECKING:
    from kandinsky.engine.context import Context
    from kandinsky.engine.request import Job

NAME = "branch"  # of the child of the network
STATES_OF_IMAGE = 256  # about so many states are those of an image, for estimates
GIVEN = {CONTROL: "controls", REFERENCE: "references"}  # folders beside `clips/`


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchSettings:
    """What is trained beside the network, which is frozen.

    Attributes:
        kind: `control`, which is shown a clip, or `reference`, which is shown an image.
        signal: What a control clip shows. `edges` are found in the training clips; others are read from `controls/`
            beside `clips/` in the data folder, which may hold edges too.
        features: What a reference branch sees of the image: `vae`, its latent; `text`, the states of the text encoder,
            for models whose encoder sees images.
        blocks: Of a control branch, beside how many of the network's first blocks it stands; it begins as copies of
            them.
        slim: Width of a control branch of narrow blocks of its own instead, whose file is small.
        width: Of a reference branch, the width of its attention.
        head_dim: Of that attention.
        first: Number of the first block that attends to the image.
        rotary: Whether that attention knows of places in the frame, and begins with the same one.
        start: File of a branch to begin with.
        base_dtype: Type of the frozen weights; `int8` needs torchao.
        dtype: Type of the tensors in the file; `int8` rows for the matrices, or rows of 6 or 5 bits, the rest in
            bfloat16.
    """

    kind: Literal["control", "reference"]
    signal: str = EDGES
    features: Literal["vae", "text"] = "vae"
    blocks: int = field(default=2, metadata={"least": 1})
    slim: int = field(default=0, metadata={"least": 0})
    width: int = field(default=128, metadata={"least": 1})
    head_dim: int = field(default=32, metadata={"least": 1})
    first: int = field(default=0, metadata={"least": 0})
    rotary: bool = False
    start: str | None = None
    base_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    dtype: Literal["bfloat16", "float32", "int8", "int6", "int5"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise RequestError(f"branch `signal` is `{self.signal}`: use {', '.join(SIGNALS)}")
        if self.start is not None and not Path(self.start).is_file():
            raise RequestError(f"branch `start` is `{self.start}`: name the file of a branch")

    @property
    def params(self) -> dict[str, Any]:
        """Hyper-parameters that the recipe decides."""
        if self.kind == CONTROL:
            return {"blocks": self.blocks} | ({"slim": self.slim} if self.slim else {})
        sizes = {"width": self.width, "head_dim": self.head_dim, "first": self.first}
        return sizes | ({"rotary": True} if self.rotary else {})


class BranchLesson(Lesson):
    """What a task teaches, and beside it what the branch is told of the example.

    Args:
        settings: Of the branch.
        source: The data folder; with `clips/` in it, what the branch is told lies beside these.

    Raises:
        RequestError: A control signal is neither found in clips nor beside them.
    """

    def __init__(self, settings: BranchSettings, source: Path) -> None:
        given = GIVEN[settings.kind]
        self.settings = settings
        self.tensors = (LATENT, settings.kind)
        self.pairs = ("clips", given) if (source / given).is_dir() else ()
        self.encoders = ("vae",) if settings.features == LATENTS else ("vae", "text")
        is_found = settings.kind == REFERENCE or SIGNALS[settings.signal].of_clip is not None
        if not self.pairs and not is_found and not (source / "manifest.json").is_file():
            raise RequestError(
                f"control signal `{settings.signal}` is not found in clips: put the clips into `{source}/clips` and "
                f"what is given of them into `{source}/{given}`, under the same names"
            )

    def shapes(self, job: Job) -> dict[str, tuple[int, ...]]:
        """Of the clip and of what the branch is told."""
        clip = (1, *job.latent.as_tuple())
        told: tuple[int, ...] = clip if self.settings.kind == CONTROL else (1, 1, *clip[2:])
        if self.settings.features != LATENTS:
            told = (1, STATES_OF_IMAGE, int(job.card.dit.params["in_text_dim"]))
        return {LATENT: clip, self.settings.kind: told}

    def encode(self, context: Context, *frames_THWC: np.ndarray) -> dict[str, Tensor]:
        """The clip's latent, and what the branch is told of it."""
        clip, given = frames_THWC[0], frames_THWC[-1]
        settings = self.settings
        if settings.kind == REFERENCE:
            # of the clip itself, a moment that is not its first
            image = given[len(given) // 2 if not self.pairs else 0]
            return {**super().encode(context, clip), settings.kind: told_of_frames(
                context, image[None], settings.features)}  # fmt: skip
        if not self.pairs:
            of_clip = SIGNALS[settings.signal].of_clip
            assert of_clip is not None
            given = of_clip(clip)
        if len(given) != len(clip):
            raise RequestError(
                f"a control of {len(given)} frames beside a clip of {len(clip)}: give each clip one of its own length"
            )
        return {**super().encode(context, clip), settings.kind: told_of_frames(context, given, LATENTS)}

    def beside(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the branch is told of an example."""
        return {self.settings.kind: tensors[self.settings.kind].float()}


def add(network: nn.Module, settings: BranchSettings, card: Card, *, seed: int, device: str) -> nn.Module:
    """Freeze a network and give it a new branch that changes nothing yet.

    Args:
        network: Changed in place.
        settings: Of the branch.
        card: Of its model.
        seed: Of the branch's weights.
        device: Where the network will run.

    Returns:
        The branch.

    Raises:
        RequestError: Nothing can stand beside such a network, or the branch to begin with is another one.
    """
    branch = built(settings, card, seed=seed)
    freeze(network, settings.base_dtype, device)
    start_from = getattr(branch, "start_from", None)
    if settings.start is not None:
        begun = read_branch(settings.start)
        begun.check_beside(card.dit, card.id)
        load_into(branch, begun.path, dtype=torch.float32)
    elif start_from is not None:
        start_from(network.blocks())  # type: ignore[operator]
    network.add_module(NAME, branch.float().requires_grad_(True))
    return branch


def built(settings: BranchSettings, card: Card, *, seed: int = 0) -> nn.Module:
    """A new branch.

    Raises:
        RequestError: Nothing can stand beside the model's network, or the hyper-parameters describe no branch.
    """
    check(settings, card)
    part = card.family.part(card.part("dit").branches[settings.kind])
    file = described(settings, card, Path())
    with seeded(seed):
        return bare_network(part, Component(card.part("dit").branches[settings.kind], (), dict(file.component)), Path())


def check(settings: BranchSettings, card: Card) -> None:
    """Raises: RequestError where nothing of the kind can stand beside the model's network."""
    if settings.kind not in card.part("dit").branches:
        raise RequestError(f"nothing can stand beside network `{card.dit.kind}`: leave `branch` out")


def described(settings: BranchSettings, card: Card, path: Path) -> BranchFile:
    """What the file of a branch says of it."""
    params = settings.params
    if settings.kind == REFERENCE and settings.features != LATENTS:
        params |= {"inputs": int(card.dit.params["in_text_dim"])}
    signal, features = (settings.signal, "") if settings.kind == CONTROL else ("", settings.features)
    return BranchFile(path, settings.kind, signal, features, card.dit.kind, card.id, params, dict(card.dit.params))


def beside_of(network: nn.Module, told: Mapping[str, Tensor]) -> tuple[Beside, ...]:
    """The branch of a network with what it is told; none for a network without one."""
    branch = getattr(network, NAME, None)
    if branch is None:
        return ()
    return tuple(Beside(branch, told[kind]) for kind in (CONTROL, REFERENCE) if kind in told)


def write(weights: Mapping[str, Tensor], settings: BranchSettings, card: Card, folder: Path) -> Path:
    """Write a trained branch.

    Args:
        weights: Trained parameters of the network with the branch, by name.
        settings: Of the branch.
        card: Of its model.
        folder: Of the run.

    Returns:
        The file, `control.safetensors` or `reference.safetensors`.
    """
    path = folder / f"{settings.kind}.safetensors"
    plain = torch.float32 if settings.dtype == "float32" else torch.bfloat16
    state = {name.removeprefix(f"{NAME}."): tensor.detach().cpu() for name, tensor in weights.items()}
    packed = [name for name, tensor in state.items() if tensor.ndim == 2] if settings.dtype.startswith("int") else []
    state = {name: tensor.float() if name in packed else tensor.to(plain) for name, tensor in state.items()}
    int8, int6, int5 = (packed if settings.dtype == name else [] for name in ("int8", "int6", "int5"))
    metadata = described(settings, card, path).header()
    return write_state(state, path, metadata=metadata, int8=int8, int6=int6, int5=int5)
