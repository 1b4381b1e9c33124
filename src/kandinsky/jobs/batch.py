"""Many requests with one model: finished results are skipped, a failure does not stop the rest, a summary lists all.

Whatever computes is a ``Runner``: ``LocalRunner`` here, ``RayRunner`` in ``jobs/ray_runner.py``. Files are written
where ``settle`` is called, so a cluster needs no shared file system. Imports no torch until a pipeline is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from kandinsky.diffusion import caching
from kandinsky.engine.attention import attention_for
from kandinsky.engine.latent_names import kept_hint, latent_path, windows_hint, windows_path
from kandinsky.engine.options import RunOptions
from kandinsky.engine.request import Job, resolve
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.files import real_path, replacing
from kandinsky.jobs.names import NAME, ending_of, folder_of, has_name, made_up_name, numbered
from kandinsky.jobs.prompt_files import Row
from kandinsky.media import recipe as recipes
from kandinsky.media.video import check_sheet, check_still, check_target, frame_files, write_sheet, write_video
from kandinsky.model.card import Source
from kandinsky.model.values import Request, Video
from kandinsky.ops.attention_spec import AttentionSpec
from kandinsky.printing import escaped, speaking_of
from kandinsky.runtime import quantise
from kandinsky.runtime.devices import choose_dtype
from kandinsky.weights.locate import locate_all
from kandinsky.weights.lora_files import find_loras, parse_spec

if TYPE_CHECKING:
    from kandinsky.diffusion.sample import OnStep
    from kandinsky.engine.pipeline import GenerationPipeline

log = logging.getLogger(__name__)
SUMMARY_EVERY_S = 1.0  # a long batch must not spend its time writing its record
Status = Literal["done", "skipped", "failed", "waiting"]


@dataclass(frozen=True, slots=True)
class Loading:
    """Which model makes a batch, and how it is loaded.

    Attributes:
        source: The model.
        options: How it runs.
    """

    source: Source
    options: RunOptions = RunOptions()  # noqa: RUF009 - frozen

    def load(self) -> GenerationPipeline:
        """Load the pipeline.

        Raises:
            RequestError: An option does not suit the model.
            WeightsError: A file is missing or broken.
            BackendError: A device or package is not available.
        """
        from kandinsky.catalogue import open_model
        from kandinsky.engine.pipeline import GenerationPipeline

        pipe = open_model(self.source, self.options)
        assert isinstance(pipe, GenerationPipeline)
        return pipe

    def check_files(self) -> None:
        """Refuse to load what is not on this machine.

        Raises:
            WeightsError: A file of the model is missing.
            RequestError: A LoRA is.
        """
        find_loras(self.options.lora)
        locate_all(self.source)


@dataclass(frozen=True, slots=True)
class Item:
    """One result to generate.

    Attributes:
        number: Number of the entry, from 1, in the order of the file, including those that cannot be made.
        line: Line of the file.
        job: The resolved request.
        any_seed: Whether the seed was drawn, so that a finished file with any seed matches.
        target: File to write.
        sheet: Contact sheet to write; None for none.
    """

    number: int
    line: int
    job: Job
    any_seed: bool
    target: Path
    sheet: Path | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A result before it is written.

    Attributes:
        video: The result.
        taken_s: Seconds it took to compute.
        worker: Where it was computed, in words.
    """

    video: Video
    taken_s: float
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no result.

    Attributes:
        message: The error.
        hint: What to try.
        details: A traceback, if the error is not one of this library's own.
        worker: Where it happened, in words.
    """

    message: str
    hint: str | None = None
    details: str | None = None
    worker: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Failure:
        if isinstance(error, KandinskyError):
            return cls(str(error), error.hint)
        return cls(f"{type(error).__name__}: {error}", details="".join(traceback.format_exception(error)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry; ``record`` is its line in the summary."""

    number: int
    line: int
    prompt: str
    status: Status
    seed: int | None = None
    path: str | None = None
    sheet: str | None = None
    taken_s: float | None = None
    attempts: int = 0
    worker: str | None = None
    error: str | None = None
    hint: str | None = None
    details: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Plain values without absent ones; of the recipe, which is in the result's own file, the unused words."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "recipe"}
        values["unused_words"] = self.recipe.get("unused_words") or None
        return {name: value for name, value in values.items() if value is not None}


