"""RECE: every form, its epochs, and the numbers of the released program."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conformance import __main__ as reference
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.edits import Dense, LowRank, SharedMatrix
from expunge.methods import configured
from expunge.methods.rece.best_epoch import best_epoch
from expunge.methods.rece.closed import Penalty, Separate, Sums, adversarial
from expunge.methods.rece.method import RECE, Strength
from expunge.models import Condition
from toy_rece import POLICY, Literal, changes, close


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 3},
        {"embedding": "surrogate", "regularization": "outputs", "epochs": 1, "uce_lamb": 5.0},
        {"embedding": "surrogate", "regularization": "embedding"},
        {"embedding": "surrogate", "regularization": "both"},
        {"embedding": "target", "targets": ["cat", "dog"]},
        {"embedding": "target", "targets": [None, "dog"]},
        {"technique": "tensor", "erase_scale": 0.7},
        {"uce_technique": "tensor"},
    ],
    ids=lambda values: " ".join(f"{value}" for value in values.values()),
)
def test_every_form_matches_the_equations_layer_by_layer(
    pico: Model, values: dict[str, object]
) -> None:
    method = RECE(**{"fidelity": "original", "epochs": 2, "regular_scale": 0.1, **values})
    theirs = Literal(pico, method, POLICY)
    payloads = method.solve_epochs(pico, POLICY, 0)
    rounds = method.rounds(pico, POLICY, next(payloads))
    base = torch.cat(list(theirs.base.values()))
    for payload, done in zip(payloads, rounds, strict=True):
        for ours, embedding in zip(done.adversarial, theirs.epoch(), strict=True):
            assert close(ours, embedding)
        assert close(changes(pico, payload), torch.cat(list(theirs.now.values())) - base)
    assert close(changes(pico, method.solve(pico, POLICY, 0)), changes(pico, payload))


@pytest.mark.parametrize(("near", "outputs"), [(0.3, 0.0), (0.0, 0.3), (0.3, 0.3)])
def test_the_adversarial_embedding_is_where_the_gradient_vanishes(
    near: float, outputs: float
) -> None:
    base, edited, rows, target = draw(0, 20, 8), draw(1, 20, 8), draw(2, 5, 8), draw(3, 5, 8)
    sums = Sums(edited.T @ edited, edited.T @ base)
    found = adversarial(sums, rows, Penalty(target, near, outputs)).requires_grad_()
    objective = (
        ((edited @ found.T - base @ rows.T) ** 2).sum()
        + outputs * ((edited @ found.T - edited @ rows.T) ** 2).sum()
        + near * ((found - target) ** 2).sum()
    )
    (gradient,) = torch.autograd.grad(objective, found)
    assert gradient.abs().max() < 1e-9 * objective.item()


@pytest.mark.parametrize("fidelity", ["original", "corrected"])
def test_without_epochs_it_is_uce(pico: Model, fidelity: str) -> None:
    method = RECE(fidelity=fidelity, epochs=0, uce_preserve_scale=0.3, templates=True)
    uce = erase(pico, POLICY, "uce", fidelity=fidelity, preserve_scale=0.3, templates=True)
    for payload in (method.solve(pico, POLICY, 0), *method.solve_epochs(pico, POLICY, 0)):
        assert torch.equal(changes(pico, payload), changes(pico, uce.components[0].payload))


def test_the_unedited_model_with_edited_embeddings_answers_alike(
    pico: Model, tmp_path: Path
) -> None:
    edit = erase(pico, POLICY, "rece", epochs=2)
    payload = edit.components[0].payload
    assert isinstance(payload, SharedMatrix)
    condition = pico.condition(["ghost", "a dog"])
    mapped = Condition((condition.rows.double() @ payload.matrix.T).float())
    latents, before = draw(0, 2, 4, 8, 8).float(), pico.denoiser.state_dict().copy()
    through = pico.predict(latents, 500, mapped)
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    with loaded.applied(pico):
        assert torch.allclose(pico.predict(latents, 500, condition), through, atol=1e-4)
    assert all(
        torch.equal(weight, before[name]) for name, weight in pico.denoiser.state_dict().items()
    )


def found(pico: Model, policy: Policy, **values: object) -> list[tuple[int, ...]]:
    method = RECE(epochs=1, **values)
    (done,) = method.rounds(pico, policy, method.uce.solve(pico, policy, 0))
    return [tuple(rows.shape) for rows in done.adversarial]


def test_rows_before_the_words_stay_when_corrected(pico: Model) -> None:
    assert found(pico, POLICY, fidelity="original") == [(16, 32), (16, 32)]
    assert found(pico, POLICY) == [(15, 32), (15, 32)]
    assert found(pico, POLICY, contexts=["a picture of a {}"]) == [(11, 32), (11, 32)]
    shared = Policy.of(Concept(target="santa claus", anchor="santa dog"))
    assert found(pico, shared) == [(14, 32)]


def test_synonyms_and_sentences_are_erased_when_corrected(pico: Model) -> None:
    policy = Policy.of(Concept(target="ghost", synonyms=["cat"], anchor="man"))
    assert found(pico, policy) == [(30, 32)]
    assert found(pico, policy, fidelity="original", templates=True) == [(16, 32)]
    sentences = ["{}", "noto {}", "a {} photo"]
    rows = 2 * (15 + 14 + 14)
    assert found(pico, policy, contexts=sentences) == [(rows, 32)]
    targets = {"embedding": "target", "targets": ["dog"]}
    assert found(pico, policy, contexts=sentences, **targets) == [(rows, 32)]


def test_kept_prompts_stay_in_every_epoch(pico: Model) -> None:
    row = pico.encode(["dog"])[0, 1].double()

    def moved(scale: float) -> float:
        method = RECE(epochs=3, uce_preserve_scale=scale, preserve_scale=scale)
        return float((row @ method.solve(pico, POLICY, 0).matrix.T - row).norm())

    assert moved(1e5) < 0.01 * moved(1.0)


def test_all_unsafe_words_keep_as_many_blanks_in_the_original(pico: Model) -> None:
    """One blank per concept is what its script for them keeps, at a weight of 0.1 each."""
    words = ("ghost", "santa claus")
    unsafe = Policy(erase=tuple(Concept(target=w, kind="unsafe") for w in words))
    objects = Policy(erase=tuple(Concept(target=w, anchor="") for w in words))
    values = {"fidelity": "original", "epochs": 1, "regular_scale": 0.1}
    ours = RECE(**values).solve(pico, unsafe, 0)
    spelled = RECE(**values, preserve=(" ", " ")).solve(pico, objects, 0)
    assert torch.equal(changes(pico, ours), changes(pico, spelled))
    assert not close(changes(pico, RECE(**values).solve(pico, objects, 0)), changes(pico, ours))


@pytest.mark.parametrize(
    ("kinds", "values", "strength"),
    [
        (["object"], {}, Strength(1e-3, 1)),
        (["character"], {"epochs": 4}, Strength(1e-3, 4)),
        (["unsafe"], {}, Strength(0.1, 3)),
        (["unsafe", "unsafe"], {}, Strength(0.1, 2)),
        (["unsafe", "style"], {}, Strength(1e-3, 3)),
        (["unsafe"], {"preset": "easy-object"}, Strength(0.1, 1)),
        (["style"], {"preset": "easy-object", "epochs": 2}, Strength(0.1, 2)),
        (["style"], {"epochs": 0, "regular_scale": 0.5}, Strength(0.5, 0)),
    ],
)
def test_the_kind_decides_what_is_not_given(
    kinds: list[str], values: dict[str, object], strength: Strength
) -> None:
    policy = Policy(erase=tuple(Concept(target=f"w{i}", kind=k) for i, k in enumerate(kinds)))
    assert RECE(**values)._strength(policy) == strength


@pytest.mark.parametrize("method", ["uce", "rece"])
def test_changes_that_share_a_factor_can_be_saved(pico: Model, tmp_path: Path, method: str) -> None:
    """A file holds no two tensors in the same memory."""
    edit = erase(pico, ["ghost", "cat", "dog"], method, technique="tensor")
    edit.save(tmp_path / "edit.safetensors")
    assert Edit.load(tmp_path / "edit.safetensors").id == edit.id


def test_separate_changes_are_stored_in_the_smaller_form() -> None:
    base = {"a": draw(0, 12, 16), "b": draw(1, 20, 16)}
    right = draw(2, 2, 16)
    low = {name: draw(3, len(weight), 2) @ right for name, weight in base.items()}
    thin = Separate("tensor", base, low, {}).payload()
    assert isinstance(thin, LowRank)
    assert thin.down["a"].shape == (2, 16)
    assert thin.down["a"].data_ptr() != thin.down["b"].data_ptr()
    assert all(close(thin.change(name, base[name]), low[name]) for name in low)
    assert isinstance(Separate("tensor", base, base, {}).payload(), Dense)


def test_the_best_epoch_is_strictly_below_all_before_it(pico: Model) -> None:
    payloads = list(RECE(epochs=3).solve_epochs(pico, POLICY, 0))
    scores = dict(zip(payloads, (0.5, 0.3, 0.2, 0.2), strict=True))
    best = best_epoch(payloads, scores.__getitem__, base=0.6)
    assert (best.epoch, best.payload, best.score) == (2, payloads[2], 0.2)
    again = erase(pico, POLICY, "rece", epochs=best.epoch).components[0].payload
    assert torch.equal(changes(pico, again), changes(pico, best.payload))
    assert best_epoch(payloads, lambda _: 0.5).epoch == 0
    with pytest.raises(ExpungeError, match=r"no epoch scores below 0\.2"):
        best_epoch(payloads, scores.__getitem__, base=0.2)
    with pytest.raises(ExpungeError, match="epoch 0 is NaN"):
        best_epoch(payloads, lambda _: math.nan)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"embedding": "close"}, "embedding: Input should be 'zero', 'surrogate' or 'target'"),
        ({"regular_scale": 0}, "regular_scale"),
        ({"epochs": -1}, "epochs"),
        ({"uce_lamda": 1}, "uce_lamda: Extra inputs"),
        ({"regularization": "both"}, 'regularization: only with embedding="surrogate"'),
        ({"targets": ["cat"]}, 'targets: only with embedding="target"'),
        ({"fidelity": "original", "contexts": ["a {}"]}, 'only with fidelity="corrected"'),
        ({"preset": "styles"}, "preset: rece has no 'styles'; did you mean style"),
    ],
)
def test_a_wrong_setting_is_named_with_the_known_ones(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ExpungeError) as caught:
        configured("rece", **values)
    assert message in str(caught.value)
    assert "settings: fidelity, preset" in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([], "targets: none for 'ghost'"),
        (["cat", None], "targets: none for 'santa claus'"),
        (["cat"], "targets: 1 given for 2 concepts"),
    ],
)
def test_a_concept_without_its_target_is_an_error(
    pico: Model, targets: list[str | None], message: str
) -> None:
    with pytest.raises(ExpungeError, match=message):
        erase(pico, POLICY, "rece", embedding="target", targets=targets)


def test_a_hopeless_embedding_names_its_concept(pico: Model) -> None:
    for name in pico.select("cross_attention.kv"):
        pico.denoiser.get_parameter(name).data[:, 0] = 0
    with pytest.raises(ExpungeError, match="ghost: its adversarial embedding can't be solved"):
        erase(pico, POLICY, "rece", embedding="surrogate", regularization="outputs")


def test_other_numbers_than_the_original_ones_fail(
    full_reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check of a reference case passes as it is and sees each number that differs."""
    source = full_reference / "cases" / "rece_standardreg"
    case = json.loads((source / "case.json").read_text())
    shutil.copy(source.parent / "text_embeddings_plain.safetensors", tmp_path)
    for number, (part, key) in enumerate(
        [("params", None), ("params", "regular_scale"), ("uce_stage", "lamb")]
    ):
        folder = shutil.copytree(source, tmp_path / f"case{number}")
        changed = json.loads(json.dumps(case))
        if key:
            params = changed[part].get("params", changed[part])
            params[key] *= 1.01
        (folder / "case.json").write_text(json.dumps(changed))
    reference.main([str(tmp_path), "--models", str(full_reference)])
    assert capsys.readouterr().out.splitlines()[-1] == "1 ok, 2 failed, 0 not supported"


@pytest.mark.parametrize("anchor", [None, "art"])
def test_a_first_stage_of_its_own_gives_the_original_numbers_too(
    full_reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], anchor: str | None
) -> None:
    """Stage 0 is made as an edit if its prompts aren't those of the epochs."""
    source = full_reference / "cases" / "rece_regzero_1epoch"
    shutil.copy(source.parent / "text_embeddings_plain.safetensors", tmp_path)
    folder = shutil.copytree(source, tmp_path / "case")
    case = json.loads((source / "case.json").read_text())
    case["uce_stage"]["cli"]["add_prompts"] = True  # which the listed prompts contradict
    if anchor:
        case["uce_stage"]["pairs"][0]["guide"] = anchor
    (folder / "case.json").write_text(json.dumps(case))
    reference.main([str(tmp_path), "--models", str(full_reference)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{int(not anchor)} ok, {int(bool(anchor))} failed, 0 not supported"
