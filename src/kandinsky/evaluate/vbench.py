"""Totals of VBench, as its leaderboard counts them; its official tool's results, and folders that it reads.

A dimension is normalised to (x - least) / (most - least) and weighted; quality and semantic scores are weighted means,
and the total weights them 4 : 1 (VBench, Huang et al. 2024, and the scripts of its repository). A dimension that was
not measured makes its score unknown: the official script counts it as 0 without a word.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kandinsky.errors import RequestError
from kandinsky.evaluate.finite import finite
from kandinsky.files import replacing
from kandinsky.printing import shortened


@dataclass(frozen=True, slots=True)
class Dimension:
    """A dimension's part in the totals.

    Attributes:
        group: The score it belongs to.
        least: Raw value that counts as 0.
        most: Raw value that counts as 1.
        weight: In the mean of its group.
    """

    group: Literal["quality", "semantic"]
    least: float = 0.0
    most: float = 1.0
    weight: float = 1.0


DIMENSIONS: Mapping[str, Dimension] = {
    "subject consistency": Dimension("quality", 0.1462),
    "background consistency": Dimension("quality", 0.2615),
    "temporal flickering": Dimension("quality", 0.6293),
    "motion smoothness": Dimension("quality", 0.706, 0.9975),
    "aesthetic quality": Dimension("quality"),
    "imaging quality": Dimension("quality"),
    "dynamic degree": Dimension("quality", weight=0.5),
    "object class": Dimension("semantic"),
    "multiple objects": Dimension("semantic"),
    "human action": Dimension("semantic"),
    "color": Dimension("semantic"),
    "spatial relationship": Dimension("semantic"),
    "scene": Dimension("semantic", 0.0, 0.8222),
    "appearance style": Dimension("semantic", 0.0009, 0.2855),
    "temporal style": Dimension("semantic", 0.0, 0.364),
    "overall consistency": Dimension("semantic", 0.0, 0.364),
}
QUALITY_SHARE = 4, 1


@dataclass(frozen=True, slots=True)
class Totals:
    """Scores of a model, about 0 to 1; nothing is clipped.

    Attributes:
        quality: Weighted mean of the dimensions of quality; None if one is missing.
        semantic: Mean of the dimensions of meaning; None if one is missing.
        total: Of both; None if one is missing.
        missing: Dimensions that were not measured.
        normalised: Normalised value of each dimension that was.
    """

    quality: float | None
    semantic: float | None
    total: float | None
    missing: tuple[str, ...]
    normalised: Mapping[str, float]


def totals(raw: Mapping[str, float]) -> Totals:
    """Scores from raw values of dimensions.

    Args:
        raw: Value by dimension, about 0 to 1; names with spaces or underscores.

    Returns:
        The scores.

    Raises:
        RequestError: A dimension is unknown, or its value is no finite number.
    """
    values: dict[str, float] = {}
    for given, value in raw.items():
        name = given.replace("_", " ")
        if name not in DIMENSIONS:
            raise RequestError(
                f"dimension `{given}` is none of VBench's: use {', '.join(f'`{d}`' for d in DIMENSIONS)}"
            )
        # cosines may be below 0, and LAION's head has no bound: the official script does not clip either
        if (number := finite(value)) is None:
            raise RequestError(f"dimension `{given}` is {shortened(value)}: use a finite number")
        values[name] = number
    normalised = {
        name: (values[name] - one.least) / (one.most - one.least) for name, one in DIMENSIONS.items() if name in values
    }
    missing = tuple(name for name in DIMENSIONS if name not in values)

    def score(group: str) -> float | None:
        members = {name: one.weight for name, one in DIMENSIONS.items() if one.group == group}
        if any(name in missing for name in members):
            return None
        return sum(normalised[name] * weight for name, weight in members.items()) / sum(members.values())

    quality, semantic = score("quality"), score("semantic")
    known = quality is not None and semantic is not None
    total = (QUALITY_SHARE[0] * quality + QUALITY_SHARE[1] * semantic) / sum(QUALITY_SHARE) if known else None  # type: ignore[operator]
    return Totals(quality, semantic, total, missing, normalised)


def is_official(values: Any) -> bool:
    """Whether values look like a result of the official tool: a list under the name of each dimension."""
    return (
        isinstance(values, dict)
        and bool(values)
        and all(
            str(name).replace("_", " ") in DIMENSIONS and isinstance(one, list | int | float) and one != []
            for name, one in values.items()
        )
    )


def read_official(path: str | Path) -> dict[str, float]:
    """Raw values of the official tool's result file (`…_eval_results.json`), for ``totals``.

    Args:
        path: The file: `{"subject_consistency": [0.95, [{"video_path": …, "video_results": …}, …]], …}`; a dimension
            may also be its number alone.

    Returns:
        Value by dimension.

    Raises:
        RequestError: It cannot be read, or is no such file.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"VBench's result `{path}` is not JSON") from error
    except OSError as error:
        raise RequestError(f"VBench's result `{path}` cannot be read: {error.strerror}") from error
    if not is_official(values):
        raise RequestError(f"`{path}` is no result of VBench: use the file whose name ends in `_eval_results.json`")
    made = {name.replace("_", " "): one[0] if isinstance(one, list) else one for name, one in values.items()}
    totals(made)  # refuses what is no value
    return {name: float(value) for name, value in made.items()}


def export(files: Sequence[tuple[Path, str, int]], entries: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Lay clips out as the official tool reads them: `videos/{prompt}-{index}.mp4`, and the list of their prompts.

    Files are linked where the file system can, and copied otherwise.

    Args:
        files: Clip, prompt and index of the clip among those of its prompt.
        entries: Objects with `prompt_en` and `dimension`, as in `VBench_full_info.json`.
        folder: A folder that does not exist yet, or is empty.

    Returns:
        The folder.

    Raises:
        RequestError: It cannot be written or is not empty, or a clip is no `.mp4`.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise RequestError(f"`{folder}` is not empty: name a new folder")
    with replacing(folder, folder=True) as part:
        videos = part / "videos"
        videos.mkdir()
        for path, prompt, index in files:
            if path.suffix.lower() != ".mp4":
                raise RequestError(f"`{path.name}` is no .mp4, which is what VBench's tool reads")
            target = videos / f"{prompt}-{index}.mp4"
            try:
                os.link(path, target)
            except OSError:
                shutil.copyfile(path, target)
        text = json.dumps(list(entries), ensure_ascii=False, indent=1)
        (part / "full_info.json").write_text(text + "\n", encoding="utf-8")
    return folder
