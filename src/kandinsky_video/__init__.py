"""The door of Kandinsky Video 1.1 under its official name; the work is done by ``kandinsky``."""

from kandinsky.compat.kandinsky_video_1_1 import (
    KandinskyVideoT2VPipeline,
    get_interpolation_unet,
    get_movq,
    get_T2V_pipeline,
    get_T2V_unet,
    get_T5encoder,
    get_video_movq,
)

__all__ = [
    "KandinskyVideoT2VPipeline",
    "get_T2V_pipeline",
    "get_T2V_unet",
    "get_T5encoder",
    "get_interpolation_unet",
    "get_movq",
    "get_video_movq",
]
