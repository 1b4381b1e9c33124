"""Sampling mathematics: schedule, noise, step, guidance, one loop. No networks and no files."""
