"""How a model reads what a method is given: contradictions it can't tell, and what it cuts off."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from expunge.concepts import Concept, Policy
from expunge.errors import CutOff, ExpungeError, warn
from expunge.method.base import Method
from expunge.models import Model
from expunge.models.window import remark
from expunge.prompts.lexicon import refused
from expunge.sentences import beginning

Ids = tuple[int, ...]
"""A prompt as the model reads it: token ids, cut to the window."""


def checked(model: Model, method: Method, policy: Policy) -> Policy:
    """The policy, without synonyms that the model reads as the same as an earlier phrase.

    Warns of prompts that are cut off (``CutOff``).

    Raises:
        ExpungeError: to the model, something is erased that also stays or takes another's place,
            or is erased twice; a sentence is cut before its words end; or a prompt would be drawn
            that is never drawn.
    """
    if method.fidelity == "corrected":
        policy = _without_doubles(model, policy)
    _check_phrases(model, policy)
    _check_sentences(model, method, policy)
    phrases = (words for concept in policy.erase for words in concept.phrases)
    erased = _each((*phrases, *method.erased_prompts(policy)))
    kept = _each(method.kept_prompts(policy))
    _check_prompts(model, erased, kept)
    check_drawn(method, policy)
    anchors = (concept.replacement for concept in policy.erase)
    _warn(model, _each((*erased, *anchors, *kept)))
    return policy


def _each(prompts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(prompts))


def _ids(model: Model, prompts: Iterable[str]) -> Mapping[str, Ids]:
    listed = list(dict.fromkeys(prompts))
    return dict(zip(listed, map(tuple, model.tokenized(listed)), strict=True))


def _without_doubles(model: Model, policy: Policy) -> Policy:
    ids = _ids(model, (words for one in policy.erase for words in one.phrases))

    def single(concept: Concept) -> Concept:
        first: dict[Ids, str] = {}
        for words in concept.phrases:
            first.setdefault(ids[words], words)
        synonyms = tuple(first.values())[1:]
        if synonyms == concept.synonyms:
            return concept
        return concept.model_copy(update={"synonyms": synonyms})

    return policy.model_copy(update={"erase": tuple(map(single, policy.erase))})


def _check_phrases(model: Model, policy: Policy) -> None:
    """Refuse phrases that are erased twice, or take a place."""
    anchors = [concept.replacement for concept in policy.erase]
    ids = _ids(model, (*(w for one in policy.erase for w in one.phrases), *anchors))
    owners: dict[Ids, str] = {}
    for concept in policy.erase:
        for words in concept.phrases:
            if not ids[words]:
                raise ExpungeError(f"{words!r}: the model reads the empty prompt; name it in words")
            other = owners.setdefault(ids[words], words)
            if other != words:
                raise ExpungeError(
                    f"{other!r} and {words!r} are both erased, and the model reads them as the "
                    f"same{_cut(model, words)}; name one of the two"
                )
    for concept in policy.erase:
        if ids[concept.replacement] in owners:
            same = owners[ids[concept.replacement]]
            raise ExpungeError(
                f"the anchor {concept.replacement!r} of {concept.target!r} is erased itself: the "
                f"model reads it as {same!r}{_cut(model, same)}; choose other words"
            )


def _cut(model: Model, words: str) -> str:
    """A remark on words that are longer than the window."""
    return " (it cuts them off)" if model.cut([words]) else ""


def _check_sentences(model: Model, method: Method, policy: Policy) -> None:
    """Refuse sentences of which the model reads no whole phrase, though it would fit by itself."""
    general: tuple[str, ...] = getattr(method, "contexts", ())
    heads = {
        beginning(sentence) + words: (sentence, words)
        for concept in policy.erase
        for sentence in concept.contexts or general
        for words in concept.phrases
    }
    for cut in model.cut(list(heads)):
        sentence, words = heads[cut.prompt]
        if not model.cut([words]):
            raise ExpungeError(
                f"the sentence {sentence!r} is cut before {words!r} ends: the model reads "
                f"{cut.read} pieces; shorten it"
            )


def _check_prompts(model: Model, erased: Iterable[str], kept: Iterable[str]) -> None:
    """Refuse a prompt that is erased and kept."""
    gone = {ids: prompt for prompt, ids in _ids(model, erased).items()}
    for prompt, ids in _ids(model, kept).items():
        if ids in gone:
            same = "" if gone[ids] == prompt else f" (as {gone[ids]!r}, the same to the model)"
            raise ExpungeError(
                f"{prompt!r} is both erased{same} and kept{_cut(model, prompt)}; remove one of the "
                "two"
            )


def check_drawn(method: Method, policy: Policy) -> None:
    """Refuse to draw or train on what ``expunge.prompts.lexicon`` refuses.

    Raises:
        ExpungeError: a prompt of the policy or of the method's settings is such a one, and the
            method does more than read it.
    """
    if not method.needed & {"drawing", "gradients"}:
        return
    anchors = (concept.replacement for concept in policy.erase)
    phrases = (words for concept in policy.erase for words in concept.phrases)
    own = (*method.erased_prompts(policy), *method.kept_prompts(policy))
    for prompt in (*phrases, *anchors, *own, *_texts(dict(method))):
        if refused({"prompt": prompt}):
            raise ExpungeError(
                f"{method.name} would draw a prompt with a sexual word and a word for minors, "
                "which is never done; use a method that only reads prompts, such as uce"
            )


def _texts(value: Any) -> Iterator[str]:
    """All texts in a method's settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _warn(model: Model, prompts: tuple[str, ...]) -> None:
    if cuts := model.cut(prompts):
        warn(remark(cuts, len(prompts), repr(cuts[0].prompt)), CutOff)
