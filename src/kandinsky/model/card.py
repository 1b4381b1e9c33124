"""Cards: one TOML file per checkpoint, the only place for defaults.

``find(id)`` returns a validated ``Card``; an unknown key anywhere in a card is an error. Users add cards of their own
by pointing ``KANDINSKY_CARDS`` at a folder of TOML files. This module imports no torch.

A card may begin with ``base = "NAME"``: it then says only what differs from `_bases/NAME.toml` beside it, else from
`_bases/NAME.toml` of this package, else from the shipped card NAME. The rule is short: tables are merged key by key,
notes are added to those of the base, anything else replaces what the base says. A long MagCache table may stand in
`_tables/mag_ratios.toml`; the card then names it.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from kandinsky.errors import RequestError
from kandinsky.files import relative_parts
from kandinsky.model.family import Family, Part
from kandinsky.model.task import ROLL, Task
from kandinsky.printing import escaped

HERE = Path(__file__).parent.parent / "cards"
BASES, TABLES = "_bases", "_tables"
FITS = ("list", "area", "within")
Families = Callable[[str], Family]
WHOLE = "./"  # all files of a repository
DEFAULT_MODEL = "nano2-t2v"
UNPUBLISHED = "unpublished"
DEFAULT_SOUND, FULL_SIZE_SOUND = "nano-v2a", "kandinsky4-v2a"


@dataclass(frozen=True, slots=True)
class FileSet:
    """Files that come from one place.

    Attributes:
        repo: Hugging Face repository, or `package` for weights shipped inside this package (`kandinsky/assets/`), or a
            local folder: `/…`, `~/…`, or `./…` relative to the folder of the card; or `unpublished` for weights that
            were never released, which anybody may train and put where ``local`` says.
        files: Paths inside the repository; a path ending in `/` means the whole folder, `./` everything.
        name: Tells the parts of one component apart (`qwen`, `clip`); may be empty if there is one part. `update` is
            added to a network that is read from one part (``weights/update.py``).
        revision: Branch, tag or commit of the repository.
        local: Where the same files lie in an official `weights/` folder: a file, or a folder if it ends in `/`.
        bytes: Download size, for `kandinsky plan`.
        dtype: Type of the numbers in the files, also for the plan.
        gated: Whether the hub requires a token and an accepted licence.
        loaded: Bytes that are kept in memory, if not as many as the files have.
    """

    repo: str
    files: tuple[str, ...]
    name: str = ""
    revision: str = "main"
    local: str = ""
    bytes: int = 0
    dtype: str = "float32"
    gated: bool = False
    loaded: int = 0

    def __post_init__(self) -> None:
        """Refuse names that lead out of their folder.

        Raises:
            RequestError: A file name leads out of its folder, or files or the revision are empty.
        """
        local = self.repo[2:] if self.repo.startswith("./") else ""
        names = {"file": self.files, "local": (self.local,), "revision": (self.revision,), "repo": (local,)}
        for what, name in ((what, name) for what, given in names.items() for name in given if name not in ("", WHOLE)):
            try:
                relative_parts(name)
            except RequestError as error:
                raise RequestError(f"card: {what} of `{escaped(self.repo)}`: {error}") from error
        if not self.files or "" in self.files or not self.revision:
            raise RequestError(f"card: `{escaped(self.repo)}` needs files and a revision, none of them empty")

    @property
    def is_folder(self) -> bool:
        """Whether they lie in a local folder of the user's."""
        return self.repo.startswith(("/", "~")) or Path(self.repo).is_absolute()


