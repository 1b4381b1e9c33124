"""One folder per family: its networks, denoiser, stages, formats and conformance runners."""
