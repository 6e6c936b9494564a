"""Files that are whole or absent: each is written under another name, then renamed."""

import hashlib
import itertools
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]
"""The path of a file or of a folder."""

_HOST = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:24]
_NUMBERS = itertools.count()
_swept: set[Path] = set()


@contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it there when the block ends without error.

    Raises:
        OSError: it can't be written; the error names ``path``, whichever library has tried.
    """
    target = Path(path)
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(target)
        temporary.touch()
        mode = temporary.stat().st_mode  # some writers make files that only the owner reads
        temporary.unlink()
        try:
            yield temporary
            temporary.chmod(mode)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def beside(target: Path) -> Path:
    """A new temporary path in the folder of ``target``.

    What killed processes have left there is removed, once a process and folder.
    """
    if target.parent not in _swept:
        _swept.add(target.parent)
        _sweep(target.parent)
    start = os.fsdecode(os.fsencode(target.name)[:80])  # names may have 255 bytes
    return target.with_name(f".{start}.{next(_NUMBERS)}.expunge-{_HOST}-{os.getpid()}.tmp")


def _sweep(folder: Path) -> None:
    with suppress(OSError):
        for path in folder.glob(f".*.expunge-{_HOST}-*.tmp"):
            process = path.name.removesuffix(".tmp").rpartition("-")[2]
            if process.isdigit() and not _runs(int(process)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's
        return True
    return True


def cache_folder() -> Path:
    """Where files lie that can be made again: ``$EXPUNGE_CACHE``, else the user's cache."""
    if own := os.environ.get("EXPUNGE_CACHE"):
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "expunge"


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Let errors of the operating system name ``target``, not a temporary file beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(target)) from error
    except Exception as error:
        # By name: importing safetensors here would make the command line's help slow.
        found = re.search(r"I/O error: .*\(os error (\d+)\)", str(error))
        if type(error).__name__ != "SafetensorError" or not found:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(target)) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process and thread that asks for the same out of this block.

    Where a folder can't be locked (Windows, some network drives), nobody is kept out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)  # which unlocks it


def file_name(words: str) -> str:
    """A part of a file name that people can read, different for different words.

    Plain words keep their letters, with hyphens between them. All others get a hash as well.
    """
    plain = re.sub(r"[^\w.]+", "-", words).strip("-.").encode()[:80].decode(errors="ignore")
    same = plain != "" and plain.replace("-", " ") == words
    return plain if same else f"{plain}-{digest(words)[:16]}".lstrip("-")


def check_output(path: PathLike, *inputs: PathLike, folder: bool = False) -> None:
    """See, before the work, that something can be written at ``path``; nothing is left there.

    Args:
        path: where it will be written; folders above it may be missing.
        inputs: files that are read, and that writing must not replace.
        folder: whether a folder is wanted, not a file.

    Raises:
        ExpungeError: nothing can, or ``path`` is one of the inputs.
    """
    target = Path(path)
    if "\0" in str(path):
        raise ExpungeError(f"{str(path)!r}: no path can hold a null character")
    try:
        there = target.exists()
        if there and (folder != target.is_dir() or not (folder or target.is_file())):
            wanted = "a folder" if folder else "a file"
            raise ExpungeError(f"{path}: this is no {wanted[2:]}; give the name of {wanted}")
        if there and any(Path(one).exists() and target.samefile(one) for one in inputs):
            raise ExpungeError(f"{path}: is read by this command, and would be lost; give another")
        for part in target.parts:
            if len(os.fsencode(part)) > 255:
                raise ExpungeError(f"{path}: file name too long")
        place = target if there and folder else target.parent
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise ExpungeError(f"{path}: {place} is no folder; give another place")
        probe = beside(place / "probe")
        try:
            probe.write_bytes(b"\n")
        finally:
            probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        if isinstance(error, ExpungeError):
            raise
        raise ExpungeError(f"{path}: can't be written: {reason(error)}") from None


def reason(error: Exception) -> str:
    """What an error of the operating system says, in lower case as part of a sentence."""
    said = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
    return said[:1].lower() + said[1:]


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
