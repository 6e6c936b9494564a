"""What an edit does to everyday words: against the weights, word by word."""

import pytest
import torch

from expunge import Concept, Edit, Model, erase
from expunge.edits.damage import NEIGHBOURS, WORDS, damage
from expunge.edits.edit import Component
from expunge.edits.payloads import SharedMatrix
from expunge.errors import ExpungeError, Unsupported
from expunge.prompts.everyday import nouns
from expunge.testing import membrane


def scaled(model: Model, factor: float) -> Edit:
    """All keys and values times a factor."""
    [part] = erase(model, "ghost", "rece", prior=None, epochs=1).components
    width = model.text_width
    whole = torch.eye(width, dtype=torch.float64)
    matrix = SharedMatrix(part.payload.names, whole, (factor - 1) * whole)
    return Edit((Component(matrix, part.provenance),))


def test_a_scale_moves_all_words_alike_and_no_neighbour(wide: Model) -> None:
    found = damage(wide, scaled(wide, 0.5))
    assert found.spread == pytest.approx(0.25, rel=1e-6)
    assert found.overlap == 1
    assert all(one.share == pytest.approx(0.5, rel=1e-6) for one in found.moved)


def test_it_is_what_the_edited_weights_do(wide: Model) -> None:
    edit = erase(wide, Concept(target="dog", anchor="cat"), "uce", prior=None, templates=False)
    words = nouns()[:40]
    found = damage(wide, edit, words)
    rows = wide.encode_rows(words, [wide.last_token(word) for word in words]).double()
    names = wide.select("cross_attention.kv")
    before = torch.cat([rows @ wide.base_weight(name).double().T for name in names], 1)
    with edit.applied(wide):
        weights = [wide.denoiser.get_parameter(name).double() for name in names]
        after = torch.cat([rows @ weight.T for weight in weights], 1)

    def spread(answers: torch.Tensor) -> float:
        return (answers - answers.mean(0)).square().sum(1).mean().item()

    def nearest(answers: torch.Tensor) -> list[set[int]]:
        distances = torch.cdist(answers, answers).fill_diagonal_(torch.inf)
        return [set(row.tolist()) for row in distances.topk(NEIGHBOURS, largest=False).indices]

    assert found.spread == pytest.approx(spread(after) / spread(before), rel=1e-4)
    shares = ((after - before).norm(dim=1) / before.norm(dim=1)).tolist()
    assert [one.share for one in found.moved] == pytest.approx(
        sorted(shares, reverse=True)[: len(found.moved)], rel=1e-3
    )
    assert words[shares.index(max(shares))] == found.moved[0].word
    pairs = zip(nearest(before), nearest(after), strict=True)
    overlap = [len(one & two) / len(one | two) for one, two in pairs]
    assert found.overlap == pytest.approx(sum(overlap) / len(overlap), abs=0.02)


def test_what_is_erased_is_no_everyday_word(wide: Model) -> None:
    edit = erase(wide, Concept(target="dog", anchor="cat"), "uce", prior=None)
    found = damage(wide, edit)
    assert found.words == WORDS
    assert "dog" not in {one.word for one in found.moved}


def test_what_no_word_can_tell_is_said(wide: Model) -> None:
    for edit, said in (
        (membrane(wide, Concept(target="ghost")), "depends on the prompt"),
        (erase(wide, "ghost", "negative-prompt"), "depends on the prompt"),
    ):
        with pytest.raises(Unsupported, match=said):
            damage(wide, edit)
    with pytest.raises(ExpungeError, match="more than 10"):
        damage(wide, scaled(wide, 0.5), ["dog", "cat"])
