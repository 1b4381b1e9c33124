"""Starts a ComfyUI as a program of its own: `python start.py FOLDER ARGUMENTS…`. Never imported.

torchvision from PyPI beside a torch for CPUs has operators that cannot load; two are declared here so that its import
succeeds. Nothing in the tests calls them.
"""

import os
import runpy
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    folder, sys.argv[1:] = sys.argv[1], sys.argv[2:]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    sys.path[:0] = [folder, str(Path(__file__).parent / "stubs")]
    os.chdir(folder)
    runpy.run_path("main.py", run_name="__main__")
