"""From a request to a stored job: model, files, card, limits, and then the store. Runs in threads, loads no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from kandinsky.engine.conditions import instead_of
from kandinsky.engine.request import parse_size
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.jobs import job_files
from kandinsky.jobs.loaded import find_branch, find_lora
from kandinsky.jobs.order import FORMATS, INPUTS, LAST_FRAME, Order
from kandinsky.jobs.records import JobRecord, Limits, NewJob
from kandinsky.jobs.sqlite_store import new_id
from kandinsky.jobs.store import JobStore, NoRoom
from kandinsky.model.checks import hints_of
from kandinsky.model.diffusers_words import CALL, translated
from kandinsky.model.values import Request
from kandinsky.serve import condition_files, fetching, resolving, uploads
from kandinsky.serve.envelope import ApiError, told
from kandinsky.serve.fields import DIFFUSERS
from kandinsky.serve.keys import Buckets, Owner
from kandinsky.serve.offers import Offer, Offers
from kandinsky.serve.settings import ServeSettings
from kandinsky.weights.lora_files import parse_spec

WAIT_S = 5.0  # when to try again, without experience
_REQUEST = {f.name for f in dataclasses.fields(Request)}
LENGTHS = ("seconds", "num_frames")
# Fields whose names no other sentence than one about them holds
_SAID = {"seconds", "steps", "size", "seed", "guidance", "shift", "cache", "prompt", "image", "mask", "video",
         "strength", "span", "place", "source_prompt", "resample", "conditions", "prompt_at", "fade", "overlap", "loop",
         "control", "control_strength", "control_steps", "reference", "reference_strength", "branch", "upscale",
         "upscale_strength"}  # fmt: skip
Upload = IO[bytes] | bytes
_WAYS: Mapping[str, uploads.Way] = {
    "image": "image", "last_image": "image", "mask": "mask", "video": "video", "control": "clip", "reference": "image",
}  # fmt: skip


@dataclass(slots=True)
class Wanted:
    """What a request wants, as an endpoint understood it.

    Attributes:
        values: Checked values.
        files: `image`, `last_image`, `mask`, `video`, `control`, `reference`, and what conditions name
            (``condition_files.NAMED``): uploaded bytes, the name of a job (as ``{"id": …}`` or text), or a URL.
        still: Whether it is an image.
        sound: Whether it is audio for a video.
        extend: Whether the video is to be continued.
        parent: The job it is derived from.
        form: Format of the result; empty = the usual one.
        index: Which of several results, for their seeds.
    """

    values: dict[str, Any]
    files: dict[str, Upload | Mapping[str, Any] | str] = field(default_factory=dict)
    still: bool = False
    sound: bool = False
    extend: bool = False
    parent: JobRecord | None = None
    form: str = ""
    index: int = 0


class Intake:
    """Accepts jobs.

    Args:
        store: Where they are kept.
        offers: The models.
        settings: Limits.
    """

    def __init__(self, store: JobStore, offers: Offers, settings: ServeSettings) -> None:
        self.store = store
        self.offers = offers
        self.settings = settings
        self.buckets = Buckets()
        self.closing = False

    def accept(self, owner: Owner, wanted: Wanted, *, idempotency_key: str | None = None) -> tuple[JobRecord, bool]:
        """Check a request and store its job.

        Args:
            owner: Who asks.
            wanted: For what.
            idempotency_key: As the client gave it.

        Returns:
            The job, and whether it is new.

        Raises:
            ApiError: It is not accepted.
        """
        body_hash = _hash(wanted)
        if idempotency_key is None or self.store.by_key(owner.name, idempotency_key) is None:
            self.check_room(owner)
        job_id = new_id()
        folder = job_files.folder_of(self.store.folder, job_id)
        kept = False
        try:
            new = self._prepared(owner, wanted, job_id, folder)
            new = dataclasses.replace(new, idempotency_key=idempotency_key, body_hash=body_hash)
            job, kept = self.put(owner, new)
            return job, kept
        finally:
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)

    # -- limits ------------------------------------------------------------------------------------------------------

    def check_room(self, owner: Owner) -> None:
        """Refuse a job for which there is no room now.

        Raises:
            ApiError: 503 while the server ends, 507 if the disk is full, 429 or 403 for limits.
        """
        store = self.store
        if self.closing:
            raise ApiError(503, "the server is about to end: try again soon", code="closing", retry_after_s=WAIT_S)
        self._check_disk()
        self.check_rate(owner)
        try:
            store.check_room(owner.name, self._limits(owner))
        except NoRoom as error:
            raise _refused(error) from None

    def check_rate(self, owner: Owner) -> None:
        """Count one request for work.

        Raises:
            ApiError: 429, since its owner asked too often lately.
        """
        if (wait := self.buckets.take(owner)) > 0:
            raise ApiError(429, f"this key may ask {owner.per_minute:g} times a minute", code="rate_limit_exceeded",
                           retry_after_s=wait)  # fmt: skip

    def _check_disk(self) -> None:
        free = min(shutil.disk_usage(one).free for one in job_files.folders(self.store.folder))
        if free < self.settings.disk_bytes:
            raise ApiError(507, "the disk of the server is almost full: nothing is accepted", code="disk_full")

    def check_storage(self, owner: Owner) -> None:
        """Refuse a file for which its owner has no room.

        Raises:
            ApiError: 403, or 507 if the disk is full.
        """
        self._check_disk()
        try:
            self.store.check_room(owner.name, Limits(storage=owner.storage))
        except NoRoom as error:
            raise _refused(error) from None

    def put(self, owner: Owner, new: NewJob) -> tuple[JobRecord, bool]:
        """Store a job, within the limits.

        Returns:
            The job, and whether it is new.

        Raises:
            ApiError: A limit is reached, or the idempotency key belongs to another request.
        """
        try:
            return self.store.add(new, self._limits(owner))
        except NoRoom as error:
            raise _refused(error) from None
        except RequestError as error:
            raise ApiError(422, str(error), code="idempotency_key_reused", param="Idempotency-Key") from None

    def _limits(self, owner: Owner) -> Limits:
        return Limits(waiting=self.settings.queue, active=owner.running, storage=owner.storage)

    def check_effort(self, offer: Offer, work: float) -> None:
        """Refuse a job that is too large for this server.

        Args:
            offer: The model.
            work: Of the job, see ``jobs/order.work_of``.

        Raises:
            ApiError: It is.
        """
        usual = self.offers.usual_work(offer.name)
        if usual and work > self.settings.effort * usual:
            raise ApiError(
                400,
                f"this is {work / usual:.1f} times the work of `{offer.name}`'s default request, and "
                f"{self.settings.effort:g} times is allowed here: ask for fewer steps, fewer seconds or a smaller size",
                code="too_much_work",
                param="steps",
            )

    # -- a job -------------------------------------------------------------------------------------------------------

    def _prepared(self, owner: Owner, wanted: Wanted, job_id: str, folder: Path) -> NewJob:
        values = dict(wanted.values)
        offer = self._offer(values.pop("model", None), wanted)
        card = offer.card
        for name in ("user", "safety_identifier"):
            values.pop(name, None)
        priority = min(values.pop("priority", 0), owner.priority)
        called: dict[str, str] = {}
        names = self._files(owner, wanted, folder, offer, called)
        if values.get("conditions"):
            # how many frames are known at the beginning is seen in their file
            takes = offer.takes | ({"frames"} if card.knows_first_alone else set())
            if lacking := condition_files.whats_needed(values["conditions"]) - takes:
                raise _not_taken(offer, condition_files.GIVEN[min(lacking)], "conditions")
            values["conditions"] = self._conditions(owner, values["conditions"], wanted, folder, called)
        before = None if wanted.parent is None else Order.from_dict(wanted.parent.order)
        if before is not None:  # what is not said again stays
            values = {"lora": before.lora, "attention": before.attention, "sound": bool(before.sound)} | values
        loras, attention = tuple(values.pop("lora", None) or ()), values.pop("attention", None)
        sound = self._sound(offer, values.pop("sound", False), wanted)
        form = values.pop("format", None) or wanted.form or self._usual_form(offer, wanted)
        kind = "audio" if card.does.makes == "sound" else "image" if wanted.still else "video"
        if form not in FORMATS[kind]:
            raise ApiError(400, f"`format`: `{form}` is not a format of {kind}s: use {', '.join(FORMATS[kind])}",
                           code="invalid_value", param="format")  # fmt: skip
        part = ""
        if wanted.parent is not None:
            values, part = self._derived(wanted.parent, values, folder, names)
            called = {**Order.from_dict(wanted.parent.order).called, **called}
        self._check_branches(offer, values, names)
        try:
            given = {name: value for name, value in values.items() if name in _REQUEST or name in (*DIFFUSERS, "size")}
            given = translated(given, CALL, card)
            given["width"], given["height"] = _size(given)
            if wanted.still and card.does.makes == "video":
                given["seconds"] = 0.0
            for name in loras:
                find_lora(self.settings.lora_folder, parse_spec(name)[0])
            for name in given.get("branch") or ():
                find_branch(self.settings.branch_folder, name)
            request = {name: value for name, value in given.items() if value is not None}
            if wanted.index and request.get("seed") is not None:
                request["seed"] += wanted.index
            request = {"model": offer.name, **request, **names}
            continued = request.pop("before", "")
            if continued and request.get("loop"):
                raise RequestError("`loop` leads the end of a clip to its own beginning, which an extension has not: "
                                   "leave it out")  # fmt: skip
            goes_on = continued and "image" not in request and not (part and wanted.values.keys().isdisjoint(LENGTHS))
            order = Order(request=request, form=form, lora=loras, attention=attention, before=continued,
                          overlap=part, sound=sound, called=called)  # fmt: skip
            branches = self.settings.branch_folder
            query = resolving.Query(
                model=offer.name, order=order.to_dict(), store=str(self.store.folder), job_id=job_id,
                attention=attention or self.settings.options.attention,
                branches=None if branches is None else str(branches),
                goes_on=bool(goes_on),
            )  # fmt: skip
            new = uploads.resolved(query) if order.names() else resolving.resolved(query, card)
        except KandinskyError as error:
            raise self._in_words_of_the_api(error, folder, called) from None
        self.check_effort(offer, new.work)
        if new.kind != "audio" and wanted.still != (new.kind == "image"):
            raise ApiError(400, "`seconds`: 0 makes an image: ask `/v1/images/generations` for it",
                           code="invalid_value", param="seconds")  # fmt: skip
        return dataclasses.replace(
            new, owner=owner.name, priority=priority, max_attempts=self.settings.attempts,
            parent=None if wanted.parent is None else wanted.parent.id,
        )  # fmt: skip

    def _in_words_of_the_api(self, error: KandinskyError, job: Path, called: Mapping[str, str]) -> ApiError:
        """An error of the library, without paths of this machine, and with the field it is about if that is clear."""
        answer = told(error)
        for name, file in called.items():
            answer.message = answer.message.replace(f"`{job / name}`", f"`{file}`")
        for place in filter(None, (self.store.folder, self.settings.branch_folder)):
            answer.message = answer.message.replace(f"{place}/", "").replace(str(place), "")
        first = answer.message.replace("`", " ").replace("=", " ").split()
        answer.param = next((word for word in first if word in _SAID & {*hints_of(Request), "size"}), None)
        return answer

    def _offer(self, name: str | None, wanted: Wanted) -> Offer:
        if name is None and wanted.parent is not None:
            name = wanted.parent.model
        if name is not None:
            offer = self.offers.find(name)
        else:
            needs = condition_files.whats_needed(wanted.values.get("conditions") or ())
            needs |= {"frames"} if "last_image" in wanted.files else set()
            needs |= {"source"} if "video" in wanted.files and not (wanted.sound or wanted.extend) else set()
            needs |= {"source"} if wanted.values.get("upscale") else set()  # a second stage begins from the clip
            needs |= {"control", "reference"} & wanted.files.keys()
            offer = self.offers.first(
                stills=wanted.still,
                image="image" in wanted.files,
                sound=wanted.sound,
                extends=wanted.extend,
                needs=needs,
                is_told=bool(str(wanted.values.get("prompt", "")).strip()),
            )
        makes = offer.card.does.makes
        if wanted.sound != (makes == "sound"):
            door = "`/v1/audio`" if makes == "sound" else "`/v1/videos` or `/v1/images/generations`"
            raise ApiError(400, f"`{offer.name}` makes {makes}: ask {door} for it", code="unsupported", param="model")
        if wanted.still and not offer.makes_stills:
            raise ApiError(400, f"`{offer.name}` makes no images", code="unsupported", param="model")
        if not wanted.still and makes == "image":
            raise ApiError(400, f"`{offer.name}` makes images: ask `/v1/images/generations` for it",
                           code="unsupported", param="model")  # fmt: skip
        if wanted.extend and not offer.extends:
            raise ApiError(400, f"`{offer.name}` does not continue clips: use another model of `/v1/models`",
                           code="unsupported", param="model")  # fmt: skip
        return offer

    def _usual_form(self, offer: Offer, wanted: Wanted) -> str:
        return "png" if wanted.still else "mp4"

    def _sound(self, offer: Offer, asked: bool, wanted: Wanted) -> str:
        if not asked:
            return ""
        name = offer.card.sounds_with
        if wanted.still or offer.card.does.makes != "video" or name not in self.offers.all:
            raise ApiError(400, f"`sound`: this server has no model that generates audio for `{offer.name}`",
                           code="unsupported", param="sound")  # fmt: skip
        return name

    def _derived(
        self, parent: JobRecord, values: dict[str, Any], folder: Path, names: dict[str, str]
    ) -> tuple[dict[str, Any], str]:
        """The values of another job, with some replaced, and the part of a clip that it continues; files are copied."""
        order = Order.from_dict(parent.order)
        replaced = ("model", "expanded_prompt", *(("conditions",) if "conditions" in values else ()), *names)
        kept = {key: value for key, value in order.request.items() if key not in replaced}
        before = "" if "before" in names else order.before
        for name in dataclasses.replace(order, request=kept, before=before).names():
            source = job_files.path_of(self.store.folder, parent.id, name)
            if not source.is_file():
                raise ApiError(404, f"the files of `{parent.id}` are gone", code="not_found")
            folder.mkdir(mode=0o700, exist_ok=True)
            shutil.copyfile(source, folder / name)
        for key in INPUTS:
            if kept.get(key) is not None:
                names.setdefault(key, kept.pop(key))
        if before:
            names["before"] = before
        if "size" in values:
            kept.pop("width", None), kept.pop("height", None)
        return {**kept, **values}, order.overlap if before else ""

    def _check_branches(self, offer: Offer, values: Mapping[str, Any], names: Mapping[str, str]) -> None:
        """Refuse what nothing follows: the library would ask for a file, and here a name is given.

        Raises:
            ApiError: A control or a reference is given, and neither does the request name a branch nor has the model
                one of its own.
        """
        conditions, named = values.get("conditions") or (), set(values.get("branch") or ())
        fitting = self.offers.branches(offer)
        if not named <= {name for names_of in fitting.values() for name in names_of}:
            return  # the library says what is wrong with it
        for kind in ("control", "reference"):
            is_open = kind in names or any(kind in one and one.get("branch") is None for one in conditions)
            known = fitting.get(kind, [])
            if not is_open or named & set(known) or self.offers.has_own_branch(offer, kind):
                continue
            told = f"name one as `branch`: {', '.join(f'`{one}`' for one in known)}" if known else "leave it out"
            has = "none of its own" if known else "none on this server"
            raise ApiError(400, f"a {kind} is followed by a {kind} branch, and `{offer.name}` has {has}: {told}",
                           code="unsupported", param="branch" if known else kind)  # fmt: skip

    # -- files -------------------------------------------------------------------------------------------------------

    def _files(
        self, owner: Owner, wanted: Wanted, folder: Path, offer: Offer, called: dict[str, str]
    ) -> dict[str, str]:
        """Read what was uploaded; returns names of files by field."""
        names: dict[str, str] = {}
        task = offer.card.does
        changes = "source" in task.knows and not wanted.still
        takes = {
            "image": (task.image != "none" or ("first frame" in task.knows and not wanted.still)) and not wanted.extend,
            "last_image": "frames" in task.knows and not wanted.still,
            "mask": task.mask or changes,
            "video": task.video or wanted.extend or changes,
            **{kind: kind in offer.takes and not wanted.still for kind in ("control", "reference")},
        }
        for name, given in wanted.files.items():
            if name.startswith(condition_files.NAMED):
                continue
            if not takes[name]:
                raise _not_taken(offer, name, name)
            target = folder / INPUTS[name]
            way: uploads.Way = "masks" if name == "mask" and not task.mask else _WAYS[name]
            told = self._file(owner, name, given, target, way)
            if way in ("masks", "clip") and "frames" in told:  # its ending says that it is an image
                target = target.rename(target.with_suffix(""))
            names[name] = target.name
            called[target.name] = name
        if wanted.extend and (wanted.parent is None or "video" in names):  # of a remix, the parent's clip is continued
            if "video" not in names:
                raise ApiError(400, "`video` is missing: give the clip that is to be continued", code="missing",
                               param="video")  # fmt: skip
            names["before"] = names.pop("video")
            if "frames" not in task.knows:  # such a model continues from the last frame alone
                (folder / LAST_FRAME).rename(folder / INPUTS["image"])
                names["image"] = INPUTS["image"]
        return names

    def _conditions(
        self, owner: Owner, values: list[Any], wanted: Wanted, folder: Path, called: dict[str, str]
    ) -> list[dict[str, Any]]:
        """Read what conditions name; returns them as the job keeps them."""
        known: dict[str, str] = {}

        def take(reference: Any, way: uploads.Way) -> str:
            key = json.dumps([way, reference], sort_keys=True, default=str)
            if key not in known:
                if len(known) >= condition_files.MOST_FILES:
                    raise ApiError(400, f"`conditions`: at most {condition_files.MOST_FILES} different files are read",
                                   code="invalid_value", param="conditions")  # fmt: skip
                given = wanted.files.get(f"{condition_files.NAMED}{reference}", reference)
                target = folder / f"input-{len(known) + 1}"
                told = self._file(owner, "conditions", given, target, way)
                if "frames" not in told:
                    target = target.rename(target.with_suffix(".png"))
                known[key] = target.name
                called[target.name] = condition_files.name_of(reference)
            return known[key]

        return condition_files.kept(values, take)

    def _file(
        self, owner: Owner, name: str, given: Upload | Mapping[str, Any] | str, target: Path, way: uploads.Way
    ) -> dict[str, Any]:
        """Read one file; returns facts about it."""
        wrong = ApiError(400, f"`{name}`: give a file, the `id` of a finished job, or a `data:` URL",
                         code="invalid_value", param=name)  # fmt: skip
        if isinstance(given, Mapping):
            known = given.get("id") or given.get("file_id")
            url = given.get("image_url") or given.get("url")
            if isinstance(known, str) and len(given) == 1:
                given = self._of_job(owner, name, known, way)
            elif isinstance(url, str) and len(given) == 1:
                given = url
            else:
                raise wrong
        if isinstance(given, str):
            if job_files.ID.fullmatch(given):
                given = self._of_job(owner, name, given, way)
            elif given.lower().startswith(("http:", "https:")) and self.settings.fetch_hosts:
                most = self.settings.upload_bytes
                given = fetching.fetch(given, hosts=self.settings.fetch_hosts, most=most, param=name)
            elif name == "conditions" and "://" not in given[:12] and not given.startswith("data:"):
                raise ApiError(400, f"`conditions`: there is no file `{given[:60]}`: name a file field of the form, a "
                               "finished job, or a `data:` URL", code="invalid_value", param=name)  # fmt: skip
            else:
                given = uploads.of_data_url(given, param=name)
        if isinstance(given, Mapping | list | int | float | bool | None):
            raise wrong
        return uploads.read(way, given, target, param=name)

    def _of_job(self, owner: Owner, name: str, job_id: str, way: uploads.Way) -> bytes:
        """The bytes of another job's result."""
        job = self.store.get(job_id, owner=owner.name) if job_files.ID.fullmatch(job_id) else None
        gone = ApiError(404, f"`{name}`: there is no finished job `{job_id[:60]}`", code="not_found", param=name)
        if job is None or job.result is None or "file" not in job.result:
            raise gone
        file = job.result["file"]
        if way in ("image", "mask") and not str(job.result.get("media_type", "")).startswith("image/"):
            file = job.result.get("thumbnail", file)
        try:
            return job_files.path_of(self.store.folder, job.id, file).read_bytes()
        except OSError:
            raise gone from None


