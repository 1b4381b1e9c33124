"""The frozen values that travel from prompt to file.

``width, height`` is the order people see; tensors are always H before W. Nothing here imports torch at run time, so
that the command line can start fast.

Legend: B batch, T frames, H W rows and columns, C channels, L text tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from kandinsky.errors import RequestError
from kandinsky.files import output_path
from kandinsky.model.checks import check_fields, check_names, checked, shown
from kandinsky.model.given import Given, conditions_of, plain
from kandinsky.model.option import option
from kandinsky.model.timeline import PromptAt, prompts_at
from kandinsky.printing import escaped

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

    from kandinsky.diffusion.caching import CacheSettings
    from kandinsky.media.mux import InputVideo


@dataclass(frozen=True, slots=True)
class VideoShape:
    """Size of a clip in pixels.

    Attributes:
        frames: Pixel frames; 1 = a still image.
        height: Height in pixels.
        width: Width in pixels.
    """

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

        Args:
            video: Size of the clip.
            temporal: Pixel frames per latent frame.
            spatial: Pixels per latent pixel, along each side.
            channels: Channels of the latent.

        Returns:
            Size of the latent.

        Raises:
            RequestError: The clip does not fit the autoencoder's grid.
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
    """What a denoiser sees of the prompts.

    Attributes:
        tokens_BLC: One embedding per token.
        pooled_BC: One embedding per prompt.
        mask_BL: True where a token counts; None if every token does.
    """

    tokens_BLC: torch.Tensor
    pooled_BC: torch.Tensor
    mask_BL: torch.Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> TextEmbeddings:
        """Move or cast both tensors as ``Tensor.to`` does; the mask only follows the device."""
        tokens = self.tokens_BLC.to(*args, **kwargs)
        mask = None if self.mask_BL is None else self.mask_BL.to(tokens.device)
        return TextEmbeddings(tokens, self.pooled_BC.to(*args, **kwargs), mask)

    def expand(self, batch: int) -> TextEmbeddings:
        """Match a batch: as many prompts as there are clips, or one prompt repeated for all.

        Args:
            batch: Number of clips.

        Returns:
            Embeddings of ``batch`` prompts.

        Raises:
            RequestError: There are several prompts, and not ``batch`` of them.
        """
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
    """Everything that determines a result; ``None`` means the card's default."""

    model: str
    prompt: str = ""
    negative_prompt: str | None = option(
        None, "what the result should not show", flags=("--negative",), short="What the video should not show."
    )
    seconds: float | None = option(
        None, "length; 0 makes a still image", flags=("--seconds", "--duration"), short="Length; 0 makes a still image."
    )
    prompt_at: Sequence[PromptAt] = option(
        (),
        "prompts for parts of a clip: a list of pairs of a prompt and the second it begins at, `('a cat', 5)`, of such "
        "with an end, `('a cat', 5, 8)`, of texts `5s a cat` or `5s:8s a cat`, or of mappings; the prompt itself holds "
        "elsewhere",
        flags=("--prompt-at",),
        short="A prompt from a time on: `5s a cat`, or `5s:8s a cat`; may be repeated.",
        metavar="TIME PROMPT",
    )
    fade: float | None = option(
        None,
        "seconds over which each prompt of ``prompt_at`` fades in; 0 by default",
        flags=("--fade",),
        short="With --prompt-at: seconds over which each prompt fades in.",
    )
    overlap: float | str | None = option(
        None,
        "of a clip longer than the model's longest, what each window knows of the one before: seconds, or text such as "
        "`0.5s` or, in frames, `12`",
        flags=("--overlap",),
        short="Of longer clips, what each window knows of the one before, as 0.5s or 12 frames.",
        metavar="TIME",
    )
    loop: bool = option(
        False,
        "whether the end of the clip leads to its beginning",
        flags=("--loop",),
        short="Make the end of the clip lead to its beginning.",
    )
    width: int | None = option(None, "width in pixels")
    height: int | None = option(None, "height in pixels")
    steps: int | None = option(None, "steps of the sampler", flags=("--steps",), short="Steps of the sampler.")
    guidance: float | None = option(
        None,
        "classifier-free guidance scale; 1 disables it",
        flags=("--guidance",),
        short="Classifier-free guidance scale; 1 disables it.",
    )
    shift: float | None = option(
        None,
        "timestep shift; above 1 more of the steps are taken near noise",
        flags=("--shift",),
        short="Timestep shift; above 1, more steps near noise.",
    )
    seed: int | None = option(
        None,
        "random if omitted; the result carries the one that was used",
        flags=("--seed",),
        short="Random if omitted; the same seed repeats a result.",
    )
    image: str | Path | Image | np.ndarray | None = option(
        None,
        "a path, a Pillow image or a uint8 array [H, W, 3], for models that take one; it decides the size of the "
        "result and is fitted to it",
        flags=("--image",),
        short="First frame, or the image to edit.",
        metavar="FILE",
    )
    last_image: str | Path | Image | np.ndarray | None = option(
        None,
        "the last frame of a clip, as ``image``",
        flags=("--last-image",),
        short="Last frame.",
        metavar="FILE",
    )
    conditions: Sequence[Given] = option(
        (),
        "what else is known of the result: a list of ``Frames``, ``Source``, ``Control`` and ``Reference``, of "
        "texts `FILE[START:STOP]@PLACE` for known frames, or of mappings of their values",
        flags=("--known",),
        short="Known frames, FILE[START:STOP]@PLACE, as in end.png@-1 or a.mp4[2s:3s]@end; may be repeated.",
        metavar="FILE@PLACE",
    )
    control: str | Path | Image | np.ndarray | Video | None = option(
        None,
        "a clip or an image of the result's shape that the result follows, through a control branch: its edges, or a "
        "clip of depth or pose",
        flags=("--control",),
        short="Clip or image that the result follows: its edges, or a clip of depth or pose.",
        metavar="FILE",
    )
    control_strength: float | None = option(
        None,
        "how much of the control branch is added; 1 as trained, 0 is off",
        flags=("--control-strength",),
        short="With --control: how much of it; 1 as trained.",
        least=0,
        most=4,
    )
    control_steps: str | None = option(
        None,
        "share of the steps at which the control branch works, `START:STOP` from 0 to 1; all by default",
        flags=("--control-steps",),
        short="With --control: share of the steps, such as 0:0.6.",
        metavar="START:STOP",
    )
    reference: str | Path | Image | np.ndarray | None = option(
        None,
        "an image whose subject the result shows, through a reference branch",
        flags=("--reference",),
        short="Image whose subject the result shows.",
        metavar="FILE",
    )
    reference_strength: float | None = option(
        None,
        "how much of the reference branch is added; 1 as trained, 0 is off",
        flags=("--reference-strength",),
        short="With --reference: how much of it; 1 as trained.",
        least=0,
        most=4,
    )
    branch: str | Path | Sequence[str | Path] | None = option(
        None,
        "files of branches for ``control`` and ``reference``; those of the model's own card by default",
        flags=("--branch",),
        short="File of a control or reference branch; may be repeated.",
        metavar="FILE",
    )
    strength: float | None = option(
        None,
        "with ``video``: how far it is changed, above 0 to 1: the time of the sampler that generation begins at",
        flags=("--strength",),
        short="With --video: how far it is changed, above 0 to 1.",
    )
    mask: str | Path | Image | np.ndarray | Video | None = option(
        None,
        "inpainting mask of the image's or the video's size: white, or 1 in an array [H, W], where it is repainted; "
        "for a video also a clip of masks",
        flags=("--mask",),
        short="Inpainting mask: white where --image or --video is repainted.",
        metavar="FILE",
    )
    mask_grow: int | None = option(
        None,
        "pixels by which the mask is grown; the officially prepared masks have 6",
        flags=("--mask-grow",),
        short="Grow the mask by this many pixels; 6 is usual.",
        metavar="PIXELS",
    )
    span: str | None = option(
        None,
        "with ``video``: the frames that are generated anew, `START:STOP` in frames or seconds, such as `1s:2s`",
        flags=("--span",),
        short="With --video: the part generated anew, START:STOP, such as 1s:2s or 12:24.",
        metavar="START:STOP",
    )
    place: str | None = option(
        None,
        "with ``video``: where it lies in the result, `WIDTHxHEIGHT+X+Y`; what is around it is generated",
        flags=("--place",),
        short="With --video: where it lies in the result, WIDTHxHEIGHT+X+Y; the rest is generated.",
        metavar="WxH+X+Y",
    )
    source_prompt: str | None = option(
        None,
        "with ``video``: what it shows; it is then changed by the difference of what the two prompts ask for, instead "
        "of by noise (FlowEdit)",
        flags=("--source-prompt",),
        short="With --video: what it shows; the difference of the two prompts changes it (FlowEdit).",
    )
    resample: int | None = option(
        None,
        "how often each step is taken again from its own clean estimate, which carries what is known into the rest; "
        "0 by default",
        flags=("--resample",),
        short="With known frames or a mask: repeat each step this often, for better seams.",
        least=0,
        most=20,
    )
    upscale: str | float | None = option(
        None,
        "size of the result, `1920x1080`, or a factor, `2`: a second stage by the same model makes the clip, or an "
        "input ``video`` that is changed in no other way, larger, in tiles of the size that the model makes",
        flags=("--upscale",),
        short="Make the result larger in a second stage: WIDTHxHEIGHT, or a factor such as 2.",
        metavar="SIZE",
    )
    upscale_strength: float | None = option(
        None,
        "with ``upscale``: how far the second stage changes what it makes larger, above 0 to 1: the time of the "
        "sampler that it begins at; 0.4 by default",
        flags=("--upscale-strength",),
        short="With --upscale: how far it is changed, above 0 to 1.",
    )
    cache: str | CacheSettings | None = option(
        None,
        "step cache, such as `taylor:interval=3`, `none`, or a value of ``kandinsky.diffusion.caching``; None is the "
        "pipeline's",
        flags=("--cache",),
        short="Step cache: magcache, first-block, taylor or none, as in taylor:interval=3.",
    )
    expand: bool = option(
        False,
        "have the text encoder's language model write the prompt out first; the recipe keeps its text",
        flags=("--expand",),
        short="Have the model's language model expand the prompt first.",
    )
    expanded_prompt: str | None = option(
        None,
        "the text it wrote before, to be used again",
        flags=("--expanded-prompt",),
        short="An expanded prompt to use as it is.",
    )
    fps: str | None = option(
        None,
        "of models that make keyframes, `low`, `medium` or `high`: these alone, or the gaps between them filled once "
        "or twice",
        flags=("--fps",),
        short="Frame rate of keyframe models: low, medium or high.",
    )
    motion: str | None = option(
        None,
        "of Kandinsky Video 1.1, how much should move: `low` to `extreme`",
        flags=("--motion",),
        short="Amount of motion, for Kandinsky Video 1.1: low, medium, high or extreme.",
    )
    image_guidance: float | None = option(
        None,
        "of Kandinsky Video 1.1, guidance scale of the first frame",
        flags=("--image-guidance",),
        short="Guidance scale of the first frame, for Kandinsky Video 1.1.",
    )
    interpolation_guidance: float | None = option(
        None,
        "of models that make keyframes, guidance scale of those around a gap; 1 disables it",
        flags=("--interpolation-guidance",),
        short="Guidance scale of the keyframes around a gap; 1 disables it.",
    )
    video: str | Path | Video | None = option(
        None,
        "input video, a path or a ``Video``: the one that audio is made for, or that is changed, see ``strength``, "
        "``mask``, ``span`` and ``place``",
        flags=("--video",),
        short="Input video: generate audio for it, or change it (--strength, --mask, --span, --place).",
        metavar="FILE",
    )
    states: str | Path | None = option(
        None,
        "file of precomputed embeddings of the input video",
        flags=("--states",),
        short="With --video: precomputed embeddings of it.",
        metavar="FILE",
        served=False,
    )

    def __post_init__(self) -> None:
        if not isinstance(self.conditions, tuple) or not all(isinstance(o, Given) for o in self.conditions):
            object.__setattr__(self, "conditions", conditions_of(self.conditions))
        if not isinstance(self.prompt_at, tuple) or not all(isinstance(one, PromptAt) for one in self.prompt_at):
            object.__setattr__(self, "prompt_at", prompts_at(self.prompt_at))
        check_fields(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of all fields.

        Raises:
            RequestError: An image, a mask or a clip is in memory and not a file.
        """
        named: dict[str, Any] = {}
        for what, name in (("an image", "image"), ("an image", "last_image"), ("a mask", "mask"), ("a video", "video"),
                           ("a control", "control"), ("a reference", "reference")):  # fmt: skip
            named[name] = getattr(self, name)
            if named[name] is not None and not isinstance(named[name], str | Path):
                raise RequestError(f"{what} from memory cannot be written down: save it, and give its path")
        named |= {name: getattr(self, name) for name in ("states", "cache")}
        branches = [str(one) for one in self.branches]
        apart = self.with_values(conditions=(), prompt_at=(), branch=None, **dict.fromkeys(named))
        left: dict[str, Any] = asdict(apart)
        return (
            left
            | {key: None if value is None else str(value) for key, value in named.items()}
            | {"conditions": [plain(one) for one in self.conditions], "branch": branches or None}
            | {"prompt_at": [one.plain() for one in self.prompt_at]}
        )

    @property
    def branches(self) -> tuple[str | Path, ...]:
        """The entries of ``branch``, one by one."""
        if self.branch is None:
            return ()
        return (self.branch,) if isinstance(self.branch, str | Path) else tuple(self.branch)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Request:
        """Build a request from plain values; the inverse of ``to_dict``.

        Args:
            values: Values by field.

        Returns:
            The request.

        Raises:
            RequestError: A key is not a field, a value has the wrong type, or there is no model.
        """
        if not isinstance(values, Mapping):
            raise RequestError(f"a request must be a mapping, not `{shown(values)}`")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(map(str, set(values) - known)):
            raise RequestError(f"unknown request field `{shown(unknown[0])}`: use one of {', '.join(sorted(known))}")
        if "model" not in values:
            raise RequestError("a request needs `model`, such as `nano-t2v`")
        return cls(**values)

    def with_values(self, **changes: Any) -> Request:
        """Replace some fields.

        Args:
            **changes: New values by field.

        Returns:
            The changed request.

        Raises:
            RequestError: A name is not a field, or a value has the wrong type.
        """
        check_names(changes, [f.name for f in fields(self)], "request field")
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Audio:
    """Sound, as long as its samples; an array to NumPy, and a player in a notebook.

    Attributes:
        samples_SC: int16, one row per sample, one column per channel (1 or 2).
        rate: Samples per second.
    """

    samples_SC: np.ndarray
    rate: int

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.samples_SC.shape) != 2 or self.samples_SC.dtype != "int16":
            raise RequestError(f"samples must be [samples, channels] of int16, not {_described(self.samples_SC)}")
        if self.rate < 1 and len(self.samples_SC):
            raise RequestError(f"`rate` must be a whole number of samples a second from 1 on, not `{shown(self.rate)}`")

    @property
    def seconds(self) -> float:
        return len(self.samples_SC) / self.rate if self.rate else 0.0

    @property
    def layout(self) -> str:
        """`mono` or `stereo`."""
        return "stereo" if self.samples_SC.shape[1] == 2 else "mono"

    def __len__(self) -> int:
        return len(self.samples_SC)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return _as_array(self.samples_SC, dtype, copy)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Audio):
            return NotImplemented
        return self.rate == other.rate and _same(self.samples_SC, other.samples_SC)

    __hash__ = None  # type: ignore[assignment]  # what it is made of can change

    def __repr__(self) -> str:
        return f"Audio({self.seconds:.2f} s, {self.layout}, {self.rate} Hz)"

    def _repr_html_(self) -> str:
        from kandinsky.media.notebook import audio_html

        return audio_html(self)

    def save(self, target: str | Path) -> Path:
        """Write the audio alone.

        Args:
            target: File to write, `.wav` or `.flac`.

        Returns:
            The path written.

        Raises:
            RequestError: The file name has another ending, or the file cannot be written.
        """
        from kandinsky.media.audio import write_audio

        return write_audio(self, checked("target", target, str | Path))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Video:
    """A finished result, including still images: frames and the recipe to make them again.

    It behaves as a sequence of frames: ``len(video)``, ``video[0]`` is a frame [H, W, 3], ``video[5:10]`` is a
    ``Video`` with the audio of that time, ``np.asarray(video)`` all frames. In a notebook it plays.

    Attributes:
        frames_THWC: uint8 RGB, T ≥ 1; a still image has one frame.
        fps: Frames per second.
        seed: The seed that was used, given or drawn.
        recipe: Model, revision, prompt, settings and versions, as stored in the file (see media/recipe.py).
        audio: The audio, if the model generates any.
    """

    frames_THWC: np.ndarray
    fps: float
    seed: int = 0
    recipe: dict[str, Any] = field(default_factory=dict)
    audio: Audio | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.frames_THWC.shape) != 4 or self.frames_THWC.shape[-1] != 3 or self.frames_THWC.dtype != "uint8":
            raise RequestError(f"frames must be [T, H, W, 3] of uint8, not {_described(self.frames_THWC)}")
        if self.fps <= 0:
            raise RequestError(f"`fps` must be a number above 0, not `{shown(self.fps)}`")

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
        """The first frame as a Pillow image; for a still image, all there is."""
        from PIL import Image

        return Image.fromarray(self.frames_THWC[0])

    @property
    def metadata(self) -> dict[str, Any]:
        return self.recipe

    @property
    def seconds(self) -> float:
        return len(self.frames_THWC) / self.fps

    def __len__(self) -> int:
        return len(self.frames_THWC)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.frames_THWC)

    @overload
    def __getitem__(self, which: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, which: slice) -> Video: ...
    def __getitem__(self, which: int | slice) -> np.ndarray | Video:
        """A frame, or a part of the clip at its own pace: with every second frame, ``fps`` is halved.

        Args:
            which: Index of a frame, or a slice of frames.

        Returns:
            A frame [H, W, 3], or a clip.

        Raises:
            IndexError: There is no such frame.
            RequestError: The slice has no frames.
        """
        if not isinstance(which, slice):
            frame: np.ndarray = self.frames_THWC[operator.index(which)]
            return frame
        chosen = range(len(self))[which]
        if not chosen:
            raise RequestError(f"no frames are left of {len(self)}: choose some between 0 and {len(self)}")
        audio = self.audio
        if audio is not None:
            first, last = min(chosen), max(chosen) + 1
            begin, end = (round(frame / self.fps * audio.rate) for frame in (first, last))
            audio = Audio(audio.samples_SC[begin:end][:: 1 if chosen.step > 0 else -1], audio.rate)
        part = {"slice": [chosen.start, chosen.stop, chosen.step]} if self.recipe else {}
        return Video(self.frames_THWC[which], self.fps / abs(chosen.step), self.seed, self.recipe | part, audio)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return _as_array(self.frames_THWC, dtype, copy)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Video):
            return NotImplemented
        return (
            (self.fps, self.seed, self.recipe, self.audio) == (other.fps, other.seed, other.recipe, other.audio)
        ) and _same(self.frames_THWC, other.frames_THWC)

    __hash__ = None  # type: ignore[assignment]  # what it is made of can change

    def __repr__(self) -> str:
        return _repr(self, len(self), self.frames_THWC.shape[1:3])

    def _repr_html_(self) -> str:
        from kandinsky.media.notebook import video_html

        return video_html(self)

    def save(self, target: str | Path) -> Path:
        """Write the clip in the format that the file's ending names.

        Args:
            target: File to write, such as `.mp4`, `.webm`, `.gif` or `.png`.

        Returns:
            The path written.

        Raises:
            RequestError: The ending is unknown, or the file cannot be written.
        """
        from kandinsky.media.video import write_video

        return write_video(self, output_path(checked("target", target, str | Path)))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class VideoStream:
    """A result that is still being decoded, for clips too long to hold in memory.

    Attributes:
        pieces: The clip in parts [t, H, W, 3], uint8 RGB, in order of time; they can be consumed once.
        num_frames: Number of frames of all parts together.
        fps: As in ``Video``.
        seed: As in ``Video``.
        recipe: As in ``Video``.
    """

    pieces: Iterator[np.ndarray]
    num_frames: int
    fps: float
    seed: int
    recipe: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames one by one; consumes the pieces."""
        return (frame for piece in self.pieces for frame in piece)

    def __repr__(self) -> str:
        return _repr(self, self.num_frames, None)

    def gather(self) -> Video:
        """The clip as a whole; consumes the pieces."""
        import numpy as np

        return Video(np.concatenate(list(self.pieces)), fps=self.fps, seed=self.seed, recipe=self.recipe)

    def save(self, target: str | Path) -> Path:
        """Write the clip as ``Video.save`` does, each piece as it comes; consumes the pieces.

        Args:
            target: File to write, such as `.mp4`, `.webm`, `.gif` or `.png`.

        Returns:
            The path written.

        Raises:
            RequestError: The ending is unknown, or the file cannot be written.
        """
        from kandinsky.media.video import write_video

        return write_video(self, output_path(checked("target", target, str | Path)))


@dataclass(frozen=True, slots=True, repr=False)
class Soundtrack:
    """Audio generated for an input video; in a notebook it plays.

    Attributes:
        audio: The audio.
        seed: The seed that was used, given or drawn.
        recipe: Its recipe, as in ``Video``.
        video: The input as it was given: a clip in memory, or a probed file (``media/mux.InputVideo``).
    """

    audio: Audio
    seed: int
    recipe: dict[str, Any]
    video: Video | InputVideo

    @property
    def metadata(self) -> dict[str, Any]:
        return self.recipe

    def __len__(self) -> int:
        return len(self.audio)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.audio.__array__(dtype, copy)

    def __repr__(self) -> str:
        source = "a clip" if isinstance(self.video, Video) else f"`{escaped(self.video.path)}`"
        return f"Soundtrack({self.audio!r} for {source}, seed {self.seed})"

    def _repr_html_(self) -> str:
        from kandinsky.media.notebook import audio_html, video_html

        return video_html(self.with_picture()) if isinstance(self.video, Video) else audio_html(self.audio)

    def save(self, target: str | Path) -> Path:
        """Write a copy of the video with this audio in place of its own, its frames untouched; or the audio alone.

        Args:
            target: File to write; `.wav` or `.flac` for the audio alone.

        Returns:
            The path written.

        Raises:
            RequestError: The ending is unknown, or the file cannot be written.
        """
        from kandinsky.media import mux
        from kandinsky.media.audio import AUDIO_FILES, write_audio

        target = checked("target", target, str | Path)
        if Path(target).suffix.lower() in AUDIO_FILES:
            return write_audio(self.audio, target, recipe=self.recipe)
        if isinstance(self.video, Video):
            return self.with_picture().save(target)
        return mux.copy_with_audio(self.video, self.audio, target, recipe=self.recipe)

    def with_picture(self) -> Video:
        """The clip in memory with its audio.

        Raises:
            RequestError: The input video is a file.
        """
        if not isinstance(self.video, Video):
            raise RequestError(f"`{self.video.path}` is a file and stays one: use `save`")
        return replace(self.video, audio=self.audio, recipe=self.video.recipe | {"sound": self.recipe})


def _repr(one: Video | VideoStream, frames: int, size: tuple[int, ...] | None) -> str:
    """One line: duration, size, seed, model and prompt."""
    recipe = one.recipe if isinstance(one.recipe, dict) else {}
    width, height = (size[1], size[0]) if size else (recipe.get("width"), recipe.get("height"))
    length = "1 frame" if frames == 1 else f"{frames} frames, {frames / one.fps:.2f} s at {one.fps:g} fps"
    told = [length, f"{width}x{height}" if width else "", f"seed {one.seed}", escaped(recipe.get("model", ""))]
    if isinstance(one, Video) and one.audio is not None:
        told.append(f"with sound, {one.audio.layout}")
    if prompt := recipe.get("prompt"):
        told.append(f"'{shown(str(prompt))}'")
    return f"{type(one).__name__}({', '.join(filter(None, told))})"


def _as_array(values: np.ndarray, dtype: Any, copy: bool | None) -> np.ndarray:
    """The rules of ``__array__``: the values themselves if nothing has to change."""
    if dtype is not None and values.dtype != dtype:
        if copy is False:
            raise ValueError(f"{values.dtype} becomes {dtype} by a copy alone")
        return values.astype(dtype)
    return values.copy() if copy else values


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _described(values: np.ndarray) -> str:
    return f"{list(values.shape)} of {values.dtype}"
