"""Timing, the ledger of optimisations, and rivals."""
