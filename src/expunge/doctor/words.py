"""How the model reads a policy's words, and what may be surprising about it."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import median
from typing import Any

import torch
from torch import Tensor

from expunge.concepts import Concept, Policy
from expunge.doctor.facts import Caution, Likeness, Phrase, PhraseRole, Piece
from expunge.errors import ExpungeError
from expunge.models import Model

FRAGMENTS = 3
"""The tokenizer has hardly seen a word that it splits into this many pieces or more."""
ALIKE = 0.25
"""Two phrases mean the same if they differ by less than this share of what unrelated ones do."""
UNRELATED = ("dog", "car", "tree", "house", "chair", "pizza", "heart", "ball")
"""Plain words; how similar they are to a phrase is the scale for its anchor.

The median of eight is robust if one of them is the phrase or its anchor.
"""


def read(model: Model, policy: Policy) -> tuple[Phrase, ...]:
    """Every target, synonym and anchor, split as the model's tokenizer splits it."""
    return tuple(
        _phrase(model, text, concept.target, role)
        for concept in policy.erase
        for text, role in _roles(concept)
    )


def _roles(concept: Concept) -> Iterator[tuple[str, PhraseRole]]:
    yield concept.target, "target"
    for synonym in concept.phrases[1:]:
        yield synonym, "synonym"
    yield concept.replacement, "anchor"


def _phrase(model: Model, text: str, concept: str, role: PhraseRole) -> Phrase:
    pieces = split(model, text)
    return Phrase(
        text=text,
        concept=concept,
        role=role,
        pieces=pieces,
        last_row=model.last_token(text),
        cut_off=len(pieces) - len(model.tokens(text)),
    )


def split(model: Model, text: str) -> tuple[Piece, ...]:
    """All pieces of a phrase, including those that the model cuts off."""
    encoder = model.text_encoders[0]
    tokenizer, [text] = encoder.tokenizer, encoder.spelt([text])
    # Not verbose: it would remark on what is cut off, which is for us to say.
    encoding = tokenizer([text], truncation=False, verbose=False, return_offsets_mapping=True)
    columns = (encoding.input_ids[0], encoding.word_ids(0), encoding.offset_mapping[0])
    special = set(tokenizer.all_special_ids)
    return tuple(
        Piece(
            text=_letters(tokenizer, token, text[start:end]),
            id=token,
            word=word,
            known=token not in special,
        )
        for token, word, (start, end) in list(zip(*columns, strict=True))[1:-1]
    )


def _letters(tokenizer: Any, token: int, source: str) -> str:
    """A piece as text. If it is only some bytes of a character, it names that character."""
    letters: str = tokenizer.decode([token])
    return f"part of {source}" if "\N{REPLACEMENT CHARACTER}" in letters else letters


def compare(model: Model, policy: Policy) -> tuple[Likeness, ...]:
    """How near each erased phrase is to its anchor, and to unrelated words.

    Raises:
        ExpungeError: the text encoder's output isn't finite.
    """
    return tuple(
        _likeness(model, phrase, concept.replacement)
        for concept in policy.erase
        for phrase in concept.phrases
    )


def _likeness(model: Model, phrase: str, anchor: str) -> Likeness:
    own, *compared = _ends(model, [phrase, anchor, *_others(model, anchor)])
    (last, end), *unrelated = [
        torch.nn.functional.cosine_similarity(own, other, dim=1).tolist() for other in compared
    ]
    unrelated_last, unrelated_end = (median(column) for column in zip(*unrelated, strict=True))
    return Likeness(
        phrase=phrase,
        anchor=anchor,
        last_piece=last,
        end=end,
        unrelated_last_piece=unrelated_last,
        unrelated_end=unrelated_end,
        alike_from=1 - ALIKE * (1 - unrelated_end),
    )


def _others(model: Model, anchor: str) -> Iterator[str]:
    """Plain phrases as long as the anchor, as embeddings depend on a prompt's length too."""
    length = max(1, len(model.tokens(anchor)))
    for start in range(len(UNRELATED)):
        yield " ".join(UNRELATED[(start + at) % len(UNRELATED)] for at in range(length))


def _ends(model: Model, texts: Sequence[str]) -> list[Tensor]:
    """Embedding of each bare prompt at its last piece and at its end of text, ``[2, width]``."""
    ends = []
    for text, rows in zip(texts, model.encode_beginnings(texts, 0), strict=True):
        last = model.last_token(text)
        ends.append(rows[last : last + 2].double())
        if not bool(ends[-1].isfinite().all()):
            raise ExpungeError(
                f"the text encoder gives infinity or NaN for {text!r}; its weights are broken, "
                "or the precision is too low"
            )
    return ends


