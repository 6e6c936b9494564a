"""From shots to the files of one model's pictures."""

from collections.abc import Iterable
from pathlib import Path

from expunge.edits.applied import Applied
from expunge.errors import ExpungeError
from expunge.evaluation.judging import Files, Watch
from expunge.evaluation.suite import Judge, Shot
from expunge.files import digest
from expunge.generation import ImageRecord, ImageRequest, Sampler, generate
from expunge.models import Model


def draw(
    model: Model,
    shots: Iterable[Shot],
    sampler: Sampler,
    place: Path,
    watch: Watch | None = None,
    *,
    fingerprint: str | None = None,
) -> Files:
    """Draw every shot that isn't drawn yet; their files by number.

    The name of the folder says which model drew them.

    Args:
        model: draws them, with the edits that are applied to it now.
        shots: what is drawn.
        sampler: how pictures are drawn.
        place: the folder that holds the folders of all models.
        watch: called with each picture as soon as it is drawn.
        fingerprint: the model's, if it is known; computing it reads all weights.

    Raises:
        ExpungeError: ``requests`` or ``generate`` refuses the shots.
    """
    known = fingerprint or model.fingerprint()
    folder = images(model, sampler, place, fingerprint=known)

    def seen(record: ImageRecord) -> None:
        if watch:
            watch(record, folder)

    manifest = generate(model, requests(shots), folder, sampler, seen=seen, fingerprint=known)
    return Files(folder, {image.request.case_number: image for image in manifest.images})


def images(model: Model, sampler: Sampler, place: Path, *, fingerprint: str | None = None) -> Path:
    """The folder of a model's pictures."""
    parts = [part.id for part in Applied.to(model).components]
    key = digest([fingerprint or model.fingerprint(), parts, sampler.record(model)])[:12]
    return place / "images" / f"{'edited' if parts else 'base'}-{key}"


def requests(shots: Iterable[Shot]) -> list[ImageRequest]:
    """A request for each different shot.

    Raises:
        ExpungeError: two shots have the same prompt and seed, but not the same guidance and size.
    """
    wanted: dict[str, ImageRequest] = {}
    for shot in shots:
        request = ImageRequest(
            case_number=shot.number,
            prompt=shot.prompt.text,
            seed=shot.seed,
            guidance_scale=shot.prompt.guidance_scale,
            height=shot.prompt.height,
            width=shot.prompt.width,
        )
        if wanted.setdefault(shot.number, request) != request:
            raise ExpungeError(
                f"{shot.prompt.text!r} with seed {shot.seed} is asked for twice, with different "
                "guidance or size; keep one of the rows"
            )
    return list(wanted.values())


def check_size(judge: Judge, model: Model, suite: str) -> None:
    """Raise where a judge looks at pictures of another size than the model draws."""
    if judge.size and judge.size != model.image_size:
        raise ExpungeError(
            f"the {suite} suite is for models of {judge.size[0]}×{judge.size[1]} pictures, and "
            f"{model.name!r} draws {model.image_size[0]}×{model.image_size[1]}; choose "
            "another suite"
        )
