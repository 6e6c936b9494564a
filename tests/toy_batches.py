"""What batches of a training are compared by."""

import torch

from expunge.method.base import Batch
from expunge.models import Condition


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches have the same numbers under the same names."""
    return one.keys() == other.keys() and all(
        torch.equal(*(v.rows if isinstance(v, Condition) else v for v in (value, other[key])))
        for key, value in one.items()
    )
