"""What a request gives of its result besides text: known frames, a source clip that is changed, what branches are told.

No torch.

Places in time are whole frames, or seconds as text with an `s`: ``12``, ``"-1"``, ``"1.5s"``; negative ones count from
the end. A part of a clip is ``"START:STOP"`` of such places, either of which may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.model.checks import check_fields, shown, unknown

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from kandinsky.model.values import Video

END = "end"
MOST_CONDITIONS = 64  # of one request
# an s of either alphabet: on a Russian keyboard both are one key
_MOMENT = re.compile(r"\s*(-?\d{1,9})\s*|\s*(-?\d{1,6}(?:\.\d{1,9})?)\s*[sс]\s*")
_PLACE = re.compile(r"\s*(\d{1,6})[xX×](\d{1,6})\s*([+-]\d{1,6})\s*([+-]\d{1,6})\s*")
_SHARE = r"(\d(?:\.\d{0,6})?|\.\d{1,6})?"
_SHARES = re.compile(rf"\s*{_SHARE}\s*:\s*{_SHARE}\s*")
_CUT = re.compile(r"(?P<file>.+)\[(?P<cut>[^\[\]]*:[^\[\]]*)\]", re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Frames of the result that are known: an image, or a clip.

    Attributes:
        data: A path of an image or a clip, a Pillow image, an array [H, W, 3] or [T, H, W, 3] of uint8, or a ``Video``.
            A clip of another frame rate is read at the result's.
        at: The frame of the result that is the first of them: a whole number, seconds such as ``"1.5s"``, negative
            ones from the end; ``"end"``: the last of them is the last of the result.
        cut: The part of the clip that is used, ``"START:STOP"``; all of it by default.

    Raises:
        RequestError: A value has the wrong type or form.
    """

    data: str | Path | Image | np.ndarray | Video
    at: int | str = 0
    cut: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.at != END:
            moment(self.at, "at", also=f", or `{END}`")
        _check_part(self.cut, "cut")

    @classmethod
    def parse(cls, text: str) -> Frames:
        """Read `FILE`, `FILE@PLACE`, `FILE[START:STOP]` or `FILE[START:STOP]@PLACE`.

        Args:
            text: Such text; a `@` that no place follows is part of the name.

        Returns:
            The known frames.

        Raises:
            RequestError: There is no file.
        """
        file, at = text, "0"
        before, mark, after = text.rpartition("@")
        if mark and before and (after.strip() == END or _MOMENT.fullmatch(after)):
            file, at = before, after.strip()
        data, cut = without_cut(file)
        if not data.strip():
            raise RequestError(f"known frames `{shown(text)}` name no file: use FILE[START:STOP]@PLACE")
        return cls(data, int(at) if re.fullmatch(r"-?\d+", at) else at, cut)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A clip that is changed: as a whole by ``strength``, or where ``mask``, ``span`` or ``place`` say.

    Attributes:
        data: As in ``Frames``; of a still, an image.
        strength: In (0, 1]: the time of the sampler from which on it is generated anew, 1 from nothing. Needed unless
            a part is chosen, where 1 is the default.
        mask: White where it is generated anew: an image or an array of the clip's size, or a clip of masks.
        span: Frames in which it is generated anew, ``"START:STOP"`` of the result; all by default.
        place: Where it lies in the result, ``"WIDTHxHEIGHT+X+Y"``; what is around it is generated.
        grow: Pixels by which the mask is grown.
        cut: As in ``Frames``.
        prompt: What the source shows; it is then changed by the difference of what the two prompts ask for, instead of
            by noise, for models of flow matching.

    Raises:
        RequestError: A value has the wrong type or form.
    """

    data: str | Path | Image | np.ndarray | Video
    strength: float | None = None
    mask: str | Path | Image | np.ndarray | Video | None = None
    span: str | None = None
    place: str | None = None
    grow: int | None = None
    cut: str | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.strength is not None and not 0 < self.strength <= 1:
            raise RequestError(f"strength `{self.strength:g}` is out of range: use a number above 0, up to 1")
        _check_part(self.cut, "cut")
        _check_part(self.span, "span")
        if self.place is not None:
            placed(self.place)
        if self.grow is not None and self.mask is None:
            raise RequestError("`mask_grow` grows a mask, and none was given: give `mask=…`")

    @property
    def has_part(self) -> bool:
        """Whether some of it is kept as it is."""
        return not (self.mask is None and self.span is None and self.place is None)


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A clip or an image that the result follows frame by frame, through a control branch.

    Attributes:
        data: As in ``Frames``; of the result's shape and rate, and at least its length. An image is held.
        branch: File of the branch, or the name of one that was loaded; by default the one that fits.
        signal: What the branch is shown, such as ``"edges"``; that of the branch by default.
        is_map: Whether the clip shows the signal already. Edges are otherwise found in it; all other signals must be
            given.
        strength: What the branch adds is multiplied by this; 1 as trained, 0 is off.
        steps: Share of the sampling steps at which it works, ``"START:STOP"`` from 0 to 1; all by default.
        cut: As in ``Frames``.

    Raises:
        RequestError: A value has the wrong type or form.
    """

    data: str | Path | Image | np.ndarray | Video
    branch: str | Path | None = None
    signal: str | None = None
    is_map: bool = False
    strength: float = 1.0
    steps: str | None = None
    cut: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_strength(self.strength, "control_strength")
        shares_of(self.steps, "control_steps")
        _check_part(self.cut, "cut")


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """An image whose subject the result shows, through a reference branch.

    Attributes:
        data: A path of an image, a Pillow image, or an array [H, W, 3] of uint8; of a clip, its first frame.
        branch: As in ``Control``.
        strength: As in ``Control``.
        steps: As in ``Control``.

    Raises:
        RequestError: A value has the wrong type or form.
    """

    data: str | Path | Image | np.ndarray | Video
    branch: str | Path | None = None
    strength: float = 1.0
    steps: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_strength(self.strength, "reference_strength")
        shares_of(self.steps, "steps")


