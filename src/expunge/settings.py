"""Settings given as a value, or as the path of a file that holds it."""

import os
from collections.abc import Callable
from typing import Any

from pydantic import BeforeValidator

from expunge.files import PathLike


def or_file(
    read: Callable[[PathLike], Any], *, names_file: Callable[[str], bool] = lambda text: True
) -> BeforeValidator:
    """Validates a setting that is a value, or the path of a file that ``read`` opens.

    Args:
        read: opens the file; an ``ExpungeError`` of it is a fault of the setting.
        names_file: whether a text is a path; by default every text is.
    """

    def opened(value: Any) -> Any:
        is_path = isinstance(value, os.PathLike) or (isinstance(value, str) and names_file(value))
        return read(value) if is_path else value

    return BeforeValidator(opened)