@dataclass(frozen=True, slots=True)
class Component:
    """One network of a model: the class that builds it, its hyper-parameters, and the files it is read from.

    Attributes:
        kind: Which part of the family it is (`kandinsky5.dit`, `qwen-clip`, `hunyuan`, …).
        parts: Its files.
        params: Its hyper-parameters.
        dtype: Compute type it always runs in; empty for that of the others.
    """

    kind: str
    parts: tuple[FileSet, ...]
    params: dict[str, Any] = field(default_factory=dict)
    dtype: str = ""

    @property
    def bytes(self) -> int:
        """Size of all parts together."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Defaults of the sampling loop.

    Attributes:
        steps: Sampling steps.
        guidance: Classifier-free guidance scale; 1 disables it, and no second pass runs.
        shift: Timestep shift.
        rope_scale: Factors of the rotary positions of frames, rows and columns.
        negative_prompt: Used if a request has none.
        max_steps: Most steps a request may ask for.
        max_guidance: Largest guidance scale; beyond it no sampler of the family gives a result.
        good_steps: Most steps that gain anything, beyond which a note says so; 0 where that is not known.
        good_guidance: The same of the guidance scale, beyond which colours burn.
        min_shift: Smallest shift.
        max_shift: Largest shift.
        sampler: Timesteps and update rule by name; see ``diffusion/samplers.py``.
        noise: Type in which it is drawn; see ``diffusion/noise.RULES``.
        condition: What the condition channels hold without an image: `zeros`, `coordinates`, or those of `scenes`.
        attention: Type and values of the visual self attention.
        mag_ratios: Magnitude ratios of MagCache.
        normalize_first_frame: For image to video, whether to match the first frames to the look of the rest.
    """

    steps: int
    guidance: float
    shift: float
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    negative_prompt: str = ""
    max_steps: int = 1000
    max_guidance: float = 100.0
    good_steps: int = 0
    good_guidance: float = 0.0
    min_shift: float = 0.01
    max_shift: float = 100.0
    sampler: str = "flow"
    noise: str = "float32"
    condition: str = "zeros"
    attention: dict[str, Any] = field(default_factory=lambda: {"type": "dense"})
    mag_ratios: tuple[float, ...] = ()
    normalize_first_frame: bool = False  # image to video: bring the first frames to the look of the rest


@dataclass(frozen=True, slots=True)
class Roll:
    """How an autoregressive model goes on from what it made.

    What a chunk is, and how many of them it sees, stands in ``Sampling.attention``, which is causal: `frames` of a
    chunk, `reach` and `sink` in chunks.

    Attributes:
        context_noise: Time of the noise that finished frames have when later chunks see them; 0 is none.
        times: Falling times of a chunk's steps, at the card's number of steps; those of the sampler if empty.
        actions: What can be done in a world that can be played, the first where nothing is; empty of other models.
    """

    context_noise: float = 0.0
    times: tuple[float, ...] = ()
    actions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SizeClass:
    """Sizes that share values, as the official SD and HD configurations of one checkpoint do.

    Attributes:
        min_pixels: Width·height from which the class applies; the largest that is not above the request's decides.
        area: Number of pixels to which an image of any shape is brought: about, or at most, as ``Clip.fit`` is "area"
            or "within".
        multiple: Both sides of such a size are multiples of this.
        sampling: Keys of ``Sampling`` that differ from the card's own.
    """

    min_pixels: int = 0
    area: int = 0
    multiple: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Clip:
    """Valid clips. Sizes are `WIDTHxHEIGHT`. A duration of 0 seconds is one still frame.

    Attributes:
        fps: Frames per second.
        seconds: Default duration.
        min_seconds: Shortest duration.
        max_seconds: Longest duration.
        sizes: Sizes the model is trained for.
        default_size: One of them.
        temporal: Pixel frames per latent frame.
        spatial: Pixels per latent pixel, along each side.
        channels: Channels of the latent.
        fit: How an image given by the user decides the size: "list" takes the listed size nearest in shape, "area"
            keeps the image's shape and takes area and multiple of the size class, "within" the same without enlarging.
        step: Frames by which clips grow, if more than one latent frame; 0 = ``temporal``.
        multiple: Unlisted sizes are valid too if both sides are multiples of this; 0 = only listed ones.
        stills_together: Stills that a server generates as one batch, where that is quicker than one by one.
        clips_together: The same of clips.
        overlap: Seconds that neighbouring windows of a longer clip share; None = a quarter of the longest clip, 0 = the
            model makes no longer clips.
        cuts: Whether a length between two of the grid is made with a group more and cut; else it is the one below.
    """

    fps: float
    seconds: float
    min_seconds: float
    max_seconds: float
    sizes: tuple[str, ...]
    default_size: str
    temporal: int = 4
    spatial: int = 8
    channels: int = 16
    fit: str = "list"
    step: int = 0
    multiple: int = 0
    stills_together: int = 1
    clips_together: int = 1
    overlap: float | None = None
    cuts: bool = False

    @property
    def frame_step(self) -> int:
        """Number of frames by which clips grow: a clip has 1 + a multiple of it."""
        return self.step or self.temporal


