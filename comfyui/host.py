"""What this pack needs of ComfyUI, in one place: ``models.Host`` as ComfyUI fulfils it, and its values.

Everything is imported when it is used, since ComfyUI's own modules read its command line when they are imported.
"""

from __future__ import annotations

import io as streams
import json
import logging
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tensors import audio_of, frames_of, image_of, sound_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from kandinsky.model.values import Video

log = logging.getLogger(__name__)


class ComfyUI:
    """The running ComfyUI; see ``models.Host``."""

    def __init__(self) -> None:
        self._lent: list[Any] = []

    def folders(self, kind: str) -> list[Path]:
        import folder_paths

        own = Path(folder_paths.models_dir) / kind
        if kind == "kandinsky":
            folder_paths.add_model_folder_path(kind, str(own))
        if kind not in folder_paths.folder_names_and_paths:
            return []
        return [folder for one in folder_paths.get_folder_paths(kind) if (folder := Path(one)).is_dir()]

    def device(self) -> str:
        import comfy.model_management as management

        return str(management.get_torch_device())

    def progress(self, done: int, total: int, preview: Image | None) -> None:
        from comfy.cli_args import args
        from comfy.utils import ProgressBar

        shown = None if preview is None else ("JPEG", preview.convert("RGB"), args.preview_size)
        ProgressBar(total).update_absolute(done, total, shown)

    def is_interrupted(self) -> bool:
        import comfy.model_management as management

        return bool(management.processing_interrupted())

    def stop(self) -> None:
        import comfy.model_management as management

        management.throw_exception_if_processing_interrupted()

    def make_room(self, size: int) -> None:
        import comfy.model_management as management

        device = management.get_torch_device()
        if device.type != "cpu":
            management.free_memory(size, device)

    def lend(self, size: int, release: Callable[[], None]) -> Any:
        import comfy.model_management as management

        # ComfyUI walks through its list while it frees models: what was freed may only vanish from it now
        self._lent = [one for one in self._lent if one.held]
        try:
            lent = _lent()(size, release)
            self._lent.append(lent)
            management.load_models_gpu([lent])
        except (AttributeError, TypeError) as error:  # its own machinery changes from version to version
            log.warning("ComfyUI cannot free Kandinsky's models when it needs their memory: %s", error)
            return None
        return lent


def _lent() -> type:
    """The class by which ComfyUI knows a loaded model of ours: it can be asked to free it, as a whole."""
    import torch
    from comfy import model_management as management
    from comfy.model_patcher import ModelPatcher

    class Lent(ModelPatcher):  # type: ignore[misc]
        def __init__(self, size: int, release: Callable[[], None]) -> None:
            super().__init__(torch.nn.Module(), management.get_torch_device(), torch.device("cpu"), size=size)
            self.held, self.release = size, release

        def model_size(self) -> int:
            return int(self.size)

        def loaded_size(self) -> int:
            return self.held

        def current_loaded_device(self) -> Any:
            return self.load_device if self.held else self.offload_device

        def partially_load(self, device_to: Any, extra_memory: int = 0, force_patch_weights: bool = False) -> int:
            return self.held

        def partially_unload(self, device_to: Any, memory_to_free: int = 0, *more: Any, **named: Any) -> int:
            self.detach()
            return int(self.size)

        def end(self) -> None:
            self.held = 0

        def detach(self, unpatch_all: bool = True) -> Any:
            if self.held:
                self.held = 0
                self.release()
            return self.model

    return Lent


def video_of(video: Video) -> Any:
    """A clip as ComfyUI's VIDEO; files that are saved from it hold the recipe, which `kandinsky show` reads."""
    from comfy_api.latest import InputImpl, Types

    class Clip(InputImpl.VideoFromComponents):  # type: ignore[misc]
        recipe = video.recipe

        def save_to(self, path: Any, *args: Any, metadata: Mapping[str, Any] | None = None, **named: Any) -> Any:
            told = dict(metadata or {}) | ({"comment": video.recipe} if video.recipe else {})
            return super().save_to(path, *args, metadata=told or None, **named)

    rate = Fraction(video.fps).limit_denominator(1001)
    audio = None if video.audio is None else audio_of(video.audio)
    return Clip(Types.VideoComponents(images=image_of(video.frames_THWC), audio=audio, frame_rate=rate))


def clip_of(given: Any) -> Video:
    """ComfyUI's VIDEO as a clip in memory, with its recipe if it has one."""
    from kandinsky.media import recipe
    from kandinsky.model.values import Video

    parts = given.get_components()
    own = getattr(given, "recipe", None)  # of one that no file holds yet
    made = own or recipe.from_text((getattr(parts, "metadata", None) or {}).get("comment"))
    return Video(frames_of(parts.images), float(parts.frame_rate), recipe=dict(made or {}), audio=sound_of(parts.audio))


def video_in(data: bytes) -> Any:
    """A video file in memory as ComfyUI's VIDEO."""
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile(streams.BytesIO(data))


def show_text(text: str, node: str | None) -> dict[str, Any]:
    """Text that a node shows, on itself and in its results.

    Args:
        text: The text.
        node: The node's number in the running graph.

    Returns:
        What ComfyUI takes as a node's results for its page.
    """
    from server import PromptServer

    if node is not None:
        PromptServer.instance.send_progress_text(text, node)
    return {"text": (text,)}


def plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(recipe))
    return values
