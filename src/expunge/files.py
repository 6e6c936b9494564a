"""Files that are whole or absent: each is written under another name, then renamed."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]
"""The path of a file or of a folder."""


@contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it there when the block ends without error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # some writers make files that only the owner reads
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where files lie that can be made again: ``$EXPUNGE_CACHE``, else the user's cache."""
    if own := os.environ.get("EXPUNGE_CACHE"):
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "expunge"


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_text(path: PathLike, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def digest(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of ``value``."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, or of the names and hashes of a folder's files."""
    if path.is_dir():
        return digest({p.name: sha256(p) for p in sorted(path.iterdir()) if p.is_file()})
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()
