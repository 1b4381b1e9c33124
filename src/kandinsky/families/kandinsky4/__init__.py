"""Kandinsky 4.0 text to video."""
