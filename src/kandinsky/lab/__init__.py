"""Research code that makes the shipped models."""
