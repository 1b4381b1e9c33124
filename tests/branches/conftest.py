"""Fixtures shared with the tests of the whole path."""

from tiny.fixtures import folder_of, no_hub

__all__ = ["folder_of", "no_hub"]
