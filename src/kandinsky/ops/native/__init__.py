"""Our own kernels for processors: C++ that is compiled where it runs, and always beside a form in PyTorch."""
