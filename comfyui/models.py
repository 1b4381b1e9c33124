"""Models as nodes pass them on, where they are found, and which of them stay loaded. Imports nothing of ComfyUI."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kandinsky import catalogue
from kandinsky.engine.options import RunOptions
from kandinsky.engine.plan import Plan, plan_resolved
from kandinsky.engine.remote_code import check_trust
from kandinsky.engine.request import Job
from kandinsky.errors import KandinskyError, RequestError
from kandinsky.model.card import DEFAULT_MODEL, Source
from kandinsky.weights.elsewhere import completed, with_transformer
from kandinsky.weights.locate import locate_all

if TYPE_CHECKING:
    from PIL.Image import Image

    from kandinsky.engine.pipeline import GenerationPipeline, VideoToAudioPipeline

OWN = "kandinsky"  # our kind of ComfyUI's model folders
# ComfyUI's kinds of folders that hold a network, by its name in a card
KINDS = {"dit": "diffusion_models", "interpolation": "diffusion_models", "vae": "vae", "image_vae": "vae"}
ENCODERS = "text_encoders"
BRANCHES = ("controlnet", "ipadapter")  # kinds of folders that hold control and reference branches
MARKS = ("card.toml", "model_index.json")  # files of a folder that is a model
TRUST = "KANDINSKY_TRUST_REMOTE_CODE"
MOST_KEPT = 3  # models that stay loaded where nothing else asks for their memory


class Host(Protocol):
    """What the functions of this pack need of ComfyUI."""

    def folders(self, kind: str) -> list[Path]:
        """All folders of a kind of models; none for a kind that ComfyUI does not know."""
        ...

    def device(self) -> str:
        """Where ComfyUI computes."""
        ...

    def progress(self, done: int, total: int, preview: Image | None) -> None:
        """Show how far a node is."""
        ...

    def is_interrupted(self) -> bool:
        """Whether the user asked to stop."""
        ...

    def stop(self) -> None:
        """Raise what ComfyUI raises for a node that was stopped."""
        ...

    def make_room(self, size: int) -> None:
        """Have other models leave the device until so many bytes are free."""
        ...

    def lend(self, size: int, release: Callable[[], None]) -> Any:
        """Tell ComfyUI of a loaded model of so many bytes, which it frees by ``release``.

        Returns:
            Something whose ``end`` tells it that the model is gone.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What a wire between nodes carries: a model and how it runs; nothing is loaded.

    Attributes:
        source: The model.
        options: How it runs.
        loras: Files of LoRAs with their scales.
        transformer: File of its transformer, if not its own.
    """

    source: Source
    options: RunOptions = dataclasses.field(default_factory=RunOptions)
    loras: tuple[tuple[Path, float], ...] = ()
    transformer: Path | None = None

    def with_lora(self, file: Path, scale: float) -> Chosen:
        """The same with one more LoRA."""
        return dataclasses.replace(self, loras=(*self.loras, (file, scale)))

    @property
    def key(self) -> str:
        """Tells loaded models apart; LoRAs are switched without loading a model again."""
        return repr((self.source.name, self.source.root, self.transformer, self.options))


def choose(model: str, host: Host, options: RunOptions | None = None, transformer: str = "") -> Chosen:
    """Choose a model and check that everything it needs is on this machine; reads no weights.

    Args:
        model: Catalogue id, or a folder's name with `/` at its end, as ``model_names`` lists them.
        host: ComfyUI.
        options: How it runs; without a device, where ComfyUI computes.
        transformer: A file of ComfyUI's folder `diffusion_models`, in place of the model's own.

    Returns:
        The model.

    Raises:
        RequestError: The name is unknown, or an option is not possible.
        WeightsError: A file is missing; the message says how to download it.
        BackendError: A device is not available.
    """
    source = source_of(model, host)
    options = options or RunOptions()
    if options.device is None:
        options = options.changed(device=host.device())
    options = options.changed(trust_remote_code=os.environ.get(TRUST, "") == "1")
    options.check()
    check_trust(source.card, options.trust_remote_code, only=source.card.components)
    file = None if not transformer else file_in("diffusion_models", transformer, host)
    if file is not None:
        source = with_transformer(source, file)
    locate_all(source)
    return Chosen(source, options, (), file)


def source_of(model: str, host: Host) -> Source:
    """The model of a name, with files that ComfyUI's folders hold.

    Raises:
        RequestError: The name is unknown.
        WeightsError: A folder does not hold a model.
    """
    if model.endswith("/"):
        found = dict(_own_folders(host)).get(model)
        if found is None:
            raise RequestError(f"model folder `{model}` is not in ComfyUI's folders `{OWN}` and `diffusers`")
        return catalogue.from_folder(found)
    source = Source(catalogue.find(model), None, model)

    def folders(network: str) -> Iterable[Path]:
        return [*host.folders(OWN), *host.folders(KINDS.get(network, ENCODERS))]

    return completed(source, folders)


def model_names(host: Host) -> list[str]:
    """What can be chosen: the catalogue, the default first, then folders that hold a model."""
    ids = sorted(catalogue.cards(), key=lambda name: (name != DEFAULT_MODEL, not name.startswith("nano"), name))
    return [*ids, *(name for name, _ in _own_folders(host))]


def file_names(kind: str, host: Host) -> list[str]:
    """Files of a kind in all of ComfyUI's folders of it, `/` between folders, sorted; safetensors alone."""
    names = {
        path.relative_to(folder).as_posix() for folder in host.folders(kind) for path in folder.rglob("*.safetensors")
    }
    return sorted(names)


