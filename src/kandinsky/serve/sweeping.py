"""What a server that was killed left: files of jobs that were never stored, uploads that were never read."""

from __future__ import annotations

import shutil
import time

from kandinsky.files import sweep as sweep_parts
from kandinsky.jobs import job_files
from kandinsky.jobs.store import JobStore

OLD_S = 3600.0  # another process may be about to store its job


def sweep(store: JobStore, *, older_s: float = OLD_S) -> list[str]:
    """Remove them.

    Args:
        store: The store.
        older_s: Only what was not touched for so long.

    Returns:
        Names of the folders that were removed.
    """
    removed = []
    shutil.rmtree(store.folder / "incoming", ignore_errors=True)
    for folder in (store.folder / "files").iterdir():
        if not job_files.ID.fullmatch(folder.name) or not folder.is_dir():
            continue
        if store.get(folder.name) is None:
            if time.time() - folder.stat().st_mtime > older_s:
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
            continue
        sweep_parts(folder)
        for upload in folder.glob("upload-*"):
            shutil.rmtree(upload, ignore_errors=True)
    return removed
