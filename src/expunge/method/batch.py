"""What one evaluation of a loss needs."""

from collections.abc import Mapping
from typing import Any

Batch = Mapping[str, Any]
"""Tensors and conditions by name, a row an example."""
