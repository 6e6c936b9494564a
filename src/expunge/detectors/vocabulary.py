"""Which of some words a picture shows, according to any detector that classifies.

A classifier has labels of its own (a closed vocabulary), which the words must be among; an
image-text model chooses among whatever words it is given (an open vocabulary).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from expunge.detectors.base import Classifier, Images, ImageText, Known, MultiHead
from expunge.detectors.image_classifier import class_index
from expunge.detectors.weights import checked
from expunge.errors import ExpungeError

TEMPLATE = "This is a photo of {}."
"""Text that an image-text model compares pictures with."""
_ROUNDING = 0.01  # tolerance of the sum of probabilities


class WordClassifier(NamedTuple):
    """A classifier, and the words that stand for its labels."""

    classifier: Classifier
    names: Mapping[str, str]
    """Word for each label; labels without a word count as something else."""

    def likeliest_words(self, pictures: Images) -> list[str | None]:
        """The likeliest word for each picture; ``None`` if something else is likelier.

        Raises:
            ExpungeError: the classifier doesn't give probabilities for every picture.
        """
        name, labels = self.classifier.identity.name, self.classifier.labels
        rows = checked(self.classifier.probabilities(pictures), len(pictures), name)
        if rows.shape[1:] != (len(labels),):
            raise ExpungeError(
                f"{name} failed: results of shape {list(rows.shape)} for {len(labels)} labels"
            )
        if not bool(((rows.sum(-1) - 1).abs() <= _ROUNDING).all()):
            raise ExpungeError(f"{name} failed: probabilities that don't add up to 1")
        rows, known = merged(rows, labels, self.names)
        words = {*self.names.values()}
        likeliest = (known[index] for index in rows.argmax(-1).tolist())
        return [word if word in words else None for word in likeliest]

    def shows(self, pictures: Images, words: Sequence[str]) -> list[bool]:
        """Whether picture i shows word i.

        Raises:
            ExpungeError: the classifier has no label for a word, or doesn't give probabilities for
                every picture.
        """
        if unknown := {*words} - {*self.names.values()}:
            raise ExpungeError(f"{min(unknown)!r} isn't among the words that are looked for")
        found = self.likeliest_words(pictures)
        return [one == word for one, word in zip(found, words, strict=True)]


def is_open_vocabulary(found: Known) -> bool:
    """Whether a detector has no labels of its own, and chooses among the words it is given."""
    return isinstance(found, ImageText) and not isinstance(found, Classifier | MultiHead)


def word_classifier(
    found: Known,
    words: Sequence[str],
    *,
    phrases: Mapping[str, Sequence[str]] | None = None,
    template: str = TEMPLATE,
) -> WordClassifier:
    """A classifier from a detector, which recognises all of these words.

    Of several heads, the first that knows all words is taken.

    Args:
        found: a classifier, one with several heads, or an image-text model.
        words: the words to recognise.
        phrases: for each word, the names that labels may have; by default the word alone.
        template: template of an image-text model's texts.

    Raises:
        ExpungeError: the detector is none of these, no head of it knows all words, two words are
            one class, or one word is there twice.
    """
    if len({*words}) < len(words):
        raise ExpungeError(f"{', '.join(words)}: give each word once")
    lacking = []
    for head in _heads(found, words, template):
        labels = {word: _labels(head, (phrases or {}).get(word, (word,))) for word in words}
        if all(labels.values()):
            return WordClassifier(head, _names(head, labels))
        first = next(word for word in words if not labels[word])
        shown = ", ".join([label for label in head.labels if not label.isdecimal()][:12])
        lacking.append(f"{first!r} among {shown}, ...")
    raise ExpungeError(
        f"{found.identity.name} can't tell {', nor '.join(lacking)}; use words that it knows, or "
        "another detector"
    )


def _heads(found: Known, words: Sequence[str], template: str) -> tuple[Classifier, ...]:
    if isinstance(found, MultiHead):
        return found.heads
    if isinstance(found, Classifier):
        return (found,)
    if isinstance(found, ImageText):
        return (found.zero_shot(tuple(words), template),)
    raise ExpungeError(
        f"{found.identity.name} is no classifier, so it can't tell {', '.join(map(repr, words))}; "
        "give one, or clip:FOLDER"
    )


def _labels(classifier: Classifier, phrases: Sequence[str]) -> list[str]:
    """The classifier's labels that match one of these phrases."""
    found = []
    for phrase in phrases:
        with suppress(ExpungeError):
            found.append(classifier.labels[class_index(classifier.labels, phrase)])
    return found


def _names(classifier: Classifier, labels: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The word for each label, from the labels of each word."""
    names: dict[str, str] = {}
    for word, own in labels.items():
        for label in own:
            if names.setdefault(label, word) != word:
                raise ExpungeError(
                    f"{classifier.identity.name} has one class for {names[label]!r} and {word!r}; "
                    "make one a synonym of the other"
                )
    return names


def merged(
    probabilities: Tensor, labels: Sequence[str], names: Mapping[str, str]
) -> tuple[Tensor, tuple[str, ...]]:
    """Probabilities in which labels of the same name are added up, and the names of columns.

    Args:
        probabilities: ``[pictures, labels]``.
        labels: what the columns are.
        names: by label; a label without a name keeps its own.

    Returns:
        ``[pictures, names]``, and the names.
    """
    named = [names.get(label, label) for label in labels]
    places = {name: place for place, name in enumerate(dict.fromkeys(named))}
    index = torch.tensor([places[name] for name in named], device=probabilities.device)
    total = probabilities.new_zeros(len(probabilities), len(places))
    return total.index_add_(1, index, probabilities), tuple(places)
