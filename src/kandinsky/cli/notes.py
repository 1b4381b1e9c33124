"""What is said of a result on stderr besides the line that it is made: of one prompt as of many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from kandinsky.printing import escaped

if TYPE_CHECKING:
    from kandinsky.engine.request import Job


def before(job: Job) -> Iterator[str]:
    """How a result will be made, where the request does not say so itself.

    Args:
        job: The result.

    Yields:
        Lines.
    """
    image = job.image
    if image is not None and image.given != image.used:
        how = "resized" if image.how == "stretch" else "resized and cropped"
        yield f"image {image.source.file}: {image.given}, used as {image.used}, {how}"
    if job.frames > 1 and abs(job.frames - job.seconds * job.fps) > 1 + 1e-6:
        step = job.card.clip.frame_step / job.fps
        yield (
            f"{job.seconds:g} s were asked for, and {job.frames / job.fps:.4g} s are made, {job.frames} frames: here "
            f"clips grow by {step:.3g} s"
        )
    if job.long is not None and len(job.long.windows) > 1:
        longest = job.card.clip.max_seconds
        yield f"{len(job.long.windows)} windows of up to {longest:g} s, which share {job.long.overlap:.3g} s"


def after(job: Job, recipe: Mapping[str, Any]) -> Iterator[str]:
    """What a result's recipe says of how it came about.

    Args:
        job: The result.
        recipe: Of its file.

    Yields:
        Lines.
    """
    if job.expand and "expanded_prompt" in recipe:
        yield f"expanded prompt: {recipe['expanded_prompt']}"
    if (kept := recipe.get("kept_blocks")) is not None:
        yield f"attention {recipe['attention']}: kept {kept:.0%} of the blocks"
    if unused := recipe.get("unused_words"):
        words = ", ".join(f"`{escaped(word)}`" for word in unused)
        yield f"words of the prompt that the model does not use: {words}"
