"""Values, cards and protocols that everything else speaks in; no torch."""
