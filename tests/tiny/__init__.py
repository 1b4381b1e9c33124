"""A tiny but real Kandinsky 5 family: the true classes and file layouts, random weights, seconds on a processor."""
