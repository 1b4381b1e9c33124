"""Numerical building blocks without weights: attention, rotary positions, precision islands."""
