"""Download a card's files from the Hugging Face Hub: only the listed ones, resumable, verified by hash.

huggingface_hub resolves and transfers. Three things are done here because it does not do them: a partial file survives
the process (`….partial`, resumed with a range request), every file is checked against the size and hash the hub reports
before it can be used, and nothing the hub says (file names, commits, ETags, sizes) is trusted as a path or a limit.

Honours `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from kandinsky.errors import KandinskyError, RequestError, WeightsError
from kandinsky.files import inside, relative_parts, replacing
from kandinsky.model.card import UNPUBLISHED, Card, FileSet
from kandinsky.printing import escaped
from kandinsky.weights.locate import common_folder, is_repository, locate_part, not_published
from kandinsky.weights.lora_files import locate_lora, repository_parts
from kandinsky.weights.untrusted import first_line, shown

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

log = logging.getLogger(__name__)
_CHUNK = 8 << 20
PARTIAL = ".partial"
LONGEST_NAME = 255  # bytes
KEPT = "finished parts are kept, and a broken transfer goes on where it stopped"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ETAG = re.compile(r"[0-9A-Za-z_-]{1,128}")
_NO_CONNECTION = re.compile(r"Connect|Timeout|Network|Protocol|Proxy|Redirects|Read|Write")
_STALE = re.compile(r"\.([0-9a-f]{12})\.partial$")
OTHER_FORMATS = (".bin", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file that is now on this machine.

    Attributes:
        repo: The repository it belongs to.
        file: Its path inside the repository.
        path: Where it is on this machine.
        bytes: Its size.
        revision: The commit it was taken from.
        transferred: Bytes that came over the network; 0 if the file was already complete.
    """

    repo: str
    file: str
    path: Path
    bytes: int
    revision: str
    transferred: int


def download(
    card: Card,
    *,
    root: Path | None = None,
    on_file: Callable[[Fetched], None] | None = None,
) -> tuple[Fetched, ...]:
    """Download what a card lists, into the Hugging Face cache or an official `weights/` folder.

    Args:
        card: The model.
        root: Folder that gets `model/`, `vae/`, `text_encoder/` and `text_encoder2/`; the cache if omitted.
        on_file: Called after each file that is complete and verified.

    Returns:
        One entry per file; empty for a model that ships with the package.

    Raises:
        WeightsError: The hub cannot be reached, has no such file, refuses access, or sent something else; or the model
            has no published weights.
        RequestError: A file cannot be written.
    """
    for part in _parts(card):
        if part.repo == UNPUBLISHED:
            raise not_published(part, card.id)
    from huggingface_hub import constants

    done: list[Fetched] = []
    # gated parts first: a refusal should not come after many gigabytes
    for part in sorted(_parts(card), key=lambda part: not part.gated):
        if part.repo == "package" or part.is_folder:
            continue
        if constants.HF_HUB_OFFLINE:
            _offline(part, root, card.id)
            continue
        for entry in _fetch_part(part, root):
            done.append(entry)
            if on_file:
                on_file(entry)
    return tuple(done)


