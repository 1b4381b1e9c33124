"""Data sets of latents and text embeddings, made once by a model's own encoders, so that training needs neither.

Work goes on where it stopped: each Parquet file is written beside and renamed, and then noted in the journal. What
files hold follows from the source alone, so a run that was killed and begun again leaves the same bytes as one that was
not. Examples that are new or changed are encoded into further files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kandinsky import catalogue
from kandinsky.engine.build import build
from kandinsky.engine.context import Context
from kandinsky.engine.lesson import Lesson
from kandinsky.engine.options import RunOptions
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.files import check_writable, local_path, replacing, sweep
from kandinsky.model.card import Card, Source
from kandinsky.model.lazy import Lazy
from kandinsky.model.task import TrainingExamples
from kandinsky.model.values import TextEmbeddings
from kandinsky.printing import escaped
from kandinsky.runtime.placement import networks
from kandinsky.train import pairs
from kandinsky.train.checkpoint import locked
from kandinsky.train.data import dataset
from kandinsky.train.data.arrow import arrow
from kandinsky.train.data.captions import Caption
from kandinsky.train.data.clips import Bucket, Cutting, cut
from kandinsky.train.data.dataset import CLIPS, JOURNAL, LATENT, MANIFEST, TEXTS, packed
from kandinsky.train.data.prefetch import prefetched
from kandinsky.train.data.sources import Captions, Example, Fault, Faults, find
from kandinsky.weights.untrusted import parse_table

log = logging.getLogger(__name__)
SHARD_MB = 64
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of a source.

    Attributes:
        folder: The data set.
        clips: It holds so many of them.
        texts: And embeddings of so many captions, the empty one included.
        added: Clips that this run encoded.
        skipped: Examples that were left out, and why.
    """

    folder: Path
    clips: int
    texts: int
    added: int
    skipped: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images of one caption, as an example: the one that is made, and the one that is given."""

    first: Example
    second: Example

    @property
    def name(self) -> str:
        """Of the first."""
        return self.first.name

    @property
    def captions(self) -> tuple[Caption, ...]:
        """Of the first."""
        return self.first.captions

    def digest(self) -> str:
        """A hash of both. Raises: RequestError where a file cannot be read."""
        return hashlib.sha256(f"{self.first.digest()} {self.second.digest()}".encode()).hexdigest()[:32]


class Encoding(Protocol):
    """How examples of a task become tensors; ``cut`` runs in other processes, so it can be pickled."""

    @property
    def has_own_texts(self) -> bool:
        """Whether the text encoder sees an example beside its caption."""
        ...

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of a clip's tensors; ``latent`` [1, T, H, W, C] among them."""
        ...

    @property
    def encoders(self) -> tuple[str, ...]:
        """Components that make them."""
        ...

    def settings(self) -> dict[str, Any]:
        """What decides the numbers, besides the encoders."""
        ...

    def cut(self, example: Any) -> Mapping[str, np.ndarray]:
        """Decode an example. Raises: RequestError for one that cannot be used."""
        ...

    def size(self, made: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
        """Width, height and pixel frames of what was decoded."""
        ...

    def encode(self, context: Context, made: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The tensors of what was decoded."""
        ...

    def text(
        self, context: Context, caption: str, *, still: bool, shown: Mapping[str, np.ndarray] | None = None
    ) -> TextEmbeddings:
        """Embeddings of a caption, beside the example where ``has_own_texts``."""
        ...


@dataclass(frozen=True, slots=True)
class ClipEncoding:
    """Clips and images as latents of the autoencoder, captions as embeddings of the text encoder."""

    cutting: Cutting
    lesson: Lazy[Lesson] | None = None
    has_own_texts: bool = False

    @property
    def tensors(self) -> tuple[str, ...]:
        """The latent, and what else the model's network is told."""
        return (LATENT,) if self.lesson is None else self.lesson().tensors

    @property
    def encoders(self) -> tuple[str, ...]:
        """Networks that make them."""
        return ("vae",) if self.lesson is None else self.lesson().encoders

    def settings(self) -> dict[str, Any]:
        """Sizes and lengths."""
        return asdict(self.cutting)

    def cut(self, example: Example) -> dict[str, np.ndarray]:
        """Frames, [T, H, W, 3] uint8."""
        return {"frames": cut(example, self.cutting)}

    def size(self, made: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
        """Of the frames."""
        T, H, W, _ = made["frames"].shape
        return W, H, T

    def encode(self, context: Context, made: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The latent, [1, T, H, W, C], and what else the lesson says."""
        if self.lesson is not None:
            return self.lesson().encode(context, made["frames"])
        unit = torch.from_numpy(made["frames"])[None].float() / 127.5 - 1.0
        with context.placement.hold("vae") as vae:
            return {LATENT: vae.encode(unit.to(context.placement.device("vae")))}

    def text(
        self, context: Context, caption: str, *, still: bool, shown: Mapping[str, np.ndarray] | None = None
    ) -> TextEmbeddings:
        """Of the text encoder, asked as in generation."""
        with context.placement.hold("text") as encoder:
            made: TextEmbeddings = encoder.encode([caption], still=still)
            return made


@dataclass(frozen=True, slots=True)
class PairEncoding:
    """Pairs of images, both cut to the size that the first one gets; the text encoder sees them beside the caption."""

    cutting: Cutting
    lesson: Lazy[Lesson]
    has_own_texts: bool = True

    @property
    def tensors(self) -> tuple[str, ...]:
        """What the lesson makes of a pair."""
        return self.lesson().tensors

    @property
    def encoders(self) -> tuple[str, ...]:
        """Networks that make them."""
        return self.lesson().encoders

    def settings(self) -> dict[str, Any]:
        """Sizes."""
        return asdict(self.cutting)

    def cut(self, example: Pair) -> dict[str, np.ndarray]:
        """Both images, [1, H, W, 3] uint8."""
        first = cut(example.first, self.cutting)[:1]
        size = Cutting((Bucket(first.shape[2], first.shape[1]),), self.cutting.fps, self.cutting.step, (1,))
        return {"first": first, "second": cut(example.second, size, enlarge=True)[:1]}

    def size(self, made: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
        """Of the first image."""
        T, H, W, _ = made["first"].shape
        return W, H, T

    def encode(self, context: Context, made: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The lesson's tensors."""
        return self.lesson().encode(context, made["first"], made["second"])

    def text(
        self, context: Context, caption: str, *, still: bool, shown: Mapping[str, np.ndarray] | None = None
    ) -> TextEmbeddings:
        """The lesson's embeddings, beside the images."""
        assert shown is not None
        return self.lesson().text(context, caption, shown["first"], shown["second"])


@dataclass(frozen=True, slots=True)
class TaskEncoding:
    """Examples of a task that says itself how they are encoded."""

    card: Card
    seconds: float | None
    encoders: tuple[str, ...] = ("vae",)
    has_own_texts: bool = False

    def __post_init__(self) -> None:
        """Refuse a length that is none. Raises: RequestError."""
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise RequestError(f"`{self.seconds}` seconds are not supported by `{self.card.id}`: use a number above 0")

    @property
    def examples(self) -> TrainingExamples:
        """What the task says."""
        assert self.card.does.examples is not None
        return self.card.does.examples()

    @property
    def tensors(self) -> tuple[str, ...]:
        """Those of the task."""
        return self.examples.tensors

    def settings(self) -> dict[str, Any]:
        """The length, and what sound means to the model."""
        return {"seconds": self.seconds, "sound": asdict(self.card.sound) if self.card.sound else None}

    def cut(self, example: Example) -> Mapping[str, np.ndarray]:
        """As the task decodes it."""
        with example.decoded() as path:
            return self.examples.cut(path, self.card, self.seconds)

    def size(self, made: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
        """Of the frames that are shown to the encoder."""
        T, H, W, _ = made["frames"].shape
        return W, H, T

    def encode(self, context: Context, made: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The task's tensors."""
        return self.examples.encode(context, made)

    def text(
        self, context: Context, caption: str, *, still: bool, shown: Mapping[str, np.ndarray] | None = None
    ) -> TextEmbeddings:
        """The task's embeddings; nothing is still here."""
        return self.examples.text(context, caption)


def encode(
    source: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    sizes: Sequence[str] = (),
    seconds: Sequence[float] = (),
    workers: int = 0,
    captions: Captions = "required",
    faults: Faults = "refuse",
    store: str | None = None,
    shard_mb: int = SHARD_MB,
    seed: int = 0,
    options: RunOptions | None = None,
    on_progress: OnProgress | None = None,
) -> Encoded:
    """Encode a source into a data set; one that was begun is gone on with.

    Args:
        source: See ``sources``.
        model: Catalogue id, or a folder with a model, whose encoders are used.
        out: Folder of the data set.
        sizes: Buckets, such as `512x768` or `512x768:0.3`; all sizes of the model where there are none.
        seconds: Lengths of clips. One: up to so long; several: the longest that a file covers. The model's own where
            there are none.
        workers: Processes that decode; 0 = this one.
        captions: Whether an example may have none.
        faults: Whether examples whose caption or name cannot be used refuse the whole, or are skipped. Files that
            cannot be decoded are always skipped.
        store: Type of the numbers in the files, `float32`, `float16` or `bfloat16`; that of the encoders where None.
        shard_mb: A file is finished when it has so many megabytes.
        seed: Of the draws among sizes.
        options: How the encoders are run.
        on_progress: Called with examples done and their number.

    Raises:
        RequestError: The source or the model cannot be used, the folder holds other data, or nothing is left of the
            source.
        WeightsError: Weights are missing or broken.
        BackendError: A device or package is not there.
    """
    arrow()
    if store is not None and store not in STORED:
        raise RequestError(f"`store` must be one of {', '.join(STORED)}, not `{escaped(store)}`")
    if isinstance(shard_mb, bool) or not isinstance(shard_mb, int) or shard_mb < 1:
        raise RequestError(f"`shard_mb` must be a whole number from 1 on, not `{escaped(shard_mb)}`")
    options = options or RunOptions()
    found = catalogue.source_of(model, weights=options.weights)
    encoding = encoding_of(found.card, sizes, seconds, seed=seed)
    examples: Sequence[Example | Pair]
    refused: Sequence[Fault] = ()
    if isinstance(encoding, PairEncoding):
        files = pairs.find(str(source), encoding.lesson().pairs)
        examples = [Pair(*both) for both in zip(files[::2], files[1::2], strict=True)]
    else:
        examples = there = find(source, captions=captions, faults=faults)
        refused = there.faults
    folder = local_path(out, "data set")
    check_writable(folder)
    with locked(folder):
        run = _Run(folder, found, encoding, store, shard_mb << 20, workers, options)
        return run(examples, refused, on_progress or (lambda done, total: None))


def encoding_of(card: Card, sizes: Sequence[str], seconds: Sequence[float], *, seed: int = 0) -> Encoding:
    """How a model's examples are encoded.

    Raises:
        RequestError: The model does not support a size or length, or its examples are not clips with captions.
    """
    lesson = card.does.lessons.get("dit")
    if lesson is not None and lesson().pairs:
        return PairEncoding(Cutting.of(card, sizes, seconds, seed=seed), lesson)
    if card.does.examples is not None:
        if sizes or len(seconds) > 1:
            raise RequestError(f"`{card.id}` takes videos of any size and one length at most: leave sizes out")
        return TaskEncoding(card, seconds[0] if seconds else None)
    return ClipEncoding(Cutting.of(card, sizes, seconds, seed=seed), lesson)


@dataclass
class _Run:
    """One run over a data set."""

    folder: Path
    source: Source
    encoding: Encoding
    store: str | None
    shard_bytes: int
    workers: int
    options: RunOptions
    digests: dict[str, str] = field(default_factory=dict)
    owners: dict[str, tuple[str, tuple[str, str]]] = field(default_factory=dict)  # of texts of one example alone

    def __call__(self, examples: Sequence[Example | Pair], refused: Sequence[Fault], tell: OnProgress) -> Encoded:
        sweep(self.folder)
        journal = _Journal(self.folder / JOURNAL)
        before = self._check_settings(journal)
        skipped = list(refused)
        here: dict[tuple[str, str], Example | Pair] = {}
        for example in examples:
            try:
                here[example.name, example.digest()] = example
            except RequestError as error:
                skipped.append(Fault(example.name, str(error)))
        known = {*journal.done, *journal.skipped}
        todo = {key: example for key, example in here.items() if key not in known}
        wanted = self._texts_of(key for key in journal.done if key in here)
        if before.get("complete") and not todo and set(wanted) <= set(journal.texts):
            self._finish(journal, here, skipped)
            return self._summary(journal, here, skipped, 0)
        encoders = [name for name in self.encoding.encoders if name in self.source.card.components]
        context = build(
            self.source.card,
            replace(self.options, only=("text", *encoders), offload=self.options.offload or "module"),
            root=self.source.root,
            name=self.source.name,
        )
        for part in ("text", "vae"):
            with context.placement.hold(part) as held:
                self.digests[part] = dataset.digest_of(networks(held))
        if before:
            dataset.check_encoders(before, self.folder, self.source.card, self.digests)
        dataset.write_manifest(self.folder, self._manifest(journal, here, skipped, complete=False))
        added = len(journal.done)
        with torch.no_grad():
            self._encode_clips(context, journal, todo, tell)
            self._encode_texts(context, journal, here)
        if not any(key in here for key in journal.done):
            gone = [*skipped, *(Fault(*one) for key, one in journal.skipped.items() if key in here)]
            raise RequestError(f"nothing is left of the source: {gone[0].reason}" + _more(len(gone) - 1))
        self._finish(journal, here, skipped)
        return self._summary(journal, here, skipped, len(journal.done) - added)

    def _encode_clips(
        self, context: Context, journal: _Journal, todo: Mapping[tuple[str, str], Example | Pair], tell: OnProgress
    ) -> None:
        rows, held = list[dict[str, Any]](), 0
        skipped = list[tuple[str, str, str]]()
        schema = dataset.clip_schema(self.encoding.tensors)

        def finish() -> None:
            nonlocal rows, held, skipped
            entry: dict[str, Any] = {"kind": CLIPS, "file": None}
            if rows:
                entry |= self._write(journal, CLIPS, rows, schema)
            entry["done"] = [[row["name"], row["digest"]] for row in rows]
            entry["skipped"] = skipped
            if rows or skipped:
                journal.add(entry)
            rows, held, skipped = [], 0, []

        work = prefetched(partial(_decoded, self.encoding), todo.values(), workers=self.workers)
        with closing(work):
            for number, ((name, digest), example) in enumerate(todo.items(), 1):
                made = next(work)
                if not isinstance(made, Fault):
                    tensors = {key: self._stored(x) for key, x in self.encoding.encode(context, made).items()}
                    if bad := [key for key, x in tensors.items() if not bool(torch.isfinite(x).all())]:
                        made = Fault(name, f"`{escaped(name)}`: its {bad[0]} holds NaN or infinite numbers")
                if isinstance(made, Fault):
                    log.info("skipped: %s", made.reason)
                    skipped.append((name, digest, made.reason))
                else:
                    width, height, frames = self.encoding.size(made)
                    row: dict[str, Any] = {
                        "name": name, "digest": digest, "width": width, "height": height, "frames": frames,
                        "fps": self.source.card.clip.fps, "captions": [asdict(one) for one in example.captions],
                    }  # fmt: skip
                    for key, tensor in tensors.items():
                        row |= packed(key, tensor)
                    rows.append(row)
                    held += dataset.size_of(row)
                if held >= self.shard_bytes:
                    finish()
                tell(number, len(todo))
        finish()

    def _encode_texts(
        self, context: Context, journal: _Journal, here: Mapping[tuple[str, str], Example | Pair]
    ) -> None:
        wanted = self._texts_of(key for key in journal.done if key in here)
        todo = [one for one in wanted if one not in journal.texts]
        schema = dataset.text_schema()
        rows, held = list[dict[str, Any]](), 0
        shown: tuple[tuple[str, str] | None, Mapping[str, np.ndarray] | None] = None, None
        for number, (text, still) in enumerate(todo, 1):
            caption, owner = self.owners.get(text, (text, None))
            if owner is not None and owner != shown[0]:
                shown = owner, self.encoding.cut(here[owner])
            made = self.encoding.text(context, caption, still=still, shown=shown[1])
            tensors = {
                "tokens": self._stored(made.tokens_BLC), "pooled": self._stored(made.pooled_BC), "mask": made.mask_BL
            }  # fmt: skip
            for key in ("tokens", "pooled"):
                if not bool(torch.isfinite(tensors[key]).all()):  # type: ignore[arg-type]
                    raise KandinskyError(
                        f"the embeddings of the caption `{escaped(text[:60])}` hold NaN or infinite numbers: "
                        "use the type bfloat16 or float32"
                    )
            row: dict[str, Any] = {"text": text, "still": still}
            for key, tensor in tensors.items():
                row |= packed(key, tensor)
            rows.append(row)
            held += dataset.size_of(row)
            if held >= self.shard_bytes or number == len(todo):
                entry = {"kind": TEXTS, **self._write(journal, TEXTS, rows, schema)}
                entry["done"] = [[row["text"], row["still"]] for row in rows]
                journal.add(entry)
                rows, held = [], 0

    def _texts_of(self, keys: Iterable[tuple[str, str]]) -> list[tuple[str, bool]]:
        """Captions of encoded clips, with the empty prompt, in order of their first clip."""
        wanted: dict[tuple[str, bool], None] = {}
        chosen = set(keys)
        for entry in _Journal(self.folder / JOURNAL).files(CLIPS):
            for row in _captions(self.folder / entry["file"]):
                if (row["name"], row["digest"]) in chosen:
                    still, texts = row["frames"] == 1, ["", *(one["text"] for one in row["captions"])]
                    if self.encoding.has_own_texts:
                        own = {dataset.own_text(row["name"], row["digest"], text): text for text in texts}
                        self.owners |= {name: (text, (row["name"], row["digest"])) for name, text in own.items()}
                        texts = list(own)
                    wanted |= dict.fromkeys((text, still) for text in texts)
        return list(wanted)

    def _write(self, journal: _Journal, kind: str, rows: Sequence[Mapping[str, Any]], schema: Any) -> dict[str, Any]:
        name = f"{kind}-{len(journal.files(kind)):05d}.parquet"
        size = dataset.write_rows(self.folder / name, rows, schema)
        return {"file": name, "rows": len(rows), "bytes": size}

    def _stored(self, x: Tensor) -> Tensor:
        return x.to("cpu", STORED[self.store] if self.store else x.dtype)

    def _settings(self) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(
            json.dumps({**self.encoding.settings(), "store": self.store, "shard_bytes": self.shard_bytes})
        )
        return made

    def _check_settings(self, journal: _Journal) -> dict[str, Any]:
        """What the folder's manifest says; empty for a new folder.

        Raises:
            RequestError: The folder holds something else, or a data set made in another way.
        """
        if not (self.folder / MANIFEST).is_file():
            others = [path.name for path in self.folder.iterdir() if path.name not in (JOURNAL, ".lock")]
            if others or journal.entries:
                raise RequestError(
                    f"`{escaped(self.folder)}` holds `{escaped((others or [JOURNAL])[0])}` and no data set: name a new "
                    "or an empty folder"
                )
            return {}
        manifest = dataset.read_manifest(self.folder)
        dataset.check_encoders(manifest, self.folder, self.source.card)
        was, now = manifest.get("settings", {}), self._settings()
        if was != now:
            key = next(key for key in {**was, **now} if was.get(key) != now.get(key))
            raise RequestError(
                f"data set `{escaped(self.folder)}` was begun with `{escaped(key)}` {escaped(was.get(key))}, not "
                f"{escaped(now.get(key))}: name another folder, or encode it in the same way"
            )
        for kind in (CLIPS, TEXTS):
            for entry in journal.files(kind):
                if not (self.folder / entry["file"]).is_file():
                    raise RequestError(
                        f"data set `{escaped(self.folder)}` lacks `{escaped(entry['file'])}`, which was encoded: "
                        "fetch the file again, or remove the data set and encode it anew"
                    )
        return manifest

    def _manifest(
        self,
        journal: _Journal,
        here: Mapping[tuple[str, str], Example | Pair],
        refused: Sequence[Fault],
        *,
        complete: bool,
    ) -> dict[str, Any]:
        encoders = dataset.encoders_of(self.source.card)
        for part, digest in self.digests.items():
            encoders[part]["digest"] = digest
        clip = self.source.card.clip
        return {
            "format": dataset.FORMAT,
            "complete": complete,
            "model": self.source.name,
            "task": self.source.card.task,
            "fps": clip.fps,
            "temporal": clip.temporal,
            "spatial": clip.spatial,
            "channels": clip.channels,
            "tensors": list(self.encoding.tensors),
            **({"own_texts": True} if self.encoding.has_own_texts else {}),
            "encoders": encoders,
            "settings": self._settings(),
            "files": {
                kind: [{key: entry[key] for key in ("file", "rows", "bytes")} for entry in journal.files(kind)]
                for kind in (CLIPS, TEXTS)
            },
            "stale": [list(key) for key in journal.done if key not in here],
            "skipped": [asdict(fault) for fault in self._all_skipped(journal, here, refused)],
        }

    def _finish(
        self, journal: _Journal, here: Mapping[tuple[str, str], Example | Pair], refused: Sequence[Fault]
    ) -> None:
        if not self.digests:  # nothing was loaded: what was written stays true
            encoders = dataset.read_manifest(self.folder)["encoders"]
            self.digests = {part: entry["digest"] for part, entry in encoders.items()}
        dataset.write_manifest(self.folder, self._manifest(journal, here, refused, complete=True))

    def _all_skipped(
        self, journal: _Journal, here: Mapping[tuple[str, str], Example | Pair], refused: Sequence[Fault]
    ) -> tuple[Fault, ...]:
        return (*refused, *(Fault(*one) for key, one in journal.skipped.items() if key in here))

    def _summary(
        self, journal: _Journal, here: Mapping[tuple[str, str], Example | Pair], refused: Sequence[Fault], added: int
    ) -> Encoded:
        clips = sum(key in here for key in journal.done)
        return Encoded(self.folder, clips, len(journal.texts), added, self._all_skipped(journal, here, refused))


class _Journal:
    """What has been encoded, one line a file; a line that was cut off counts as not written.

    Raises:
        RequestError: Another line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self.done: dict[tuple[str, str], None] = {}
        self.skipped: dict[tuple[str, str], tuple[str, str]] = {}
        self.texts: dict[tuple[str, bool], None] = {}
        if not path.is_file():
            return
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            for line in whole.splitlines():
                self._take(parse_table(line, path))
        except (KandinskyError, KeyError, TypeError, ValueError) as error:
            raise RequestError(
                f"`{escaped(path)}` is damaged: remove the data set `{escaped(path.parent)}` and encode it anew"
            ) from error
        if whole != data:
            with replacing(path) as part:
                part.write_bytes(whole)

    def files(self, kind: str) -> list[dict[str, Any]]:
        """Entries of files of a kind."""
        return [entry for entry in self.entries if entry["kind"] == kind and entry["file"] is not None]

    def add(self, entry: dict[str, Any]) -> None:
        """Note a file that is in its place."""
        with self.path.open("ab") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        if entry["kind"] == TEXTS:
            self.texts |= {(text, bool(still)): None for text, still in entry["done"]}
        else:
            self.done |= {(str(name), str(digest)): None for name, digest in entry["done"]}
            self.skipped |= {(name, digest): (name, reason) for name, digest, reason in entry["skipped"]}
        entry["file"]
        self.entries.append(entry)


def _decoded(encoding: Encoding, example: Example | Pair) -> Mapping[str, np.ndarray] | Fault:
    """What an example is, or why it is left out; for workers."""
    try:
        return encoding.cut(example)
    except RequestError as error:
        return Fault(example.name, str(error))


def _captions(path: Path) -> list[dict[str, Any]]:
    _, parquet = arrow()
    rows: list[dict[str, Any]] = parquet.read_table(path, columns=["name", "digest", "frames", "captions"]).to_pylist()
    return rows


def _more(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""
