"""Recipes: what is trained, on what, and how, as a YAML file; ``run_recipe`` runs one.

A recipe's ``kind`` names an entry of ``KINDS``, whose dataclass says which keys there are. What a recipe does not say
is taken from the one it names as ``base``. Everything is checked before any data is read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from kandinsky.errors import RequestError
from kandinsky.files import check_writable, inside, local_path
from kandinsky.model.lazy import Lazy
from kandinsky.model.params import read_params
from kandinsky.printing import escaped
from kandinsky.runtime.budget import parse_memory
from kandinsky.runtime.devices import choose_device
from kandinsky.runtime.parallel import launch
from kandinsky.runtime.parallel.launch import World
from kandinsky.train import journal
from kandinsky.train.loop import LoopSettings, check_updates
from kandinsky.train.scale import DECIDES
from kandinsky.weights.untrusted import shown

LARGEST = 2**20  # bytes of a recipe
MOST_VALUES = 100_000  # aliases make few bytes many values
OnLog = Callable[[dict[str, float]], None]


class Settings(Protocol):
    """A recipe that was read; a dataclass whose fields are its keys.

    Its property ``learners`` names the objective's updates, where there are others than `network`.
    """

    @property
    def out(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Run:
    """How a recipe is run.

    Args:
        out: Folder of checkpoints, log and weights.
        resume: Whether to go on from the folder's last checkpoint.
        device: Where to train.
        on_log: Given each line of the log.
        recipe: What the recipe says, for the comparison with what a checkpoint was made from.
    """

    out: Path
    resume: bool = True
    device: str = "cpu"
    on_log: OnLog | None = None
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of recipe.

    Args:
        settings: The dataclass of its keys.
        build: Runs one and gives the file or folder written.
        length: Where its number of steps stands; empty where it has none, or needs more than one number.
        resumes: Whether a run that was stopped can go on.
        devices: Whether it can run anywhere but on CPU.
        with_steps: Sets the length of a recipe of more than one number.
    """

    settings: Lazy[type]
    build: Lazy[Callable[[Any, Run], Path]]
    length: tuple[str, ...] = ("loop", "steps")
    resumes: bool = True
    devices: bool = True
    with_steps: Lazy[Callable[[dict[str, Any], int], dict[str, Any]]] | None = None


_NANO = "kandinsky.lab.nano.train"
_DISTIL = "kandinsky.train.distil"
KINDS: Mapping[str, Kind] = {
    "denoiser": Kind(Lazy("kandinsky.train.denoiser:DenoiserRecipe"), Lazy("kandinsky.train.denoiser:train")),
    "preference": Kind(Lazy("kandinsky.train.preference:PreferenceRecipe"), Lazy("kandinsky.train.preference:train")),
    "reward": Kind(Lazy("kandinsky.train.reward:RewardRecipe"), Lazy("kandinsky.train.reward:train")),
    "sound": Kind(Lazy("kandinsky.train.sound:SoundRecipe"), Lazy("kandinsky.train.sound:train")),
    "autoencoder": Kind(
        Lazy("kandinsky.train.autoencoder:AutoencoderRecipe"), Lazy("kandinsky.train.autoencoder:train")
    ),
    "guidance-distillation": Kind(Lazy(f"{_DISTIL}.guidance:GuidanceRecipe"), Lazy(f"{_DISTIL}.guidance:train")),
    "step-distillation": Kind(Lazy(f"{_DISTIL}.steps:StepRecipe"), Lazy(f"{_DISTIL}.steps:train")),
    "ladd": Kind(Lazy(f"{_DISTIL}.ladd:LaddRecipe"), Lazy(f"{_DISTIL}.ladd:train")),
    "dmd2": Kind(Lazy(f"{_DISTIL}.dmd:DmdRecipe"), Lazy(f"{_DISTIL}.dmd:train")),
    "self-forcing": Kind(Lazy(f"{_DISTIL}.selfforcing:SelfForcingRecipe"), Lazy(f"{_DISTIL}.selfforcing:train")),
    "nano-autoencoder": Kind(Lazy(f"{_NANO}:AutoencoderRecipe"), Lazy(f"{_NANO}:autoencoder")),
    "nano-text": Kind(
        Lazy(f"{_NANO}:TextRecipe"),
        Lazy(f"{_NANO}:text"),
        (),
        resumes=False,
        devices=False,
        with_steps=Lazy(f"{_NANO}:text_steps"),
    ),
    "nano-denoiser": Kind(Lazy(f"{_NANO}:DenoiserRecipe"), Lazy(f"{_NANO}:denoiser")),
    "nano-distillation": Kind(
        Lazy("kandinsky.lab.nano.distil:NanoDistilRecipe"), Lazy("kandinsky.lab.nano.distil:distil")
    ),
    "nano-live": Kind(Lazy("kandinsky.lab.nano.live:LiveRecipe"), Lazy("kandinsky.lab.nano.live:train")),
    "nano-sound-autoencoder": Kind(Lazy(f"{_NANO}:SoundAutoencoderRecipe"), Lazy(f"{_NANO}:sound_autoencoder")),
    "nano-sound": Kind(Lazy(f"{_NANO}:SoundRecipe"), Lazy(f"{_NANO}:sound")),
    "package": Kind(Lazy(f"{_NANO}:PackageRecipe"), Lazy(f"{_NANO}:package"), (), resumes=False, devices=False),
}


