"""Kandinsky 4.0 video to audio."""
