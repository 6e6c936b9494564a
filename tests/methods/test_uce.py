import pytest
import torch

from expunge import Concept, ExpungeError, Model, Policy, erase
from expunge.edits.applied import edited_weights
from expunge.methods.uce.method import UCE


def test_the_solution_matches_the_equation_layer_by_layer(pico: Model) -> None:
    """The textbook form: one inverse per matrix, targets and all, in float64."""
    edit = erase(
        pico, Concept(target="santa claus", anchor="man", keep=["dog"]), "uce", fidelity="original"
    )
    old, new = pico.encode(["santa claus", "man"]).double()
    sources, targets = old[2 : 2 + 14], new[1 : 1 + 14]
    kept = pico.encode(["", "dog"]).double().reshape(-1, 32)
    a, p, lamb = 1.0, 0.5, 0.5
    for name, weight in edited_weights(pico, edit.components, edit.names).items():
        base = pico.base_weight(name).double()
        left = lamb * base + a * base @ targets.T @ sources + p * base @ kept.T @ kept
        right = lamb * torch.eye(32).double() + a * sources.T @ sources + p * kept.T @ kept
        assert torch.allclose(weight, left @ torch.linalg.inv(right), atol=1e-9)


def test_2025_moves_one_row_and_has_rank_one(pico: Model) -> None:
    edit = erase(pico, "ghost", "uce", variant="2025", fidelity="original")
    assert edit.components[0].payload.factors.left.shape == (1, 32)


def test_synonyms_and_sentences_are_erased_when_corrected() -> None:
    policy = Policy.of(Concept(target="ghost", synonyms=["spook"], anchor="dog"))
    assert [pair.erase for pair in UCE(contexts=("{}", "a {} photo")).pairs(policy)] == [
        "ghost",
        "a ghost photo",
        "spook",
        "a spook photo",
    ]
    assert len(UCE(fidelity="original").pairs(policy)) == 1


def test_each_concept_is_erased_in_its_own_sentences(pico: Model) -> None:
    ink = Concept(target="ink", kind="style", contexts=("a {} cat",), keep=["oil"])
    policy = Policy(erase=(ink, Concept(target="ghost", anchor="dog")))
    assert [pair.erase for pair in UCE().pairs(policy)] == ["a ink cat", "ghost"]
    assert UCE().kept(policy) == ("", "oil", "a oil cat")
    with pytest.raises(ExpungeError, match="ink: sentences of its own"):
        erase(pico, ink, "uce", fidelity="original")


@pytest.mark.parametrize("variant", ["2023", "2025"])
def test_kept_prompts_move_less_when_they_are_named(pico: Model, variant: str) -> None:
    concept = Concept(target="ghost", anchor="man")
    kept = concept.model_copy(update={"keep": ("dog", "a cat")})
    row = pico.encode(["dog"])[0, 1].double()

    def moved(chosen: Concept) -> float:
        edit = erase(pico, chosen, "uce", variant=variant, preserve_scale=1e4)
        return float((row @ edit.components[0].payload.matrix.T - row).norm())

    assert moved(kept) < 0.01 * moved(concept)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variant": "2024"}, "variant"),
        ({"lamb": 0}, "lamb"),
        ({"erase_scal": 1}, "erase_scal: Extra inputs"),
        ({"fidelity": "original", "contexts": ["a {}"]}, 'only with fidelity="corrected"'),
        ({"variant": "2025", "technique": "tensor"}, "part of the 2023 variant only"),
        ({"contexts": ["a photo"]}, "must hold {} once"),
    ],
)
def test_a_wrong_setting_is_named_with_the_known_ones(
    pico: Model, values: dict[str, object], message: str
) -> None:
    with pytest.raises(ExpungeError) as caught:
        erase(pico, "dog", "uce", **values)
    assert message in str(caught.value)
    assert "settings: fidelity, preset, " in str(caught.value)


def test_an_unknown_method_lists_near_names(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="unknown method 'ucee'; did you mean uce"):
        erase(pico, "dog", "ucee")
