"""Weights: where they lie, how they are read, translated and written. The only code that opens weight files."""