class Runner(Protocol):
    """Computes items in any order; each is yielded once, with the number of attempts."""

    def run(self, items: Sequence[Item]) -> Iterator[tuple[Item, Made | Failure, int]]: ...


def plan_items(
    rows: Sequence[Row],
    base: Request,
    loading: Loading,
    *,
    count: int = 1,
    output: str | None = None,
    sheet: str | None = None,
    form: str | None = None,
) -> tuple[list[Item], list[Outcome]]:
    """Check every row against the card and choose a file for each result.

    Args:
        rows: Rows of a prompt file.
        base: Values for what rows leave out.
        loading: Which model, and how it is loaded.
        count: Results per row, with consecutive seeds.
        output: A file name: `{name}` in it becomes the name derived from prompt and seed, another name gets
            numbers; or a folder for derived names. A row's own output takes precedence if it lies in that folder.
        sheet: A name for contact sheets, which get numbers.
        form: The format of files with derived names, such as `webm`.

    Returns:
        What to generate, and the rows that cannot be, as failures.

    Raises:
        KandinskyError: No row can be made; the error is that of the first.
    """
    items: list[Item] = []
    refused: list[tuple[Outcome, Exception]] = []
    owners: dict[Path, int] = {}
    total = len(rows) * count
    for index, row in enumerate(rows):
        first = 1 + index * count
        try:
            with speaking_of(f"line {row.line}"):
                jobs = jobs_of(row.request(base), loading, count)
            wanted = [_wanted(row, job, output, first + i, total, i, count) for i, job in enumerate(jobs)]
            any_seed = base.seed is None and not row.has_seed
            planned = []
            for i, (job, target) in enumerate(zip(jobs, wanted, strict=True)):
                if target is None:
                    target = _free(_made_up(output, job, any_seed, form), owners)
                elif target.absolute() in owners:
                    raise RequestError(f"output `{target}` is that of line {owners[target.absolute()]} already")
                check_still(target, job.frames)
                owners[target.absolute()] = row.line
                page = None if sheet is None else check_sheet(numbered(sheet, first + i - 1, total), target)
                planned.append(Item(first + i, row.line, job, any_seed, target, page))
        except Exception as error:  # whatever is wrong with a row is that row's failure
            told = Failure.of(error)
            failed = Outcome(first, row.line, str(row.values.get("prompt", "")), "failed", error=told.message)
            failed = dataclasses.replace(failed, hint=told.hint, details=told.details)
            refused += [(dataclasses.replace(failed, number=first + i), error) for i in range(count)]
        else:
            items += planned
    if not items:
        raise refused[0][1]
    return items, [outcome for outcome, _ in refused]


def jobs_of(request: Request, loading: Loading, count: int) -> list[Job]:
    """``count`` jobs of a request, with seeds counting up.

    Raises:
        RequestError: It does not fit the card.
        BackendError: The attention that was asked for is not there.
    """
    card = loading.source.card
    first = resolve(request, card)
    attention_for(card, first.sampling, loading.options.attention)
    with speaking_of(None):  # the copies say what the first has said
        return [first, *(resolve(request.with_values(seed=first.seed + i), card) for i in range(1, count))]


def _wanted(row: Row, job: Job, output: str | None, number: int, total: int, copy: int, copies: int) -> Path | None:
    """The file that was named; None if the name is to be derived."""
    if row.output is not None:
        return numbered(_inside(row.output, output), copy, copies)
    is_made_up = output is None or has_name(output) or folder_of(output) is not None
    return None if is_made_up else numbered(str(output), number - 1, total)