MOST_STRENGTH = 4.0  # of a branch; beyond it no result was ever better
Given = Frames | Source | Control | Reference
KINDS: dict[str, type[Given]] = {"frames": Frames, "source": Source, "control": Control, "reference": Reference}


def check_strength(value: float, what: str) -> None:
    """Refuse a strength of a branch that is out of range. Raises: RequestError."""
    if not 0 <= value <= MOST_STRENGTH:
        raise RequestError(f"{what} `{value:g}` is out of range: use a number from 0 to {MOST_STRENGTH:g}")


def shares_of(text: str | None, what: str) -> tuple[float, float]:
    """Read the share of the steps `START:STOP`.

    Args:
        text: Such text; None for all.
        what: What a message calls it.

    Returns:
        Where it begins and ends, from 0 to 1.

    Raises:
        RequestError: The text has another form, or the share is empty.
    """
    if text is None:
        return 0.0, 1.0
    found = _SHARES.fullmatch(text)
    begin, end = (float(found[1] or 0), float(found[2] or 1)) if found else (1.0, 0.0)
    if not 0 <= begin < end <= 1:
        raise RequestError(
            f"{what} `{shown(text)}` is no share of the steps: use START:STOP from 0 to 1, such as `0:0.6`"
        )
    return begin, end


def moment(value: int | str, what: str, *, also: str = "") -> tuple[float, bool]:
    """A place in time.

    Args:
        value: A number of frames, or text.
        what: What a message calls it.
        also: What a message allows besides.

    Returns:
        The number, and whether it is in seconds.

    Raises:
        RequestError: It has another form.
    """
    found = _MOMENT.fullmatch(str(value))
    if found is None:
        raise RequestError(
            f"{what} `{shown(value)}` is no place in time: use a frame such as `12` or `-1`, or seconds such as "
            f"`1.5s`{also}"
        )
    return (float(found[1]), False) if found[1] is not None else (float(found[2]), True)


def frame_at(value: int | str, what: str, *, fps: float, frames: int) -> int:
    """The number of the frame at a place in time; it may lie outside of the clip.

    Args:
        value: As for ``moment``.
        what: What a message calls it.
        fps: Frames per second.
        frames: Length of the clip, for places from the end.

    Returns:
        The number.
    """
    number, is_seconds = moment(value, what)
    frame = round(number * fps) if is_seconds else int(number)
    return frame + frames if frame < 0 or str(value).strip().startswith("-") else frame