@dataclass(frozen=True, slots=True)
class FirstFrame:
    """How a keyframe model generates or takes the first frame.

    Attributes:
        vae: Autoencoder for single images, in both directions.
        guidance: Classifier-free guidance scale while it is generated; 1 disables it.
        image_guidance: Guidance scale of the first frame in the keyframes.
        noise_level: Timestep of the schedule whose noise is mixed into it.
        motion: Amount of motion, by name.
        default_motion: One of these names.
        scale: A first frame generated from text is this many times as large as the clip, then reduced.
    """

    vae: Component
    guidance: float
    image_guidance: float
    noise_level: int
    motion: dict[str, int]
    default_motion: str
    scale: int = 2


@dataclass(frozen=True, slots=True)
class Keyframes:
    """A model that generates keyframes and fills the gaps between them with a second network.

    Attributes:
        count: Number of keyframes.
        spacing: Distance between the positions given to the first network, from one keyframe to the next.
        fps: Frames per second by name, from slow to fast: the first has the keyframes alone, each further name fills
            all gaps once more.
        default_fps: One of these names.
        interpolation: The second network.
        sampler: Sampler of its loop.
        steps: Steps of its loop.
        guidance: Guidance scale of its loop.
        skips: Distance given to it in each pass.
        guides_text: Whether it sees the prompt; the pass without the prompt then knows nothing of neighbouring gaps.
        first_frame: How the first frame is generated or taken; None if the model has no such step.
    """

    count: int
    spacing: int
    fps: dict[str, int]
    default_fps: str
    interpolation: Component
    sampler: str
    steps: int
    guidance: float
    skips: tuple[int, ...] = (3, 1)
    guides_text: bool = False
    first_frame: FirstFrame | None = None


@dataclass(frozen=True, slots=True)
class Sound:
    """How an audio model sees an input video, and what its mel spectrograms mean.

    Attributes:
        window_s: Longest stretch of a video processed at once, in seconds.
        overlap_s: Overlap of neighbouring windows, which are cross-faded, in seconds.
        frames: Number of frames of each window that the encoder sees.
        multiple: Spectrograms have a multiple of this many columns.
        max_value: Magnitude at which a spectrogram is black.
        spectrogram: See ``media/spectrogram.SpectrogramParams``, under official names.
        least_s: Shortest stretch, in seconds; the last frame of a shorter video is repeated, and the excess audio is
            cut off.
        fps: Frames per second taken from the start of the window, the nearest available; 0 = evenly from its first
            frame to its last.
        dbfs: Loudness to which the whole is normalised; None = that of the spectrograms.
    """

    window_s: float
    overlap_s: float
    frames: int
    multiple: int
    max_value: float
    spectrogram: dict[str, Any] = field(default_factory=dict)
    least_s: float = 0.0
    fps: float = 0.0
    dbfs: float | None = None


@dataclass(frozen=True, slots=True)
class LatentRGB:
    """Approximate colours of an autoencoder's latents: the linear map used to draw previews.

    Attributes:
        weights: For each channel of the latent, its share of red, green and blue.
        bias: Colour of a zero latent; colours are 0 to 1.
    """

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Source:
    """A model that was found: its card and its files.

    Attributes:
        card: The card.
        root: Folder of its files; None = the Hugging Face cache.
        name: The name that finds it again.
    """

    card: Card
    root: Path | None
    name: str