def file_in(kind: str, name: str, host: Host) -> Path:
    """The file of a name that ``file_names`` lists, in the first folder that holds it.

    Raises:
        RequestError: There is none.
    """
    if name in file_names(kind, host):
        return next(folder / name for folder in host.folders(kind) if (folder / name).is_file())
    raise RequestError(f"`{name}` is not in ComfyUI's folder `{kind}`: choose one of the list, or put it there")


def branch_names(host: Host) -> list[str]:
    """Files that may hold a branch, in all of ComfyUI's folders of such, sorted."""
    return sorted({name for kind in BRANCHES for name in file_names(kind, host)})


def branch_in(name: str, host: Host) -> Path:
    """The file of a name that ``branch_names`` lists.

    Raises:
        RequestError: There is none.
    """
    kind = next((one for one in BRANCHES if name in file_names(one, host)), BRANCHES[0])
    return file_in(kind, name, host)


def _own_folders(host: Host) -> Iterator[tuple[str, Path]]:
    for kind in (OWN, "diffusers"):
        for folder in host.folders(kind):
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if any((path / mark).is_file() for mark in MARKS):
                    yield f"{path.name}/", path


@dataclasses.dataclass
class _Loaded:
    """A loaded model.

    Attributes:
        pipe: The pipeline.
        pixels: Frames x height x width of the largest clip that its placement was chosen for.
        lent: What ComfyUI knows it by.
    """

    pipe: GenerationPipeline | VideoToAudioPipeline
    pixels: int
    lent: Any = None


class Kept:
    """The models that are loaded, the latest last.

    Args:
        host: ComfyUI.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._loaded: dict[str, _Loaded] = {}

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the loaded models, the latest last."""
        return tuple(self._loaded)

    def drop(self, key: str) -> None:
        """Free a model."""
        loaded = self._loaded.pop(key, None)
        if loaded is not None and loaded.lent is not None:
            loaded.lent.end()
        del loaded
        gc.collect()

    @contextmanager
    def pipe(self, chosen: Chosen, job: Job) -> Iterator[GenerationPipeline | VideoToAudioPipeline]:
        """The pipeline for a job, loaded if it is not, with exactly its LoRAs on.

        Args:
            chosen: The model.
            job: What it is to do; decides the placement if none was chosen.

        Yields:
            The pipeline.

        Raises:
            KandinskyError: The model cannot be loaded.
        """
        import torch

        key, size = chosen.key, job.upscale or job.shape
        pixels = job.shape.frames * size.height * size.width
        if key in self._loaded and chosen.options.offload is None and pixels > self._loaded[key].pixels:
            self.drop(key)  # it may not fit where it is
        loaded = self._loaded.pop(key, None)
        # ComfyUI runs nodes in inference mode, and weights that are read in it could not be moved or fused later
        with torch.inference_mode(False), torch.no_grad():
            if loaded is None:
                loaded = self._load(chosen, job, pixels)
            self._loaded[key] = loaded
            switch_loras(loaded.pipe, chosen.loras)
            yield loaded.pipe

    def _load(self, chosen: Chosen, job: Job, pixels: int) -> _Loaded:
        while len(self._loaded) >= MOST_KEPT:
            self.drop(next(iter(self._loaded)))
        plan = placement(chosen, job, self.host)
        pipe = catalogue.open_model(chosen.source, chosen.options.changed(offload=plan.offload))
        if chosen.transformer is not None:
            pipe.context.settings = dict(pipe.context.settings) | {"transformer": str(chosen.transformer)}
        key = chosen.key
        lent = self.host.lend(plan.placements[plan.offload], lambda: self.drop(key))
        return _Loaded(pipe, pixels, lent)


def placement(chosen: Chosen, job: Job, host: Host) -> Plan:
    """Where a job's networks go: as was chosen, else what fits once other models have made room."""
    root = chosen.source.root
    if chosen.options.offload is None:
        whole = plan_resolved(job, chosen.options.changed(offload="none"), root=root)
        host.make_room(whole.placements["none"])
    return plan_resolved(job, chosen.options, root=root)


def switch_loras(pipe: GenerationPipeline | VideoToAudioPipeline, loras: Iterable[tuple[Path, float]]) -> None:
    """Switch on exactly these LoRAs; files that are not loaded yet, or were written since, are read.

    Raises:
        WeightsError: One does not fit the model; the message names the tensor.
    """
    scales: dict[str, float] = {}
    for file, scale in loras:
        name = f"{file} of {file.stat().st_mtime_ns}"
        if name not in pipe.adapters.names:
            pipe.load_lora(file, name=name, scale=scale)
        scales[name] = scales.get(name, 0.0) + scale
    if scales or pipe.adapters.scales:
        pipe.set_lora(scales)


@contextmanager
def explained() -> Iterator[None]:
    """Errors with their hint in one line, in the words of this door."""
    try:
        yield
    except KandinskyError as error:
        words = str(error) if not error.hint else f"{error} ({error.hint})"
        asked = "`trust_remote_code=True`"
        words = words.replace(f"add {asked}", f"start ComfyUI with `{TRUST}=1` in its environment")
        raise type(error)(words) from error