def _inside(name: str, output: str | None) -> Path:
    """A row's own name for its file, in the folder that the command line names, or the current one.

    Raises:
        RequestError: It leads out of that folder.
    """
    folder = folder_of(output) or (Path() if output is None else Path(output).parent)
    if escaped(name) != name:
        raise RequestError(f"output `{name}` holds control characters: use plain text")
    root, place = os.path.realpath(folder), "the current folder" if folder == Path() else f"`{folder}`"
    for path in (Path(name), folder / name):  # it may include the folder, or be relative to it
        real = os.path.realpath(path)
        if real == root:
            raise RequestError(f"output `{name}` is {place} itself, where this batch writes: name a file in it")
        if Path(real).is_relative_to(root):
            return path
    raise RequestError(
        f"output `{name}` lies outside of {place}, where this batch writes",
        hint='to write elsewhere, name the folder: `output="FOLDER/{name}.mp4"`',
    )


def _made_up(pattern: str | None, job: Job, any_seed: bool, form: str | None) -> Path:
    # without a random seed: the next run must find the file
    name = made_up_name(job, seed=None if any_seed else job.seed)
    if pattern is not None and has_name(pattern):
        return Path(pattern.replace(NAME, name))
    return (folder_of(pattern) or Path()) / (name + ending_of(job, form))


def _free(path: Path, owners: Mapping[Path, int]) -> Path:
    """The name, with `-2`, `-3`, … if another result has it; the same in every run of the same file."""
    free, copy = path, 1
    while free.absolute() in owners:
        copy += 1
        free = path.with_name(f"{path.stem}-{copy}{path.suffix}")
    return free


def part_finished(items: Iterable[Item], loading: Loading) -> tuple[list[Item], list[Outcome]]:
    """Separate the results still to be made from those whose file is complete, with the recipe of the same request.

    A file with another recipe, or none, is made again; a target that cannot be written is a failure.

    Args:
        items: The results.
        loading: Which model, and how it is loaded.

    Returns:
        What is still to be made, and the outcomes of the others.

    Raises:
        RequestError: No target can be written; the error is that of the first.
    """
    open_: list[Item] = []
    settled: list[Outcome] = []
    refused: list[Exception] = []
    for item in items:
        try:
            recipe = finished_recipe(item, loading)
            if recipe is None:
                check_target(item.target)
        except (KandinskyError, OSError) as error:
            told = Failure.of(error)
            settled.append(_outcome(item, "failed", error=told.message, hint=told.hint))
            refused.append(error)
            continue
        if recipe is not None:
            settled.append(_outcome(item, "skipped", recipe=recipe))
        else:
            open_.append(item)
    if refused and len(refused) == len(settled) and not open_:
        raise refused[0]
    return open_, settled


def finished_recipe(item: Item, loading: Loading) -> dict[str, Any] | None:
    """The recipe of an item's file if an earlier run finished it."""
    real_path(item.target)  # a name that no file can have
    files = frame_files(item.target, item.job.frames)
    if not all(file.exists() for file in (*files, *([item.sheet] if item.sheet else []))):
        return None
    try:
        recipe = recipes.read(files[0])
        # frames are renamed one by one: if a run was killed in between, the ends differ
        is_whole = len(files) == 1 or recipes.read(files[-1]) == recipe
    except KandinskyError:
        return None
    return dict(recipe) if is_whole and is_same_request(recipe, item, loading) else None