@dataclass(frozen=True, slots=True)
class Card:
    """One checkpoint. ``sampling_for`` returns the sampling defaults of a size.

    Attributes:
        id: Catalogue id.
        family: The family it belongs to.
        task: `text-to-video`, `image-to-video`, `text-to-image`, …: one of the family's tasks.
        title: Name for people.
        licence: Licence of the weights.
        parameters: Number of parameters of the denoiser.
        source: Where the values come from.
        dit: The denoiser.
        text: The text encoder; for audio models, the encoder of frames and text.
        vae: The autoencoder.
        sampling: Sampling defaults.
        clip: Valid clips; for audio models, the spectrogram of one window.
        classes: Sizes that share other defaults, by name.
        notes: Disagreements between sources, and what was decided.
        diffusers: Repository of the same model in the Diffusers layout, if it is not the first one's with `-Diffusers`.
        prompt: `required`, or `optional` if an image suffices.
        keyframes: For models that generate keyframes first.
        sound: For models that generate audio.
        sounds_with: The model that generates audio for this one's clips.
        animates_with: The model that begins with an image, as this one is not trained to.
        conditions_with: The model that is named to those who ask for conditions that this one does not take.
        stands_for: Ids that there are not, since this model is already what they ask for, such as its `-nocfg`: whoever
            asks for one is told this model's id.
        preview: Colours of previews; grey without it.
        distilled_from: The model that its few steps were distilled from.
        roll: Makes the model autoregressive: clips are made along time, and can be streamed without end.
        branches: Files of control and reference branches that are used if a request names none.
        references_on: The ground on which its own reference branch has seen images, `white`; empty for any.
    """

    id: str
    family: Family
    task: str
    title: str
    licence: str
    parameters: int
    source: str
    dit: Component
    text: Component
    vae: Component
    sampling: Sampling
    clip: Clip
    classes: dict[str, SizeClass] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    diffusers: str = ""
    prompt: str = "required"  # or "optional": with an image, the prompt may be omitted
    keyframes: Keyframes | None = None
    sound: Sound | None = None
    sounds_with: str = FULL_SIZE_SOUND
    animates_with: str = ""
    conditions_with: str = ""
    stands_for: tuple[str, ...] = ()
    preview: LatentRGB | None = None
    distilled_from: str = ""
    roll: Roll | None = None
    branches: tuple[FileSet, ...] = ()
    references_on: str = ""

    @property
    def does(self) -> Task:
        """What the model does.

        Raises:
            RequestError: Its family does not have the task.
        """
        task = self.family.task(self.task)
        if self.roll is not None:
            # chunks are made in a loop of their own, which replaces nothing
            knows = {what: way for what, way in task.knows.items() if way == "native"}
            return dataclasses.replace(task, stages=ROLL, knows=knows)
        heeds = self.part("dit").heeds
        if heeds is None:
            return task
        return dataclasses.replace(task, knows={what: way for what, way in task.knows.items() if what in heeds})

    @property
    def knows_first_alone(self) -> bool:
        """Whether a request may give it a first frame as any known frame is given, and no others."""
        return self.goes_on and "first frame" in self.does.knows and "frames" not in self.does.knows

    @property
    def goes_on(self) -> bool:
        """Whether a part of a longer clip can know the end of the part before, which the model made itself."""
        return self.roll is None and "frames" in self.family.task(self.task).knows

    def part(self, name: str) -> Part:
        """What the family says of a network.

        Args:
            name: The network's name in this card: `dit`, `text`, `vae`, ….

        Returns:
            The part.

        Raises:
            RequestError: The family does not have a network of this kind.
        """
        return self.family.part(self.component(name).kind)

    @property
    def chunk(self) -> int | None:
        """Latent frames that an autoregressive model makes together; None for models of whole clips."""
        return None if self.roll is None else int(self.sampling.attention.get("frames", 1))

    @property
    def is_published(self) -> bool:
        """Whether all weights can be downloaded or come with the package."""
        return all(part.repo != UNPUBLISHED for entry in self.components.values() for part in entry.parts)

    @property
    def components(self) -> dict[str, Component]:
        """All networks by name."""
        found = {"dit": self.dit, "text": self.text, "vae": self.vae}
        if self.keyframes is not None:
            found["interpolation"] = self.keyframes.interpolation
            if self.keyframes.first_frame is not None:
                found["image_vae"] = self.keyframes.first_frame.vae
        return found

    def component(self, name: str) -> Component:
        return self.components[name]

    def with_components(self, change: Callable[[str, Component], Component]) -> Card:
        """The card with each network's entry replaced by ``change(name, entry)``."""
        new = {name: change(name, entry) for name, entry in self.components.items()}
        keyframes = self.keyframes
        if keyframes is not None:
            first = keyframes.first_frame
            keyframes = dataclasses.replace(
                keyframes,
                interpolation=new["interpolation"],
                first_frame=first and dataclasses.replace(first, vae=new["image_vae"]),
            )
        return dataclasses.replace(self, dit=new["dit"], text=new["text"], vae=new["vae"], keyframes=keyframes)

    def class_for(self, width: int, height: int) -> str | None:
        """Name of the size class of a size in pixels; None if the card has no classes."""
        fitting = [name for name, entry in self.classes.items() if entry.min_pixels <= width * height]
        return max(fitting, key=lambda name: self.classes[name].min_pixels, default=None)

    def of_whole_clips(self) -> Card:
        """The card, of which a clip beyond the longest is refused and not made in windows."""
        return dataclasses.replace(self, clip=dataclasses.replace(self.clip, overlap=0, cuts=False))

    def sampling_for(self, width: int, height: int) -> Sampling:
        """The sampling defaults for a size in pixels: the card's own, with the changes of the size class."""
        name = self.class_for(width, height)
        return self.sampling if name is None else _changed(self.sampling, self.classes[name].sampling, self.id)


