"""Shared by all formats: folders that are whole or absent, and the record of the edit."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.files import PathLike, beside

RECORD = "expunge_export"
"""Key of the edit's record in a safetensors header."""


def free_folder(path: PathLike) -> Path:
    """``path``, if a folder can be written there.

    Raises:
        ExpungeError: there is something already.
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ExpungeError(f"{path}: exists already; give the name of a new folder")
    return target


@contextmanager
def new_folder(path: PathLike) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; rename it there when the block ends without error.

    Raises:
        ExpungeError: there is something already at ``path``.
    """
    target = free_folder(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(target)
    temporary.mkdir()
    try:
        yield temporary
        readable = temporary.stat().st_mode & 0o666
        for file in (path for path in temporary.rglob("*") if path.is_file()):
            file.chmod(readable)  # some writers make files that only the owner reads
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_plain(edit: Edit) -> None:
    """Check that weights alone can do what the edit does.

    Raises:
        ExpungeError: a part depends on the prompt, or changes the denoiser's predictions.
    """
    if edit.guarded:
        raise ExpungeError(
            f"edit {edit.id} has a guard, which stands around the denoiser while it draws: no "
            "weights can do the same; keep it as an edit, and apply it wherever pictures are drawn"
        )
    if edit.gated:
        raise ExpungeError(
            f"edit {edit.id} has gates, which open for some prompts and not for others: no weights "
            "can do the same; keep it as an edit, or export an approximation (--approximate)"
        )


def record(edit: Edit, **details: Any) -> dict[str, Any]:
    """What the edit is and how it came to be, beside ``details`` of the export."""
    provenance = [part.model_dump(mode="json") for part in edit.provenance]
    return {"edit": edit.id, "summary": edit.summary(), "provenance": provenance, **details}


def metadata(edit: Edit, **details: Any) -> dict[str, str]:
    """The same record for the header of a safetensors file."""
    return {"format": "pt", RECORD: json.dumps(record(edit, **details))}


def safetensors_file(path: PathLike) -> Path:
    """``path``, if it names a safetensors file.

    Raises:
        ExpungeError: it doesn't.
    """
    if Path(path).suffix != ".safetensors":
        raise ExpungeError(f"{path}: this format is one file; give a name that ends .safetensors")
    return Path(path)
