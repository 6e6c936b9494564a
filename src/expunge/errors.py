"""The errors that a user's mistake raises; the command line prints only their text."""

import sys
import warnings

INSIDE = {"expunge", "torch"}
"""Packages whose lines a warning isn't shown at."""


class ExpungeError(ValueError):
    """A mistake that the caller can fix; the message says what was wrong and what to do."""


class Unsupported(ExpungeError):
    """The request makes sense, but this version can't do it."""


class CutOff(UserWarning):
    """Prompts are longer than the model reads; the command line shows this as one line."""


class Ignored(UserWarning):
    """A method doesn't use what is given; the command line shows this as one line."""


class Missed(ExpungeError):
    """An audit was done and saved, and the model doesn't meet the policy's limits."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn the line outside of Expunge, and of torch's decorators around it, that called."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
