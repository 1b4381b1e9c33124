"""Builds the documentation as a website: `make site`.

Pages are copied to build/docs with the folders they have in the repository, so that a link that works there works on
the site too. mkdocs.yml lists them; a page that it does not list and a link that leads nowhere are errors.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GLOBS = (
    "*.md",
    "LICENSE",
    "docs/**/*.md",
    "examples/*.md",
    "official/*.md",
    "comfyui/*.md",
    "src/kandinsky/assets/*/*.md",
)
FILES = (
    "src/kandinsky/assets/*/*.png",
    "src/kandinsky/assets/*/*.webp",
    "src/kandinsky/assets/*/NOTICES.txt",
    "docs/*.webp",
    "docs/guides/*.png",
    "docs/guides/*.webp",
    "docs/benchmarks/*.svg",
)


def pages(root: Path = ROOT) -> list[Path]:
    """Every page of the site, relative to the root of the repository.

    Args:
        root: Folder of the checkout.

    Returns:
        Paths of Markdown files and the licence, sorted.
    """
    return sorted(path.relative_to(root) for pattern in GLOBS for path in root.glob(pattern))


def build(target: Path) -> None:
    """Copy the pages and build the site in strict mode.

    Args:
        target: Folder for the pages, `docs`, and the site, `site`; both are replaced.

    Raises:
        subprocess.CalledProcessError: If a link, an anchor or a page is missing, or a docstring cannot be read.
    """
    shutil.rmtree(target / "docs", ignore_errors=True)
    for path in [*pages(), *(image.relative_to(ROOT) for pattern in FILES for image in ROOT.glob(pattern))]:
        copy = target / "docs" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, copy)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target / "site")]
    variables = {"DOCS_DIR": str(target / "docs"), "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=True)


if __name__ == "__main__":
    build(ROOT / "build")
