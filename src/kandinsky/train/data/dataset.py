"""Encoded data sets: a folder of Parquet files with the latents of clips and the embeddings of their captions.

| file | what it holds |
|---|---|
| `dataset.json` | the manifest: the model's encoders, how clips were cut, the files, what was left out |
| `clips-00000.parquet`, … | one row a clip: name, size, captions, and its tensors |
| `texts-00000.parquet`, … | one row a caption: the text, and the embeddings of it |
| `journal.jsonl` | what has been encoded so far; of no interest to readers |

A tensor `x` is three columns: `x` its bytes as they lie in memory (little-endian, row by row), `x_shape`, `x_dtype`.
Any reader of Parquet can read them; nothing in the files can run.

Legend: T H W C latent frames, rows, columns, channels.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kandinsky.errors import KandinskyError, RequestError
from kandinsky.files import inside, local_path, replacing
from kandinsky.model.card import Card, Component
from kandinsky.model.values import TextEmbeddings
from kandinsky.printing import escaped
from kandinsky.train.data.arrow import arrow
from kandinsky.train.data.captions import Caption
from kandinsky.weights.untrusted import first_line, read_table

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMAT = 1
MANIFEST, JOURNAL = "dataset.json", "journal.jsonl"
CLIPS, TEXTS = "clips", "texts"
LATENT = "latent"
GROUP_BYTES = 256 << 10  # of tensors that are read together
_OPEN_FILES = 32
_TYPES = {str(one).removeprefix("torch."): one for one in (torch.float32, torch.float16, torch.bfloat16, torch.bool)}
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One clip of a data set, without its tensors.

    Attributes:
        name: Of the example it was cut from.
        width: In pixels.
        height: In pixels.
        frames: Pixel frames; 1 for an image.
        captions: What it shows.
        shape: Of its latent, (T, H, W, C).
        others: Shapes of its further tensors, by name.
        digest: Of the example.
    """

    name: str
    width: int
    height: int
    frames: int
    captions: tuple[Caption, ...]
    shape: Shape
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    digest: str = ""


