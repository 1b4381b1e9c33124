"""What a stream showed when: kept in the recipe of a clip that was saved from it, and played again. No torch."""

from __future__ import annotations

import bisect
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.media import recipe as recipes
from kandinsky.model.timeline import Play, Shows, prompt_of

if TYPE_CHECKING:
    import numpy as np

    from kandinsky.model.values import Video

log = logging.getLogger(__name__)
OF_PIECES = ("chunk", "start", "action", "unused_words")  # of a piece's recipe, which that of a clip does not have
ENTRY = 60  # characters of a prompt's place in a recipe, and of its action
LONGEST = recipes.MOST_CHARACTERS // 2  # of prompts; the names of LoRAs and all else need the rest
# settings of a stream that a replay gives again
GIVEN = ("width", "height", "steps", "guidance", "shift", "negative_prompt", "seed")


@dataclass(frozen=True, slots=True)
class Timeline:
    """Prompts of a stream from its beginning, and the part of it that was saved.

    Attributes:
        prompts: Number of the frame from which each prompt held, and the prompt, with its action where there are some;
            the first is 0.
        first_frame: Where the saved part begins.
        frames: How long it is.
    """

    prompts: tuple[tuple[int, Shows], ...]
    first_frame: int
    frames: int

    def at(self, frame: int) -> Shows | None:
        """What a frame shows; None behind the saved part."""
        if frame >= self.first_frame + self.frames:
            return None
        return self.prompts[bisect.bisect_right([begin for begin, _ in self.prompts], frame) - 1][1]

    def to_recipe(self, frames: Iterable[np.ndarray]) -> dict[str, Any]:
        """What a recipe says of it.

        Args:
            frames: Those that were saved, uint8, whose digest tells whether a replay is the same.
        """
        return self._told(digest(frames))

    def _told(self, sha256: str) -> dict[str, Any]:
        return {
            "timeline": [
                {"frame": begin, "prompt": prompt_of(shows)}
                | ({"action": shows.action} if isinstance(shows, Play) else {})
                for begin, shows in self.prompts
            ],
            "first_frame": self.first_frame,
            "frames": self.frames,
            "frames_sha256": sha256,
        }


class Record:
    """What a stream shows, piece by piece, for the recipe of the file that it goes to; of its frames a digest is kept.

    ``recipe`` is what a clip that was saved from a live session says, or the one that is made again.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._prompts: list[tuple[int, Shows]] = []
        self._last: dict[str, Any] = {}
        self._fps = 0.0
        self._size = 0
        self._digest = hashlib.sha256()

    def take(self, piece: Video) -> None:
        """Hear of the next piece."""
        recipe = dict(piece.recipe)
        if "timeline" not in recipe and self._size <= LONGEST:
            action = recipe.get("action")
            shows: Shows = recipe["prompt"] if action is None else Play(recipe["prompt"], action)
            if not self._prompts or self._prompts[-1][1] != shows:
                self._prompts.append((self.frames, shows))
                self._size += len(json.dumps(recipe["prompt"])) + ENTRY
                if self._size > LONGEST:  # a stream without end must not grow
                    self._prompts.clear()
        self._digest.update(piece.frames.tobytes())
        self.frames += len(piece)
        self._last, self._fps = recipe, piece.fps

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The recipe of all that was taken; None for nothing, or where more was asked than a recipe has room for."""
        if "timeline" in self._last or not self._prompts:
            return self._last if "timeline" in self._last else None
        told = {name: value for name, value in self._last.items() if name not in OF_PIECES}
        told["prompt"] = prompt_of(self._prompts[0][1])
        line = Timeline(tuple(self._prompts), 0, self.frames)
        return told | {"seconds": self.frames / self._fps} | line._told(self._digest.hexdigest())


def digest(frames: Iterable[np.ndarray]) -> str:
    """SHA-256 of the bytes of frames, however they are cut into pieces."""
    told = hashlib.sha256()
    for piece in frames:
        told.update(piece.tobytes())
    return told.hexdigest()


