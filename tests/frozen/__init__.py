"""Today's results, written down: see ``record.py``."""
