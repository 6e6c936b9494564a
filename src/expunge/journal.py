"""Lines in a file that several processes may add to at once, and that a kill may cut."""

from collections.abc import Iterable
from pathlib import Path

from expunge.files import write_text

_REMEMBERED = 4096


class Journal:
    """A file of lines, each a record of its own.

    What is read and written must be inside ``with expunge.files.locked(journal.path.parent):``,
    so that no other writer does the same at that time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0
        """How much has been read."""
        self._before = b""
        """What stood last before that, to see whether the file is still the same."""

    def new(self) -> list[bytes]:
        """The whole lines that were added since the last call; all, if the file was replaced."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            start = self._at - len(self._before)
            file.seek(start)
            content = file.read()
            if not content.startswith(self._before):
                self._at, self._before, start = 0, b"", 0
                file.seek(0)
                content = file.read()
        end = content.rfind(b"\n") + 1
        lines = content[len(self._before) : end].split(b"\n")[:-1]
        self._at = start + max(end, len(self._before))
        self._before = content[: max(end, len(self._before))][-_REMEMBERED:]
        return lines

    def append(self, lines: Iterable[str]) -> None:
        """Add lines; one that a kill has cut before them stays a line of its own."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read() != b"\n":
                    file.write(b"\n")
            file.write("".join(f"{line}\n" for line in lines).encode())

    def replace(self, lines: Iterable[str]) -> None:
        """Write the whole file anew."""
        write_text(self.path, "".join(f"{line}\n" for line in lines))
