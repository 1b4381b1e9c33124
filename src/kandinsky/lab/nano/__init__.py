"""Data, training and measures of Nano."""
