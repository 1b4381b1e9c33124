"""Names that saved workflows hold and that must therefore never change, with what menus show. Imports nothing."""

from __future__ import annotations

CATEGORY = "Kandinsky"
MODEL = "KANDINSKY_MODEL"  # the one socket of our own: a model, and how it runs
PREFIX = "Kandinsky"
# id without the prefix → name in menus
TITLES = {
    "Load": "Kandinsky Load",
    "LoRA": "Kandinsky LoRA",
    "ExpandPrompt": "Kandinsky Expand Prompt",
    "Generate": "Kandinsky Generate",
    "Edit": "Kandinsky Edit",
    "Sound": "Kandinsky Sound",
    "Interpolate": "Kandinsky Interpolate",
    "Decode": "Kandinsky Decode",
    "Plan": "Kandinsky Plan",
    "Remote": "Kandinsky Remote",
}
NODES = {f"{PREFIX}{name}": title for name, title in TITLES.items()}