def sound_of(card: Card) -> Sound:
    """What a card says of audio.

    Raises:
        RequestError: The model does not generate audio.
    """
    if card.sound is None:
        raise RequestError(f"`{card.id}` makes no sound: use a model for `video-to-audio`, such as `{DEFAULT_SOUND}`")
    return card.sound


def parse(values: dict[str, Any], *, where: str, families: Families) -> Card:
    """Build a card from parsed TOML.

    Args:
        values: The parsed tables.
        where: What to call the source in errors, such as the path of the file.
        families: Returns the family of a name.

    Returns:
        The validated card.

    Raises:
        RequestError: A key or value is wrong; the message names the source and the key.
    """
    if isinstance(values, dict) and isinstance(name := values.get("family"), str):
        values = values | {"family": families(name)}
    card = _build(Card, _with_tables(values, where), where)
    card.does  # noqa: B018 - refuses a task its family has not
    if card.clip.default_size not in card.clip.sizes:
        raise RequestError(f"{where}: clip.default_size `{card.clip.default_size}` is not one of clip.sizes")
    if card.prompt not in ("required", "optional"):
        raise RequestError(f"{where}: prompt `{card.prompt}` is unknown: use required or optional")
    if card.clip.fit not in FITS:
        raise RequestError(f"{where}: clip.fit `{card.clip.fit}` is unknown: use {', '.join(FITS)}")
    if card.classes and all(entry.min_pixels for entry in card.classes.values()):
        raise RequestError(f"{where}: one of the classes must begin at min_pixels = 0")
    if card.clip.fit != "list" and not (
        card.classes and all(c.area > 0 and c.multiple > 0 for c in card.classes.values())
    ):
        raise RequestError(f'{where}: clip.fit = "{card.clip.fit}" needs classes, each with area and multiple')
    for name, entry in card.classes.items():
        _changed(card.sampling, entry.sampling, f"{where}: class {name}")
    if card.preview is not None and any(len(row) != 3 for row in card.preview.weights):
        raise RequestError(f"{where}: preview.weights needs three numbers for each channel of the latent")
    if (sound := card.sound) is not None and not (
        0 <= sound.overlap_s < sound.window_s and sound.least_s <= sound.window_s and sound.frames > 1
    ):
        raise RequestError(f"{where}: sound needs two frames or more, and windows longer than overlap_s and least_s")
    _check_roll(card, where)
    out: Card = card
    return out


def _check_roll(card: Card, where: str) -> None:
    """Refuse a table `roll` that the rest of the card contradicts.

    Raises:
        RequestError: It does.
    """
    if (roll := card.roll) is None:
        return
    attention = card.sampling.attention
    if attention.get("type") != "causal" or not attention.get("reach"):
        raise RequestError(
            f'{where}: roll needs sampling.attention of type "causal" with reach, the chunks seen before a chunk, from '
            "1 on"
        )
    if "causal" not in card.part("dit").attention:
        raise RequestError(f"{where}: roll needs causal attention, which network `{card.dit.kind}` does not have")
    if card.does.makes != "video":
        raise RequestError(f"{where}: roll is of models that make video, and task `{card.task}` does not")
    if not 0 <= roll.context_noise < 1:
        raise RequestError(f"{where}: roll.context_noise `{roll.context_noise:g}` must be from 0 to below 1")
    if roll.actions and not card.part("text").steers:
        raise RequestError(f"{where}: roll.actions: text network `{card.text.kind}` cannot tell of actions")
    times = (*roll.times, 0.0)
    if roll.times and (
        len(roll.times) != card.sampling.steps or roll.times[0] > 1 or any(b >= a for a, b in pairwise(times))
    ):
        raise RequestError(
            f"{where}: roll.times must be sampling.steps = {card.sampling.steps} falling numbers, from 1 to above 0"
        )


def read(path: Path, *, families: Families) -> Card:
    """Read one card file, with its bases.

    Args:
        path: The TOML file.
        families: Returns the family of a name.

    Returns:
        The validated card.

    Raises:
        RequestError: The file is not valid TOML or not a valid card.
    """
    return _anchored(parse(_read_values(path), where=path.name, families=families), path.parent.absolute())


