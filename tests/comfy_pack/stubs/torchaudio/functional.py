"""See the package."""

resample = None
