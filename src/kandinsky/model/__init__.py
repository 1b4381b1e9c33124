"""Values, cards and protocols that the whole library shares; no torch."""
