"""The frozen values that travel from prompt to file.

Legend: B batch, T frames, H W rows and columns, C channels, L text tokens.
``width, height`` is the order people see; tensors are always H before W.
Nothing here imports torch at run time, so that the command line can start fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kandinsky.errors import RequestError
from kandinsky.model.option import option

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

    from kandinsky.media.mux import InputVideo


@dataclass(frozen=True, slots=True)
class VideoShape:
    """Size of a clip in pixels. ``frames`` counts pixel frames (1 = a still image)."""

    frames: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class LatentShape:
    """Size of a clip's latent, channels last: (T, H, W, C)."""

    frames: int
    height: int
    width: int
    channels: int

    @classmethod
    def from_video(cls, video: VideoShape, *, temporal: int, spatial: int, channels: int) -> LatentShape:
        """Latent of a causal autoencoder: the first frame stands alone, then ``temporal`` frames share one.

        Raises: RequestError where the clip does not fall on the autoencoder's grid.
        """
        if (video.frames - 1) % temporal or video.height % spatial or video.width % spatial:
            raise RequestError(
                f"a clip of {video.frames} frames of {video.width}x{video.height} is off the autoencoder's grid: "
                f"frames must be 1 + a multiple of {temporal}, width and height multiples of {spatial}"
            )
        return cls((video.frames - 1) // temporal + 1, video.height // spatial, video.width // spatial, channels)

    def as_tuple(self) -> tuple[int, int, int, int]:
        return (self.frames, self.height, self.width, self.channels)


@dataclass(frozen=True, slots=True)
class TextEmbeddings:
    """What a denoiser gets to know of the prompts.

    tokens_BLC: one state a token. pooled_BC: one state a prompt.
    mask_BL:    True where a token counts; None when every token does.
    """

    tokens_BLC: torch.Tensor
    pooled_BC: torch.Tensor
    mask_BL: torch.Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> TextEmbeddings:
        """Move or cast both state tensors as ``Tensor.to`` does; the mask only follows the device."""
        tokens = self.tokens_BLC.to(*args, **kwargs)
        mask = None if self.mask_BL is None else self.mask_BL.to(tokens.device)
        return TextEmbeddings(tokens, self.pooled_BC.to(*args, **kwargs), mask)

    def expand(self, batch: int) -> TextEmbeddings:
        """States for ``batch`` clips: as many as there are, or one prompt's for all. Raises: RequestError otherwise."""
        given = self.tokens_BLC.shape[0]
        if given == batch:
            return self
        if given != 1:
            raise RequestError(f"{given} prompts do not fit a batch of {batch}")
        mask = None if self.mask_BL is None else self.mask_BL.expand(batch, -1)
        return TextEmbeddings(self.tokens_BLC.expand(batch, -1, -1), self.pooled_BC.expand(batch, -1), mask)


TextStates = TextEmbeddings  # the former name


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that decides a result. ``None`` means: the card's default.

    image: a path, a Pillow image or a uint8 array [H, W, 3], for models that take one.
    mask: the same for models that repaint a part of the image, white or 1 where; mask_grow: pixels it is grown by.
    expand: have the text encoder's language model write the prompt out at length first.
    expanded_prompt: the text it wrote before, to be used again.
    fps: by name, such as `medium`, and motion, such as `high`, for models that make key frames; also the weights of the
    first frame and of the key frames around a gap.
    video: an input video, a path or a ``Video``, for models that take one.
    states: a file of precomputed embeddings of it.
    cache: a step cache, as `--cache` takes it, or a value of ``diffusion/caching.py``; None = the pipeline's.
    """

    model: str
    prompt: str = ""
    negative_prompt: str | None = option(
        None, "what to keep away from", flags=("--negative",), short="What the video should not show."
    )
    seconds: float | None = option(
        None, "length; 0 makes a still", flags=("--seconds", "--duration"), short="Length; 0 makes a still image."
    )
    width: int | None = None
    height: int | None = None
    steps: int | None = option(None, "steps of the sampler", flags=("--steps",), short="Steps of the sampler.")
    guidance: float | None = option(
        None, "weight of the prompt, 1 = off", flags=("--guidance",), short="How strictly to follow; 1 is off."
    )
    shift: float | None = option(
        None, "more time near noise", flags=("--shift",), short="Scale of the schedule: more steps near noise."
    )
    seed: int | None = option(
        None, "drawn when not given", flags=("--seed",), short="Same seed, same video; drawn when absent."
    )
    image: Any = option(None, flags=("--image",), short="Picture to begin with, or to edit.", metavar="FILE")
    mask: Any = option(
        None, flags=("--mask",), short="For inpainting: white where --image is repainted.", metavar="FILE"
    )
    mask_grow: int | None = option(
        None, flags=("--mask-grow",), short="Make the mask larger on all sides; 6 is usual.", metavar="PIXELS"
    )
    cache: Any = option(
        None,
        flags=("--cache",),
        short="Leave out steps: magcache, first-block or taylor, as in taylor:interval=3.",
    )
    expand: bool = option(
        False, flags=("--expand",), short="Have the model's language model write the prompt out first."
    )
    expanded_prompt: str | None = option(
        None, flags=("--expanded-prompt",), short="The text it wrote before, to be used again."
    )
    fps: str | None = option(None, flags=("--fps",), short="Of models that make key frames: low, medium or high.")
    motion: str | None = option(
        None, flags=("--motion",), short="Of Kandinsky Video 1.1: low, medium, high or extreme."
    )
    image_guidance: float | None = option(None, flags=("--image-guidance",), short="There: weight of the first frame.")
    interpolation_guidance: float | None = option(
        None, flags=("--interpolation-guidance",), short="Of key frames, when gaps are filled; 1 is off."
    )
    video: Any = option(None, flags=("--video",), short="Film that gets sound, in a copy; -m nano-v2a.", metavar="FILE")
    states: Any = option(
        None, flags=("--states",), short="With --video: states of the encoder, made before.", metavar="FILE"
    )

    def to_dict(self) -> dict[str, Any]:
        """Plain values. Raises: RequestError for an image or a mask that is no file."""
        for what, given in (("an image", self.image), ("a mask", self.mask), ("a video", self.video)):
            if given is not None and not isinstance(given, str | Path):
                raise RequestError(f"{what} from memory cannot be written down: save it, and give its path")
        named = {name: getattr(self, name) for name in ("image", "mask", "video", "states", "cache")}
        return asdict(replace(self, image=None, mask=None, video=None, states=None, cache=None)) | {
            key: None if value is None else str(value) for key, value in named.items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Request:
        """Inverse of ``to_dict``. Raises: RequestError on a key that is not a field."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise RequestError(f"unknown request field `{unknown[0]}`: use one of {', '.join(sorted(known))}")
        return cls(**values)

    def with_values(self, **changes: Any) -> Request:
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Audio:
    """Sound. samples_SC: int16, one row a sample, one column a channel (1 or 2).   rate: samples a second."""

    samples_SC: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples_SC) / self.rate

    @property
    def layout(self) -> str:
        """`mono` or `stereo`."""
        return "stereo" if self.samples_SC.shape[1] == 2 else "mono"

    def save(self, target: str | Path) -> Path:
        """Write the sound alone, `.wav` or `.flac`; returns the path written. Raises: RequestError."""
        from kandinsky.media.audio import write_audio

        return write_audio(self, target)


