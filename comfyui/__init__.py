"""Kandinsky's nodes for ComfyUI: a thin pack over the library, which does the work.

ComfyUI imports this file when it starts. Whatever is missing then, the start goes on: nodes that can only say what is
missing take the place of the real ones.
"""

from __future__ import annotations

import logging

WEB_DIRECTORY = "./web"

try:
    from .nodes import comfy_entrypoint
except Exception as error:  # of any kind: a node must be able to say what is wrong
    from .missing import explained, stand_ins

    logging.getLogger(__name__).warning(explained(error))
    NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = stand_ins(error)
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
else:
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
