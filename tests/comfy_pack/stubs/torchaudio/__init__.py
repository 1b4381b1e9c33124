"""Stands in for torchaudio, which ComfyUI imports and which no wheel for this torch provides; nothing here uses it."""

from . import functional, transforms

__all__ = ["functional", "transforms"]