def download_lora(
    repo: str, *, root: Path | None = None, on_file: Callable[[Fetched], None] | None = None
) -> tuple[Fetched, ...]:
    """Download a LoRA repository: weights and configuration, in the first layout that is complete there.

    Args:
        repo: OWNER/NAME.
        root: As for ``download``.
        on_file: As for ``download``.

    Returns:
        One entry per file.

    Raises:
        WeightsError: The download failed, as for ``download``; or the repository lacks a file of a LoRA, which is
            named.
        RequestError: A file cannot be written.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        try:
            locate_lora(repo)
        except WeightsError as error:
            raise WeightsError(
                f"{error}, and HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE to fetch it"
            ) from error
        return ()
    first, *others = repository_parts(repo)
    done = _fetch_part(first, root, or_else=others)
    for entry in done:
        if on_file:
            on_file(entry)
    return tuple(done)


def verify(path: Path, *, size: int | None, sha256: str | None = None, git_sha1: str | None = None) -> str | None:
    """Check a file against the size and hash the hub reports.

    Large files are identified by their SHA-256, small ones as git objects by the SHA-1 of `blob <size>`, a NUL and the
    content.

    Args:
        path: The file.
        size: Expected size in bytes; not checked if None, and likewise for the hashes.
        sha256: Expected SHA-256.
        git_sha1: Expected git object hash.

    Returns:
        What is wrong, in words; None if everything agrees.
    """
    have = path.stat().st_size
    if size is not None and have != size:
        return f"{have} bytes where the hub reports {size}"
    if sha256 is not None:
        digest = _digest(path, hashlib.sha256())
        return None if digest == sha256 else f"SHA-256 {digest[:12]}… where the hub reports {sha256[:12]}…"
    if git_sha1 is not None:
        digest = _digest(path, hashlib.sha1(f"blob {have}\0".encode(), usedforsecurity=False))
        return None if digest == git_sha1 else f"git hash {digest[:12]}… where the hub reports {git_sha1[:12]}…"
    return None


def _parts(card: Card) -> list[FileSet]:
    return [part for component in card.components.values() for part in component.parts]


def _offline(part: FileSet, root: Path | None, model: str) -> None:
    try:
        locate_part(part, root=root, model=model)
    except WeightsError as error:
        raise WeightsError(f"{error}, and HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE to fetch it") from error
    log.info("`%s` is complete; offline, so nothing was compared with the hub", part.repo)


def _fetch_part(part: FileSet, root: Path | None, *, or_else: Sequence[FileSet] = ()) -> list[Fetched]:
    """Download the files of a part; ``or_else`` lists other layouts of the same repository to try."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if not is_repository(part.repo):
        raise RequestError(f"`{escaped(part.repo)}` cannot be a Hugging Face repository: those are OWNER/NAME")
    try:
        info = HfApi().model_info(part.repo, revision=part.revision, files_metadata=True)
        siblings = {entry.rfilename: entry for entry in info.siblings or ()}
        if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
            raise WeightsError(f"{constants.ENDPOINT} reports no commit for `{part.repo}`, but `{shown(info.sha)}`")
        part = next((one for one in (part, *or_else) if siblings.keys() >= set(one.files)), part)
        return [_fetch_file(part, siblings[name], info.sha, root) for name in _listed(part, siblings)]
    except GatedRepoError as error:
        raise WeightsError(
            f"`{part.repo}` is gated: the hub gives `{part.files[0]}` only to accounts that accepted its licence",
            hint=f"accept it at {constants.ENDPOINT}/{part.repo}, then set HF_TOKEN to a token of that account",
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"`{part.repo}` has no revision `{part.revision}` on {constants.ENDPOINT}") from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"`{part.repo}` is not on {constants.ENDPOINT}, or is private", hint="set HF_TOKEN if it is private"
        ) from error
    except KandinskyError:
        raise
    except _transfer_errors() as error:
        raise _not_fetched(part, root, error) from error
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:  # of reading the answer
        raise WeightsError(
            f"{constants.ENDPOINT} does not answer as a hub does when asked for `{part.repo}`: "
            f"{type(error).__name__}: {first_line(error)}",
            hint="HF_ENDPOINT names the hub that is asked",
        ) from error


def _not_fetched(part: FileSet, root: Path | None, error: Exception) -> WeightsError:
    """The error for a failed transfer: what is missing, why, and what helps; each once."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    gone = f"`{part.repo}` is complete on this machine"
    try:
        locate_part(part, root=root)
        then = "cannot be compared with the hub"
    except WeightsError as missing:
        gone, then = str(missing), "cannot be fetched"
    reason = f"{type(error).__name__}: {first_line(error)}"
    again = f"run the same command again: {KEPT}"
    if isinstance(error, HfHubHTTPError):
        return WeightsError(f"{gone}, and {then}: {constants.ENDPOINT} refuses ({reason})", hint=again)
    if _NO_CONNECTION.search(type(error).__name__):
        return WeightsError(
            f"{gone}, and {then}: no connection to {constants.ENDPOINT} ({reason})",
            hint=f"{again}; HF_ENDPOINT names another hub, and with HF_HUB_OFFLINE=1 only what is on this machine is "
            "used",
        )
    return WeightsError(f"{gone}, and {then}: {reason}", hint=again)


def _listed(part: FileSet, siblings: dict[str, RepoSibling]) -> list[str]:
    """The files of the repository that a card lists, all with names that stay inside a folder."""
    names: list[str] = []
    for entry in part.files:
        found = _in_folder(entry, siblings) if entry.endswith("/") else [entry][: entry in siblings]
        if not found:
            raise WeightsError(f"`{part.repo}` has no `{entry}` at revision `{part.revision}`: the card lists it")
        names.extend(found)
    for name in names:
        try:
            relative_parts(name)
        except RequestError as error:
            raise WeightsError(f"the hub's list of files of `{part.repo}` is not to be trusted: {error}") from error
    return names


def _in_folder(folder: str, siblings: dict[str, RepoSibling]) -> list[str]:
    """Files of a folder, `./` for all, without copies of its weights in formats of other frameworks."""
    names = [name for name in siblings if name.startswith(folder.removeprefix("./"))]
    if any(name.endswith(".safetensors") for name in names):
        return [name for name in names if not name.endswith(OTHER_FORMATS)]
    return names


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the hub says of a file; hashes as ``verify`` expects them."""

    size: int
    sha256: str | None
    git_sha1: str | None

    def wrong(self, path: Path) -> str | None:
        return verify(path, size=self.size, sha256=self.sha256, git_sha1=self.git_sha1)


