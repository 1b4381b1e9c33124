"""Names that saved workflows hold and that must therefore never change, with what menus show. Imports nothing."""

from __future__ import annotations

CATEGORY = "Kandinsky"
# The sockets of our own: a model, and how it runs; what is known of a result; prompts for parts of it
MODEL, KNOWN, PROMPTS = "KANDINSKY_MODEL", "KANDINSKY_CONDITIONS", "KANDINSKY_PROMPTS"
PREFIX = "Kandinsky"
# id without the prefix → name in menus
TITLES = {
    "Load": "Kandinsky Load",
    "LoRA": "Kandinsky LoRA",
    "ExpandPrompt": "Kandinsky Expand Prompt",
    "KnownFrames": "Kandinsky Known Frames",
    "SourceClip": "Kandinsky Source Clip",
    "Control": "Kandinsky Control",
    "Reference": "Kandinsky Reference",
    "PromptAt": "Kandinsky Prompt At",
    "Generate": "Kandinsky Generate",
    "Edit": "Kandinsky Edit",
    "Upscale": "Kandinsky Upscale",
    "Sound": "Kandinsky Sound",
    "Interpolate": "Kandinsky Interpolate",
    "Decode": "Kandinsky Decode",
    "Plan": "Kandinsky Plan",
    "Remote": "Kandinsky Remote",
}
NODES = {f"{PREFIX}{name}": title for name, title in TITLES.items()}
