"""The second generation of Nano: scenes with known truth, its training and its measures."""
