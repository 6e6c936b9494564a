import pytest
import torch

from expunge import Concept, ExpungeError, Model, Policy, erase
from expunge.detectors import DETECTORS, Identity
from expunge.edits import Ridge
from expunge.methods.uce.debias import Debias

ATTRIBUTES = {
    "attributes": ("red", "blue"), "images": 4, "num_inference_steps": 2, "classifier": "toy",
}  # fmt: skip


class ByMixture:
    """A classifier that sees the attribute with the larger part in the last solution."""

    identity = Identity(name="toy", version="", sha256="")
    labels = ("red", "blue", "green")
    solutions: tuple[torch.Tensor, ...] = ()

    def __init__(self, weights):
        pass

    def probabilities(self, pictures):
        red, blue = self.solutions[-1].tolist()
        share = round(len(pictures) * min(1.0, max(0.0, 0.25 + red - blue)))
        return torch.eye(3)[[0] * share + [1] * (len(pictures) - share)]


class Green(ByMixture):
    def probabilities(self, pictures):
        return torch.eye(3)[[2] * len(pictures)]


@pytest.fixture(autouse=True)
def by_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    solution = Debias._solution

    def remembered(self, model, policy, kept, mixture):
        ByMixture.solutions += (mixture[0],)
        return solution(self, model, policy, kept, mixture)

    monkeypatch.setattr(ByMixture, "solutions", ())
    monkeypatch.setattr(Debias, "_solution", remembered)
    monkeypatch.setitem(DETECTORS.places, "toy", f"{__name__}:ByMixture")


def test_shares_are_reached(pico: Model) -> None:
    method = Debias(**ATTRIBUTES, step=0.5, tolerance=0.1)
    *_, last = method.rounds(pico, Policy.of("dog"), 0)
    assert last.observed.tolist() == [[0.5, 0.5]]
    assert last.mixture[0, 0] > 0 > last.mixture[0, 1]


def test_the_concept_gets_the_mixture_of_both(pico: Model) -> None:
    """With little weight on staying, W' c is W (c + sum_j R_j (a_j - c)) in its own wording."""
    method = Debias(**ATTRIBUTES, lamb=1e-9, preserve_scale=0.0)
    payload = method._solution(
        pico, Policy.of("dog"), torch.zeros(0, 32), torch.tensor([[0.5, -0.25]]).double()
    )
    first = pico.last_token("dog")
    source = pico.encode(["dog"])[0, first].double()
    moves = [
        pico.encode([words])[0, pico.last_token(words)].double() - source
        for words in ("red dog", "blue dog")
    ]
    wanted = source + 0.5 * moves[0] - 0.25 * moves[1]
    assert torch.allclose(payload.matrix @ source, wanted, atol=1e-5)


def test_the_model_is_left_as_it_was(pico: Model) -> None:
    before = {name: weight.clone() for name, weight in pico.denoiser.named_parameters()}
    edit = erase(pico, Concept(target="dog", keep=["cat"]), "uce-debias", **ATTRIBUTES)
    assert isinstance(edit.components[0].payload, Ridge)
    assert all(torch.equal(w, before[n]) for n, w in pico.denoiser.named_parameters())
    with edit.applied(pico):
        assert not torch.equal(pico.denoiser.get_parameter(edit.names[0]), before[edit.names[0]])


def test_attributes_that_are_never_seen_are_an_error(
    pico: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DETECTORS.places, "toy", f"{__name__}:Green")
    with pytest.raises(ExpungeError, match="saw none of red, blue in any picture"):
        erase(pico, "dog", "uce-debias", **ATTRIBUTES, iterations=2)


def test_an_edit_that_comes_no_closer_than_the_model_itself_is_refused(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="no round came closer to the wanted shares"):
        erase(pico, "dog", "uce-debias", **ATTRIBUTES, iterations=1)


def test_among_equally_far_shares_the_fewest_wrong_pictures_win(pico: Model) -> None:
    method = Debias(**ATTRIBUTES)
    one_attribute_is_right, none_is = torch.tensor([[0.0, 0.5]]), torch.tensor([[0.0, 0.0]])
    assert method._error(one_attribute_is_right) == method._error(none_is)
    assert method._sum(one_attribute_is_right) < method._sum(none_is)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attributes": ["red"]}, "name at least two"),
        ({"ratios": [0.5]}, "give one for each of 2"),
        ({"ratios": [0.9, 0.9]}, "no more than 1 together"),
        ({"wording": "{concept}"}, "each once"),
        ({"classifier": "clap"}, "unknown detector 'clap'; did you mean clip"),
        ({"classifier": "clip"}, "which CLIP?"),
        ({"classifier": "clip:/none"}, "can't load this model"),
        ({"classifier": "emoji"}, "emoji can't tell 'red' among noto"),
        ({"attributes": ["red", "grey"]}, "toy can't tell 'grey' among red, blue, green"),
    ],
)
def test_wrong_settings_are_named(pico: Model, values: dict[str, object], message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        erase(pico, "dog", "uce-debias", **{**ATTRIBUTES, **values})
    assert message in str(caught.value)
