"""A monitor from a text such as ``erased<=0.05``: it draws, looks, and ends a training.

It knows two scores::

    erased   share of the pictures asked for by the erased words that still show the concept
    kept     share of the pictures asked for by the kept words that show what was asked for

Each time the same few pictures are drawn from the same noise, so that two scores differ only by the
weights. A share of 24 pictures is rough: good enough to end a training. To measure, use
``expunge evaluate``.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from math import ceil
from typing import NamedTuple, TypeVar

from PIL import Image

from expunge.concepts import Concept, Context, Policy
from expunge.detectors.base import Known, detector
from expunge.detectors.vocabulary import WordClassifier, is_open_vocabulary, word_classifier
from expunge.errors import ExpungeError
from expunge.generation.sampler import Sampler
from expunge.generation.sampling import ImageRequest, sample
from expunge.models import Model
from expunge.seeding import derive
from expunge.training.loop import Monitor

SCORES = ("erased", "kept")
EVERY = 20
PICTURES = 24
SAMPLER = Sampler(steps=8)

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_COMPARISON = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*(\d*\.?\d+)\s*")

Spread = TypeVar("Spread")


class StopCondition(NamedTuple):
    """A bound on a score, e.g. ``erased <= 0.05``."""

    score: str
    sign: str
    bound: float

    def holds(self, scores: Mapping[str, float]) -> bool:
        """Whether these scores meet it; they don't if they lack the score."""
        return self.score in scores and _COMPARE[self.sign](scores[self.score], self.bound)


def stop_conditions(text: str) -> tuple[StopCondition, ...]:
    """The stop_conditions of ``erased<=0.05`` or ``erased<=0.05 and kept>=0.8``.

    Raises:
        ExpungeError: the text isn't of this form, or a bound is no share.
    """
    return tuple(_comparison(part) for part in re.split(r"\s+and\s+", text))


def _comparison(text: str) -> StopCondition:
    found = _COMPARISON.fullmatch(text)
    if not found:
        raise ExpungeError(
            f"when to stop: {text!r} is no comparison; write e.g. erased<=0.05, or several with "
            "'and' between them"
        )
    score, sign, bound = found.groups()
    if score not in SCORES:
        raise ExpungeError(f"when to stop: no score {score!r}; there are {', '.join(SCORES)}")
    if float(bound) > 1:
        raise ExpungeError(f"when to stop: {text!r} compares a share, which is from 0 to 1")
    return StopCondition(score, sign, float(bound))


class Probe(NamedTuple):
    """Pictures that ask for one concept, and the classifier that looks for it."""

    requests: tuple[ImageRequest, ...]
    classifier: WordClassifier
    word: str
    """What the classifier calls the concept."""


def monitor(
    text: str,
    policy: Policy,
    *,
    every: int = EVERY,
    judge: str = "emoji",
    contexts: tuple[Context, ...] = (),
    pictures: int = PICTURES,
    sampler: Sampler = SAMPLER,
    seed: int = 0,
) -> Monitor:
    """A monitor that ends a training when all stop_conditions of the text hold.

    Args:
        text: see ``stop_conditions``.
        policy: what is erased and kept.
        every: steps between two looks.
        judge: a detector that classifies, with its weights behind a colon, e.g. ``clip:FOLDER``.
        contexts: sentences around the words, as in training.
        pictures: how many per score; at least one of each erased concept.
        sampler: how they are drawn.
        seed: of their noise.

    Raises:
        ExpungeError: the text is wrong, a score asks for kept words and none are named, or the
            detector is unknown, no classifier, or can't tell these words.
    """
    wanted = stop_conditions(text)
    if every < 1:
        raise ExpungeError(f"looks {every} steps apart; make it at least 1")
    found: Known = detector(judge)
    classifier = cache(lambda words: word_classifier(found, words))

    def probes(score: str) -> list[Probe]:
        concepts = _concepts(score, policy, pictures)
        each = ceil(pictures / len(concepts))
        parts = [(concept, _words(policy, found, concept)) for concept in concepts]
        return [
            Probe(
                tuple(_requests(concept, contexts, each, seed)), classifier(words), concept.target
            )
            for concept, words in parts
        ]

    asked = {comparison.score: probes(comparison.score) for comparison in wanted}
    return Monitor(
        every=every,
        score=lambda model: {score: _share(model, asked[score], sampler) for score in asked},
        stop=lambda scores: all(comparison.holds(scores) for comparison in wanted),
    )


def check(monitor: Monitor, model: Model) -> None:
    """Check that the unedited model wouldn't end the training at once.

    Raises:
        ExpungeError: the scores would end it at once, e.g. because the classifier never finds
            the concept, or the pictures can't be judged.
    """
    scores = monitor.score(model)
    if monitor.stop(scores):
        seen = ", ".join(f"{name} {share:.2f}" for name, share in scores.items())
        raise ExpungeError(
            f"the unedited model would end the training at once ({seen}): use other bounds, or "
            "words or a classifier with which its pictures are recognised"
        )


def _concepts(score: str, policy: Policy, most: int) -> Sequence[Concept]:
    """The concepts that a score is about: the erased ones, or some of the kept words."""
    if score == "erased":
        return policy.erase
    if not policy.kept:
        raise ExpungeError("when to stop: nothing is to be kept; name words to keep")
    kind = policy.erase[0].kind
    words = _spread(policy.kept, min(most, len(policy.kept)))
    return [Concept(target=word, kind=kind) for word in words]


def _words(policy: Policy, found: Known, concept: Concept) -> tuple[str, ...]:
    """The words to choose among: for a closed vocabulary the concept's, else all that are given."""
    if not is_open_vocabulary(found):
        return (concept.target,)
    instead = [one.replacement for one in policy.erase if one.replacement]
    words = (*(one.target for one in policy.erase), *instead, *policy.kept)
    if len(set(words)) < 2:
        raise ExpungeError(
            f"when to stop: {found.identity.name} chooses among words, and there is only "
            f"{words[0]!r}; name an anchor or words to keep"
        )
    return tuple(dict.fromkeys(words))


def _requests(
    concept: Concept, contexts: tuple[Context, ...], count: int, seed: int
) -> Iterator[ImageRequest]:
    prompts = [pair.erase for pair in concept.pairs(contexts)]
    for number, prompt in enumerate(_spread(prompts, count)):
        noise = derive(seed, "look", prompt, number)
        yield ImageRequest(case_number=f"{number}", prompt=prompt, seed=noise)


def _spread(items: Sequence[Spread], count: int) -> list[Spread]:
    """``count`` of these, evenly spaced."""
    return [items[number * len(items) // count] for number in range(count)]


def _share(model: Model, probes: Sequence[Probe], sampler: Sampler) -> float:
    """The share of all pictures in which the concept that they ask for is found."""
    requests = [request for probe in probes for request in probe.requests]
    drawn = (Image.fromarray(picture.numpy()) for _, picture in sample(model, requests, sampler))
    found = [
        shown
        for probe in probes
        for shown in probe.classifier.shows(
            list(islice(drawn, len(probe.requests))), [probe.word] * len(probe.requests)
        )
    ]
    return sum(found) / len(found)