def _size(given: dict[str, Any]) -> tuple[int | None, int | None]:
    size, width, height = given.pop("size", None), given.pop("width", None), given.pop("height", None)
    if size is None or size.strip() == "auto":
        return width, height
    if width is not None or height is not None:
        raise RequestError("give either `size` or `width` and `height`, not both")
    return parse_size(size)


def _not_taken(offer: Offer, what: str, field: str) -> ApiError:
    """A model is not given something, and the one that its card names for it."""
    other = instead_of(offer.card) if field != "image" else ""
    told = f"`{offer.name}` takes no {what}: leave it out" + (f", or use {other}" if other else "")
    return ApiError(400, told, code="unsupported", param=field)


def _refused(error: NoRoom) -> ApiError:
    """A limit of the store as the API tells it."""
    if error.limit == "storage":
        return ApiError(403, str(error), code="storage_full")
    code = {"waiting": "queue_full", "active": "too_many_jobs"}[error.limit]
    return ApiError(429, str(error), code=code, retry_after_s=WAIT_S)


def _hash(wanted: Wanted) -> str:
    """A digest of what is wanted, to tell a repetition from another request."""
    digest = hashlib.sha256()
    facts = [wanted.values, wanted.still, wanted.sound, wanted.extend, wanted.form, wanted.index]
    facts.append(wanted.parent and wanted.parent.id)
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, given in sorted(wanted.files.items()):
        digest.update(name.encode())
        if isinstance(given, bytes):
            digest.update(given)
        elif isinstance(given, str | Mapping):
            digest.update(json.dumps(given, sort_keys=True, default=str).encode())
        else:
            given.seek(0)
            while chunk := given.read(uploads.CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
