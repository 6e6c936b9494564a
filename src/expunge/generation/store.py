"""A folder of pictures, ``{case_number}_{sample}.png``, with a record of how each was drawn.

``manifest.json`` holds the settings, ``images.jsonl`` a line per picture. Every picture is whole or
absent, so a run that was killed continues where it stopped. Several programs may draw into one
folder at a time.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from PIL import __version__ as pillow_version
from pydantic import ValidationError
from torch import Tensor

from expunge.concepts import explain
from expunge.edits.applied import Applied
from expunge.errors import ExpungeError
from expunge.files import locked, write_json
from expunge.generation.records import FolderRecord, ImageRecord, Records, file_of
from expunge.generation.sampler import Sampler, native_scheduler
from expunge.generation.sampling import ImageRequest, latent_size, requests, sample
from expunge.models import Model
from expunge.progress import track
from expunge.prompts import PromptSet
from expunge.versions import versions


class Settings(FolderRecord):
    """Everything that decides a picture besides its request; the same for a whole folder."""

    sampler: Sampler
    native: str = ""
    """The model's own scheduler, if that draws."""
    model: str
    """The base model's fingerprint."""
    edits: tuple[str, ...]
    """Ids of the edits applied, in order."""
    dtype: str
    device: str
    versions: dict[str, str]


class PromptSource(FolderRecord):
    """A prompt set that pictures of the folder were drawn from."""

    source: str
    sha256: str
    rows: int
    dropped: int


class Manifest(FolderRecord):
    """A folder's settings and its pictures, or those of them that were asked for."""

    folder: Path
    settings: Settings
    sources: tuple[PromptSource, ...] = ()
    images: tuple[ImageRecord, ...]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Manifest":
        """Read a folder that ``generate`` made, with every picture that is in it.

        Raises:
            ExpungeError: it isn't such a folder, or a picture isn't the one that was drawn.
        """
        place = Path(folder)
        head, records = _read_head(place), Records(place)
        records.refresh()
        for file in records.known:
            if not records.hold(file):
                raise ExpungeError(
                    f"{place / file} isn't the picture that was drawn; generate it again"
                )
        images = tuple(records.known.values())
        return cls(folder=place, settings=head.settings, sources=head.sources, images=images)


class _Head(FolderRecord):
    """The content of ``manifest.json``."""

    settings: Settings
    sources: tuple[PromptSource, ...] = ()


def generate(
    model: Model,
    prompts: PromptSet | Iterable[ImageRequest],
    folder: str | os.PathLike[str],
    sampler: Sampler | None = None,
    *,
    samples: int = 1,
    seen: Callable[[ImageRecord], None] | None = None,
    fingerprint: str | None = None,
) -> Manifest:
    """Draw the pictures that ``folder`` doesn't hold yet.

    Args:
        model: draws them, with the edits that are applied to it now.
        prompts: a prompt set, or requests, each of which names its sample.
        folder: one for each model, edits and sampler; more prompts and samples can be added.
        sampler: how they are drawn; by default, and where it has gaps, as the model usually is.
        samples: pictures per row of a prompt set, from different noise.
        seen: called with each picture as soon as it is drawn; it should return quickly.
        fingerprint: the model's, if it is known; computing it reads all weights.

    Raises:
        ExpungeError: the folder's pictures were drawn with other settings, two requests share a
            file, or a request can't be drawn. Then nothing is drawn.
    """
    if samples < 1:
        raise ExpungeError(f"{samples} samples; draw at least 1 per prompt")
    model.check_draws()
    place, sampler = Path(folder), Sampler.of(model, sampler)
    prompt_set = prompts if isinstance(prompts, PromptSet) else None
    wanted = _by_file(requests(prompts, samples) if isinstance(prompts, PromptSet) else prompts)
    model.process.scheduler(*sampler.sampling(model)[:2])
    for request in wanted.values():
        latent_size(model, request)
    with model.lock:  # so that the edits recorded are those that are drawn
        settings = _settings(model, sampler, fingerprint or model.fingerprint())
        with locked(place):
            records = _open(place, settings, prompt_set, wanted)
        missing = [request for file, request in wanted.items() if not records.hold(file)]
        pictures = sample(model, missing, sampler)
    done = len(wanted) - len(missing)
    drawn = _kept(pictures, records)
    for record in track(drawn, f"pictures in {place.name}", total=len(wanted), start=done):
        if seen:
            seen(record)
    with locked(place):
        records.settle()
    head, images = _read_head(place), tuple(records.known[file] for file in wanted)
    return Manifest(folder=place, settings=head.settings, sources=head.sources, images=images)


def _by_file(requests: Iterable[ImageRequest]) -> dict[str, ImageRequest]:
    wanted: dict[str, ImageRequest] = {}
    for request in requests:
        file = file_of(request)
        if file in wanted:
            raise ExpungeError(
                f"two pictures would be {file}; give every prompt its own case number"
            )
        wanted[file] = request
    if not wanted:
        raise ExpungeError("no picture asked for; give at least one prompt")
    return wanted


def _settings(model: Model, sampler: Sampler, fingerprint: str) -> Settings:
    return Settings(
        sampler=sampler,
        native=native_scheduler(model, sampler),
        model=fingerprint,
        edits=tuple(component.id for component in Applied.to(model).components),
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        versions={**versions(), "pillow": pillow_version},
    )


def _open(
    place: Path,
    settings: Settings,
    prompt_set: PromptSet | None,
    wanted: Mapping[str, ImageRequest],
) -> Records:
    """Make or check the folder; its records."""
    records = Records(place)
    sources: tuple[PromptSource, ...] = ()
    if (place / "manifest.json").exists():
        head = _read_head(place)
        _check_same(place, head.settings, settings)
        records.refresh()
        records.check(wanted)
        sources = head.sources
    elif any(place.glob("*.png")):
        raise ExpungeError(
            f"{place} holds pictures but no manifest.json; give a new or an empty folder"
        )
    if prompt_set:
        sources = tuple(dict.fromkeys((*sources, _source(prompt_set))))
    head = _Head(settings=settings, sources=sources)
    write_json(place / "manifest.json", head.model_dump(mode="json"))
    return records


def _source(prompts: PromptSet) -> PromptSource:
    return PromptSource(
        source=prompts.source, sha256=prompts.sha256, rows=len(prompts), dropped=prompts.dropped
    )


def _check_same(place: Path, before: Settings, now: Settings) -> None:
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    changes = [
        f"{name} {old.get(name)}, now {new.get(name)}"
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
    if changes:
        raise ExpungeError(
            f"{place} was drawn with other settings ({'; '.join(changes)}); "
            "give another folder or the same settings"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        inside = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name} ") if inside else {f"{prefix}{name}": value}
    return flat


def _kept(
    pictures: Iterable[tuple[ImageRequest, Tensor]], records: Records
) -> Iterator[ImageRecord]:
    """Save and record one picture after the other as it is drawn."""
    for request, pixels in pictures:
        content = BytesIO()
        Image.fromarray(pixels.numpy()).save(content, format="PNG")
        yield records.add(request, content.getvalue())


def _read_head(place: Path) -> _Head:
    try:
        return _Head.model_validate_json((place / "manifest.json").read_bytes())
    except OSError as error:
        raise ExpungeError(
            f"{place} isn't a folder of generated pictures: {error.strerror}: manifest.json"
        ) from None
    except ValidationError as error:
        raise ExpungeError(f"{place / 'manifest.json'}: {explain(error)}") from None