def _read_values(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a card file over those of its base; ``above`` lists the files that led here."""
    if path in above:
        raise RequestError(f"card `{path.name}` is its own base: {' → '.join(p.name for p in (*above, path))}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"card `{path}` cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"card `{path}` is not valid TOML: {error}") from error
    if "base" not in values:
        return values
    name = values.pop("base")
    if not isinstance(name, str) or len(relative_parts(name)) > 1:
        raise RequestError(f"{path.name}: base `{escaped(name)}` must be the name of a card")
    folder = path.parent.parent if path.parent.name == BASES else path.parent
    places = (folder / BASES / f"{name}.toml", HERE / BASES / f"{name}.toml", HERE / f"{name}.toml")
    for place in places:
        if place.is_file():
            return _merged(_read_values(place, (*above, path)), values)
    raise RequestError(f"{path.name}: base `{name}` is not there: looked for `{places[0]}` and among the shipped cards")


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        before = base.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            merged[key] = _merged(before, value)
        elif key == "notes" and isinstance(before, list) and isinstance(value, list):
            merged[key] = [*before, *value]
        else:
            merged[key] = value
    return merged


def _with_tables(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The card's values with MagCache tables in place of their names."""

    def filled(sampling: Any) -> Any:
        if not isinstance(sampling, dict) or not isinstance(name := sampling.get("mag_ratios"), str):
            return sampling
        tables = _mag_ratios()
        if name not in tables:
            raise RequestError(f"{where}: mag_ratios `{name}` is unknown: use one of {', '.join(sorted(tables))}")
        return {**sampling, "mag_ratios": tables[name]}

    if not isinstance(values, dict):
        return values
    values = dict(values)
    if "sampling" in values:
        values["sampling"] = filled(values["sampling"])
    if isinstance(classes := values.get("classes"), dict):
        values["classes"] = {
            name: {**entry, "sampling": filled(entry["sampling"])}
            if isinstance(entry, dict) and "sampling" in entry
            else entry
            for name, entry in classes.items()
        }
    return values


@cache
def _mag_ratios() -> dict[str, list[float]]:
    return tomllib.loads((HERE / TABLES / "mag_ratios.toml").read_text(encoding="utf-8"))


def _changed(sampling: Sampling, changes: dict[str, Any], where: str) -> Sampling:
    """Replace some sampling values.

    Raises:
        RequestError: A key is not a sampling value.
    """
    if not changes:
        return sampling
    values = {f.name: getattr(sampling, f.name) for f in dataclasses.fields(sampling)}
    for key in changes:
        if key not in values:
            _unknown(key, values, "sampling", where)
    out: Sampling = _build(Sampling, values | changes, where)
    return out


def _anchored(card: Card, folder: Path) -> Card:
    """The card with parts at `./…` turned into paths below its own folder, so that a model's folder can be moved."""

    def part(entry: FileSet) -> FileSet:
        if entry.repo != "." and not entry.repo.startswith("./"):
            return entry
        return dataclasses.replace(entry, repo=str(folder / entry.repo))

    def component(_name: str, entry: Component) -> Component:
        return dataclasses.replace(entry, parts=tuple(part(p) for p in entry.parts))

    return card.with_components(component)


def to_dict(card: Card) -> dict[str, Any]:
    """A card as plain values, the inverse of ``parse``."""
    shallow = {f.name: getattr(card, f.name) for f in dataclasses.fields(card)}
    return {key: value.name if isinstance(value, Family) else _plain(value) for key, value in shallow.items()}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise RequestError(f"{where}: `{cls.__name__.lower()}` must be a table")
    hints = get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            _unknown(key, known, cls.__name__.lower(), where)
    for name, f in known.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise RequestError(f"{where}: key `{name}` is missing in {cls.__name__.lower()}")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _unknown(key: str, known: Iterable[str], table: str, where: str) -> NoReturn:
    near = difflib.get_close_matches(key, list(known), n=1)
    raise RequestError(f"{where}: unknown key `{key}` in {table}" + (f", did you mean `{near[0]}`" if near else ""))


def _convert(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, UnionType):  # of a type and None
        if value is None:
            return None
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if isinstance(hint, type) and hint is Family:
        if not isinstance(value, Family):
            raise RequestError(f"{where} must be the name of a family, not `{value!r}`")
        return value
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise RequestError(f"{where} must be a list")
        args = get_args(hint)
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise RequestError(f"{where} must have {len(kinds)} entries, not {len(value)}")
        return tuple(_convert(kind, entry, where) for kind, entry in zip(kinds, value, strict=True))
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise RequestError(f"{where} must be a table")
        entry = get_args(hint)[1]
        return {
            key: _convert(entry, v, f"{where}.{key}") if dataclasses.is_dataclass(entry) else v
            for key, v in value.items()
        }
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise RequestError(f"{where} must be {hint.__name__}, not `{value!r}`")
    return value
