"""One generation on many processes: PyTorch's own collectives, applied from outside to the plain networks."""
