"""What one evaluation of a loss needs."""

from collections.abc import Mapping
from typing import Any

Batch = Mapping[str, Any]
"""Tensors and conditions by name, with a row for each example."""
