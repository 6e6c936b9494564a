"""What an edit costs: making it, storing it, and drawing with it."""

import time
from collections.abc import Sequence
from statistics import median

from expunge.edits.applied import check_unedited
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.evaluation.suite import Record
from expunge.generation import ImageRequest, Sampler, sample
from expunge.models import Model


class Latency(Record):
    """Seconds per picture without and with an edit, drawn alternately on the same machine."""

    device: str
    pictures: int
    """How many are drawn in each round, without and with the edit."""
    base: tuple[float, ...]
    """Seconds a picture in each round."""
    edited: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Edited divided by base in each round; their spread says how reliable the median is."""
        return tuple(after / before for before, after in zip(self.base, self.edited, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios; 1 is no slower."""
        return median(self.ratios)

    @property
    def added(self) -> float:
        """Seconds that the edit adds to a picture, the median of the rounds."""
        return median(a - b for b, a in zip(self.base, self.edited, strict=True))


class EditCost(Record):
    """What one edit costs."""

    edit: str
    """Id of the edit."""
    summary: str
    seconds: float | None
    """Spent making it; ``None`` if that wasn't measured."""
    peak_bytes: int | None
    """Peak memory while it was made; ``None`` if that wasn't measured."""
    stored_bytes: int
    """Size of its tensors."""
    latency: Latency


def cost(
    model: Model,
    edit: Edit,
    requests: Sequence[ImageRequest],
    *,
    sampler: Sampler | None = None,
    rounds: int = 5,
    seconds: float | None = None,
    peak_bytes: int | None = None,
) -> EditCost:
    """Time drawing with and without an edit, and collect all its costs in one record.

    Each round draws with both, in alternating order, so that both see the same machine.

    Args:
        model: the base model, without any edit applied; it is unchanged afterwards.
        edit: the edit whose cost is measured.
        requests: pictures to draw in each round.
        sampler: how they are drawn; by default as the model usually is.
        rounds: how many.
        seconds: spent making the edit, if known.
        peak_bytes: peak memory while the edit was made, if known.

    Raises:
        ExpungeError: the model has an edit applied, the edit isn't for it, or there is no picture
            or round.
    """
    check_unedited(model, "the base is timed too")
    if not requests or rounds < 1:
        raise ExpungeError("nothing to time; give at least one request and one round")
    return EditCost(
        edit=edit.id,
        summary=edit.summary(),
        seconds=seconds,
        peak_bytes=peak_bytes,
        stored_bytes=edit.size,
        latency=_latency(model, edit, requests, sampler or Sampler(), rounds),
    )


def _latency(
    model: Model, edit: Edit, requests: Sequence[ImageRequest], sampler: Sampler, rounds: int
) -> Latency:
    """Draw the pictures without and with the edit in each round."""

    def timed() -> float:
        began = time.perf_counter()
        for _ in sample(model, requests, sampler):
            pass
        return (time.perf_counter() - began) / len(requests)

    def timed_edited() -> float:
        with edit.applied(model):
            return timed()

    timed()  # what happens once doesn't count
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for edited in (False, True) if number % 2 == 0 else (True, False):
            times[edited].append(timed_edited() if edited else timed())
    return Latency(
        device=model.device.type,
        pictures=len(requests),
        base=tuple(times[False]),
        edited=tuple(times[True]),
    )
