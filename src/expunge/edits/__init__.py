"""The product: an ``Edit`` says what changes in which model, and how that came to be."""

from expunge.edits.component import Component, Provenance
from expunge.edits.edit import Edit
from expunge.edits.payloads import Dense, LowRank, Payload, SharedMatrix, Sum
from expunge.edits.ridge import Ridge

__all__ = [
    "Component",
    "Dense",
    "Edit",
    "LowRank",
    "Payload",
    "Provenance",
    "Ridge",
    "SharedMatrix",
    "Sum",
]