def read(recipe: Mapping[str, Any]) -> Timeline:
    """The timeline in a recipe.

    Raises:
        RequestError: It has none, or the one it has is damaged.
    """
    if "timeline" not in recipe:
        raise RequestError("this recipe has no timeline: give that of a clip that was saved from a live stream")
    entries, first, frames = recipe["timeline"], recipe.get("first_frame"), recipe.get("frames")
    if not (isinstance(entries, Sequence) and not isinstance(entries, str) and entries):
        raise RequestError("the recipe's `timeline` is empty or no list: it was changed since it was written")
    for name, number, least in (("first_frame", first, 0), ("frames", frames, 1), ("seed", recipe.get("seed"), 0)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise RequestError(f"the recipe's `{name}` is `{number}`, where a whole number from {least} on is needed")
    prompts: list[tuple[int, Shows]] = []
    for entry in entries:
        begin, prompt = (entry.get("frame"), entry.get("prompt")) if isinstance(entry, Mapping) else (None, None)
        least = prompts[-1][0] + 1 if prompts else 0
        if not isinstance(begin, int) or begin < least or (not prompts and begin) or not isinstance(prompt, str):
            raise RequestError(
                f"entry {len(prompts) + 1} of the recipe's `timeline` is `{entry}`, where a frame after the one before "
                "(the first is 0) and its prompt are needed"
            )
        action = entry.get("action")
        if not isinstance(action, str | None):
            raise RequestError(f"entry {len(prompts) + 1} of the recipe's `timeline` has action `{action}`: give text")
        prompts.append((begin, prompt if action is None else Play(prompt, action)))
    return Timeline(tuple(prompts), int(first), int(frames))  # type: ignore[arg-type]


def check_alike(recipe: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse to replay a clip by a model that is loaded otherwise than the one that made it.

    Other kernels on the processor give the same up to rounding: they are told in a warning.

    Args:
        recipe: That of the clip.
        own: What the loaded model would write.

    Raises:
        RequestError: LoRAs, compute type, attention or quantised weights differ; the message says how to load it.
    """
    for name, words in (("dtype", "compute type"), ("attention", "attention"), ("quantize", "quantised weights")):
        made, loaded = _option(recipe.get(name)), _option(own.get(name))
        if made != loaded:
            advice = f'with `{name}="{made}"`' if made else f"without `{name}=…`"
            raise RequestError(
                f"this clip was made with {words} `{made or 'none'}`, and the model is loaded with "
                f"`{loaded or 'none'}`: load it {advice}"
            )
    then, here = ((one.get("versions") or {}).get("kernels") for one in (recipe, own))
    if then and here and then != here:
        are_both_own = str(then).startswith("own") and str(here).startswith("own")
        log.warning(
            "this clip was made with kernels `%s`, and here they are `%s`: frames are the same up to rounding; %s",
            then,
            here,
            f"those are of Kandinsky {recipe.get('kandinsky') or 'of another version'}"
            if are_both_own
            else "KANDINSKY_NATIVE switches our own on and off",
        )
    if _loras(recipe, "sha256") != _loras(own, "sha256"):
        raise RequestError(
            f"this clip was made with LoRAs {_loras(recipe, 'name') or 'none'}, and the model is loaded with "
            f"{_loras(own, 'name') or 'none'}: load it with the same, `lora=…`"
        )


def _option(value: object) -> str:
    """What a recipe says of an option, as the option is given; empty for nothing."""
    if isinstance(value, Mapping):
        return ",".join(f"{part}={scheme}" for part, scheme in value.items())
    return "" if value is None else str(value)


def _loras(recipe: Mapping[str, Any], key: str) -> list[str]:
    """The LoRAs of a recipe with their scales, by a name or a digest."""
    return [f"{one.get(key) or one.get('source')}:{float(one['scale']):g}" for one in recipe.get("lora") or []]