def is_same_request(recipe: Mapping[str, Any], item: Item, loading: Loading) -> bool:
    """Whether a recipe matches an item; device, versions, revision, and a type that was not asked for may differ."""
    job = item.job
    asked: dict[str, Any] = json.loads(recipes.to_text(job.settings() | {"model": loading.source.name}))
    left_out = {"image"}  # compared by content below
    if item.any_seed:
        left_out.add("seed")
    if job.guidance == 1:
        left_out.add("negative_prompt")  # there is no second pass to read it
    if any(recipe.get(name) != value for name, value in asked.items() if name not in left_out):
        return False
    spec = attention_for(job.card, job.sampling, loading.options.attention)
    is_cards = spec.type == "dense" and spec == AttentionSpec.from_dict(job.sampling.attention)
    pairs: list[tuple[Any, Any]] = [
        (_content(recipe.get("image")), _content(asked.get("image"))),
        ("expanded_prompt" in recipe, job.expand or job.expanded_prompt is not None),
        (caching.option_of(recipe), None if job.cache is None else str(job.cache)),
        ([(_place(lora["source"]), lora["scale"]) for lora in recipe.get("lora", ())],
         [(_place(source), scale) for source, scale in map(parse_spec, loading.options.loras)]),
        (recipe.get("quantize", {}), quantise.parse(loading.options.quantize)),
        (recipe.get("tiling"), loading.options.tiling),
        (recipe.get("attention"), None if is_cards else str(spec)),
    ]  # fmt: skip
    if loading.options.dtype not in (None, "auto"):
        pairs.append((recipe.get("dtype"), choose_dtype(str(loading.options.dtype), str(loading.options.device or ""))))
    return all(found == wanted for found, wanted in pairs)


def _content(image: Any) -> dict[str, Any] | None:
    """An image's record without the name of its file."""
    return {key: value for key, value in image.items() if key != "file"} if isinstance(image, Mapping) else None


def _place(source: str) -> str:
    return str(Path(source).expanduser().absolute())


def settle(item: Item, result: Made | Failure, attempts: int = 1) -> Outcome:
    """Write a result's files, or report why there are none; a kept latent is removed once its file is written."""
    if isinstance(result, Made):
        try:
            written = write_video(result.video, item.target)
            if item.sheet:
                write_sheet(result.video, item.sheet)
        except Exception as error:  # a full disk, or frames a format cannot hold: this result's failure alone
            failure = dataclasses.replace(Failure.of(error), worker=result.worker)
            result = _with_latent(failure, item)
        else:
            latent_path(item.target).unlink(missing_ok=True)
            shutil.rmtree(windows_path(item.target), ignore_errors=True)
            made = _outcome(item, "done", recipe=result.video.recipe, attempts=attempts)
            return dataclasses.replace(
                made, path=str(written), taken_s=round(result.taken_s, 3), worker=result.worker, seed=result.video.seed
            )
    failed = _outcome(item, "failed", error=result.message, hint=result.hint, attempts=attempts)
    return dataclasses.replace(failed, details=result.details, worker=result.worker)


def _with_latent(failure: Failure, item: Item) -> Failure:
    """The failure, with advice on the latent, or on finished windows, if some are kept."""
    latent, folder = latent_path(item.target), windows_path(item.target)
    if not (folder if item.job.long else latent).exists():
        return failure
    hint = windows_hint(folder, item.job.seed) if item.job.long else kept_hint(latent)
    return dataclasses.replace(failure, hint=f"{failure.hint}; {hint}" if failure.hint else hint)


def _outcome(item: Item, status: Status, *, recipe: Mapping[str, Any] | None = None, **values: Any) -> Outcome:
    told: dict[str, Any] = {"seed": item.job.seed, "recipe": recipe or {}}
    if status == "skipped" and recipe:
        told["seed"] = recipe["seed"]
    if status in ("done", "skipped"):
        told |= {"path": str(item.target), "sheet": str(item.sheet) if item.sheet else None}
    return Outcome(item.number, item.line, item.job.prompt, status, **told, **values)


def attempt(work: Callable[[], Video], failures: type[Exception] = Exception) -> Made | Failure:
    """Run one item's work; any error that is one of ``failures`` becomes that item's failure."""
    begun = time.monotonic()
    try:
        video = work()
    except failures as error:
        log.debug("an item failed", exc_info=True)
        return Failure.of(error)
    return Made(video, time.monotonic() - begun)


