"""Records of the pictures in a folder, which several programs may add to at a time."""

import os
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from expunge.errors import ExpungeError
from expunge.files import locked, replacing
from expunge.generation.sampling import ImageRequest
from expunge.journal import Journal

NAME_LENGTH = 255
"""Bytes that a file name may have."""


class FolderRecord(BaseModel):
    """Something that is written about a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageRecord(FolderRecord):
    """One picture file."""

    file: str
    sha256: str
    request: ImageRequest


class Records:
    """The pictures of a folder by file name, in the order in which they were drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[str, ImageRecord] = {}
        self._journal = Journal(folder / "images.jsonl")

    def refresh(self) -> None:
        """Take up new lines; one that isn't whole counts as a picture not drawn yet."""
        for line in self._journal.new():
            with suppress(ValidationError):
                record = ImageRecord.model_validate_json(line)
                self.known[record.file] = record

    def hold(self, file: str) -> bool:
        """Whether the picture is there, and is the one that was drawn."""
        path = self.folder / file
        if file not in self.known or not path.is_file():
            return False
        return sha256(path.read_bytes()).hexdigest() == self.known[file].sha256

    def check(self, wanted: Mapping[str, ImageRequest]) -> None:
        """Raise where a file was drawn from another request."""
        for file in self.known.keys() & wanted.keys():
            known = self.known[file].request
            if known != wanted[file]:
                raise ExpungeError(
                    f"{self.folder / file} was drawn from {known.prompt!r}, seed {known.seed}, "
                    f"not from {wanted[file].prompt!r}, seed {wanted[file].seed}; give another "
                    "folder or other case numbers"
                )

    def add(self, request: ImageRequest, content: bytes) -> ImageRecord:
        """Write a picture and its record.

        Raises:
            ExpungeError: meanwhile another program has drawn something else there.
        """
        file = file_of(request)
        record = ImageRecord(file=file, sha256=sha256(content).hexdigest(), request=request)
        with locked(self.folder):
            self.refresh()
            self.check({file: request})
            with replacing(self.folder / file) as temporary:
                temporary.write_bytes(content)
            self._journal.append([record.model_dump_json()])
            self.known[file] = record
        return record

    def settle(self) -> None:
        """Write a line for each picture, without those that were cut or drawn twice."""
        self.refresh()
        self._journal.replace(record.model_dump_json() for record in self.known.values())


def file_of(request: ImageRequest) -> str:
    """The file of a picture.

    Raises:
        ExpungeError: its name would be too long.
    """
    file = f"{request.case_number}_{request.sample}.png"
    if len(os.fsencode(file)) > NAME_LENGTH:
        raise ExpungeError(f"case {request.case_number}: too long for the name of a file")
    return file