def part_of(text: str | None, what: str, *, fps: float, frames: int) -> tuple[int, int]:
    """The frames `START:STOP` of a clip.

    Args:
        text: The part; None for all.
        what: What a message calls it.
        fps: Frames per second.
        frames: Length of the clip.

    Returns:
        The first frame, and the one after the last.

    Raises:
        RequestError: The part is empty or leaves the clip.
    """
    if text is None:
        return 0, frames
    start, stop = (
        default if not end.strip() else frame_at(end.strip(), what, fps=fps, frames=frames)
        for end, default in zip(text.split(":"), (0, frames), strict=True)
    )
    if not 0 <= start < stop <= frames:
        raise RequestError(
            f"{what} `{shown(text)}` is frames {start} to {stop} of {frames} at {fps:g} a second: use a part between "
            f"0 and {frames} (`{frames / fps:.4g}s`) that is not empty"
        )
    return start, stop


def placed(text: str) -> tuple[int, int, int, int]:
    """Read `WIDTHxHEIGHT+X+Y`.

    Returns:
        Width, height, left and top edge.

    Raises:
        RequestError: The text has another form.
    """
    found = _PLACE.fullmatch(text)
    if found is None or not int(found[1]) or not int(found[2]):
        raise RequestError(f"place `{shown(text)}` is not of the form WIDTHxHEIGHT+X+Y, such as `64x64+16+16`")
    return int(found[1]), int(found[2]), int(found[3]), int(found[4])


def _check_part(text: str | None, what: str) -> None:
    if text is None:
        return
    ends = text.split(":")
    if len(ends) != 2:
        raise RequestError(f"{what} `{shown(text)}` is not of the form START:STOP, such as `0:12` or `1s:2.5s`")
    for end in ends:
        if end.strip():
            moment(end, what)


def without_cut(text: str) -> tuple[str, str | None]:
    """A file and the part of it that is meant: `FILE[START:STOP]`, or `FILE` alone."""
    found = _CUT.fullmatch(text)
    return (found["file"], found["cut"]) if found else (text, None)


def conditions_of(values: Any) -> tuple[Given, ...]:
    """Conditions from what may stand for them: values, plain mappings as ``plain`` makes them, or texts.

    Args:
        values: Some of these.

    Returns:
        The conditions.

    Raises:
        RequestError: One is of no known kind, or has a wrong value.
    """
    if values is None:
        return ()
    if isinstance(values, str | Given | Mapping):
        values = [values]
    if not isinstance(values, Iterable):
        raise RequestError(
            f"`conditions` must be a list of known frames, sources, controls and references, not `{shown(values)}`"
        )
    made = tuple(map(_condition, values))
    if len(made) > MOST_CONDITIONS:
        raise RequestError(f"`conditions` lists {len(made)}: {MOST_CONDITIONS} are allowed")
    return made


def _condition(value: Any) -> Given:
    if isinstance(value, Given):
        return value
    if isinstance(value, str):
        return Frames.parse(value)
    if not isinstance(value, Mapping):
        raise RequestError(
            f"`conditions` holds `{shown(value)}`: use `Frames(…)`, `Source(…)`, `Control(…)`, `Reference(…)`, or a "
            "text FILE[START:STOP]@PLACE"
        )
    kinds = [kind for kind in KINDS if kind in value]
    if len(kinds) != 1:
        raise RequestError(
            f"a condition with {', '.join(f'`{shown(key)}`' for key in value) or 'nothing'}: give its file as "
            "`frames`, `source`, `control` or `reference`"
        )
    kind = KINDS[kinds[0]]
    given = {key: one for key, one in value.items() if key != kinds[0]}
    known = [f.name for f in fields(kind) if f.name != "data"]
    for key in given:
        if key not in known:
            raise unknown(key, known, f"value of `{kinds[0]}`")
    return kind(value[kinds[0]], **given)


def plain(one: Given) -> dict[str, Any]:
    """Plain values of a condition, from which ``conditions_of`` makes it again.

    Raises:
        RequestError: It holds an image or a clip from memory.
    """
    name = next(name for name, kind in KINDS.items() if isinstance(one, kind))
    found: dict[str, Any] = {}
    for f in fields(one):
        value = getattr(one, f.name)
        if value is None or (f.name != "data" and value == f.default):
            continue
        if f.name in ("data", "mask"):
            if not isinstance(value, str | Path):
                raise RequestError("a condition from memory cannot be written down: save it, and give its path")
            value = str(value)
        elif isinstance(value, Path):
            value = str(value)
        found[name if f.name == "data" else f.name] = value
    return found
