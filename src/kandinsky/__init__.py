"""Kandinsky: one library and command line for the whole Kandinsky family of video, image and audio models.

Importing this module loads nothing heavy and changes nothing; names are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "load": "kandinsky.catalogue",
    "plan": "kandinsky.catalogue",
    "progress": "kandinsky.engine.progress",
    "Audio": "kandinsky.model.values",
    "Control": "kandinsky.model.given",
    "Frames": "kandinsky.model.given",
    "Play": "kandinsky.model.timeline",
    "Reference": "kandinsky.model.given",
    "Request": "kandinsky.model.values",
    "Soundtrack": "kandinsky.model.values",
    "Source": "kandinsky.model.given",
    "TextEmbeddings": "kandinsky.model.values",
    "TextStates": "kandinsky.model.values",  # the former name of TextEmbeddings
    "Video": "kandinsky.model.values",
    "VideoShape": "kandinsky.model.values",
    "VideoStream": "kandinsky.model.values",
    "LatentShape": "kandinsky.model.values",
    "KandinskyError": "kandinsky.errors",
    "RequestError": "kandinsky.errors",
    "WeightsError": "kandinsky.errors",
    "BackendError": "kandinsky.errors",
    "NotFinite": "kandinsky.errors",
    "OutOfMemory": "kandinsky.errors",
    "Cancelled": "kandinsky.errors",
    "get_T2I_pipeline": "kandinsky.compat.kandinsky5",
    "get_I2V_pipeline": "kandinsky.compat.kandinsky5",
    "get_I2I_pipeline": "kandinsky.compat.kandinsky5",
    "get_T2V_pipeline": "kandinsky.compat.get_t2v",
}
__all__ = [
    "Audio",
    "BackendError",
    "Cancelled",
    "Control",
    "Frames",
    "KandinskyError",
    "LatentShape",
    "NotFinite",
    "OutOfMemory",
    "Play",
    "Reference",
    "Request",
    "RequestError",
    "Soundtrack",
    "Source",
    "TextEmbeddings",
    "Video",
    "VideoShape",
    "VideoStream",
    "WeightsError",
    "__version__",
    "get_I2I_pipeline",
    "get_I2V_pipeline",
    "get_T2I_pipeline",
    "get_T2V_pipeline",
    "load",
    "plan",
    "progress",
]

if TYPE_CHECKING:
    from kandinsky.catalogue import load, plan
    from kandinsky.compat.get_t2v import get_T2V_pipeline
    from kandinsky.compat.kandinsky5 import (
        get_I2I_pipeline,
        get_I2V_pipeline,
        get_T2I_pipeline,
    )
    from kandinsky.engine.progress import progress
    from kandinsky.errors import (
        BackendError,
        Cancelled,
        KandinskyError,
        NotFinite,
        OutOfMemory,
        RequestError,
        WeightsError,
    )
    from kandinsky.model.given import Control, Frames, Reference, Source
    from kandinsky.model.timeline import Play
    from kandinsky.model.values import (
        Audio,
        LatentShape,
        Request,
        Soundtrack,
        TextEmbeddings,
        Video,
        VideoShape,
        VideoStream,
    )


def __getattr__(name: str) -> Any:
    if home := _HOMES.get(name):
        return getattr(import_module(home), name)
    raise AttributeError(f"module 'kandinsky' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
