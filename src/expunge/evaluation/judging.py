"""From folders of pictures to judged pairs; every picture is judged once and remembered."""

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import cosine_similarity

from expunge.concepts import explain
from expunge.detectors.perceptual import PerceptualDistance
from expunge.errors import ExpungeError
from expunge.evaluation.records import Picture, PicturePair
from expunge.evaluation.suite import Judge, Judgement, Record, Shot
from expunge.files import locked
from expunge.generation import ImageRecord
from expunge.journal import Journal

BATCH = 32
"""Pictures per call of a judge."""
BLANK = 2.0
"""A picture whose levels (0 to 255) vary by no more than this standard deviation is blank."""


class Files(NamedTuple):
    """Pictures of one model by the number of their shots."""

    folder: Path
    records: Mapping[str, ImageRecord]

    def path(self, shot: Shot) -> Path:
        return self.folder / self.records[shot.number].file


class Judged(NamedTuple):
    """One model's pictures of some shots, in their order."""

    pictures: list[Picture]
    features: Tensor
    """``[shots, width]``"""


class _Entry(Record):
    """A line of the file of judgements."""

    picture: str
    """SHA-256 of the file."""
    prompt: str
    judgement: Judgement
    features: str
    """float32, base64."""


class Judgements:
    """What one judge said of pictures, kept in a folder under the judge's own hash.

    Rules and thresholds are applied when a judgement is read, so other rules need neither new
    pictures nor new judgements.
    """

    def __init__(self, judge: Judge, folder: Path) -> None:
        self.judge = judge
        words = re.sub(r"[^a-z0-9]+", "-", judge.name.lower()).strip("-")[:40]
        self._journal = Journal(folder / "judgements" / f"{words}-{judge.sha256[:12]}.jsonl")
        self._known: dict[tuple[str, str], _Entry] = {}
        if self._journal.path.exists():
            with locked(self._journal.path.parent):
                self._learn()

    def _learn(self) -> None:
        """Take up the lines of earlier runs and of others that run now."""
        for line in self._journal.new():
            with suppress(ValidationError):  # a line that a kill has cut is judged again
                entry = _Entry.model_validate_json(line)
                self._known.setdefault((entry.picture, entry.prompt), entry)

    def settle(self) -> None:
        """Put the lines in an order that doesn't depend on the runs that have made them."""
        with locked(self._journal.path.parent):
            self._learn()
            ordered = [entry for _, entry in sorted(self._known.items())]
            self._journal.replace(entry.model_dump_json() for entry in ordered)

    @contextmanager
    def beside_drawing(self) -> Iterator["Watch"]:
        """Judge pictures in a second thread while others are drawn."""
        thread = ThreadPoolExecutor(1)
        try:
            watch = Watch(self, thread)
            yield watch
            watch.end()
        finally:
            thread.shutdown(cancel_futures=True)  # what waits is judged when this is run again

    def judged(self, shots: Sequence[Shot], files: Files) -> Judged:
        """The judged picture of every shot.

        Raises:
            ExpungeError: a picture is missing or broken, or the judge fails on one.
        """
        keys = [(files.records[shot.number].sha256, shot.prompt.text) for shot in shots]
        new = list({key: at for at, key in enumerate(keys) if key not in self._known}.values())
        for batch in (new[start : start + BATCH] for start in range(0, len(new), BATCH)):
            opened = [_opened(files.path(shots[at])) for at in batch]
            self.add([keys[at] for at in batch], opened, files.folder)
        entries = [self._known[key] for key in keys]
        return Judged(
            [
                Picture(
                    file=files.path(shot), **dict(self.judge.read(entry.judgement, shot.prompt))
                )
                for shot, entry in zip(shots, entries, strict=True)
            ],
            torch.stack([_unpacked(entry.features) for entry in entries]),
        )

    def add(
        self, keys: Sequence[tuple[str, str]], pictures: Sequence[Image.Image], place: Path
    ) -> None:
        """Judge at most ``BATCH`` pictures, with the keys (SHA-256, prompt), and write it down."""
        # Networks round differently for batches of different sizes, so a short one is filled up.
        filled = [*range(len(keys)), *[len(keys) - 1] * (BATCH - len(keys))]
        shown = [pictures[at] for at in filled]
        try:
            judgements = self.judge.judge(shown, [keys[at][1] for at in filled])
        except ValidationError as error:
            raise ExpungeError(
                f"{self.judge.name} failed on a picture in {place}: {explain(error)}"
            ) from None
        features = self.judge.features(shown)
        if not len(judgements) == len(features) == BATCH or not features.isfinite().all():
            raise ExpungeError(f"{self.judge.name} didn't judge every picture in {place}")
        entries = [
            _Entry(picture=sha, prompt=prompt, judgement=judgement, features=_packed(row))
            for (sha, prompt), judgement, row in zip(keys, judgements, features, strict=False)
        ]
        with locked(self._journal.path.parent):
            self._journal.append(entry.model_dump_json() for entry in entries)
        self._known |= {(entry.picture, entry.prompt): entry for entry in entries}

    def knows(self, record: ImageRecord) -> bool:
        return (record.sha256, record.request.prompt) in self._known