class EncodedDataset(Sequence[ClipRow]):
    """A data set that `kandinsky data encode` made: rows at once, tensors when they are asked for.

    It can be sent to other processes, which open the files themselves.

    Args:
        folder: The data set.

    Raises:
        RequestError: The folder holds no data set, encoding has not ended, or a file is missing, cut or damaged.
        BackendError: `pyarrow` is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = local_path(folder, "data set")
        self.manifest = read_manifest(self.folder)
        if not self.manifest.get("complete"):
            raise RequestError(
                f"data set `{escaped(self.folder)}` is not complete: encoding was stopped",
                hint="run the same `kandinsky data encode` again: it goes on where it stopped",
            )
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._groups: dict[str, list[int]] = {}
        self.rows: list[ClipRow] = []
        self._places: list[tuple[str, int]] = []
        self._texts: dict[tuple[str, bool], tuple[str, int]] = {}
        stale = set(map(tuple, self.manifest.get("stale", ())))
        for file in self._listed(CLIPS):
            columns = ["name", "digest", "width", "height", "frames", "captions"]
            columns += [f"{name}_shape" for name in self.manifest["tensors"]]
            for number, row in enumerate(self._table(file, columns)):
                if (row["name"], row["digest"]) not in stale:
                    self.rows.append(self._row(file, row))
                    self._places.append((file, number))
        for file in self._listed(TEXTS):
            for number, row in enumerate(self._table(file, ["text", "still"])):
                self._texts[row["text"], row["still"]] = (file, number)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    @property
    def shapes(self) -> list[Shape]:
        """Of the latents of all clips, for plans."""
        return [row.shape for row in self.rows]

    @property
    def fingerprint(self) -> str:
        """A hash of what the manifest says."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:32]

    def load(self, index: int) -> dict[str, Tensor]:
        """The tensors of a clip: `latent` [1, T, H, W, C], and further ones of models of sound.

        Raises:
            RequestError: The file is damaged, or a number is NaN or infinite.
        """
        file, number = self._places[index]
        names = self.manifest["tensors"]
        row = self._read(file, number, [column for name in names for column in _columns(name)])
        return {name: self._tensor(row, name, file, self.rows[index].name) for name in names}

    def text(self, text: str, *, still: bool) -> TextEmbeddings:
        """The embeddings of a caption, of the empty prompt for an empty one, [1, L, C].

        Args:
            text: A caption of this data set.
            still: Whether it is of an image.

        Raises:
            RequestError: It is none of this data set's, or the file is damaged.
        """
        try:
            file, number = self._texts[text, still]
        except KeyError:
            raise RequestError(
                f"data set `{escaped(self.folder)}` has no embeddings of the caption `{escaped(text[:60])}`"
            ) from None
        row = self._read(file, number, [column for name in TEXT_TENSORS for column in _columns(name)])
        tokens, pooled = (self._tensor(row, name, file, text[:60]) for name in ("tokens", "pooled"))
        mask = None if row["mask"] is None else self._tensor(row, "mask", file, text[:60])
        return TextEmbeddings(tokens, pooled, mask)

    @property
    def has_own_texts(self) -> bool:
        """Whether embeddings belong to an example, since the text encoder saw it."""
        return bool(self.manifest.get("own_texts"))

    def text_of(self, index: int, text: str) -> TextEmbeddings:
        """The embeddings of a caption of an example, of the empty prompt for an empty one. See ``text``."""
        row = self.rows[index]
        key = own_text(row.name, row.digest, text) if self.has_own_texts else text
        return self.text(key, still=row.frames == 1)

    def check_model(self, card: Card, digests: Mapping[str, str] | None = None) -> None:
        """Refuse the data of another model's encoders.

        Args:
            card: The model to be trained.
            digests: Of encoders that are loaded, see ``digest_of``.

        Raises:
            RequestError: Latents or embeddings were made by other encoders.
        """
        check_encoders(self.manifest, self.folder, card, digests)

    def verify(self) -> None:
        """Read every tensor.

        Raises:
            RequestError: A file is damaged, or a number is NaN or infinite; named.
        """
        for index in range(len(self)):
            self.load(index)
        for text, still in self._texts:
            self.text(text, still=still)

    def _listed(self, kind: str) -> Iterator[str]:
        for entry in self.manifest["files"].get(kind, ()):
            path = inside(self.folder, entry["file"])
            try:
                size = path.stat().st_size
            except OSError as error:
                raise self._damaged(entry["file"], error.strerror or str(error)) from error
            if size != entry["bytes"]:
                raise self._damaged(entry["file"], f"it has {size} bytes, and {entry['bytes']} were written")
            with self._reading(entry["file"]):
                if self._file(entry["file"]).metadata.num_rows != entry["rows"]:
                    raise self._damaged(entry["file"], f"it has not the {entry['rows']} rows that were written")
            yield entry["file"]

    def _file(self, name: str) -> pq.ParquetFile:
        if name not in self._files:
            _, parquet = arrow()
            self._files[name] = parquet.ParquetFile(
                self.folder / name, memory_map=False, page_checksum_verification=True
            )
            meta = self._files[name].metadata
            self._groups[name] = list(accumulate(meta.row_group(i).num_rows for i in range(meta.num_row_groups)))
            while len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(name)
        return self._files[name]

    def _table(self, file: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        with self._reading(file):
            rows: list[dict[str, Any]] = self._file(file).read(list(columns)).to_pylist()
            if rows and set(rows[0]) != set(columns):
                raise self._damaged(file, f"it lacks columns of {', '.join(columns)}")
            return rows

    def _read(self, file: str, number: int, columns: Sequence[str]) -> dict[str, Any]:
        with self._reading(file):
            parquet = self._file(file)
            ends = self._groups[file]
            group = bisect_right(ends, number)
            table = parquet.read_row_group(group, list(columns))
            row: dict[str, Any] = table.slice(number - (ends[group - 1] if group else 0), 1).to_pylist()[0]
            return row

    def _row(self, file: str, row: Mapping[str, Any]) -> ClipRow:
        with self._reading(file):
            captions = tuple(Caption(one["text"], one["language"], one["length"]) for one in row["captions"])
            T, H, W, C = row[f"{LATENT}_shape"][-4:]
            others = {name: tuple(row[f"{name}_shape"]) for name in self.manifest["tensors"] if name != LATENT}
            return ClipRow(
                row["name"], row["width"], row["height"], row["frames"], captions, (T, H, W, C), others, row["digest"]
            )

    def _tensor(self, row: Mapping[str, Any], name: str, file: str, what: str) -> Tensor:
        with self._reading(file):
            tensor = unpacked(row, name)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise self._damaged(file, f"`{escaped(name)}` of `{escaped(what)}` holds NaN or infinite numbers")
        return tensor

    @contextmanager
    def _reading(self, file: str) -> Iterator[None]:
        """Whatever the contents of a file make its reader raise, in one line."""
        try:
            yield
        except (KandinskyError, MemoryError):
            raise
        except Exception as error:
            raise self._damaged(file, first_line(error)) from error

    def _damaged(self, file: str, why: str) -> RequestError:
        return RequestError(
            f"data set file `{escaped(self.folder / file)}` is damaged: {why}",
            hint="remove the data set and encode it again, or fetch this file again",
        )


# -- manifest ----------------------------------------------------------------------------------------------------------


def own_text(name: str, digest: str, text: str) -> str:
    """What a caption of an example is stored under, where its embeddings are of no other."""
    return f"{name}\n{digest}\n{text}"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a data set.

    Raises:
        RequestError: There is none, it is damaged, or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise RequestError(
            f"`{escaped(folder)}` is no encoded data set: it has no `{MANIFEST}`",
            hint="make one with `kandinsky data encode SOURCE -m MODEL -o DATASET`",
        )
    try:
        values = read_table(path)
    except KandinskyError as error:
        raise RequestError(str(error)) from error
    if values.get("format") != FORMAT:
        raise RequestError(f"`{escaped(path)}` has the format {escaped(values.get('format'))}: only {FORMAT} is known")
    files = values.get("files")
    is_whole = (
        isinstance(files, dict)
        and all(
            isinstance(entries, list)
            and all(
                isinstance(e, dict)
                and isinstance(e.get("file"), str)
                and all(isinstance(e.get(key), int) for key in ("rows", "bytes"))
                for e in entries
            )
            for entries in files.values()
        )
        and _is_texts(values.get("tensors"))
        and LATENT in values["tensors"]
        and isinstance(stale := values.get("stale", []), list)
        and all(_is_texts(one) and len(one) == 2 for one in stale)
        and isinstance(values.get("encoders"), dict)
    )
    if not is_whole:
        raise RequestError(f"`{escaped(path)}` is no manifest of an encoded data set: fetch it again")
    return values


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Replace the manifest."""
    with replacing(folder / MANIFEST) as part:
        part.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def encoders_of(card: Card) -> dict[str, dict[str, Any]]:
    """What decides a model's latents and embeddings, as its card says it."""

    def told(component: Component) -> dict[str, Any]:
        return {"kind": component.kind, "params": dict(component.params)}

    # through JSON, so that it equals what a manifest holds
    found: dict[str, dict[str, Any]] = json.loads(
        json.dumps({"text": told(card.text), "vae": told(card.vae)}, sort_keys=True, default=str)
    )
    return found


def check_encoders(
    manifest: Mapping[str, Any], folder: Path, card: Card, digests: Mapping[str, str] | None = None
) -> None:
    """Refuse a data set of other encoders than a model's.

    Raises:
        RequestError: Naming the model it was made with.
    """
    names = {"text": "text encoder", "vae": "autoencoder"}
    for part, entry in encoders_of(card).items():
        known = manifest["encoders"].get(part, {})
        is_other = {key: known.get(key) for key in entry} != entry
        if digests and part in digests and known.get("digest"):
            is_other = is_other or known["digest"] != digests[part]
        if is_other:
            raise RequestError(
                f"data set `{escaped(folder)}` was encoded by `{escaped(manifest.get('model'))}`, and `{card.id}` has "
                f"another {names[part]}: encode the data with `{card.id}` into another folder"
            )


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


# -- tensors and rows --------------------------------------------------------------------------------------------------

TEXT_TENSORS = ("tokens", "pooled", "mask")


def packed(name: str, tensor: Tensor | None) -> dict[str, Any]:
    """The three columns of a tensor; empty ones of None."""
    if tensor is None:
        return dict.fromkeys(_columns(name))
    data = tensor.detach().cpu().contiguous()
    return {
        name: data.reshape(-1).view(torch.uint8).numpy().tobytes(),
        f"{name}_shape": list(data.shape),
        f"{name}_dtype": str(data.dtype).removeprefix("torch."),
    }


def unpacked(row: Mapping[str, Any], name: str) -> Tensor:
    """The inverse of ``packed``.

    Raises:
        ValueError: Bytes, shape and type do not fit together.
    """
    data, shape, kind = (row[column] for column in _columns(name))
    if data is None or shape is None or kind not in _TYPES or any(side is None or side < 0 for side in shape):
        raise ValueError(f"tensor `{name}` has no bytes, shape or known type")
    count = 1
    for side in shape:
        count *= side
    if count * _TYPES[kind].itemsize != len(data):
        raise ValueError(f"tensor `{name}` of shape {list(shape)} and type {kind} has {len(data)} bytes")
    if not count:
        return torch.empty(shape, dtype=_TYPES[kind])
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(_TYPES[kind]).reshape(shape)


def clip_schema(tensors: Iterable[str]) -> pa.Schema:
    """Columns of a file of clips."""
    pyarrow, _ = arrow()
    text = pyarrow.string()
    caption = pyarrow.struct([("text", text), ("language", text), ("length", text)])
    number = pyarrow.int32()
    fields = [
        ("name", text), ("digest", text), ("width", number), ("height", number), ("frames", number),
        ("fps", pyarrow.float64()), ("captions", pyarrow.list_(caption)),
    ]  # fmt: skip
    return pyarrow.schema([*fields, *_tensor_fields(tensors)])


def text_schema() -> pa.Schema:
    """Columns of a file of captions."""
    pyarrow, _ = arrow()
    return pyarrow.schema([("text", pyarrow.string()), ("still", pyarrow.bool_()), *_tensor_fields(TEXT_TENSORS)])


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> int:
    """Write a Parquet file, whole or not at all. Equal rows make equal bytes.

    Returns:
        Its size in bytes.
    """
    pyarrow, parquet = arrow()
    blobs = [f.name for f in schema if pyarrow.types.is_large_binary(f.type)]
    others = [f.name for f in schema if f.name not in blobs]
    with replacing(path) as part:
        with parquet.ParquetWriter(
            part,
            schema,
            compression={**dict.fromkeys(blobs, "NONE"), **dict.fromkeys(others, "ZSTD")},
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer:
            group: list[Mapping[str, Any]] = []
            held = 0
            for row in rows:
                group.append(row)
                held += sum(len(row[name] or b"") for name in blobs)
                if held >= GROUP_BYTES:
                    writer.write_table(pyarrow.Table.from_pylist(group, schema))
                    group, held = [], 0
            if group:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
        return part.stat().st_size


def size_of(row: Mapping[str, Any]) -> int:
    """Bytes of a row's tensors."""
    return sum(len(value) for value in row.values() if isinstance(value, bytes))


def digest_of(nets: Iterable[torch.nn.Module]) -> str:
    """A hash of networks that is the same in any layout of their files, and in bfloat16 and float32 alike."""
    found = hashlib.sha256()
    for net in nets:
        for name, tensor in net.state_dict().items():
            sample = tensor.detach().reshape(-1)[:64].to("cpu", torch.float32).to(torch.bfloat16)
            found.update(f"{name} {list(tensor.shape)}".encode())
            found.update(sample.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def _columns(name: str) -> tuple[str, str, str]:
    return name, f"{name}_shape", f"{name}_dtype"


def _tensor_fields(names: Iterable[str]) -> list[tuple[str, Any]]:
    pyarrow, _ = arrow()
    kinds = (pyarrow.large_binary(), pyarrow.list_(pyarrow.int32()), pyarrow.string())
    return [field for name in names for field in zip(_columns(name), kinds, strict=True)]
