"""``load_video`` and ``create_video`` under their official names; ``read_video`` is torchvision's, which is no more."""

from kandinsky.compat.kandinsky4_v2a import create_video, load_video, read_video

__all__ = ["create_video", "load_video", "read_video"]
