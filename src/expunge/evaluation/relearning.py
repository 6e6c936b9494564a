"""How soon an erased concept returns when the edited model is trained further.

Fine-tuning may revive what was erased, even on pictures of other things (Suriyakumar et al.,
"Unstable Unlearning", arXiv 2410.08074). So there is a curve for each kind of pictures: of the
concept, of related things, of unrelated ones. Each curve also shows what is kept, because a model
that training has broken doesn't draw the concept either.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

from expunge.edits.applied import check_unedited
from expunge.edits.edit import Edit
from expunge.edits.payloads import Change
from expunge.errors import ExpungeError
from expunge.evaluation.fine_tuning import (
    Captioned,
    FineTuning,
    LearntPictures,
    learnt_pictures,
    training_losses,
)
from expunge.evaluation.recognition import Recognise, look
from expunge.evaluation.suite import Record
from expunge.generation import ImageRequest, Sampler
from expunge.method.student import Student
from expunge.models import Model
from expunge.statistics.rates import Estimate, Rate, paired_difference

STEPS = (0, 50, 100, 200, 300)


class Point(Record):
    """What is drawn after so many steps."""

    steps: int
    drawn: Rate
    """Pictures of the concept's prompts in which it is seen."""
    kept: Rate
    """Pictures of other things that are right."""
    gained: Estimate | None
    """``drawn`` minus that of step 0, paired; ``None`` at step 0."""
    loss: float | None
    """Mean over the steps since the last point; ``None`` at step 0."""


class RelearningCurve(Record):
    """What comes back by learning from one kind of pictures."""

    learnt_from: str
    pictures: int
    points: tuple[Point, ...]


class Relearning(Record):
    """How an edit holds while the model is trained further."""

    concept: str
    edit: str
    """Id of the edit."""
    summary: str
    tuning: FineTuning
    seed: int
    sampler: Sampler
    base: Rate
    """Pictures of the unedited model that show the concept, for the same requests."""
    base_kept: Rate
    """Pictures of the unedited model that show the other things right."""
    curves: tuple[RelearningCurve, ...]


def relearning(
    model: Model,
    edit: Edit,
    concept: str,
    asked: Sequence[ImageRequest],
    kept: Mapping[str, Sequence[ImageRequest]],
    pictures: Mapping[str, Sequence[Captioned]],
    recognise: Recognise,
    *,
    steps: Sequence[int] = STEPS,
    tuning: FineTuning | None = None,
    seed: int = 0,
    sampler: Sampler | None = None,
) -> Relearning:
    """Train the edited model on each kind of pictures, and count what it draws on the way.

    Training goes on from the edited weights, under the edit's gates if it has some, in float32
    copies. The model itself changes only while it draws, and is unchanged afterwards.

    Args:
        model: the base model, without any edit applied.
        edit: the edit to test.
        concept: what is asked for, as the judge knows it.
        asked: pictures of the concept to draw at each point.
        kept: pictures of other things to draw at each point, by what they should show.
        pictures: what the model learns from, by kind, e.g. the concept or unrelated things.
        recognise: whether each picture shows what it should.
        steps: when to draw and judge; step 0 is always among them.
        tuning: how to train.
        seed: decides batches, timesteps and noise.
        sampler: how pictures are drawn; by default as the model usually is.

    Raises:
        ExpungeError: the model has an edit applied, the edit isn't for it, there is nothing to
            learn from, a picture has another size than the model's, a caption is one that is
            never drawn, the loss isn't finite, or the judge fails.
    """
    check_unedited(model, "the base is measured too")
    _check_given(asked, kept, pictures, steps)
    tuning, sampler = tuning or FineTuning(), Sampler.of(model, sampler)
    data = [learnt_pictures(model, name, examples) for name, examples in pictures.items()]
    drawn = _drawing(model, concept, asked, kept, recognise, sampler)
    base = drawn()
    with edit.applied(model):
        begin = drawn()
    goals = sorted({*steps} - {0})
    curves = [
        _curve(learnt, _points(model, edit, learnt, tuning, seed, goals, begin, drawn))
        for learnt in data
    ]
    return Relearning(
        concept=concept,
        edit=edit.id,
        summary=edit.summary(),
        tuning=tuning,
        seed=seed,
        sampler=sampler,
        base=Rate.of(base.concept),
        base_kept=Rate.of(base.kept),
        curves=tuple(curves),
    )


def _check_given(
    asked: Sequence[ImageRequest],
    kept: Mapping[str, Sequence[ImageRequest]],
    pictures: Mapping[str, Sequence[Captioned]],
    steps: Sequence[int],
) -> None:
    if not steps or min(steps) < 0:
        raise ExpungeError("steps: name the steps to look at, from 0 on")
    if not pictures:
        raise ExpungeError("no pictures to learn from; give at least one kind")
    if not asked or not kept or not all(kept.values()):
        raise ExpungeError("nothing to draw; give requests for the concept and for what is kept")


class _Drawn(NamedTuple):
    """Whether each picture is right."""

    concept: list[bool]
    kept: list[bool]


def _drawing(
    model: Model,
    concept: str,
    asked: Sequence[ImageRequest],
    kept: Mapping[str, Sequence[ImageRequest]],
    recognise: Recognise,
    sampler: Sampler,
) -> Callable[[], _Drawn]:
    """A function that draws all requests with the model as it is, and has them judged."""
    words = [concept] * len(asked) + [word for word, own in kept.items() for _ in own]
    requests = [*asked, *(request for own in kept.values() for request in own)]

    def drawn() -> _Drawn:
        right = look(model, requests, words, recognise, sampler).right
        return _Drawn(right[: len(asked)], right[len(asked) :])

    return drawn


def _curve(learnt: LearntPictures, points: Iterable[Point]) -> RelearningCurve:
    return RelearningCurve(
        learnt_from=learnt.name, pictures=len(learnt.captions), points=tuple(points)
    )


def _points(
    model: Model,
    edit: Edit,
    data: LearntPictures,
    tuning: FineTuning,
    seed: int,
    goals: Sequence[int],
    begin: _Drawn,
    drawn: Callable[[], _Drawn],
) -> Iterator[Point]:
    """What is drawn at step 0, which is ``begin``, and at each goal."""
    yield _point(0, begin, None, None)
    gates, weights = _apart(edit)
    with gates.applied(model) if gates else nullcontext():
        names = model.select(tuning.role)
        student = Student(model, names, rank=tuning.rank, seed=seed, start=weights)
        losses = training_losses(student, data, tuning, seed, max(goals, default=0))
        done = 0
        for goal in goals:
            loss = sum(next(losses) for _ in range(goal - done)) / (goal - done)
            with student.shown():
                seen = drawn()
            yield _point(goal, seen, paired_difference(begin.concept, seen.concept), loss)
            done = goal


def _point(steps: int, seen: _Drawn, gained: Estimate | None, loss: float | None) -> Point:
    drawn, kept = Rate.of(seen.concept), Rate.of(seen.kept)
    return Point(steps=steps, drawn=drawn, kept=kept, gained=gained, loss=loss)


def _apart(edit: Edit) -> tuple[Edit | None, Edit | None]:
    """The gates and guards of an edit, and what changes weights."""
    weights = tuple(part for part in edit.components if isinstance(part.payload, Change))
    others = tuple(part for part in edit.components if part not in weights)
    return Edit(others) if others else None, Edit(weights) if weights else None