class Watch:
    """Takes pictures as they are drawn and has them judged, a batch at a time."""

    def __init__(self, judgements: Judgements, thread: ThreadPoolExecutor) -> None:
        self._judgements, self._thread = judgements, thread
        self._waiting: list[tuple[ImageRecord, Path]] = []
        self._judged: list[Future[None]] = []

    def __call__(self, record: ImageRecord, folder: Path) -> None:
        """Take one more picture. Raises what the judge raised on an earlier one."""
        if not self._judgements.knows(record):
            self._waiting.append((record, folder))
        if len(self._waiting) == BATCH:
            self._hand_over()
        for future in self._judged:
            if future.done():
                future.result()

    def end(self) -> None:
        if self._waiting:
            self._hand_over()
        for future in self._judged:
            future.result()

    def _hand_over(self) -> None:
        batch, self._waiting = self._waiting, []
        self._judged.append(self._thread.submit(self._judge, batch))

    def _judge(self, batch: Sequence[tuple[ImageRecord, Path]]) -> None:
        self._judgements.add(
            [(record.sha256, record.request.prompt) for record, _ in batch],
            [_opened(folder / record.file) for record, folder in batch],
            batch[0][1],
        )


def _packed(row: Tensor) -> str:
    return b64encode(row.detach().cpu().float().numpy().tobytes()).decode()


def _unpacked(text: str) -> Tensor:
    return torch.frombuffer(bytearray(b64decode(text)), dtype=torch.float32)


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(file).convert("RGB")
    except (OSError, UnidentifiedImageError):
        raise ExpungeError(
            f"{file}: no readable picture; delete it and run the evaluation again"
        ) from None


def compare(
    shots: Sequence[Shot],
    base: Judged | None,
    edited: Judged,
    distance: PerceptualDistance | None = None,
) -> list[PicturePair]:
    """Both models' pictures of every shot side by side, or one model's alone without a base."""
    drift = feature_drift(base.features, edited.features) if base else None
    pairs = []
    for index, shot in enumerate(shots):
        before, after = base.pictures[index] if base else None, edited.pictures[index]
        old, new = levels(before.file) if before else None, levels(after.file)
        pairs.append(
            PicturePair(
                group=shot.group,
                prompt=shot.prompt,
                seed=shot.seed,
                base=before,
                edited=after,
                feature_drift=drift[index] if drift else None,
                pixel_drift=pixel_drift(old, new) if old is not None else None,
                perceptual_distance=_apart(distance, old, new),
                blank=_blank(new),
                base_blank=old is not None and _blank(old),
            )
        )
    return pairs


def levels(file: Path) -> NDArray[np.uint8]:
    """A picture's ``[height, width, 3]``.

    Raises:
        ExpungeError: it is missing or broken.
    """
    return np.asarray(_opened(file))


def _apart(
    distance: PerceptualDistance | None, one: NDArray[np.uint8] | None, other: NDArray[np.uint8]
) -> float | None:
    if distance is None or one is None:
        return None
    return float(distance.between([Image.fromarray(one)], [Image.fromarray(other)])[0])


def _blank(pixels: NDArray[np.uint8]) -> bool:
    return bool(pixels.std() <= BLANK)


def feature_drift(one: Tensor, other: Tensor) -> list[float]:
    """1 - cosine of row i of one ``[n, width]`` with row i of the other, 0 to 2."""
    drift: list[float] = (1 - cosine_similarity(one.double(), other.double())).clamp(min=0).tolist()
    return drift


def pixel_drift(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean absolute difference of two pictures ``[height, width, 3]``, 0 to 1."""
    return float(np.abs(one.astype(np.int16) - other.astype(np.int16)).mean() / 255)
