"""Names that saved workflows hold and that must therefore never change, with what menus show. Imports nothing."""

from __future__ import annotations

CATEGORY = "Kandinsky"
# The sockets of our own: a model, and how it runs; and what is known of a result
MODEL, KNOWN = "KANDINSKY_MODEL", "KANDINSKY_CONDITIONS"
PREFIX = "Kandinsky"
# id without the prefix → name in menus
TITLES = {
    "Load": "Kandinsky Load",
    "LoRA": "Kandinsky LoRA",
    "ExpandPrompt": "Kandinsky Expand Prompt",
    "KnownFrames": "Kandinsky Known Frames",
    "SourceClip": "Kandinsky Source Clip",
    "Generate": "Kandinsky Generate",
    "Edit": "Kandinsky Edit",
    "Sound": "Kandinsky Sound",
    "Interpolate": "Kandinsky Interpolate",
    "Decode": "Kandinsky Decode",
    "Plan": "Kandinsky Plan",
    "Remote": "Kandinsky Remote",
}
NODES = {f"{PREFIX}{name}": title for name, title in TITLES.items()}
