"""Where training clips come from: a folder, a table of files and captions, a list of files, WebDataset shards.

A source is a sequence of examples. Its index holds names and captions; pixels are decoded when they are asked for.

| given | examples |
|---|---|
| a folder | its images and videos, captions beside them: `a.mp4`, `a.txt`, `a.ru.txt`, `a.en.short.txt` |
| a folder with `metadata.jsonl` or `metadata.csv`, or such a file | rows: `file_name`, `caption`, `text_ru`, … |
| a `.txt` file | the files it names, one a line, captions beside them |
| a `.tar` file, a folder of them, or `clips-{000..099}.tar` | WebDataset: `panda.mp4`, `panda.txt`, `panda.json`, … |

Names in tables, lists and shards come from others: they must be plain paths below the folder they lie in. Nothing in
a shard is ever unpacked under its own name.

Legend: T H W frames, rows, columns of pixels.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal, overload

import numpy as np

from kandinsky.errors import RequestError
from kandinsky.files import local_path
from kandinsky.printing import escaped
from kandinsky.train.data.captions import Caption

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v")
ENDINGS = (*VIDEOS, *IMAGES)
Captions = Literal["required", "optional"]
Faults = Literal["refuse", "skip"]
_SAMPLE = 4096  # bytes of a file that are looked at in each of three places


@dataclass(frozen=True, slots=True)
class Example:
    """One image or video, and what it shows; nothing of it is decoded yet.

    Attributes:
        name: Unique in its source.
        path: The file, or the shard it lies in.
        bytes: Its size.
        captions: None of them where captions are optional.
        offset: Where it begins in its shard; None for a file of its own.
    """

    name: str
    path: Path
    bytes: int
    captions: tuple[Caption, ...] = ()
    offset: int | None = None

    @property
    def caption(self) -> str:
        """The first caption; empty where there is none."""
        return self.captions[0].text if self.captions else ""

    @property
    def ending(self) -> str:
        """Of its name, in small letters; of a file of its own that file's, since the name may be an address."""
        return Path(self.name if self.offset is not None else self.path.name).suffix.lower()

    def digest(self) -> str:
        """A hash of its name, its captions, its size and a sample of its bytes.

        Raises:
            RequestError: The file cannot be read.
        """
        found = hashlib.sha256(repr((self.name, self.bytes, self.captions)).encode("utf-8", "backslashreplace"))
        with _reading(self.path) as file:
            for start in (0, self.bytes // 2, max(0, self.bytes - _SAMPLE)):
                file.seek((self.offset or 0) + start)
                found.update(file.read(min(_SAMPLE, self.bytes - start)))
        return found.hexdigest()[:32]

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """A file of this example alone, for the length of a `with` block; of a shard a nameless copy.

        Raises:
            RequestError: The shard cannot be read, or ends before the example does.
        """
        if self.offset is None:
            yield self.path
            return
        with _reading(self.path) as shard, tempfile.NamedTemporaryFile(suffix=self.ending) as copy:
            shard.seek(self.offset)
            left = self.bytes
            while left and (piece := shard.read(min(left, 1 << 20))):
                copy.write(piece)
                left -= len(piece)
            if left:
                raise RequestError(f"shard `{escaped(self.path)}` ends within `{escaped(self.name)}`")
            copy.flush()
            yield Path(copy.name)

    @contextmanager
    def decoded(self) -> Iterator[Path]:
        """``opened``, for decoding: errors name the example, also where the file is a copy out of a shard.

        Raises:
            RequestError: As ``opened``, or of the block; also where memory does not suffice.
        """
        with self.opened() as path:
            try:
                yield path
            except RequestError as error:
                if self.offset is None:
                    raise
                raise RequestError(str(error).replace(str(path), escaped(self.name)), hint=error.hint) from error
            except MemoryError as error:
                raise RequestError(f"`{escaped(self.name)}` does not fit in memory") from error


@dataclass(frozen=True, slots=True)
class Fault:
    """An example that is left out.

    Attributes:
        name: As its source calls it.
        reason: One line.
    """

    name: str
    reason: str


class Source(Sequence[Example]):
    """Examples in a fixed order.

    Args:
        examples: With names that differ.
        faults: What was left out.
    """

    def __init__(self, examples: Sequence[Example], faults: Sequence[Fault] = ()) -> None:
        self._examples, self.faults = tuple(examples), tuple(faults)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self._examples[index]

    def __len__(self) -> int:
        return len(self._examples)


def find(name: str | Path, *, captions: Captions = "required", faults: Faults = "refuse") -> Source:
    """Open a source; only names and captions are read.

    Args:
        name: See the top of this module.
        captions: Whether an example may have none; it then is one of the empty prompt.
        faults: What becomes of examples that cannot be used, such as one whose caption is not UTF-8: the whole source
            is refused, or they are left out and told in ``Source.faults``.

    Raises:
        RequestError: The source does not exist, cannot be read or holds no example; or an example has a fault, and
            faults are refused.
    """
    from kandinsky.train.data import folders, shards

    for what, given, allowed in (
        ("captions", captions, ("required", "optional")),
        ("faults", faults, ("refuse", "skip")),
    ):
        if given not in allowed:
            raise RequestError(f"`{what}` must be `{allowed[0]}` or `{allowed[1]}`, not `{escaped(given)}`")
    path = local_path(name, "data folder")
    needs = captions == "required"
    if shards.is_shards(path):
        examples, found = shards.read(shards.files(path), needs_captions=needs)
    else:
        examples, found = folders.read(path, needs_captions=needs)
    if found and faults == "refuse":
        more = f" (and {len(found) - 1} more faults)" if len(found) > 1 else ""
        raise RequestError(found[0].reason + more, hint="repair it, or have faulty examples skipped")
    if not examples:
        reason = f": {found[0].reason}" if found else f": {', '.join(ENDINGS)} are read"
        raise RequestError(f"data folder `{escaped(name)}` holds no images or videos that can be used{reason}")
    return Source(examples, found)


def fingerprint(examples: Sequence[Example]) -> str:
    """A hash of all examples: what a training must find unchanged when it goes on."""
    return hashlib.sha256("\n".join(one.digest() for one in examples).encode()).hexdigest()[:16]


def frames(example: Example, *, width: int, height: int, fps: float, step: int, most: int) -> np.ndarray:
    """The clip of an example, scaled and cut to a size, at a frame rate.

    Args:
        example: Of ``find``.
        width: In pixels.
        height: In pixels.
        fps: Frames a second that the model makes.
        step: A clip has 1 + a multiple of so many frames.
        most: Frames at most; later ones are left out.

    Returns:
        [T, H, W, 3], uint8. One frame of an image, and of a video too short for more.

    Raises:
        RequestError: The file cannot be read.
    """
    from kandinsky.train.data.clips import Bucket, Cutting, cut

    return cut(example, Cutting((Bucket(width, height),), fps, step, (most,)), enlarge=True)


@contextmanager
def _reading(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise RequestError(f"`{escaped(path)}` cannot be read: {error.strerror or error}") from error
