"""Many requests: prompt files, runners and summaries."""
