"""Recipes of kind `sound`: train a model of sound for clips on precomputed latents and embeddings.

They lie in a data set that `kandinsky data encode` made of videos, or in a file. The file, a safetensors one, holds
`latents` [N, H, W, C] of spectrograms as the autoencoder scales them, and under the official argument names
`image_embeds` [N, T, E] of what is seen, `prompt_embeds` [N, L, E] of what is said, and for guidance
`negative_image_embeds` [1, T, E] of a black clip and `negative_prompt_embeds` [1, L, E] of no words.

Legend: N examples; H W C rows, columns, channels of a latent; T frames, L words, E width of their embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kandinsky import catalogue
from kandinsky.engine.build import build, stored_network
from kandinsky.engine.lesson import LATENT
from kandinsky.engine.options import RunOptions
from kandinsky.errors import RequestError, WeightsError
from kandinsky.files import local_path
from kandinsky.model.card import Card, Sampling, Source
from kandinsky.model.denoiser import AUDIO, Known
from kandinsky.model.values import TextEmbeddings
from kandinsky.printing import escaped
from kandinsky.text.store import join
from kandinsky.train import adapter, loop
from kandinsky.train.data.batches import Buckets
from kandinsky.train.data.captions import CaptionChoice
from kandinsky.train.data.dataset import MANIFEST, EncodedDataset
from kandinsky.train.data.feed import EncodedExamples, Feed
from kandinsky.train.denoiser import DenoiserObjective
from kandinsky.train.denoising import Denoising, Given
from kandinsky.train.model_recipe import Batch, CaptionNumbers, check_adapter, learning
from kandinsky.train.objective import Portion, Rng, check_portions
from kandinsky.train.recipe import Run
from kandinsky.train.times import Times
from kandinsky.train.work import done
from kandinsky.weights.keymaps import keymap_of
from kandinsky.weights.read import check_finite, read_state
from kandinsky.weights.write import write_state

if TYPE_CHECKING:
    from kandinsky.engine.request import Job

FRAMES, TEXT = "image_embeds", "prompt_embeds"
VIDEO_STATES, BLACK_STATES = "video", "black"  # of an encoded data set, see ``Task.examples``
NAMES = {"latents": 4, FRAMES: 3, TEXT: 3, f"negative_{FRAMES}": 3, f"negative_{TEXT}": 3}  # and their axes
_SHARE = {"least": 0, "most": 1}


@dataclass(frozen=True, slots=True)
class SoundData:
    """What is trained on.

    Attributes:
        source: Data set of `kandinsky data encode`, or file of latents and embeddings.
        batch: Examples of a step, over all processes.
        drop_text: Share of the examples that are learned without words, for guidance.
        drop_frames: Share of those learned without frames.
        drop_both: Share of those learned without either.
        workers: Processes that load a data set ahead.
    """

    source: str
    batch: int = field(default=1, metadata={"least": 1})
    drop_text: float = field(default=0.1, metadata=_SHARE)
    drop_frames: float = field(default=0.1, metadata=_SHARE)
    drop_both: float = field(default=0.1, metadata=_SHARE)
    workers: int = field(default=0, metadata={"least": 0})

    def __post_init__(self) -> None:
        if (total := self.drop_text + self.drop_frames + self.drop_both) > 1:
            raise RequestError(f"shares of what is dropped add up to {total:g}: use 1 at most")

    def dropped(self, rng: Rng, number: int) -> tuple[str, ...]:
        """What an example of a step is learned without: `prompt_embeds`, `image_embeds`, both or none."""
        chance = float(torch.rand((), generator=rng.example(number, "drop")))
        for share, names in (
            (self.drop_text, (TEXT,)),
            (self.drop_frames, (FRAMES,)),
            (self.drop_both, (TEXT, FRAMES)),
        ):
            if (chance := chance - share) < 0:
                return names
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundRecipe:
    """The keys of a recipe; as ``ModelRecipe`` but for the data."""

    model: str
    out: str
    data: SoundData
    loop: loop.LoopSettings
    weights: str | None = None
    times: Times = field(default_factory=lambda: Times("uniform"))
    adapter: adapter.AdapterSettings | None = None


class SoundBatches:
    """Examples drawn with replacement, some without words, frames or both.

    Args:
        tensors: As ``read`` gives them.
        settings: Size and shares.
    """

    def __init__(self, tensors: Mapping[str, Tensor], settings: SoundData) -> None:
        self.tensors, self.settings = tensors, settings

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Batch:
        """A portion of the batch of a step."""
        numbers = portion.of(range(self.settings.batch))
        count = len(self.tensors["latents"])
        chosen = [int(torch.randint(count, (), generator=rng.example(n, "clip"))) for n in numbers]
        dropped = [self.settings.dropped(rng, n) for n in numbers]
        done(samples=len(numbers), tokens=self.tensors["latents"][0, ..., 0].numel() * len(numbers))

        def given(name: str) -> Tensor:
            all_, none = self.tensors[name], self.tensors[f"negative_{name}"][0]
            return torch.stack([none if name in out else all_[i] for i, out in zip(chosen, dropped, strict=True)])

        clean = self.tensors["latents"][chosen][:, None]
        words = given(TEXT)
        text = TextEmbeddings(words, words.new_zeros(len(words), 0))
        return Batch(clean, Given(text, Known(extra={"frames": given(FRAMES)})), numbers, self.settings.batch)


@dataclass(frozen=True)
class SoundExamples(EncodedExamples):
    """Examples of a data set of videos with sound."""

    @property
    def shapes(self) -> Sequence[Any]:
        """Of the latents, and of what is seen, so that batches are alike in both."""
        return [(*row.shape, *row.others[VIDEO_STATES]) for row in self.dataset.rows]


class EncodedSound:
    """Batches of an encoded data set of videos with sound, some without words, frames or both.

    Args:
        dataset: That `kandinsky data encode` made for a model of sound.
        settings: Size and shares.
        seed: Of the order, and of captions.
        shares: Portions that are asked for in each step, in their order.
    """

    def __init__(
        self, dataset: EncodedDataset, settings: SoundData, *, seed: int = 0, shares: Sequence[Portion] = (Portion(),)
    ) -> None:
        self.settings, self.empty = settings, dataset.text("", still=False)
        examples = SoundExamples(dataset)
        plan = Buckets(examples.shapes, batch=settings.batch, seed=seed)
        self.feed = Feed(examples, plan, CaptionChoice(0.0), CaptionNumbers(seed), shares, workers=settings.workers)

    def __call__(self, step: int, rng: Rng, portion: Portion) -> Batch:
        """A portion of the batch of a step."""
        loaded = self.feed(step, portion)
        dropped = [self.settings.dropped(rng, one.place) for one in loaded]
        texts, frames = [], []
        for one, out in zip(loaded, dropped, strict=True):
            texts.append(self.empty if TEXT in out else one.text)
            frames.append(one.tensors[BLACK_STATES if FRAMES in out else VIDEO_STATES].float())
        text = join([one.to("cpu", torch.float32) for one in texts])
        known = Known(extra={"frames": torch.cat(frames)})
        clean = torch.cat([one.latent.float() for one in loaded])
        done(samples=len(loaded), tokens=clean[..., 0].numel())
        return Batch(clean, Given(text, known), [one.place for one in loaded], self.settings.batch)


@dataclass(frozen=True, slots=True)
class Rules:
    """What training asks of a job."""

    sampling: Sampling
    shift: float


def card_of(recipe: SoundRecipe) -> Source:
    """The model of a recipe.

    Raises:
        RequestError: It makes no sound, or the adapter fits none of its layers.
    """
    root = None if recipe.weights is None else local_path(recipe.weights, "weights folder")
    source = catalogue.source_of(recipe.model, weights=root)
    card = source.card
    if card.does.makes != "sound":
        raise RequestError(f"`{card.id}` makes no sound: use a recipe of kind `denoiser`")
    check_portions(recipe.loop.accumulate, recipe.data.batch, what="example")
    if recipe.adapter is not None:
        check_adapter(recipe.adapter, card.part("dit"), card.dit)
    return source


def train(recipe: SoundRecipe, run: Run) -> Path:
    """Train a model's denoiser of sound.

    Returns:
        The weight file written, or the adapter's.

    Raises:
        RequestError: The model makes no sound, or the file does not fit.
        WeightsError: Weights or the file are missing or broken.
    """
    source = card_of(recipe)
    card = source.card
    place = local_path(recipe.data.source, "data")
    batches, shape = _batches(place, recipe, card)
    read = stored_network(card, "dit", root=source.root, model=source.name)
    context = build(card, RunOptions(device=run.device, dtype="float32", only=()), root=source.root)
    denoising = Denoising(context, cast("Job", Rules(card.sampling, 1.0)), AUDIO)
    network, part = learning(read()), card.part("dit")
    if recipe.adapter is not None:
        adapter.add(network, recipe.adapter, part.adapts, seed=recipe.loop.seed, device=run.device)
    objective = DenoiserObjective(denoising, network, batches, recipe.times)
    told = {**run.recipe, "data shape": shape}
    weights = loop.run(
        objective, recipe.loop, run.out, resume=run.resume, device=run.device, recipe=told, on_log=run.on_log
    )["network"]
    keymap = keymap_of(part)
    if recipe.adapter is not None:
        return adapter.write(weights, recipe.adapter, run.out, keymap)
    return write_state(keymap.as_file({**network.state_dict(), **weights}), run.out / "dit.safetensors")


def _batches(place: Path, recipe: SoundRecipe, card: Card) -> tuple[Callable[[int, Rng, Portion], Batch], str]:
    """What gives the batches, and what a run that goes on is compared with."""
    if not (place / MANIFEST).is_file():
        tensors = read(place)
        _check_widths(tensors, card, place)
        return SoundBatches(tensors, recipe.data), str(list(tensors["latents"].shape))
    dataset = EncodedDataset(place)
    dataset.check_model(card)
    count = recipe.loop.accumulate
    shares = [Portion(micro, count) for micro in range(count)]
    return EncodedSound(dataset, recipe.data, seed=recipe.loop.seed, shares=shares), dataset.fingerprint


def _check_widths(tensors: Mapping[str, Tensor], card: Card, file: Path) -> None:
    """Refuse a file of another model. Raises: WeightsError."""
    assert card.does.examples is not None
    shapes = card.does.examples().shapes(card)
    needed = {"latents": shapes[LATENT][-1], FRAMES: shapes[VIDEO_STATES][-1], TEXT: shapes[VIDEO_STATES][-1]}
    for name, width in needed.items():
        if tensors[name].shape[-1] != width:
            raise WeightsError(
                f"`{name}` in `{escaped(file)}` has {tensors[name].shape[-1]} numbers a place, and `{card.id}` needs "
                f"{width}: is it of another model?"
            )


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a data file, float32.

    Raises:
        WeightsError: One is missing or broken, or they do not fit each other.
    """
    state = read_state(file)
    for name, axes in NAMES.items():
        if name not in state or state[name].dim() != axes or not len(state[name]):
            raise WeightsError(f"`{escaped(file)}` has no tensor `{name}` of {axes} axes")
    tensors = {name: state[name].float() for name in NAMES}
    for name in (FRAMES, TEXT):
        all_, none = tensors[name], tensors[f"negative_{name}"]
        if len(all_) != len(tensors["latents"]) or all_.shape[1:] != none.shape[1:]:
            raise WeightsError(
                f"`{name}` in `{escaped(file)}` has shape {list(all_.shape)}: one for each latent is needed, as large "
                f"as `negative_{name}`, {list(none.shape)}"
            )
    check_finite(tensors, str(file))
    return tensors
