"""Kandinsky 5.0."""