def run_recipe(
    recipe: Path | str,
    *,
    out: Path | str | None = None,
    resume: bool | None = None,
    steps: int | None = None,
    device: str | None = "cpu",
    on_log: OnLog | None = None,
) -> Path:
    """Run a recipe to its end; a run that was stopped goes on from its last checkpoint.

    Args:
        recipe: A YAML file.
        out: A folder in the place of the recipe's.
        resume: False begins anew. None resumes where this kind of recipe can.
        steps: Length of the run in the place of the recipe's.
        device: `cpu`, `cuda`, `cuda:0`, …; None = the best there is.
        on_log: Given each line of the log.

    Returns:
        The weight file written, or the folder of several.

    Raises:
        RequestError: The recipe cannot be read, asks for what there is not, or does not fit what stands in the folder.
        BackendError: A device or package is not there.
    """
    path = local_path(recipe, "recipe")
    values = read_recipe(path)
    name = _kind(values, path)
    kind = KINDS[name]
    if resume and not kind.resumes:
        raise RequestError(f"recipes of kind `{name}` have no checkpoints to resume from: leave `resume` out")
    if steps is not None:
        values = _with_steps(values, steps, name)
    if out is not None:
        values = values | {"out": str(out)}
    settings = read_settings(values, path)
    place = choose_device(device) if kind.devices or device is not None else "cpu"
    if place != "cpu" and not kind.devices:
        raise RequestError(f"recipes of kind `{name}` run on CPU only: leave device `{place}` out")
    folder = _folder(settings)
    place = _together(settings, name, place)
    run = Run(folder, kind.resumes and resume is not False, place, on_log, _told(name, settings))
    return kind.build()(settings, run)


def check_recipe(
    recipe: Path | str,
    *,
    steps: int | None = None,
    device: str | None = "cpu",
    memory: str | None = None,
    processes: int = 1,
) -> list[str]:
    """Check a recipe and say what it would take: parameters, memory, tokens and time of a step. Nothing is trained.

    Args:
        recipe: A YAML file.
        steps: Length of the run in the place of the recipe's.
        device: Where it would be trained.
        memory: Such as `24GB`: of a GPU to plan for, instead of the device.
        processes: That would train together.

    Returns:
        Lines for people.

    Raises:
        RequestError: The recipe cannot be read or asks for what there is not.
    """
    path = local_path(recipe, "recipe")
    values = read_recipe(path)
    name = _kind(values, path)
    if steps is not None:
        values = _with_steps(values, steps, name)
    settings = read_settings(values, path)
    _folder(settings)
    from kandinsky.train.model_recipe import ModelRecipe
    from kandinsky.train.sound import SoundRecipe

    if not isinstance(settings, ModelRecipe | SoundRecipe):
        return [f"recipe       kind `{name}`, valid; what it takes is not estimated for this kind"]
    from kandinsky.train.estimate import of_recipe, of_sound

    size, place = None if memory is None else parse_memory(memory), choose_device(device)
    if isinstance(settings, SoundRecipe):
        found = of_sound(settings, device=place, memory=size)
    else:
        found = of_recipe(settings, device=place, memory=size, processes=processes)
    length = settings.loop.steps
    return [
        f"recipe       kind `{name}`, valid, {length:,} steps, about {found.seconds * length / 3600:,.3g} hours",
        *found.lines(),
    ]


def _folder(settings: Settings) -> Path:
    """Where a run writes, and what it needs. Raises: RequestError where it cannot; BackendError for a package."""
    folder = local_path(settings.out, "out")
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"`out` is `{escaped(folder)}`, which is a file: name a folder, or a new one")
    check_writable(folder)
    journal.check(getattr(getattr(settings, "loop", None), "log", "jsonl"))
    return folder


def _together(settings: Settings, kind: str, device: str) -> str:
    """Meet the other processes, where several were started. Returns: the device of this one."""
    world = World.started()
    scale = getattr(settings, "scale", None)
    if scale is None and world.size > 1:
        raise RequestError(f"recipes of kind `{kind}` run in one process, and {world.size} were started: start one")
    if scale is not None:
        scale.layout(world.size)
    if world.size == 1:
        return device
    own = world.device(device) or device
    launch.meet(own.partition(":")[0])
    return own


