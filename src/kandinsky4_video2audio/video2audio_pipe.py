"""``Video2AudioPipeline`` under its official name."""

from kandinsky.compat.kandinsky4_v2a import Video2AudioPipeline

__all__ = ["Video2AudioPipeline"]
