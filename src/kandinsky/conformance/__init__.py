"""Conformance: our networks and samplers checked against recorded numbers of the official implementations.

``check(paths)`` runs cases through the code that generation uses and yields one ``Result`` per case.
"""

from kandinsky.conformance.run import Result, Status, check

__all__ = ["Result", "Status", "check"]