def read_settings(values: Mapping[str, Any], path: Path) -> Settings:
    """A recipe's values, checked.

    Args:
        values: As ``read_recipe`` gives them.
        path: Named in errors.

    Raises:
        RequestError: The kind or a key is unknown, a key is missing, or a value is not allowed.
    """
    kind = KINDS[_kind(values, path)]
    try:
        settings: Settings = read_params(
            kind.settings(), {key: value for key, value in values.items() if key != "kind"}, "key"
        )
    except RequestError as error:
        raise RequestError(f"recipe `{escaped(path)}`: {error}", hint=error.hint) from error
    loop = getattr(settings, "loop", None)
    if isinstance(loop, LoopSettings):
        try:
            check_updates(getattr(settings, "learners", ("network",)), loop)
        except RequestError as error:
            raise RequestError(f"recipe `{escaped(path)}`: `loop`: {error}") from error
    return settings


def read_recipe(path: Path) -> dict[str, Any]:
    """What a recipe says, over what its ``base`` says, a file beside it; whole values replace each other.

    Raises:
        RequestError: A file is missing, is no YAML or no table, or is its own base.
    """
    return _read(path, ())


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise RequestError(f"recipe `{escaped(path)}` is its own base: take `base` out of one of them")
    if not path.is_file():
        raise RequestError(
            f"recipe `{escaped(path)}` does not exist", hint="shipped recipes stand in the folder `recipes/`"
        )
    try:
        if path.stat().st_size > LARGEST:
            raise RequestError(f"recipe `{escaped(path)}` is larger than 1 MB: name data files in it instead")
        values = yaml.load(path.read_bytes(), Loader=_Loader)
        _check_size(values)
    except OSError as error:
        raise RequestError(f"recipe `{escaped(path)}` cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"recipe `{escaped(path)}` is not valid YAML: {_said(error)}") from error
    if not isinstance(values, dict):
        raise RequestError(f"recipe `{escaped(path)}` is no table: begin it with `kind:`, one of {', '.join(KINDS)}")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise RequestError(f"recipe `{escaped(path)}`: key `{shown(odd[0])}` is no text")
    if "base" not in values:
        return values
    base = values.pop("base")
    if not isinstance(base, str):
        raise RequestError(f"recipe `{escaped(path)}`: key `base` must be the name of a file, not `{shown(base)}`")
    return _read(inside(path.parent, base), (*above, path.resolve())) | values


def _kind(values: Mapping[str, Any], path: Path) -> str:
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise RequestError(f"recipe `{escaped(path)}` has kind `{shown(kind)}`: use one of {', '.join(KINDS)}")
    return kind


def _with_steps(values: dict[str, Any], steps: int, name: str) -> dict[str, Any]:
    """The recipe with another length. Raises: RequestError where it has none, or for a number that is none."""
    kind = KINDS[name]
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise RequestError(f"`{steps}` steps train nothing: use 1 or more")
    if kind.with_steps is not None:
        return kind.with_steps()(values, steps)
    if not kind.length:
        raise RequestError(f"recipes of kind `{name}` have no steps: leave `steps` out")
    *tables, last = kind.length
    if not tables:
        return values | {last: steps}
    inner = values.get(tables[0], {})
    return values | {tables[0]: {**inner, last: steps}} if isinstance(inner, Mapping) else values


def _told(kind: str, settings: Settings) -> dict[str, Any]:
    """What a recipe says of the result, without what ``train/loop.py`` adds itself: flat, as `data.batch`."""

    def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    values = dataclasses.asdict(settings)  # type: ignore[call-overload]
    # of a kind that has a table of its loop's settings, a key of the same name is another thing, such as `steps`
    loop = set() if "loop" in values else {f.name for f in dataclasses.fields(LoopSettings)}
    if "scale" in values:  # how many processes there are decides nothing
        values["scale"] = {name: values["scale"][name] for name in DECIDES}
    decide = {key: one for key, one in values.items() if key not in {"out", "loop", "samples", *loop}}
    return {"kind": kind, **dict(flat(decide))}


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those of its version 1.2, as `1e-3`, and whose tables hold each key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.YAMLError(f"key `{shown(twice[0])}` stands in one table twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def _check_size(values: Any) -> None:
    """Raises: ValueError for more values than any recipe has, or a value that holds itself."""

    def walk(value: Any) -> Iterator[None]:
        yield
        children = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
        for child in children:
            yield from walk(child)

    for number, _ in enumerate(walk(values)):
        if number > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES} values")


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0])
