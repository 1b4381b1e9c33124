"""The door of Kandinsky Video 1.1 under its official name; the work is done by ``kandinsky``."""

from kandinsky.compat.kandinsky_video_1_1 import KandinskyVideoT2VPipeline, get_T2V_pipeline

__all__ = ["KandinskyVideoT2VPipeline", "get_T2V_pipeline"]
