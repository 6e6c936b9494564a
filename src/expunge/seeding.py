"""Named random generators from one seed: adding a draw never changes the others."""

import hashlib
import json

import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and every name, and on nothing else."""
    parts = [str(part) for part in (seed, *names)]
    # Names that hold the separator need another form; it begins as no other call's text does.
    text = json.dumps(parts) if any("/" in part for part in parts) else "/".join(parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for one named purpose, e.g. ``generator(0, "noise", prompt, step)``."""
    return torch.Generator("cpu").manual_seed(derive(seed, *names))


def integer(draws: torch.Generator, low: int, high: int) -> int:
    """An integer from ``low`` to ``high - 1``, each as likely as the others."""
    return int(torch.randint(low, high, (), generator=draws))
