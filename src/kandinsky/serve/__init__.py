"""The HTTP server: an OpenAI-shaped API over the durable store of jobs. It imports no torch."""
