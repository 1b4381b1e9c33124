"""Where the files of jobs lie: a folder per job, below the store's. Names come from the server alone. No torch."""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from kandinsky.errors import RequestError
from kandinsky.printing import escaped

ID = re.compile(r"job_[0-9a-f]{32}")
LATENT = re.compile(r"latent-(\d+)\.safetensors")
PREVIEW = "preview.webp"
_OF_ATTEMPT = re.compile(r"a(\d+)-")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


def prepare(folder: Path) -> Path:
    """Create the folder of a store, readable by its owner alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "files").mkdir(mode=0o700, exist_ok=True)
    return folder


def folders(store: Path) -> tuple[Path, Path]:
    """The folders of a store, which may lie on disks of their own: its file's, and that of the jobs' files."""
    return store, store / "files"


def folder_of(store: Path, job_id: str) -> Path:
    """The folder of a job.

    Raises:
        RequestError: The name is not one that the store gives.
    """
    if not ID.fullmatch(job_id):
        raise RequestError(f"`{escaped(job_id[:80])}` is not the name of a job")
    return store / "files" / job_id


def path_of(store: Path, job_id: str, name: str) -> Path:
    """A file of a job.

    Raises:
        RequestError: The names are not such as the server gives.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise RequestError(f"`{escaped(name[:80])}` is not the name of a job's file")
    return folder_of(store, job_id) / name


def open_file(store: Path, job_id: str, name: str) -> int:
    """Open a file of a job for reading; a symbolic link is not followed.

    Returns:
        The descriptor.

    Raises:
        OSError: It is not there, or is a link.
    """
    return os.open(path_of(store, job_id, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def remove_all(store: Path, job_id: str) -> None:
    """Remove the files of a job."""
    shutil.rmtree(folder_of(store, job_id), ignore_errors=True)


def remove_attempts(store: Path, job_id: str, *, upto: int) -> None:
    """Remove what the attempts up to a number left; inputs, latents and files of later attempts stay."""
    folder = folder_of(store, job_id)
    for path in folder.glob("a*-*") if folder.is_dir() else ():
        if (found := _OF_ATTEMPT.match(path.name)) and int(found[1]) <= upto:
            path.unlink(missing_ok=True)


def latent_of(store: Path, job_id: str, attempt: int) -> Path:
    """Where an attempt keeps its latent: under a name of its own, since an outdated attempt may still write."""
    return folder_of(store, job_id) / f"latent-{attempt}.safetensors"


def _latents(store: Path, job_id: str, upto: int) -> list[tuple[int, Path]]:
    folder = folder_of(store, job_id)
    paths = folder.iterdir() if folder.is_dir() else ()
    found = [(int(match[1]), path) for path in paths if (match := LATENT.fullmatch(path.name))]
    return sorted(one for one in found if one[0] <= upto)


def kept_latent(store: Path, job_id: str, *, upto: int) -> Path | None:
    """The latent of the latest attempt, up to a number, that kept one."""
    found = _latents(store, job_id, upto)
    return found[-1][1] if found else None


def remove_latents(store: Path, job_id: str, *, upto: int) -> None:
    """Remove the latents of the attempts up to a number."""
    for _, path in _latents(store, job_id, upto):
        path.unlink(missing_ok=True)


def windows_of(store: Path, job_id: str) -> Path:
    """Where finished windows of a long clip lie, whichever attempt made them: all make the same."""
    return folder_of(store, job_id) / "windows"


def remove_windows(store: Path, job_id: str) -> None:
    """Remove finished windows."""
    shutil.rmtree(windows_of(store, job_id), ignore_errors=True)


def remove_steps(store: Path, job_id: str) -> None:
    """Remove what led to the result of a finished job: its preview, latents and windows."""
    (folder_of(store, job_id) / PREVIEW).unlink(missing_ok=True)
    remove_latents(store, job_id, upto=sys.maxsize)
    remove_windows(store, job_id)


def size_of(store: Path, job_id: str) -> int:
    """Bytes that the files of a finished job take, without those that go when it is finished."""
    folder = folder_of(store, job_id)
    files = list(folder.iterdir()) if folder.is_dir() else []
    return sum(
        path.stat().st_size
        for path in files
        if path.is_file() and path.name != PREVIEW and not LATENT.fullmatch(path.name)
    )


def size_left(store: Path, job_id: str) -> int:
    """Bytes that the files of a failed or cancelled job take: all but what its attempts wrote, which goes."""
    folder = folder_of(store, job_id)
    total = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        if not _OF_ATTEMPT.match(path.name):
            with suppress(OSError):  # somebody removes it at this moment
                total += path.stat().st_size
    return total
