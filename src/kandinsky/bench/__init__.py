"""Timing, the ledger of optimisations, and comparisons with other libraries."""
