"""An edit knows its base in every precision, and its text encoder; another model is refused."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, erase, load
from expunge.edits.applied import edited_weights
from expunge.edits.base import Base
from expunge.edits.component import Component
from expunge.edits.payloads import LowRank, Sum
from expunge.models.hashing import Roundings

GHOST = Concept(target="ghost", anchor="dog")
OLD = Path(__file__).parents[1] / "data" / "edits_0.1" / "ridge.safetensors"

Dtypes = tuple[torch.dtype, ...]


@pytest.fixture(scope="module")
def exact(pico_folder: Path) -> Model:
    return load(pico_folder, device="cpu")


def rounded(exact: Model, *precisions: torch.dtype) -> Model:
    """The model after rounding its float32 weights to one precision after the other."""
    model = copy.deepcopy(exact)
    for precision in precisions:
        model.cast(precision)
    return model


VARIANTS: dict[str, Dtypes] = {
    "float32": (),
    "float16": (torch.float16,),
    "bfloat16": (torch.bfloat16,),
    "bfloat16 of float16 files": (torch.float16, torch.bfloat16),
    "float32 of float16 files": (torch.float16, torch.float32),
    "float32 of bfloat16 files": (torch.bfloat16, torch.float32),
}
PAIRS = [
    (made, used)
    for made in VARIANTS
    for used in VARIANTS
    if {"bfloat16 of float16 files"} != {made, used} - {"bfloat16", "float32 of bfloat16 files"}
]
"""All but those where both have lost what the other one is."""


@pytest.fixture(scope="module")
def made(exact: Model) -> dict[str, Edit]:
    """An edit by the precision of the model that it was made with."""
    return {name: erase(rounded(exact, *kinds), GHOST) for name, kinds in VARIANTS.items()}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_an_edit_made_in_one_precision_applies_in_another(
    one: str, other: str, made: dict[str, Edit], exact: Model
) -> None:
    model, edit = rounded(exact, *VARIANTS[other]), made[one]
    wanted = edited_weights(model, edit.components, edit.names)
    with edit.applied(model):
        for name, weight in wanted.items():
            assert weight is not None
            assert torch.equal(model.denoiser.get_parameter(name), weight.to(model.dtype))


def test_of_two_roundings_to_bfloat16_nobody_can_tell(made: dict[str, Edit], exact: Model) -> None:
    with pytest.raises(ExpungeError, match=r"same, rounded .* float32 or float16 to see"):
        made["bfloat16"].apply(rounded(exact, torch.float16, torch.bfloat16))


def test_bfloat16_of_float16_is_another_rounding(exact: Model) -> None:
    """Otherwise the tests above would prove little."""
    once, twice = (
        rounded(exact, *VARIANTS[name]) for name in ("bfloat16", "bfloat16 of float16 files")
    )
    names = once.select("cross_attention.kv")
    differ = [
        (once.base_weight(name) != twice.base_weight(name)).float().mean().item() for name in names
    ]
    assert 0.03 < sum(differ) / len(differ) < 0.1


Change = Callable[[Tensor], Tensor]
OTHERS: dict[str, Change] = {
    "one number more": lambda weight: weight.index_put((torch.tensor([0]),), weight[0] + 0.1),
    "a slight training": lambda weight: weight * 1.01,
    "the rows in another order": lambda weight: weight.flip(0),
}


@pytest.mark.parametrize("used", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("change", OTHERS)
def test_another_model_is_refused_in_every_precision(
    used: str, change: str, made: dict[str, Edit], exact: Model
) -> None:
    for name in ("float32", "float16", "bfloat16"):
        edit, model = made[name], copy.deepcopy(exact)
        with torch.no_grad():
            weight = model.denoiser.get_parameter(edit.names[0])
            weight.copy_(OTHERS[change](weight))
        for precision in VARIANTS[used]:
            model.cast(precision)
        with pytest.raises(ExpungeError, match=r"differ from it|another text encoder"):
            edit.apply(model)


def test_an_edit_of_before_says_that_precision_may_be_the_reason(exact: Model) -> None:
    edit = Edit.load(OLD)
    for precision in (torch.float32, torch.float16):
        with edit.applied(rounded(exact, precision)):
            pass
    with pytest.raises(ExpungeError, match=r"same, rounded .* float32 or float16"):
        edit.apply(rounded(exact, torch.bfloat16))


def test_reverted_in_another_precision_an_edit_applies_again(pico: Model) -> None:
    edit = erase(pico, GHOST)
    wanted = {name: pico.base_weight(name).bfloat16() for name in edit.names}
    edit.apply(pico)
    pico.cast(torch.bfloat16)
    assert all(torch.equal(pico.base_weight(name), weight) for name, weight in wanted.items())
    edit.revert(pico)
    edit.apply(pico)
    edit.revert(pico)
    assert all(torch.equal(pico.base_weight(name), weight) for name, weight in wanted.items())


# --- the text encoder


def other_words(model: Model) -> None:
    with torch.no_grad():
        model.text_encoders[0].network.get_parameter("final_layer_norm.weight").mul_(1.5)


def low_rank(edit: Edit) -> LowRank:
    draws = {name: torch.ones(1, 1) for name in edit.names}
    return LowRank(draws, draws)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_an_edit_of_text_rows_refuses_another_text_encoder(
    pico: Model, precision: torch.dtype
) -> None:
    edit = erase(pico, GHOST)
    other_words(pico)
    pico.cast(precision)
    with pytest.raises(ExpungeError, match="has another text encoder; make the edit again"):
        edit.apply(pico)


def test_an_edit_of_weights_alone_takes_any_text_encoder(pico: Model) -> None:
    edit = erase(pico, "ghost", "esd", iterations=1, trajectories=1, num_inference_steps=4)
    assert edit.provenance[0].base.text == ""
    other_words(pico)
    with edit.applied(pico):
        pass


def test_a_sum_reads_text_if_a_part_does(pico: Model) -> None:
    edit = erase(pico, GHOST)
    [ridge], thin = [part.payload for part in edit.components], low_rank(edit)
    assert Sum((thin, ridge)).reads_text  # type: ignore[arg-type]
    assert not Sum((thin,)).reads_text


# --- where they live


class Elsewhere(Tensor):
    """A tensor on another device, as far as anybody can tell."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)  # type: ignore[no-any-return]


