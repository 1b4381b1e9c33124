"""Which files are the clips of which prompts: planned before they are made, or found in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kandinsky.errors import RequestError
from kandinsky.evaluate.prompts import Prompt
from kandinsky.printing import escaped, shortened

CLIPS = "clips"  # folder of a run's clips
ENDINGS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".webp")


@dataclass(frozen=True, slots=True)
class ClipFile:
    """A clip of a prompt.

    Attributes:
        path: The file.
        prompt: The prompt.
        seed: The seed it is made with; None where it was made elsewhere.
    """

    path: Path
    prompt: Prompt
    seed: int | None = None


def planned(prompts: Sequence[Prompt], folder: Path, seed: int) -> list[ClipFile]:
    """The clips of a run, each with a seed of its own, counted up from the first.

    Args:
        prompts: The prompts.
        folder: Folder of the run.
        seed: Seed of the first clip.

    Returns:
        The files, in the order of prompts.
    """
    pairs = [(one, stem) for one in prompts for stem in one.files()]
    return [ClipFile(folder / CLIPS / f"{stem}.mp4", one, seed + i) for i, (one, stem) in enumerate(pairs)]


def found(prompts: Sequence[Prompt], folder: Path) -> list[ClipFile]:
    """The clips of prompts that lie in a folder already.

    Args:
        prompts: The prompts.
        folder: The folder, or that of a run.

    Returns:
        A file for each clip.

    Raises:
        RequestError: The folder does not exist, or a clip is not in it.
    """
    files = clips_of(folder)
    made, lacking = [], []
    for one in prompts:
        for stem in one.files():
            if (path := files.get(stem)) is None:
                lacking.append(stem)
            else:
                made.append(ClipFile(path, one))
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise RequestError(
            f"clips `{folder}` lack `{shortened(lacking[0])}.mp4`{more}: name them so, or use fewer prompts"
        )
    return made


def all_in(folder: Path) -> list[ClipFile]:
    """All clips of a folder, each its own prompt, whose text is that of the recipe in the file.

    Raises:
        RequestError: The folder does not exist or holds no clip.
    """
    from kandinsky.media import recipe as recipes

    made = []
    for number, (stem, path) in enumerate(sorted(clips_of(folder).items()), 1):
        recipe = recipes.read_if_any(path)
        text, seed = recipe.get("prompt"), recipe.get("seed")
        made.append(ClipFile(path, Prompt(stem, text or "", number, stem), seed))
    return made


def clips_of(folder: Path) -> Mapping[str, Path]:
    """Clips in a folder by their stems; in that of a run, its clips.

    Raises:
        RequestError: The folder does not exist or holds no clip, or two clips share a stem.
    """
    inner = folder / CLIPS
    place = inner if inner.is_dir() else folder
    try:
        paths = sorted(one for one in place.iterdir() if one.suffix.lower() in ENDINGS and one.is_file())
    except OSError as error:
        raise RequestError(f"clips `{folder}` cannot be read: {error.strerror}") from error
    files: dict[str, Path] = {}
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.stem in files:
            raise RequestError(
                f"clips `{folder}`: `{escaped(path.name)}` and `{escaped(files[path.stem].name)}` share a name"
            )
        files[path.stem] = path
    if not files:
        raise RequestError(f"clips `{folder}` hold no clip: its files end in {', '.join(ENDINGS)}")
    return files
