"""Fetch a card's files from the Hugging Face hub: only those listed, resumed where a transfer broke, verified.

The hub's own client (huggingface_hub) finds, names and caches; two things are done here because it does not do them:
a partial file survives the end of the process (`….partial`, continued with a range request), and what arrived is
compared with the size and hash the hub reports before anything may use it.

Honours `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError, WeightsError
from kandinsky.model.card import Card, FileSet
from kandinsky.weights.locate import common_folder, locate_part, target_in
from kandinsky.weights.lora_files import locate_lora, repository_parts

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

log = logging.getLogger(__name__)
_CHUNK = 8 << 20
OTHER_FORMATS = (".bin", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True)
class Fetched:
    """One file that is now on this machine. ``transferred`` is what came over the network, 0 when it was there."""

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
    """Fetch what the card lists, into the Hugging Face cache or an official `weights/` tree.

    Args:    root: folder to lay `model/`, `vae/`, `text_encoder/`, `text_encoder2/` out in; None = the cache.
             on_file: called after each file that is complete and verified.
    Returns: one entry a file; empty for a model that ships with the package.
    Raises:  WeightsError where the hub cannot be reached, has no such file, refuses it, or what came is broken.
    """
    from huggingface_hub import constants

    done: list[Fetched] = []
    # what may be refused comes first, before many gigabytes are fetched in vain
    for part in sorted(_parts(card), key=lambda part: not part.gated):
        if part.repo == "package" or part.repo.startswith(("/", "~")):
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
    """Fetch a LoRA repository: weights and configuration, in the first layout that is complete there.

    Args and errors as ``download``; a repository without a LoRA is named with the file it lacks.
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
    """What is wrong with a file, in words, or None when size and hash are those the hub reports.

    Large files are stored by their SHA-256, small ones as git objects by the SHA-1 of `blob <size>\\0` and content.
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
    """The files of a part. ``or_else``: other layouts of the same repository, for where it lacks files of the first."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(part.repo, revision=part.revision, files_metadata=True)
        siblings = {entry.rfilename: entry for entry in info.siblings or ()}
        commit = info.sha or part.revision
        part = next((one for one in (part, *or_else) if siblings.keys() >= set(one.files)), part)
        return [_fetch_file(part, siblings[name], commit, root) for name in _listed(part, siblings)]
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
    except WeightsError:
        raise
    except _transfer_errors() as error:
        missing = ""
        try:
            locate_part(part, root=root)
        except WeightsError as gone:
            missing = f"; {gone}"
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WeightsError(
            f"fetching `{part.repo}` from {constants.ENDPOINT} failed: {reason}{missing}",
            hint="run the same command again: finished parts are kept, and a broken transfer goes on where it stopped",
        ) from error


def _listed(part: FileSet, siblings: dict[str, RepoSibling]) -> list[str]:
    names: list[str] = []
    for entry in part.files:
        found = _in_folder(entry, siblings) if entry.endswith("/") else [entry][: entry in siblings]
        if not found:
            raise WeightsError(f"`{part.repo}` has no `{entry}` at revision `{part.revision}`: the card lists it")
        names.extend(found)
    return names


def _in_folder(folder: str, siblings: dict[str, RepoSibling]) -> list[str]:
    """Files of a folder, `./` for all, without copies of its weights in formats of other frameworks, which nothing here
    reads."""
    names = [name for name in siblings if name.startswith(folder.removeprefix("./"))]
    if any(name.endswith(".safetensors") for name in names):
        return [name for name in names if not name.endswith(OTHER_FORMATS)]
    return names


def _fetch_file(part: FileSet, sibling: RepoSibling, commit: str, root: Path | None) -> Fetched:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    name = sibling.rfilename
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    facts: dict[str, Any] = {"size": sibling.size, "sha256": sha256, "git_sha1": None if sha256 else sibling.blob_id}

    if root is None:
        url = hf_hub_url(part.repo, name, revision=commit, endpoint=constants.ENDPOINT)
        etag = get_hf_file_metadata(url).etag
        if not etag or "/" in etag:
            raise WeightsError(f"{constants.ENDPOINT} reports no usable ETag for `{name}` of `{part.repo}`")
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=part.repo, repo_type="model")
        target = folder / "blobs" / etag
    else:
        target = _in_root(part, name, root)

    transferred = _complete(part, name, commit, target, facts)
    if root is not None:
        return Fetched(part.repo, name, target, target.stat().st_size, commit, transferred)
    # The content lies in its place in the cache, so this transfers nothing: it links the snapshot and notes the branch.
    linked = hf_hub_download(part.repo, name, revision=part.revision)
    return Fetched(part.repo, name, Path(linked), target.stat().st_size, commit, transferred)


def _complete(part: FileSet, name: str, commit: str, target: Path, facts: dict[str, Any]) -> int:
    """Make ``target`` the file the hub describes; returns the bytes that came over the network."""
    if target.is_file():
        wrong = verify(target, **facts)
        if wrong is None:
            return 0
        log.warning("`%s` of `%s` was broken (%s) and is fetched again", name, part.repo, wrong)
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Named by the commit: a partial file of another revision must not be continued.
    partial = target.with_name(f"{target.name}.{commit[:12]}.partial")
    begun = partial.stat().st_size if partial.exists() else 0
    if facts["size"] is not None and begun > facts["size"]:
        partial.unlink()
        begun = 0
    _check_room(partial.parent, (facts["size"] or 0) - begun, part)
    _transfer(part, name, commit, partial, begun, facts["size"])
    arrived = partial.stat().st_size - begun
    if wrong := verify(partial, **facts):
        partial.unlink()
        raise WeightsError(
            f"`{name}` of `{part.repo}` arrived broken: {wrong}; it was deleted", hint="run the same command again"
        )
    partial.replace(target)
    return arrived


def _transfer(part: FileSet, name: str, commit: str, partial: Path, begun: int, size: int | None) -> None:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if size is not None and begun == size:
        return
    url = hf_hub_url(part.repo, name, revision=commit, endpoint=constants.ENDPOINT)
    # Large files live on another host behind a signed address; the token must not travel there.
    location = get_hf_file_metadata(url).location or url
    headers = build_hf_headers(token=None if _same_host(url, location) else False)
    headers["Accept-Encoding"] = "identity"
    with partial.open("r+b" if begun else "wb") as file:
        file.seek(begun)
        http_get(
            location, file, resume_size=begun, headers=headers, expected_size=size, displayed_filename=Path(name).name
        )


def _in_root(part: FileSet, name: str, root: Path) -> Path:
    place = target_in(part, root)
    if part.local and not part.local.endswith("/"):
        if len(part.files) != 1 or part.files[0].endswith("/"):
            raise RequestError(f"the card lays `{part.repo}` out as the single file `{part.local}`, but lists a folder")
        return place.target
    return place.target / PurePosixPath(name).relative_to(common_folder(part.files)) if part.local else root / name


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
    return state.hexdigest()


def _same_host(a: str, b: str) -> bool:
    from urllib.parse import urlsplit

    return urlsplit(a).netloc == urlsplit(b).netloc


def _transfer_errors() -> tuple[type[Exception], ...]:
    """What a failing transfer raises; huggingface_hub changed its HTTP client over its versions."""
    from huggingface_hub.errors import HfHubHTTPError

    errors: list[type[Exception]] = [OSError, HfHubHTTPError]
    for module, name in (("httpx2", "HTTPError"), ("httpx", "HTTPError"), ("requests", "RequestException")):
        try:
            errors.append(getattr(import_module(module), name))
        except ImportError:
            continue
    return tuple(errors)