def _fetch_file(part: FileSet, sibling: RepoSibling, commit: str, root: Path | None) -> Fetched:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    name = sibling.rfilename
    url = hf_hub_url(part.repo, name, revision=commit, endpoint=constants.ENDPOINT)
    head = get_hf_file_metadata(url)
    facts = _facts(part, sibling, head.size)
    if root is not None:
        target = _in_root(part, name, root)
        transferred = _complete(part, name, commit, target, facts, url, head.location)
        return Fetched(part.repo, name, target, target.stat().st_size, commit, transferred)
    if not head.etag or not _ETAG.fullmatch(head.etag):
        raise WeightsError(f"{constants.ENDPOINT} reports no usable ETag for `{escaped(name)}` of `{part.repo}`")
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=part.repo, repo_type="model")
    target = folder / "blobs" / head.etag
    transferred = _complete(part, name, commit, target, facts, url, head.location)
    linked = _link(folder, part.revision, commit, name, target)
    return Fetched(part.repo, name, linked, target.stat().st_size, commit, transferred)


def _facts(part: FileSet, sibling: RepoSibling, size: int | None) -> _Facts:
    """What the hub lists of a file, with checked types; ``size`` is what the file's own address reports."""
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    git_sha1 = None if sha256 else sibling.blob_id
    size = size if sibling.size is None else sibling.size
    is_size = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    are_hashes = all(one is None or (isinstance(one, str) and _HASH.fullmatch(one)) for one in (sha256, git_sha1))
    if not is_size or not are_hashes:
        raise WeightsError(
            f"the hub reports no usable size and hash for `{escaped(sibling.rfilename)}` of `{part.repo}`: "
            f"`{shown(size)}`, `{shown(sha256 or git_sha1)}`"
        )
    return _Facts(int(size or 0), sha256, git_sha1)


def _link(folder: Path, revision: str, commit: str, name: str, blob: Path) -> Path:
    """Make a cached file visible under its name, as huggingface_hub does: a snapshot of links, a note of the branch."""
    snapshot = folder.joinpath("snapshots", commit, *relative_parts(name))
    target = os.path.relpath(blob, snapshot.parent)
    if not (snapshot.is_symlink() and snapshot.exists() and str(snapshot.readlink()) == target):
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        beside = snapshot.with_name(f".{commit[:12]}.{os.getpid()}.link")
        try:
            beside.symlink_to(target)
        except OSError:  # a file system without links
            with replacing(snapshot) as copy:
                shutil.copyfile(blob, copy)
        else:
            beside.replace(snapshot)
    note = folder.joinpath("refs", *relative_parts(revision))
    if revision != commit and not (note.is_file() and note.read_text(encoding="utf-8").strip() == commit):
        with replacing(note) as fresh:
            fresh.write_text(commit, encoding="utf-8")
    return snapshot


def _complete(
    part: FileSet, name: str, commit: str, target: Path, facts: _Facts, url: str, location: str | None
) -> int:
    """Make ``target`` the file the hub describes; returns the bytes that came over the network."""
    if target.is_file():
        wrong = facts.wrong(target)
        if wrong is None:
            return 0
        # it stays until the other has arrived: it may be of another revision, or changed on purpose
        log.warning("`%s` differs from `%s` of `%s` (%s) and is fetched again", target, name, part.repo, wrong)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_of(target, commit)
    with _locked(partial, part) as file:
        _sweep(partial, commit)
        begun = file.seek(0, os.SEEK_END)
        if begun > facts.size:
            file.truncate(0)
            begun = file.seek(0)
        _check_room(partial.parent, facts.size - begun, part)
        wrong = _transfer(file, begun, facts.size, name, url, location)
        file.flush()
        wrong = wrong or facts.wrong(partial)
        if wrong:
            partial.unlink()
            raise WeightsError(
                f"`{escaped(name)}` of `{part.repo}` arrived broken: {wrong}; it was deleted",
                hint="run the same command again",
            )
        os.fsync(file.fileno())
        partial.replace(target)
    return facts.size - begun


