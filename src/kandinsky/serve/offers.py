"""The models that a server offers, and what each of them accepts. No torch."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky import catalogue
from kandinsky.engine.accepts import accepted
from kandinsky.engine.request import SEED_LIMIT, resolve, shortest_clip
from kandinsky.engine.upscale import can_upscale
from kandinsky.engine.windows import LONGEST, default_overlap
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.jobs.loaded import branch_names, find_branch, lora_names
from kandinsky.jobs.order import FORMATS, work_of
from kandinsky.model.card import Card, Source
from kandinsky.model.values import Request
from kandinsky.serve.envelope import ApiError
from kandinsky.serve.fields import LONGEST_PROMPT, MOST_IMAGES
from kandinsky.serve.settings import ServeSettings
from kandinsky.serve.shapes import ModelObject
from kandinsky.weights import branch_files
from kandinsky.weights.branch_files import BranchFile
from kandinsky.weights.locate import locate_all, missing_parts

SINCE = int(time.time())
NOT_SHOWN = ("dtype", "offload", "parallel", "tiling", "quantize dit", "quantize text", "quantize vae", "states",
             "trust_remote_code")  # fmt: skip

_TAKEN = {"frames": "known frames", "source": "a clip that is changed", "control": "a control",
          "reference": "a reference"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Offer:
    """One model of a server."""

    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def card(self) -> Card:
        return self.source.card

    @property
    def makes_stills(self) -> bool:
        task, clip = self.card.does, self.card.clip
        if task.makes == "image":
            return True
        return (
            task.makes == "video" and task.image != "required" and clip.min_seconds == 0 and self.card.keyframes is None
        )

    @property
    def streams(self) -> bool:
        """Whether it can be shown live."""
        return self.card.roll is not None and self.card.does.makes == "video" and self.card.does.image != "required"

    @property
    def takes(self) -> frozenset[str]:
        """The kinds of conditions that it may be given, see ``model/given.KINDS``, and `first frame`."""
        followed = self.card.part("dit").branches if self.card.roll is None and self.card.sound is None else {}
        return frozenset({*self.card.does.knows, *followed})

    @property
    def longest(self) -> float:
        """Seconds of its longest clip, in windows where it makes them."""
        clip, card = self.card.clip, self.card
        in_windows = clip.max_seconds > 0 and clip.overlap != 0 and card.goes_on
        return LONGEST if in_windows and card.keyframes is None and card.roll is None else clip.max_seconds

    @property
    def extends(self) -> bool:
        """Whether it can continue a clip: from frames that are known, or from its last one."""
        task = self.card.does
        return task.makes == "video" and (
            not task.knows.keys().isdisjoint(("frames", "first frame")) or task.image != "none"
        )


class Offers:
    """All models of a server.

    Args:
        settings: Their names (none = all catalogue models whose files are on this machine), limits, the folder of
            LoRAs.

    Raises:
        RequestError: A name is unknown.
        WeightsError: Files of a model are missing.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.limits = settings
        self.loras = settings.lora_folder
        self.branch_folder = settings.branch_folder
        names = settings.models
        if names:
            sources = [catalogue.source_of(name) for name in dict.fromkeys(names)]
            for source in sources:
                locate_all(source)
        else:
            found = [card for card in catalogue.all_cards() if not missing_parts(card)]
            found.sort(key=lambda card: (card.id != catalogue.DEFAULT_MODEL, card.id))
            sources = [Source(card, None, card.id) for card in found]
        if not sources:
            raise RequestError("no model is on this machine: fetch one with `kandinsky download`, and name it")
        self.all = {source.name: Offer(source) for source in sources}

    def find(self, name: str) -> Offer:
        """A model by name.

        Raises:
            ApiError: It is not offered.
        """
        if name not in self.all:
            known = ", ".join(f"`{one}`" for one in self.all)
            raise ApiError(404, f"the model `{name[:100]}` is not offered here: use one of {known}",
                           code="model_not_found", param="model")  # fmt: skip
        return self.all[name]

    def first(
        self,
        *,
        stills: bool = False,
        image: bool = False,
        sound: bool = False,
        extends: bool = False,
        needs: Collection[str] = (),
        is_told: bool = True,
    ) -> Offer:
        """The first model that can do something.

        Args:
            stills: Whether it makes images.
            image: Whether it is given one; models that were trained for it come first.
            sound: Whether it makes audio.
            extends: Whether it continues clips.
            is_told: Whether there is a prompt; of those that continue clips, models that need none come first then.
            needs: What else it must be able to be given, see ``model/task.What``.

        Returns:
            The model.

        Raises:
            ApiError: None can.
        """

        def comes_later(offer: Offer) -> bool:
            untrained = image and offer.card.does.image == "none"
            return untrained or (extends and not is_told and offer.card.prompt != "optional")

        for offer in sorted(self.all.values(), key=comes_later):
            task = offer.card.does
            if not set(needs) <= offer.takes:
                continue
            if extends:
                fits = offer.extends
            elif sound:
                fits = task.makes == "sound"
            elif stills:
                edits = task.image != "none" and task.image_is != "frames"
                fits = offer.makes_stills and (edits if image else task.image != "required")
            else:
                begins = task.image != "none" or "first frame" in task.knows
                fits = task.makes == "video" and (begins if image else task.image != "required" or bool(needs))
            if fits:
                return offer
        what = (
            "continues clips"
            if extends
            else "generates audio"
            if sound
            else "makes images"
            if stills
            else "makes clips"
        ) + (" from an image" if image and not extends else "")
        if needs:
            what += f" and takes {' and '.join(_TAKEN[one] for one in sorted(needs))}"
        raise ApiError(400, f"no model of this server {what}: name another", code="unsupported", param="model")

    @functools.cache  # noqa: B019 - one for the life of the server
    def usual_work(self, name: str) -> float:
        """Work of a model's default request, see ``jobs/order.work_of``; 0 where it depends on what is uploaded."""
        card = self.all[name].card
        if card.does.makes == "sound":
            return 0.0
        return work_of(resolve(Request(name, "any", seed=0), card, needs_image=False))

    def has_own_branch(self, offer: Offer, kind: str) -> bool:
        """Whether a model has a branch of a kind that is used without being named."""
        return any(kind in name for part in offer.card.branches for name in part.files)

    def branches(self, offer: Offer) -> dict[str, list[str]]:
        """Names of the branches that requests for a model may name, by what they are told.

        A kind is there if it has any, the model's own among them, which has no name.
        """
        found: dict[str, list[str]] = {}
        for kind in sorted(offer.takes & set(branch_files.KINDS)):
            if self.has_own_branch(offer, kind):
                found[kind] = []
        for name in branch_names(self.branch_folder):
            path = find_branch(self.branch_folder, name)
            branch = _branch(path, path.stat().st_mtime_ns)
            if branch is not None and branch.kind in offer.takes and _stands_beside(branch, offer.card):
                found.setdefault(branch.kind, []).append(name)
        return found

    def object(self, offer: Offer, loaded: Sequence[str]) -> ModelObject:
        """A model as the API shows it."""
        card = offer.card
        task, clip, sampling = card.does, card.clip, card.sampling
        sound = card.sound is not None
        able = () if sound else card.part("text").expands
        defaults: dict[str, Any] = {"steps": sampling.steps, "guidance": sampling.guidance}
        if not sound:
            defaults |= {"size": clip.default_size, "seconds": clip.seconds, "shift": sampling.shift}
            defaults["negative_prompt"] = sampling.negative_prompt
        return ModelObject(
            id=offer.name,
            created=SINCE,
            owned_by=card.family.name,
            title=card.title,
            task=card.task,
            makes=task.makes,
            licence=card.licence,
            parameters=card.parameters,
            loaded=offer.name in loaded,
            accepts={name: told for name, told in accepted(card).items() if name not in NOT_SHOWN},
            defaults=defaults,
            sizes=[] if sound else list(clip.sizes),
            image=task.image,
            mask=task.mask,
            video=task.video,
            knows={str(what): str(way) for what, way in task.knows.items()},
            prompt="optional" if card.prompt == "optional" else "required",
            expands=card.task in (able or ()),
            stills=offer.makes_stills,
            extends=offer.extends,
            upscales=can_upscale(card),
            live=offer.streams,
            seconds=[0.0, 120.0] if sound else [clip.min_seconds, clip.max_seconds],
            longest=120.0 if sound else offer.longest,
            overlap=default_overlap(card) if not sound and offer.longest > clip.max_seconds else 0.0,
            frames_together=1 if sound else clip.temporal,
            branches=self.branches(offer),
            shortest=0.0 if sound else shortest_clip(card),
            seconds_step=0.0 if sound else clip.frame_step / clip.fps,
            fps=clip.fps,
            steps=[1, sampling.max_steps],
            seed=[0, SEED_LIMIT - 1],
            prompt_length=LONGEST_PROMPT,
            upload_bytes=self.limits.upload_bytes,
            effort=self.limits.effort,
            images=MOST_IMAGES if offer.makes_stills else 0,
            sounds_with=card.sounds_with if not sound and card.sounds_with in self.all else None,
            loras=[] if sound else lora_names(self.loras),
            formats=list(FORMATS["audio" if sound else task.makes]),
        )


@functools.lru_cache(256)
def _branch(path: Path, changed: int) -> BranchFile | None:
    """The branch in a file that was changed at a time; None if it holds none."""
    try:
        return branch_files.branch_of_header(path)
    except KandinskyError:
        return None


def _stands_beside(branch: BranchFile, card: Card) -> bool:
    try:
        branch.check_beside(card.dit, card.id)
    except KandinskyError:
        return False
    return True
