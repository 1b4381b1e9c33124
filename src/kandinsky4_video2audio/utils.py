"""``load_video`` and ``create_video`` under their official names, and ``read_video``, which torchvision no longer has.

The official example calls ``torchvision.io.read_video``: importing this module puts it back where it is missing.
"""

from kandinsky.compat.kandinsky4_v2a import create_video, fill_torchvision, load_video, read_video

__all__ = ["create_video", "load_video", "read_video"]

fill_torchvision()
