"""One folder a family: its networks, denoiser, stages, formats and conformance runners."""