def test_edits_add_up_whatever_device_they_were_made_on(pico: Model) -> None:
    parts = [erase(pico, GHOST), erase(pico, "cat")]
    away = []
    for edit in parts:
        [component] = edit.components
        tensors = component.payload.tensors()
        payload = copy.copy(component.payload)
        moved = {name: tensor.as_subclass(Elsewhere) for name, tensor in tensors.items()}
        object.__setattr__(payload, "tensors", lambda moved=moved: moved)
        away.append(Edit((Component(payload, component.provenance),)))
        assert away[-1].components[0].payload is not payload
    assert (away[0] + parts[1]).id == (parts[0] + parts[1]).id
    for part in (away[0] + parts[1]).components:
        assert not any(isinstance(tensor, Elsewhere) for tensor in part.payload.tensors().values())
    with (away[0] + parts[1]).applied(pico):
        pass


# --- digests


def test_a_record_is_of_what_the_edit_depends_on(pico: Model) -> None:
    names = pico.select("cross_attention.kv")
    record = Base.of(pico, names)
    assert set(record.model_dump()) == {"name", "fingerprint", "roundings"}
    assert Base.of(pico, (), reads_text=True).roundings is None
    record.check(pico, names)


def test_samples_tell_roundings_of_the_same_from_others() -> None:
    exact = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 0.02
    exact[::7] *= 1e-6  # too small for half precision to be exact
    half, brain = ([("w", exact.to(kind))] for kind in (torch.float16, torch.bfloat16))
    other = [("w", (exact * 1.003).bfloat16())]
    assert Roundings.of(half).rounded_alike(Roundings.of(brain))
    assert Roundings.of(brain).rounded_alike(Roundings.of(half))
    assert not Roundings.of(half).rounded_alike(Roundings.of(other))
    assert not Roundings.of([("w", exact)]).rounded_alike(Roundings.of(brain))
    assert copy.deepcopy(Roundings.of(half)) == Roundings.of(half)