@dataclass(frozen=True, slots=True)
class Video:
    """A finished result, a still image too: frames and the recipe that makes them again.

    frames_THWC: uint8 RGB, T ≥ 1; a still has one.   fps: frames a second.
    seed:        that was used, given or drawn.
    recipe:      model, revision, prompt, settings and versions, as stored in the file (see media/recipe.py).
    audio:       sound, of models that make some.
    """

    frames_THWC: np.ndarray
    fps: float
    seed: int
    recipe: dict[str, Any] = field(default_factory=dict)
    audio: Audio | None = None

    @property
    def frames(self) -> np.ndarray:
        return self.frames_THWC

    @property
    def images(self) -> list[Image]:
        """The frames as Pillow images."""
        from PIL import Image

        return [Image.fromarray(frame) for frame in self.frames_THWC]

    @property
    def image(self) -> Image:
        """The first frame as a Pillow image; all there is of a still."""
        from PIL import Image

        return Image.fromarray(self.frames_THWC[0])

    @property
    def metadata(self) -> dict[str, Any]:
        return self.recipe

    @property
    def seconds(self) -> float:
        return len(self.frames_THWC) / self.fps

    def save(self, target: str | Path) -> Path:
        """Write the clip in the format the file ending names; returns the path written.

        Raises: RequestError for an unknown ending or a target that cannot be written.
        """
        from kandinsky.media.video import write_video

        return write_video(self, Path(target))


@dataclass(frozen=True, slots=True)
class VideoStream:
    """A result that is still being decoded: for clips that are not to lie in memory whole.

    pieces:     the clip in parts [t, H, W, 3], uint8 RGB, in order of time; they can be taken once.
    num_frames: of all parts together.
    fps, seed, recipe: as of ``Video``.
    """

    pieces: Iterator[np.ndarray]
    num_frames: int
    fps: float
    seed: int
    recipe: dict[str, Any] = field(default_factory=dict)

    def gather(self) -> Video:
        """The clip as a whole; takes the pieces."""
        import numpy as np

        return Video(np.concatenate(list(self.pieces)), fps=self.fps, seed=self.seed, recipe=self.recipe)

    def save(self, target: str | Path) -> Path:
        """``Video.save``, each piece written as it comes; takes the pieces."""
        from kandinsky.media.video import write_video

        return write_video(self, Path(target))


@dataclass(frozen=True, slots=True)
class Soundtrack:
    """Sound that was made for a film.

    video: the film, as it was given: a clip in memory, or a file that was looked at (``media/mux.InputVideo``).
    seed, recipe: of the sound, as of ``Video``.
    """

    audio: Audio
    seed: int
    recipe: dict[str, Any]
    video: Video | InputVideo

    @property
    def metadata(self) -> dict[str, Any]:
        return self.recipe

    def save(self, target: str | Path) -> Path:
        """Write the film with this sound in place of its own, its picture untouched; or, as `.wav` or `.flac`, the
        sound alone. Returns the path written. Raises: RequestError."""
        from kandinsky.media import mux
        from kandinsky.media.audio import AUDIO_FILES, write_audio

        if Path(target).suffix.lower() in AUDIO_FILES:
            return write_audio(self.audio, target, recipe=self.recipe)
        if isinstance(self.video, Video):
            return self.with_picture().save(target)
        return mux.copy_with_audio(self.video, self.audio, target, recipe=self.recipe)

    def with_picture(self) -> Video:
        """The clip in memory with its sound. Raises: RequestError where the film is a file."""
        if not isinstance(self.video, Video):
            raise RequestError(f"`{self.video.path}` is a file and stays one: use `save`")
        return replace(self.video, audio=self.audio, recipe=self.video.recipe | {"sound": self.recipe})