def warn(
    model: Model, policy: Policy, phrases: Sequence[Phrase], likenesses: Sequence[Likeness]
) -> Iterator[Caution]:
    """Warnings about words with which an edit does less than expected, or something else."""
    for phrase in phrases:
        yield from _alone(phrase)
    yield from _doubles(model, policy, phrases)
    anchors = {phrase.concept: phrase for phrase in phrases if phrase.role == "anchor"}
    erased = (phrase for phrase in phrases if phrase.role != "anchor")
    for phrase, likeness in zip(erased, likenesses, strict=True):
        yield from _pair(phrase, anchors[phrase.concept], likeness)


def _alone(phrase: Phrase) -> Iterator[Caution]:
    """What is wrong with a phrase by itself."""
    text, pieces = phrase.text, phrase.pieces
    if phrase.cut_off:
        yield Caution(
            problem="cut_off",
            phrase=text,
            message=f"{text!r} has {len(pieces)} pieces, and the model reads "
            f"{len(pieces) - phrase.cut_off}: the rest is cut off and has no effect; use fewer "
            "words",
        )
    if unknown := [piece for piece in pieces if not piece.known]:
        yield Caution(
            problem="unknown",
            phrase=text,
            message=f"{text!r} holds {len(unknown)} {_pieces(unknown)} that the tokenizer "
            f"doesn't know and reads as {unknown[0].text!r}, like any other unknown letter; "
            "write it in letters that the tokenizer knows",
        )
    for word in dict.fromkeys(piece.word for piece in pieces):
        parts = [piece.text for piece in pieces if piece.word == word]
        if len(parts) >= FRAGMENTS:
            yield Caution(
                problem="rare",
                phrase=text,
                message=f"a word of {text!r} falls apart into {len(parts)} pieces "
                f"({'|'.join(parts)}): the tokenizer has hardly seen it, and the model may not "
                "know it; look at pictures of it first, and name common words for the same thing "
                "as synonyms",
            )
    if phrase.role == "anchor" and text and not pieces:
        yield Caution(
            problem="blank",
            phrase=text,
            message=f'the anchor {text!r} is blank: the model reads the empty prompt; write "" '
            "if that is meant, else name what is to be drawn instead",
        )


def _pieces(pieces: Sequence[Piece]) -> str:
    return "piece" if len(pieces) == 1 else "pieces"


def _doubles(model: Model, policy: Policy, phrases: Sequence[Phrase]) -> Iterator[Caution]:
    """Differently spelt phrases that the model can't tell apart."""
    for one, two in combinations(phrases, 2):
        if one.ids == two.ids and (consequence := _consequence(one, two)):
            yield Caution(
                problem="same_tokens",
                phrase=two.text,
                message=f"the {one.role} {one.text!r} and the {two.role} {two.text!r} are the "
                f"same to the model (it reads the same pieces): {consequence}",
            )
    erased = {phrase.ids: phrase.text for phrase in phrases if phrase.role != "anchor"}
    for words in policy.kept:
        if (ids := tuple(piece.id for piece in split(model, words))) in erased:
            yield Caution(
                problem="same_tokens",
                phrase=words,
                message=f"{erased[ids]!r} is erased and {words!r} is kept, and they are the same "
                "to the model (it reads the same pieces): remove one of the two",
            )


def _consequence(one: Phrase, two: Phrase) -> str:
    roles = {one.role, two.role}
    if roles == {"anchor"}:
        return ""  # several concepts may well give way to the same thing
    if "anchor" not in roles:
        return "remove one of them, it adds nothing"
    if one.concept == two.concept:
        return "nothing would be erased; choose another anchor"
    return "what is drawn instead of one concept is erased as another; choose another anchor"


def _pair(phrase: Phrase, anchor: Phrase, likeness: Likeness) -> Iterator[Caution]:
    """What is wrong with a phrase and its anchor together."""
    if not anchor.pieces or phrase.ids == anchor.ids:
        return
    names = f"{phrase.text!r} and its anchor {anchor.text!r}"
    if phrase.ids[-1] == anchor.ids[-1]:
        yield Caution(
            problem="same_last_piece",
            phrase=phrase.text,
            message=f"{names} end in the same piece ({anchor.pieces[-1].text!r}), where many "
            f"methods look: cosine {likeness.last_piece:.2f} there, "
            f"{likeness.unrelated_last_piece:.2f} for unrelated words; the nearer to 1, the less "
            "they change; an anchor that ends in another word is safer",
        )
    if likeness.end >= likeness.alike_from:
        yield Caution(
            problem="same_meaning",
            phrase=phrase.text,
            message=f"{names} mean nearly the same to the model: cosine {likeness.end:.2f} at "
            f"the end of the text, {likeness.unrelated_end:.2f} for unrelated words; the edited "
            "model would draw the concept again; choose another anchor and erase this one as a "
            "synonym",
        )
