"""Which of several words fits a picture best: classifiers by name, or by name and weights."""

from collections.abc import Callable, Sequence

from PIL import Image

from expunge.errors import ExpungeError
from expunge.registry import Registry

Classifier = Callable[[Sequence[Image.Image]], list[int]]
"""The index of the word that fits each picture best, -1 where none does."""

CLASSIFIERS: Registry[Callable[[Sequence[str], str], Classifier]] = Registry(
    "classifier",
    {
        "emoji": "expunge.detectors.classifiers:emoji",
        "clip": "expunge.detectors.classifiers:clip",
    },
    entry_points="expunge.classifiers",
)


def classifier(name: str, words: Sequence[str]) -> Classifier:
    """The classifier called ``name`` or ``name:weights`` that chooses among ``words``.

    Raises:
        ExpungeError: there is none of this name, or it doesn't know a word.
    """
    name, _, weights = name.partition(":")
    return CLASSIFIERS.get(name)(words, weights)


def emoji(words: Sequence[str], weights: str = "") -> Classifier:
    """The bundled model's judge, for names of its styles or its objects.

    A picture in a style, or of an object, that isn't among the words counts for none of them.
    """
    from expunge.detectors.emoji import load_judges

    judges = load_judges()
    plain = [word.removesuffix(" style") for word in words]
    if set(plain) <= set(judges.styles):
        return lambda pictures: _places(
            [judges.styles[i] for i in judges.classify(pictures).styles.tolist()], plain
        )
    if set(plain) <= set(judges.objects):
        known = (*judges.objects, "")
        return lambda pictures: _places(
            [known[i] for i in judges.classify(pictures).objects.tolist()], plain
        )
    raise ExpungeError(
        f"the emoji classifier can't tell {', '.join(map(repr, words))} apart; it knows the styles "
        f"{', '.join(judges.styles)}, and the objects of its catalogue"
    )


def clip(words: Sequence[str], weights: str = "") -> Classifier:
    """Zero-shot CLIP with the weights of a folder or a hub id: the word with the highest score."""
    from expunge.detectors.clip import build

    judge = build(weights, download=True).zero_shot(words, "This is a photo of {}.")

    def classify(pictures: Sequence[Image.Image]) -> list[int]:
        places: list[int] = judge.probabilities(pictures).argmax(-1).tolist()
        return places

    return classify


def _places(seen: Sequence[str], words: Sequence[str]) -> list[int]:
    return [words.index(name) if name in words else -1 for name in seen]
