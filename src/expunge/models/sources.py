"""What a user means by a model: a folder, perhaps of one variant; one file; or a hub id.

``PATH@WHAT`` says what is missing: ``FOLDER@fp16`` names a variant, ``FILE@FOLDER`` the model that
a single file is of, for its configuration.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from expunge.errors import ExpungeError

WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>[a-z]\w*))?(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)"
)
"""File names of a network's weights."""
EXPORT = "expunge_export"
"""Key of the header in which our own exports name the model that they are of."""


class Source(NamedTuple):
    """Where a model is."""

    place: str
    """A folder, a file, or a hub id."""
    local: bool
    """Whether it is here."""
    variant: str | None = None
    """Which of several sets of files is read."""
    base: str = ""
    """For a single file, the folder or hub id of its configuration."""

    @property
    def single(self) -> bool:
        return self.local and Path(self.place).is_file()


def source(given: str) -> Source:
    """What ``given`` means.

    Raises:
        ExpungeError: nothing is there, it is no model, or it could be read in several ways.
    """
    whole, (before, _, after) = Path(given).expanduser(), given.rpartition("@")
    path, what = (whole, "") if whole.exists() or not before else (Path(before).expanduser(), after)
    if path.is_dir():
        return Source(str(path), True, variant(path, what or None))
    if path.is_file():
        return Source(str(path), True, base=what or _base(path))
    here = given.startswith((".", "/", "~")) or "/" not in given
    if here or given.count("/") > 1 or (path.parent.is_dir() and str(path.parent) != "."):
        raise ExpungeError(
            f"no model at {given!r}; give 'emoji', a folder with a model_index.json, a single file "
            "as FILE@FOLDER, or a hub id"
        )
    return Source(before or given, False, what or None)


def variant(folder: Path, wanted: str | None = None) -> str | None:
    """Which variant of a pipeline's or a network's files to read: none if the usual are there.

    Raises:
        ExpungeError: the variant isn't there, or there are several and nothing says which.
    """
    lacking: dict[str, set[str]] = {}
    offered: set[str] = set()
    for part, found in _variants(folder).items():
        offered |= {name for name in found if name}
        if found and None not in found:
            lacking[part] = {name for name in found if name}
    if wanted is not None:
        if wanted not in offered:
            listed = ", ".join(sorted(offered)) or "none"
            raise ExpungeError(f"{folder}: has no files of the variant {wanted!r}; it has {listed}")
        return wanted
    if not lacking:
        return None
    common = set.intersection(*lacking.values())
    if len(common) == 1:
        return common.pop()
    if common:
        names = sorted(common)
        raise ExpungeError(
            f"{folder}: has the files of the variants {' and '.join(names)}, and none without; say "
            f"which, e.g. {folder}@{names[0]}"
        )
    each = "; ".join(f"{part} {', '.join(sorted(names))}" for part, names in lacking.items())
    raise ExpungeError(f"{folder}: no variant has all networks ({each}); get the missing files")


def _variants(folder: Path) -> dict[str, set[str | None]]:
    """The variants whose files each network has; ``None`` stands for the usual ones."""
    own = {folder.name: _of_network(folder)} if (folder / "config.json").is_file() else {}
    parts = sorted(path for path in folder.iterdir() if (path / "config.json").is_file())
    return own | {part.name: _of_network(part) for part in parts}


def _of_network(folder: Path) -> set[str | None]:
    matches = (WEIGHTS.fullmatch(file.name) for file in folder.iterdir())
    return {match["variant"] for match in matches if match}


def _base(path: Path) -> str:
    """The model that a single file is of, as its header says.

    Raises:
        ExpungeError: it is no whole model, or doesn't say.
    """
    header, names = _head(path) if path.suffix == ".safetensors" else ({}, [])
    if "expunge" in header:
        raise ExpungeError(
            f"{path}: an edit, not a model; name the model that it is for, and give it as the edit"
        )
    if any(".lora_" in name or ".lora." in name for name in names):
        raise ExpungeError(f"{path}: a LoRA, not a model; load it into its model, or import it")
    if names and not any(name.startswith("model.diffusion_model.") for name in names):
        raise ExpungeError(
            f"{path}: holds no whole model, e.g. {names[0]!r}; a UNet alone is compared with its "
            f"base by: expunge import {path} --model BASE"
        )
    if EXPORT in header:
        record = json.loads(header[EXPORT])
        bases = {part["base"]["name"] for part in record.get("provenance", [])}
        if len(bases) == 1:
            return str(bases.pop())
    raise ExpungeError(
        f"{path}: a single file, which doesn't hold its configuration; name a folder or hub id of "
        f"the same kind of model: {path}@FOLDER"
    )


def _head(path: Path) -> tuple[dict[str, str], list[str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), list(file.keys())
    except SafetensorError as error:
        raise ExpungeError(
            f"{path}: not a safetensors file, or cut short ({' '.join(str(error).split())})"
        ) from None
