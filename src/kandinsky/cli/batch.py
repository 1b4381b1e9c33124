"""`kandinsky generate --prompts FILE`: many results, on this machine or on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kandinsky.cli import notes
from kandinsky.cli.streams import emit, emit_json, in_flags, say
from kandinsky.errors import RequestError
from kandinsky.printing import counted, shortened, speaking_of

if TYPE_CHECKING:
    from kandinsky.diffusion.sample import OnStep
    from kandinsky.engine.request import Job
    from kandinsky.jobs.batch import Item, Loading, Outcome, Runner, Summary


def summary_path(prompts: Path) -> Path:
    """Where the summary of a batch lies by default: in the current folder, as the results do."""
    return Path(f"{'stdin' if str(prompts) == '-' else prompts.stem}.summary.jsonl")


def run_batch(
    items: list[Item],
    settled: list[Outcome],
    loading: Loading,
    *,
    summary: Path,
    ray: str | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
    store: str | None = None,
    is_first: bool = True,
    paths: bool = True,
) -> None:
    """Make what does not exist yet and report each result; of several processes only the first reports.

    Args:
        items: Results to generate.
        settled: Outcomes known already.
        loading: Which model, and how it is loaded.
        summary: File of the summary.
        ray: Address of a Ray cluster; None for this machine.
        workers: Number of workers on the cluster.
        as_json: Print a JSON object per entry.
        quiet: Print errors only.
        store: Where the batch is listed, see ``jobs/listing.py``.
        is_first: Whether this is the first process.
        paths: Print the path of each result on stdout.

    Raises:
        typer.Exit: Some results failed; the exit code is 1.
        KeyboardInterrupt: The batch was interrupted; the message says what is left to do.
    """
    from kandinsky.cli.progress import hush_libraries
    from kandinsky.engine.latent_names import latent_path
    from kandinsky.files import sweep
    from kandinsky.jobs.batch import LocalRunner, Summary, settle
    from kandinsky.jobs.listing import listed

    hush_libraries()
    if not is_first:
        for _ in LocalRunner(loading).run(items):
            pass
        return
    begun = time.monotonic()
    for folder in {summary.parent, *(item.target.parent for item in items)}:
        sweep(folder)  # what a killed run left
    record = Summary(summary, items)
    for outcome in settled:
        record.add(outcome)
    total = len(record.outcomes)
    with record, listed(items, loading.source.name, store) as listing:
        for outcome in sorted(settled, key=lambda outcome: outcome.number):
            _tell(outcome, None, total, as_json=as_json, quiet=quiet, paths=paths)
        begin = None if listing is None else listing.begin
        runner = _runner(loading, total, ray=ray, workers=workers, quiet=quiet, begin=begin)
        with _counting(record, total, is_on=ray is not None and not quiet) as moved:
            try:
                for item, result, attempts in runner.run(items):
                    outcome = settle(item, result, attempts)
                    record.add(outcome)
                    if listing is not None:
                        listing.settle(outcome)
                    moved()
                    _tell(outcome, item.job, total, as_json=as_json, quiet=quiet, paths=paths)
            except KeyboardInterrupt as error:
                kept = [path for item in items if (path := latent_path(item.target)).exists()]
                raise KeyboardInterrupt(record.progress(kept)) from error
    counts = record.counts()
    if as_json:
        taken_s = round(time.monotonic() - begun, 3)
        emit_json({"summary": counts, "file": str(summary), "taken_s": taken_s})
    failed = counts.get("failed", 0)
    if failed or not quiet:
        words = {"done": "made", "skipped": "finished before", "failed": "failed"}
        told = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if status in counts)
        say(f"{counted(total, 'result')}: {told}; {summary} has a line for each")
    if failed:
        raise typer.Exit(1)


def check_ray(ray: str | None, workers: int | None, device: str | None, prompts: Path | None) -> None:
    """Refuse options that do not go together.

    Raises:
        RequestError: `--workers` without `--ray`, `--ray` without `--prompts`, or a device that Ray cannot assign.
    """
    if ray is None:
        if workers is not None:
            raise RequestError("--workers is for a Ray cluster: add --ray, such as `--ray local`")
        return
    if prompts is None:
        raise RequestError("--ray is for many prompts: give them with --prompts FILE")
    if device not in (None, "auto", "cpu", "cuda"):
        raise RequestError(f"device `{device}` is not supported with --ray: use `cpu` or `cuda`, one GPU per worker")


def _runner(
    loading: Loading,
    total: int,
    *,
    ray: str | None,
    workers: int | None,
    quiet: bool,
    begin: Callable[[Item], None] | None = None,
) -> Runner:
    from kandinsky.cli.progress import patient
    from kandinsky.jobs.batch import LocalRunner

    if ray is not None:
        from kandinsky.jobs.ray_runner import RayRunner

        gpus = {"cpu": False, "cuda": True}.get(str(loading.options.device or ""))
        return RayRunner(loading, ray, workers, gpus, tell=(lambda _line: None) if quiet else say)

    @contextmanager
    def watch(item: Item | None) -> Iterator[OnStep | None]:
        if item is not None and begin is not None:
            begin(item)
        title = "loading" if item is None else f"{item.number}/{total} {item.job.prompt}"
        about = "" if item is None else f"{item.number}/{total} `{shortened(item.job.prompt)}`"
        with speaking_of(about), patient(title, quiet=quiet) as on_step:
            yield on_step

    return LocalRunner(loading, watch)


@contextmanager
def _counting(record: Summary, total: int, *, is_on: bool) -> Iterator[Callable[[], None]]:
    """A bar over all results, for runners that show no steps; the value is called when one has moved."""
    from kandinsky.cli.progress import counted

    if not is_on:
        yield lambda: None
        return
    with counted("results") as tell:

        def moved() -> None:
            tell(total - record.count("waiting"), total)

        moved()
        yield moved


def _tell(outcome: Outcome, job: Job | None, total: int, *, as_json: bool, quiet: bool, paths: bool) -> None:
    """Print on stdout the path of the result, or one JSON object per entry; the rest on stderr.

    The job is that of a result that was made just now.
    """
    place, named = f"{outcome.number}/{total}", f"`{shortened(outcome.prompt)}`"
    if outcome.error is not None:
        say(f"error: {place}, line {outcome.line} {named}: {in_flags(outcome.error)}")
        if outcome.hint:
            say(f"hint: {in_flags(outcome.hint)}")
    elif not quiet:
        if outcome.status == "skipped":
            say(f"{place} {named}: finished before, seed {outcome.seed}")
        else:
            where = f", {outcome.worker}" if outcome.worker else ""
            frames = counted(int(outcome.recipe.get("frames") or 0), "frame")
            told = f"seed {outcome.seed}, {frames}, {outcome.taken_s:.1f} s{where}"
            for note in () if job is None else [*notes.before(job), *notes.after(job, outcome.recipe)]:
                say(f"{place} {named}: {note}")
            say(f"{place} {named}: {told}")
    if as_json:
        emit_json({**outcome.record(), "recipe": dict(outcome.recipe) or None})
    elif paths and outcome.path is not None:
        emit(outcome.path)
