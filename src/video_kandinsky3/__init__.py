"""The door of Kandinsky Video 1.0 under its official name; the work is done by ``kandinsky``."""

from kandinsky.compat.kandinsky_video_1_0 import (
    VideoKandinsky3T2VPipeline,
    get_interpolation_unet,
    get_movq,
    get_T2V_pipeline,
    get_T2V_unet,
    get_T5encoder,
)

__all__ = [
    "VideoKandinsky3T2VPipeline",
    "get_T2V_pipeline",
    "get_T2V_unet",
    "get_T5encoder",
    "get_interpolation_unet",
    "get_movq",
]
