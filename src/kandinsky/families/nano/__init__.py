"""Nano: the family in miniature, trained by this project."""