@dataclass(frozen=True)
class LocalRunner:
    """One pipeline, one item after another: in this process, or in all those that `torchrun` started.

    Several processes make the same items, each of them yields them, and the first one's results are to be written. An
    error in a request is found by all alike and fails the item; an error in only one of them ends the job, since the
    others wait for it, and the next run continues from there.

    Attributes:
        loading: How to load the pipeline; nothing is loaded without items.
        watch: A context around the loading (given None) and around each item; its value is an ``on_step``.
    """

    loading: Loading
    watch: Callable[[Item | None], AbstractContextManager[OnStep | None]] = lambda _item: nullcontext()

    def run(self, items: Sequence[Item]) -> Iterator[tuple[Item, Made | Failure, int]]:
        """Compute the items in order.

        Args:
            items: What to generate.

        Yields:
            An item, its result, and the number of attempts.

        Raises:
            KandinskyError: The pipeline cannot be loaded; raised before any item.
        """
        if not items and self.loading.options.parallel is None:
            return
        with self.watch(None):
            pipe = self.loading.load()
        failures = Exception if pipe.team.size == 1 else RequestError
        known = {item.number: item for item in items}
        # another process may not see the files that tell the first what is finished
        for item in [known[number] for number in pipe.team.agree(list(known))]:
            with self.watch(item) as on_step:
                result = attempt(lambda: self._video(pipe, item, on_step), failures)  # noqa: B023 - called at once
            yield item, _with_latent(result, item) if isinstance(result, Failure) else result, 1

    def _video(self, pipe: GenerationPipeline, item: Item, on_step: OnStep | None) -> Video:
        if item.job.long:
            return pipe.run(item.job, keep_latent=windows_path(item.target), on_step=on_step)
        latent = latent_path(item.target)
        if pipe.team.agree(pipe.team.is_first and self._came_this_far(latent, item)):
            return pipe.finish(latent)
        return pipe.run(item.job, keep_latent=latent, on_step=on_step)

    def _came_this_far(self, latent: Path, item: Item) -> bool:
        """Whether an earlier run left the latent of the same request; any other latent is removed."""
        if not latent.exists():
            return False
        from kandinsky.engine.latents import read_latent

        try:
            if is_same_request(read_latent(latent).recipe, item, self.loading):
                return True
        except KandinskyError:
            log.debug("latent `%s` is of no use", latent, exc_info=True)
        latent.unlink()
        return False


class Summary:
    """The outcomes of a batch, and a file that always holds all of them: one JSON line per entry, in the file's order.

    Entries that are not settled yet are listed as `waiting`. As a context manager, it writes the file at the end,
    however the block ends.
    """

    def __init__(self, path: Path | None, items: Iterable[Item]) -> None:
        self.path = path
        self.outcomes = {item.number: _outcome(item, "waiting") for item in items}
        self._written = float("-inf")

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.number] = outcome
        if time.monotonic() - self._written >= SUMMARY_EVERY_S:
            self.write()

    def progress(self, latents: Sequence[Path]) -> str:
        """What an interrupted batch leaves, in words; ``latents`` are those of entries that were being made."""
        finished = self.count("done") + self.count("skipped")
        told = f"{finished} of {len(self.outcomes)} results are finished; the same command makes the rest"
        if latents:
            told += f" and goes on from `{latents[0]}`"
        return told

    def count(self, status: Status) -> int:
        return sum(outcome.status == status for outcome in self.outcomes.values())

    def counts(self) -> dict[str, int]:
        """Number of entries by status, for those that occur."""
        found: dict[str, int] = {}
        for outcome in self.outcomes.values():
            found[outcome.status] = found.get(outcome.status, 0) + 1
        return found

    def write(self) -> None:
        """Write the file under a temporary name and rename it.

        Raises:
            RequestError: It cannot be written.
        """
        if self.path is None:
            return
        self._written = time.monotonic()
        lines = [json.dumps(self.outcomes[number].record(), ensure_ascii=False) for number in sorted(self.outcomes)]
        with replacing(self.path) as part:
            # what no encoding accepts becomes a JSON escape
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")

    def __enter__(self) -> Summary:
        self.write()
        return self

    def __exit__(self, *_: object) -> None:
        self.write()