def _partial_of(target: Path, commit: str) -> Path:
    """The file that a download grows in, named by the commit: one of another revision must not be continued."""
    ending = f".{commit[:12]}{PARTIAL}"
    name = target.name
    if len(os.fsencode(name + ending)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return target.with_name(name + ending)


@contextmanager
def _locked(partial: Path, part: FileSet) -> Iterator[BinaryIO]:
    """A partial file, open for reading and writing, unless another process writes it.

    The lock ends with its process, so it tells which processes are alive.
    """
    with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        if not _lock(file):
            raise WeightsError(f"`{partial}` of `{part.repo}` is being fetched by another process: wait for it")
        yield file


def _lock(file: BinaryIO) -> bool:
    try:
        import fcntl
    except ImportError:  # not on this system: then there is no locking
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # file systems without locks
        return True
    return True


def _sweep(partial: Path, commit: str) -> None:
    """Remove what transfers of earlier revisions left behind, unless a living process writes it."""
    for stale in partial.parent.glob(f"*{PARTIAL}"):
        found = _STALE.search(stale.name)
        if found is None or found[1] == commit[:12]:
            continue
        with suppress(OSError), stale.open("r+b") as file:
            if _lock(file):
                stale.unlink()
                log.info("`%s` was removed: it was left by a transfer of another revision", stale)


class _Bounded:
    """A file that accepts no more bytes than announced, however many a server sends."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._size:
            raise _TooMuch
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _TooMuch(Exception):  # noqa: N818 - it never leaves this module
    """The server sent more bytes than announced."""


def _transfer(file: BinaryIO, begun: int, size: int, name: str, url: str, location: str | None) -> str | None:
    """Download the bytes from ``begun`` on; returns what is wrong with them, in words, or None."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if begun == size:
        return None
    # Large files live on another host behind a signed address; the token must not travel there.
    location = location or url
    headers = build_hf_headers(token=None if _same_host(url, location) else False)
    headers["Accept-Encoding"] = "identity"
    file.seek(begun)
    bounded: Any = _Bounded(file, size)
    try:
        http_get(
            location,
            bounded,
            resume_size=begun,
            headers=headers,
            # above this size it would refuse to start
            expected_size=size if size <= constants.MAX_HTTP_DOWNLOAD_SIZE else None,
            displayed_filename=escaped(Path(name).name),
        )
    except _TooMuch:
        return f"more bytes than the {size} that the hub reports"
    return None


def _in_root(part: FileSet, name: str, root: Path) -> Path:
    """Where a file of a part lies in an official `weights/` tree, guaranteed to be inside it."""
    if not part.local:
        return inside(root, name)
    if not part.local.endswith("/"):
        if len(part.files) != 1 or part.files[0].endswith("/"):
            raise RequestError(f"the card lays `{part.repo}` out as the single file `{part.local}`, but lists a folder")
        return inside(root, part.local)
    return inside(root, f"{part.local}{PurePosixPath(name).relative_to(common_folder(part.files))}")


def _check_room(folder: Path, needed: int, part: FileSet) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise WeightsError(
            f"`{part.repo}` needs {needed / 1e9:.1f} GB, and the disk of `{folder}` has {free / 1e9:.1f} GB left",
            hint="free some space, or set HF_HOME to a larger disk",
        )


def _digest(path: Path, state: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    out: str = state.hexdigest()
    return out


def _same_host(a: str, b: str) -> bool:
    from urllib.parse import urlsplit

    return urlsplit(a).netloc == urlsplit(b).netloc


def _transfer_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a failing transfer; huggingface_hub changed its HTTP client between versions."""
    from huggingface_hub.errors import HfHubHTTPError

    errors: list[type[Exception]] = [OSError, HfHubHTTPError]
    for module, name in (("httpx2", "HTTPError"), ("httpx", "HTTPError"), ("requests", "RequestException")):
        try:
            errors.append(getattr(import_module(module), name))
        except ImportError:
            continue
    return tuple(errors)
