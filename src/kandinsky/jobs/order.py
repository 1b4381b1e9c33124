"""What a job is to make, as plain values in the store, and how it becomes a request to the engine. No torch.

Files that a request brings lie in the job's folder under names of the server's; a request never names a path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kandinsky.engine.conditions import FLOW
from kandinsky.engine.request import Job, resolve
from kandinsky.jobs import job_files
from kandinsky.jobs.loaded import find_branch
from kandinsky.jobs.records import NewJob
from kandinsky.model.card import Card
from kandinsky.model.given import KINDS, Frames
from kandinsky.model.values import Request

# Names of the files that a request brings, by its field; a mask or a control that is a video has no ending.
INPUTS = {
    "image": "input-image.png", "last_image": "input-end.png", "mask": "input-mask.png", "video": "input-video",
    "control": "input-control.png", "reference": "input-reference.png",
}  # fmt: skip
LAST_FRAME = "input-last.png"  # of the video, which is read with it
_OF_CONDITION = (*KINDS, "mask")
FORMATS = {
    "video": ("mp4", "webm", "gif", "webp"),
    "image": ("png", "webp", "jpeg"),
    "audio": ("mp4", "webm", "wav", "flac"),
}
MEDIA_TYPES = {
    "mp4": "video/mp4", "webm": "video/webm", "gif": "image/gif", "webp": "image/webp", "png": "image/png",
    "jpeg": "image/jpeg", "wav": "audio/wav", "flac": "audio/flac",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to make.

    Attributes:
        request: Fields of ``Request`` that were given, and the seed; ``INPUTS`` and what conditions hold are names of
            files, and branches are named as in the server's folder.
        form: Format of the result, a key of ``MEDIA_TYPES``.
        lora: LoRAs of the server's folder, `NAME` or `NAME:SCALE`.
        attention: As in ``RunOptions``; None is the server's.
        before: The clip that the result continues: a file.
        overlap: The part of it that the new clip begins with, `START:STOP`; empty: its last frame, the request's image.
        called: What the request called its files, by their names.
        sound: The model that generates audio for the clip; empty for none.
        shape: `width`, `height`, `frames`, `fps`, `seconds` and `steps` of the result, for lists.
    """

    request: Mapping[str, Any]
    form: str
    lora: tuple[str, ...] = ()
    attention: str | None = None
    before: str = ""
    overlap: str = ""
    called: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sound: str = ""
    shape: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self) | {
            "request": dict(self.request),
            "shape": dict(self.shape),
            "called": dict(self.called),
            "lora": list(self.lora),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; what a newer version added is left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        return cls(**given | {"lora": tuple(given.get("lora", ()))})

    def asked(self, store: Path, job_id: str, *, in_memory: bool = False, branches: Path | None = None) -> Request:
        """The request, with the paths of its files.

        Args:
            store: Folder of the store.
            job_id: The job.
            in_memory: Whether images are read, so that no path gets into a recipe.
            branches: Folder of the branches that requests may name.

        Raises:
            RequestError: There is no such branch.
        """

        def file(name: str) -> Any:
            path = job_files.path_of(store, job_id, name)
            return _opened(path) if in_memory and path.suffix == ".png" else path

        values = dict(self.request)
        for name in INPUTS:
            if values.get(name) is not None:
                values[name] = file(values[name])
        if values.get("branch") is not None:
            values["branch"] = [find_branch(branches, name) for name in values["branch"]]
        values["conditions"] = [
            {
                key: file(value) if key in _OF_CONDITION else find_branch(branches, value) if key == "branch" else value
                for key, value in one.items()
            }
            for one in values.get("conditions") or ()
        ]
        if self.overlap:
            values["conditions"].insert(0, Frames(file(self.before), at=0, cut=self.overlap))
        return Request.from_dict(values)

    def resolved(self, card: Card, store: Path, job_id: str) -> Job:
        """The job of the engine, checked against a card.

        Raises:
            RequestError: A value is not allowed.
        """
        return resolve(self.asked(store, job_id), card)

    def names(self) -> tuple[str, ...]:
        """The files that the request brings."""
        named = [self.request[name] for name in INPUTS if self.request.get(name) is not None]
        for one in self.request.get("conditions") or ():
            named += [one[key] for key in _OF_CONDITION if one.get(key) is not None]
        return tuple(dict.fromkeys([*named, *([self.before] if self.before else [])]))


def _opened(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return image


def work_of(job: Job) -> float:
    """How much a job is: latent cells times passes of the network, in thousands."""
    guided = 1 if job.guidance == 1 else 2
    passes = job.steps * (1 + job.resample) * (guided + (job.source_prompt is not None))
    windows = int(job.settings().get("windows", 1))
    frames = job.latent.frames if job.long is None else sum(window.frames for window in job.long.windows)
    large, area = job.upscale, job.latent.height * job.latent.width / 1000
    first = frames * area * passes * windows
    if large is None:
        return first
    share = large.share(job.steps, job.shift, is_flow=job.sampling.sampler == FLOW)
    tiles = sum(window.frames for window in large.long.windows) * large.tiles(job.latent, job.card.clip.spatial)
    second = tiles * area * job.steps * share * guided
    return second if large.source is not None else first + second


def batch_key(job: Job, order: Order) -> str:
    """The key of jobs that may run as one batch; empty if batches of this model bring nothing."""
    clip = job.card.clip
    together = clip.stills_together if job.shape.frames == 1 else clip.clips_together
    if together < 2 or job.conditions or job.long or job.upscale or order.before or order.sound:
        return ""
    settings = {
        name: value
        for name, value in job.settings().items()
        if name not in ("prompt", "negative_prompt", "seed", "expanded_prompt")
    }
    alike = [job.card.id, settings, str(job.cache), job.expand, list(order.lora), order.attention]
    digest = hashlib.sha256(json.dumps(alike, sort_keys=True, default=str).encode()).hexdigest()[:24]
    return f"{together} {digest}"


def new_job(order: Order, job: Job, *, job_id: str, **facts: Any) -> NewJob:
    """What the store keeps of an order.

    A request that names its seed runs alone, so that it repeats to the last bit; one whose seed was drawn may be part
    of a batch, which is right up to rounding.

    Args:
        order: What to make.
        job: The same, resolved.
        job_id: Its name.
        facts: Further fields of ``NewJob``.

    Returns:
        The job to be stored.
    """
    makes = job.card.does.makes
    kind = "audio" if makes == "sound" else "image" if job.shape.frames == 1 else "video"
    has_seed = order.request.get("seed") is not None
    fixed = dataclasses.replace(order, request={**order.request, "seed": job.seed}, shape=_shape(job))
    return NewJob(
        job_id=job_id,
        kind=kind,
        model=str(order.request["model"]),
        order=fixed.to_dict(),
        prompt=job.prompt,
        batch="" if has_seed else batch_key(job, fixed),
        work=work_of(job),
        **facts,
    )


def _shape(job: Job) -> dict[str, Any]:
    if job.card.does.makes == "sound":
        return {"seconds": round(job.seconds, 3), "steps": job.steps}
    frames, size = job.frames, job.upscale or job.shape
    return {
        "width": size.width,
        "height": size.height,
        "frames": frames,
        "fps": job.fps,
        "seconds": 0 if frames == 1 else job.seconds,
        "steps": job.steps,
    }
