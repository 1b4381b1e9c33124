"""``kandinsky evaluate ID``: the model's own measures, by its task and data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kandinsky import catalogue
from kandinsky.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

    from kandinsky.engine.pipeline import GenerationPipeline
    from kandinsky.lab.nano.measure import NanoJudge
    from kandinsky.lab.nano2.evaluate import Measured
    from kandinsky.model.card import Card

Case = TypeVar("Case")
FAMILY = "nano"
CACHE = Path(".cache/nano")


def evaluated() -> tuple[str, ...]:
    """Ids of the models that there are measures for: they show emoji, so there is a right clip of each."""
    return tuple(card.id for card in catalogue.all_cards() if card.family.name == FAMILY)


@dataclass
class Session:
    """What every measure works with.

    Args:
        asked: Further fields of every request, such as ``steps``.
        shown: Gathers a clip of every batch for the contact sheet.
    """

    pipe: GenerationPipeline
    cache: Path
    per_group: int | None
    groups: tuple[str, ...] | None
    batch: int
    seed: int
    asked: dict[str, Any]
    on_batch: Callable[[int, int], None] | None
    shown: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0
    made: int = 0

    @property
    def side(self) -> int:
        """Of the model's clips, in pixels."""
        from kandinsky.engine.request import parse_size

        return parse_size(self.pipe.card.clip.default_size)[1]

    @cached_property
    def judge(self) -> NanoJudge:
        """The real clips. Raises: RequestError where there are none."""
        from kandinsky.lab.nano.concepts import load_concepts
        from kandinsky.lab.nano.emoji import open_clips
        from kandinsky.lab.nano.measure import NanoJudge

        return NanoJudge(open_clips(self.cache), load_concepts(), side=self.side)

    def chosen(self, groups: dict[str, list[Case]]) -> dict[str, list[Case]]:
        """The groups asked for. Raises: RequestError for one that is not there."""
        for name in self.groups or ():
            if name not in groups:
                raise RequestError(f"there is no group `{name}`: use {', '.join(f'`{one}`' for one in groups)}")
        return {name: cases for name, cases in groups.items() if self.groups is None or name in self.groups}

    def make(self, prompts: Sequence[str], seeds: Sequence[int], **more: Sequence[Any]) -> np.ndarray:
        """Clips [M, T, H, W, 3] of one batch; ``more``: further request fields, one value a clip."""
        import numpy as np

        from kandinsky.model.values import Request

        began = time.monotonic()
        requests = [
            Request(
                self.pipe.card.id, text, seed=seed, **{name: values[i] for name, values in more.items()}
            ).with_values(**self.asked)
            for i, (text, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        videos = self.pipe.run_batch([self.pipe.resolve(request) for request in requests])
        self.seconds += time.monotonic() - began
        self.made += len(videos)
        self.shown.append(videos[0].frames_THWC)
        return np.stack([video.frames_THWC for video in videos])


def evaluate(
    model: str,
    *,
    cache: Path | str | None = None,
    prompts: int | None = None,
    groups: Sequence[str] | None = None,
    batch: int = 16,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    dtype: str | None = None,
    sheet: Path | str | None = None,
    branches: Sequence[str] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a model on requests it was never trained with.

    Args:   cache: where ``kandinsky data nano`` put the real clips; None = ``CACHE``, or none for a model that can be
            measured without them.   prompts: number a group; None = all, and of scenes 48 plain ones and 16 of every
            other kind. Of a model of sound: of all groups together.
            groups: only these, such as `plain`; None = all.
            steps, guidance: in place of the model's own.
            dtype: compute type, as ``load`` takes it; the autoencoder is measured in float32 whatever it is.
            sheet: write a contact sheet of clips from all groups there.
            branches: measure how branches are followed instead: those of these files, or the model's own.
    Returns: ``groups`` (figures by group; which ones depends on the task); for text to video also ``words``, and of all
            groups ``autoencoder`` and ``seconds_cold`` (one clip through the command line, start-up included);
            ``seconds_a_clip`` (in batches), ``settings``.
    Raises: RequestError for a model that has no evaluation, or where the real clips are missing.
    """
    card = catalogue.find(model)
    if card.family.name != FAMILY:
        raise RequestError(
            f"there is no evaluation for `{model}`: use {', '.join(f'`{name}`' for name in evaluated())}"
        )
    if branches is not None and (card.task != "text-to-video" or card.roll is not None or not _has_judge(card)):
        raise RequestError(f"`{model}` is not measured with branches: use `nano-t2v`")
    asked = {name: value for name, value in (("steps", steps), ("guidance", guidance)) if value is not None}
    target = None if sheet is None else Path(sheet)
    is_world = card.roll is not None and bool(card.roll.actions)
    if asked and (card.sound is not None or is_world):
        raise RequestError(f"`{model}` is measured with its own {' and '.join(asked)}: leave what was given out")
    if card.sound is not None:
        from kandinsky.lab.nano.measure_sound import evaluate_sound

        return evaluate_sound(
            model, cache=CACHE if cache is None else Path(cache), clips=prompts, groups=groups, batch=batch, seed=seed,
            dtype=dtype, sheet=target, on_batch=on_batch,
        )  # fmt: skip
    import torch

    from kandinsky.catalogue import load

    pipe = load(model, dtype=dtype)
    chosen = None if groups is None else tuple(groups)
    folder = CACHE if cache is None else Path(cache)
    session = Session(pipe, folder, prompts, chosen, batch, seed, asked, on_batch)
    if branches is not None:
        figures = _branches(session, branches, target)
    elif not _has_judge(card):
        figures = _of_scenes(session, None if cache is None else folder)
    else:
        figures = (_world if is_world else MEASURES[card.task])(session)
    if target is not None and session.shown and branches is None:
        _sheet(session.shown, target)
    sampling = pipe.card.sampling
    settings = {
        "steps": sampling.steps if steps is None else steps,
        "guidance": sampling.guidance if guidance is None else guidance,
        "shift": sampling.shift,
        "seed": seed,
        "dtype": pipe.precision.name,
        "threads": torch.get_num_threads(),
        "size": f"{session.side}x{session.side}",
        **figures.pop("settings", {}),
    }
    seconds = session.seconds / max(session.made, 1)
    return {"model": model, **figures, "seconds_a_clip": seconds, "settings": settings}


def _has_judge(card: Card) -> bool:
    """Whether a model is compared with the real clips by ``NanoJudge``: one of scenes is not."""
    return card.sampling.condition != "scenes"


def _honest(session: Session, measured: Measured, names: Iterable[str] = (), more: int = 0) -> dict[str, Any]:
    """Figures of the measures of ``lab/nano2/measures.py``.

    Args:
        session: Its groups are looked for among the model's own and further ones.
        measured: The model.
        names: These further ones.
        more: How many clips will be made of them.
    """
    from kandinsky.lab.nano2.evaluate import Made
    from kandinsky.lab.nano2.measures import CLIPS, MEASURES, planned
    from kandinsky.lab.nano2.measures import Session as Scenes

    every: dict[str, list[None]] = {name: [] for name in (*measured.groups, *names)}
    wanted = session.chosen(every)
    groups = [name for name in measured.groups if name in wanted]
    make = Made(session.pipe, session.batch, session.seed, session.asked)
    count = session.per_group
    scenes = Scenes(make, measured.reference, measured.read, count or CLIPS, count, measured.round_trip, groups)
    task = session.pipe.card.task
    total = planned(scenes, task) + more

    def made(clips: list[np.ndarray], seconds: float) -> None:
        session.seconds += seconds
        session.made += len(clips)
        session.shown.append(clips[0])
        if session.on_batch is not None:
            session.on_batch(session.made, total)

    make.on_batch = made
    return MEASURES[task](scenes)


def _later(session: Session, more: int) -> Callable[[int, int], None]:
    """Progress of what is made after what was made so far."""
    before = session.made

    def on_batch(done: int, _: int) -> None:
        if session.on_batch is not None:
            session.on_batch(before + done, before + more)

    return on_batch


def _once(session: Session) -> dict[str, Any]:
    """What is measured of a whole model alone."""
    if session.groups is not None or session.pipe.card.task != "text-to-video":
        return {}
    return {"seconds_cold": cold_start(session.pipe.card.id)}


def _of_scenes(session: Session, data: Path | None) -> dict[str, Any]:
    from kandinsky.lab.nano2.evaluate import REFERENCES, of_scenes

    figures = _honest(session, of_scenes(session.pipe, data))
    return figures | _once(session) | {"settings": {"compared with": REFERENCES[data is not None]}}


def _text_to_video(session: Session) -> dict[str, Any]:
    from kandinsky.catalogue import load
    from kandinsky.lab.nano import measure as nano
    from kandinsky.lab.nano.as_scenes import measured

    every = nano.choose_prompts(session.per_group)
    retrieved = {name: cases for name, cases in every.items() if session.groups is None or name in session.groups}
    more = sum(map(len, retrieved.values()))
    figures = _honest(session, measured(session.pipe, session.judge), every, more)
    groups = nano.judge_groups(
        session.judge,
        session.make,
        retrieved,
        batch=session.batch,
        seed=session.seed,
        on_batch=_later(session, more),
    )
    figures["groups"] |= {name: asdict(one) for name, one in groups.items()}
    if session.groups is None:
        with load(session.pipe.card.id, dtype="float32").placement.hold("vae") as vae:
            figures["autoencoder"] = nano.judge_autoencoder(session.cache, vae, side=session.side)
    return figures | _once(session)


def _image_to_video(session: Session) -> dict[str, Any]:
    from kandinsky.lab.nano import measure_image as nano_image
    from kandinsky.lab.nano.as_scenes import measured
    from kandinsky.lab.nano.emoji import open_clips

    every = nano_image.choose_cases(session.judge, open_clips(session.cache), session.cache, session.per_group)
    compared = {name: cases for name, cases in every.items() if session.groups is None or name in session.groups}
    more = sum(map(len, compared.values()))
    figures = _honest(session, measured(session.pipe, session.judge), every, more)
    groups = nano_image.judge_images(
        lambda pictures, prompts, seeds: session.make(prompts, seeds, image=pictures),
        compared,
        batch=session.batch,
        seed=session.seed,
        on_batch=_later(session, more),
    )
    figures["groups"] |= {name: asdict(one) for name, one in groups.items()}
    return figures


def _branches(session: Session, files: Sequence[str], sheet: Path | None) -> dict[str, Any]:
    import numpy as np

    from kandinsky.lab.nano import branches as nano_branches
    from kandinsky.lab.nano.emoji import open_clips
    from kandinsky.lab.nano.splits import autoencoder_rows
    from kandinsky.weights.branch_files import CONTROL, REFERENCE, read_branch
    from kandinsky.weights.locate import locate_part

    card, clips, judge = session.pipe.card, open_clips(session.cache), session.judge
    measured: Sequence[str | Path] = files or [locate_part(part, model=card.id) for part in card.branches]
    if not measured:
        raise RequestError(f"`{card.id}` has no branches of its own: name files of branches")
    kinds = {read_branch(one).kind for one in measured}
    held = [np.asarray(clips.rgba_NTHWC[row]) for row in autoencoder_rows(session.cache)[1]]
    among = {"reference unseen": nano_branches.Candidates(held)}
    among["reference shown"] = nano_branches.Candidates(judge.rgba)
    groups = nano_branches.cases_of(judge, clips, session.cache, session.per_group)
    groups = {name: cases for name, cases in groups.items() if (REFERENCE if name in among else CONTROL) in kinds}
    figures = nano_branches.judge_branches(
        lambda prompts, seeds, told: session.make(prompts, seeds, conditions=told),
        session.chosen(groups),
        among,
        branches=[str(one) for one in files],
        batch=session.batch,
        seed=session.seed,
        sheet=sheet,
        on_batch=session.on_batch,
    )
    return {"groups": {name: asdict(one) for name, one in figures.items()}}


def _world(session: Session) -> dict[str, Any]:
    from kandinsky.lab.nano.measure_world import measure_world

    began = time.monotonic()
    groups = measure_world(
        session.pipe, session.judge, prompts=session.per_group, seed=session.seed, shown=session.shown,
        on_batch=session.on_batch,
    )  # fmt: skip
    session.seconds, session.made = time.monotonic() - began, 2 * len(session.shown)
    return {"groups": {name: asdict(groups[name]) for name in session.chosen({name: [] for name in groups})}}


# By the card's task: a session to figures.
MEASURES: dict[str, Callable[[Session], dict[str, Any]]] = {
    "text-to-video": _text_to_video,
    "image-to-video": _image_to_video,
}


def _sheet(clips: list[np.ndarray], target: Path, *, rows: int = 12, frames: int = 6) -> None:
    """Up to two columns of ``rows`` clips, evenly taken from all, each as ``frames`` frames."""
    from PIL import Image

    from kandinsky.media.sheet import GAP_PX, contact_sheet

    step = max(1, len(clips) // (2 * rows))
    strips = [contact_sheet(clip, columns=frames) for clip in clips[::step][: 2 * rows]]
    width, height = strips[0].width + GAP_PX, strips[0].height + GAP_PX
    whole = Image.new("RGB", (2 * width, -(-len(strips) // 2) * height), "white")
    for number, strip in enumerate(strips):
        whole.paste(strip, (number % 2 * width, number // 2 * height))
    whole.quantize(256).save(target, optimize=True)


def cold_start(model: str) -> float:
    """Seconds from starting the command to having a clip on disk, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kandinsky", "generate", "a panda waves on a blue background", "-m", model]
        began = time.monotonic()
        done = subprocess.run(
            [*command, "--seed", "1", "-o", str(Path(folder) / "clip.mp4"), "--quiet"],
            capture_output=True,
            text=True,
            env=os.environ.copy(),
        )
        if done.returncode:
            raise RequestError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
        return time.monotonic() - began


# Figures of a group, in the order they are printed: field, heading, format.
COLUMNS = (
    ("prompts", "number", "d"),
    ("clips", "number", "d"),
    ("edges", "edge F-score", ".3f"),
    ("edges_alone", "without the branch", ".3f"),
    ("candidates", "candidates", "d"),
    ("retrieval_1", "retrieval@1", ".1%"),
    ("retrieval_1_alone", "without the branch", ".1%"),
    ("retrieval_5", "@5", ".1%"),
    ("retrieval_5_alone", "without the branch", ".1%"),
    ("colour", "background colour", ".1%"),
    ("first_frame_db", "first frame, dB", ".1f"),
    ("nearer_than_still", "nearer to the real clip than a still", ".1%"),
    ("motion_ratio", "motion against real", ".2f"),
    ("chunks", "actions", "d"),
    ("as_told", "seen as told", ".1%"),
    ("left", "left", ".0%"),
    ("right", "right", ".0%"),
    ("jump", "jump", ".0%"),
    ("grow", "grow", ".0%"),
    ("stay", "stay", ".0%"),
    ("events", "events", "d"),
    ("onset_f1", "onset F1", ".2f"),
    ("onset_f1_other", "F1, another clip's events", ".2f"),
    ("precision", "precision", ".2f"),
    ("recall", "recall", ".2f"),
    ("timing_ms", "off by, ms", ".0f"),
    ("false_onsets", "false onsets a silent clip", ".2f"),
    ("loudness_r", "loudness r", ".2f"),
    ("pitch_r", "pitch r", ".2f"),
    ("timbre", "right timbre", ".0%"),
    ("psnr_db", "PSNR, dB", ".1f"),
    ("lowest_tenth_db", "lowest tenth", ".1f"),
    ("ssim", "SSIM", ".2f"),
    ("over_20", "20 dB and more", ".0%"),
    ("over_24", "24 dB and more", ".0%"),
    ("still_db", "a still, dB", ".1f"),
    ("floor_db", "autoencoder alone, dB", ".1f"),
    ("middle_off", "middle off by, of the side", ".2%"),
    ("size_off", "size off by", ".1%"),
    ("flicker", "flicker against the reference", ".2f"),
    ("made", "jump after frame 0", ".1f"),
    ("real", "jump of the reference", ".1f"),
    ("over_3", "jumps above 3", ".0%"),
    ("kept_db", "frame 1 against the image, dB", ".1f"),
    ("real_kept_db", "of the reference, dB", ".1f"),
    ("envelope_r", "envelope r", ".2f"),
    ("envelope_r_other", "envelope r, another clip", ".2f"),
)


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown tables, for the terminal and the model card: groups of one kind of figures in each."""
    lines: list[str] = []
    kinds: dict[tuple[tuple[str, str, str], ...], list[str]] = {}
    for name, figures in result["groups"].items():
        columns = tuple(column for column in COLUMNS if column[0] in figures)
        told = ["–" if figures[of] is None else format(figures[of], form) for of, _, form in columns]
        kinds.setdefault(columns, []).append(f"| {name} | " + " | ".join(told) + " |")
    for columns, rows in kinds.items():
        lines.append("| group | " + " | ".join(heading for _, heading, _ in columns) + " |")
        lines += ["|---" * (len(columns) + 1) + "|", *rows, ""]
    if words := result.get("words"):
        lines += ["| texts | number | right |", "|---|---|---|"]
        lines += [f"| {name} | {one['texts']} | {one['right']:.1%} |" for name, one in words.items()]
        lines.append("")
    if worst := next((one["worst"] for one in result["groups"].values() if one.get("worst")), None):
        lines.append("the farthest: " + ", ".join(f"{name} {decibels:.1f} dB" for name, decibels in worst))
    if a := result.get("autoencoder"):
        lines.append(
            f"autoencoder on {a['clips']:.0f} clips never trained on: {a['psnr_db']:.1f} dB "
            f"(worst {a['psnr_worst_db']:.1f}), block edges {a['block_edges_decoded']:.2f} "
            f"(real clips {a['block_edges_real']:.2f})"
        )
    seconds = f"seconds a clip: {result['seconds_a_clip']:.2f} in batches"
    if "seconds_cold" in result:
        seconds += f", {result['seconds_cold']:.1f} from the command line, start-up included"
    lines += [seconds, f"settings: {json.dumps(result['settings'])}"]
    return "\n".join(lines)
