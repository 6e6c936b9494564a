"""SepCE: what is protected, its loss, parts that come out one by one, and later ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.algebra.null_space import null_space, null_spaces, rref
from expunge.edits import LowRank
from expunge.edits.applied import edited_weights
from expunge.methods.sepme.loss import FIRST_TEST, momentum
from expunge.methods.sepme.sepce import SepCE
from expunge.training import saving
from expunge.training.loop import Monitor, Trainer
from stopping import stopped_in
from toy_sepce import SHORT, TWO, made, moved, taken

# --- what is protected


def test_nothing_but_its_own_concept_sees_a_change(wide: Model) -> None:
    edit = erase(wide, TWO, "sepce", protect=1, **SHORT)
    ghost, santa = edit.only("ghost"), edit.without("ghost")
    exact = ["", "cat", "man"]
    assert max(moved(wide, edit, exact)) < 1e-6
    assert max(moved(wide, ghost, ["santa claus", "santa"])) < 1e-6
    assert max(moved(wide, santa, ["ghost"])) < 1e-6
    assert min(moved(wide, ghost, ["ghost"]) + moved(wide, santa, ["santa claus", "santa"])) > 1e-3


def test_sentences_are_protected_up_to_their_end(wide: Model) -> None:
    """The rows of another concept's sentences, and of one's own before the concept's words."""
    method = SepCE()
    ghost, santa = method.bases(wide, TWO)
    other = wide.encode(["a picture of a santa claus"])[0].double()
    end = len(wide.tokens("a picture of a santa claus")) + 2
    assert (ghost @ other[:end].T).abs().max() < 1e-5
    assert (ghost @ other[end:].T).abs().max() > 1e-2
    own = wide.encode(["a picture of a ghost"])[0].double()
    before = len(wide.tokens("a picture of a")) + 1
    assert (ghost @ own[:before].T).abs().max() < 1e-5
    assert (ghost @ own[before:].T).norm() > 1.0
    assert len(santa) <= method.max_base


def test_reduced_directions_do_what_all_do_and_are_the_smallest(wide: Model) -> None:
    """Any change along the whole null space, seen by the concept's prompts, is one along few."""
    method = SepCE(contexts=("{}",), max_base=0)
    (few, _), (every, _) = (
        chosen.bases(wide, TWO)
        for chosen in (method, method.model_copy(update={"basis": "orthonormal"}))
    )
    assert len(few) <= 15 < len(every)
    assert torch.allclose(few @ every.T @ every, few, atol=1e-9)
    change = torch.randn(5, len(every), dtype=torch.float64) @ every
    smaller = change @ few.T @ few
    rows = wide.encode(["ghost"])[0].double()
    assert torch.allclose(change @ rows.T, smaller @ rows.T, atol=1e-6)
    assert smaller.norm() < change.norm()


def test_the_original_protects_bare_words_with_vectors_by_hand(wide: Model) -> None:
    policy = Policy(erase=(Concept(target="ghost", synonyms=["dog"]),), keep=("cat", "man"))
    method = SepCE(fidelity="original", max_base=40)
    (basis,) = method.bases(wide, policy)
    rows = wide.encode(["", "cat", "man"]).flatten(0, 1)
    assert torch.allclose(basis, rref(rows)[:40], atol=1e-12)
    with pytest.raises(ExpungeError, match="max_base: ghost has 82 directions, not 691"):
        SepCE(fidelity="original", max_base=691).bases(wide, policy)


def test_kept_words_are_protected_while_half_of_the_width_is_left(wide: Model) -> None:
    policy = Policy(erase=(Concept(target="ghost"),), keep=("cat", "dog", "man", "noto"))

    def protected(**values: Any) -> list[bool]:
        (basis,) = SepCE(contexts=("{}",), **values).bases(wide, policy)
        rows = (wide.encode([word])[0].double() for word in policy.keep)
        return [bool((basis @ row.T).abs().max() < 1e-5) for row in rows]

    assert protected() == [True, True, False, False]  # 16 + 15 + 2 * 15 of 128
    assert protected(protect=0) == [False] * 4
    assert protected(protect=3) == [True, True, True, False]


def test_what_does_not_fit_is_an_error_that_says_what_does(wide: Model) -> None:
    words = [f"{a} {b}" for a in ("cat", "dog", "man") for b in ("noto", "art", "photo")]
    policy = Policy(erase=(Concept(target="ghost"),), keep=tuple(words))
    with pytest.raises(ExpungeError, match=r"of 128 directions none.* the first 7 fit.*protect"):
        SepCE(contexts=("{}",), protect=9).bases(wide, policy)
    many = Policy.of([*words, "ghost"])
    with pytest.raises(ExpungeError, match=r"9 other concepts: the first 7 fit") as caught:
        SepCE(contexts=("{}",)).bases(wide, many)
    looser = float(str(caught.value).rpartition("tolerance=")[2].partition(",")[0])
    assert all(map(len, SepCE(contexts=("{}",), tolerance=looser).bases(wide, many)))
    crowd = tuple(f"{word} {letter} {{}}" for word in words for letter in "abcdefghijklmnop")
    with pytest.raises(ExpungeError, match="use fewer contexts"):
        SepCE(contexts=crowd).bases(wide, Policy.of("ghost"))
    with pytest.raises(ExpungeError, match=r"the first 7 fit; keep no more$"):
        SepCE(fidelity="original").bases(wide, policy)


def test_a_looser_tolerance_leaves_more_room_and_moves_little(wide: Model) -> None:
    exact, loose = (SepCE(tolerance=t, max_base=0).bases(wide, TWO)[0] for t in (1e-5, 0.05))
    assert len(loose) > len(exact)
    rows = wide.encode(["santa claus"])[0].double()
    assert (loose @ rows.T).norm(dim=0).max() < 0.05 * rows.norm(dim=1).max() * len(rows) ** 0.5


# --- training


def test_the_corrected_loss_is_cies_with_one_change_at_work(wide: Model) -> None:
    method = SepCE(**SHORT, reg_beta=0.7, preserve_scale=3.0)
    student = made(wide, **SHORT)
    for turn, batch in enumerate(taken(method, student, TWO, 2)):
        part = student.part(turn)
        weights = {n: wide.base_weight(n) + (part.up[n] @ part.down[n]) for n in part.names}
        ours = method.loss(student, batch)
        at = batch["latents"], batch["timestep"]
        wide.weights.write({name: weight.detach() for name, weight in weights.items()})
        with torch.no_grad():
            left = wide.predict(*at, batch["concept"]) - batch["without"]
        wide.weights.write(dict.fromkeys(weights))
        r = batch["representation"]
        share = (left * r).flatten(1).sum(1) / (r * r).flatten(1).sum(1)
        change = {n: weight - wide.base_weight(n) for n, weight in weights.items()}
        moved = sum(float(c.abs().sum()) for c in change.values())
        moved /= sum(float(wide.base_weight(n).abs().sum()) for n in change)
        held = [
            float(((c @ batch["held"]) * c).sum() / ((w @ batch["held"]) * w).sum())
            for c, w in ((c, wide.base_weight(n)) for n, c in change.items())
        ]
        expected = share.clamp(min=0).mean() + 0.7 * moved + 3.0 * sum(held) / len(held)
        assert ours["loss"].item() == pytest.approx(float(expected), rel=1e-3)


def test_only_the_coefficients_of_the_batchs_concept_are_trained(wide: Model) -> None:
    method = SepCE(**SHORT)
    student = method.student(wide, TWO, 0)
    trainer = Trainer(method, student)
    for turn, batch in enumerate(taken(method, student, TWO, 2)):
        before = {key: weight.detach().clone() for key, weight in student.weights.items()}
        trainer.step([batch])
        changed = {key for key, w in student.weights.items() if not torch.equal(w, before[key])}
        assert changed == {f"{turn}:{name}" for name in student.names}


def test_training_takes_the_direction_away(wide: Model) -> None:
    method = SepCE(**{**SHORT, "lr": 3e-2}, reg_beta=0.0, preserve_scale=0.0)
    student = method.student(wide, TWO, 0)
    trainer = Trainer(method, student)
    history = [trainer.step([batch]) for batch in taken(method, student, TWO, 60)]
    for turn in (0.0, 1.0):
        own = momentum(r["direction"] for r in history if r["turn"] == turn)
        assert own[-1] < 0.6 * own[0]


def test_a_monitor_sees_all_changes(wide: Model) -> None:
    seen: list[Tensor] = []

    def score(model: Model) -> dict[str, float]:
        seen.append(model.denoiser.get_parameter(model.select("cross_attention.kv")[0]).clone())
        return {"erased": 1.0}

    edit = erase(wide, TWO, "sepce", monitor=Monitor(every=4, score=score), **SHORT)
    weight = edited_weights(wide, edit.components, edit.names)[edit.names[0]]
    assert weight is not None
    assert torch.allclose(seen[0], weight.float(), atol=1e-7)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_killed_and_resumed_gives_the_same_edit(
    wide: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    values = {**SHORT, "gradient_checkpointing": checkpointing}
    whole = erase(wide, TWO, "sepce", **values)
    with stopped_in(4):
        erase(wide, TWO, "sepce", checkpoints=tmp_path, **values)
    assert erase(wide, TWO, "sepce", checkpoints=tmp_path, **values).id == whole.id


def test_each_concept_ends_by_its_own_threshold(wide: Model) -> None:
    method = SepCE(thresholds=(0.5, 2.0))
    records = [{"turn": float(t), "direction": 1.0} for _ in range(FIRST_TEST) for t in (0, 1)]
    assert not method.finished(records)
    for record in records:
        record["direction"] -= 0.6 * (record["turn"] == 0)
    assert method.finished(records)
    with pytest.raises(ExpungeError, match="3 for 2 concepts; give one for each"):
        erase(wide, TWO, "sepce", thresholds=(0.0, 0.0, 0.0), **SHORT)


# --- parts


def test_parts_come_out_one_by_one_and_the_base_is_there_again(wide: Model, tmp_path: Path) -> None:
    three = Policy(erase=(*TWO.erase, Concept(target="dog")))
    edit = erase(wide, three, "sepce", **SHORT)
    assert [c.target for c in edit.concepts] == ["ghost", "santa claus", "dog"]
    assert len(edit.components) == 3
    assert all(isinstance(part.payload, LowRank) for part in edit.components)
    base = {name: weight.clone() for name, weight in wide.denoiser.named_parameters()}
    edit.save(tmp_path / "edit.safetensors")
    edit = Edit.load(tmp_path / "edit.safetensors")
    some = edit.without("dog")
    assert some.id == (edit - edit.only("dog")).id == edit.only("ghost", "santa claus").id
    total = {name: base[name].double() for name in edit.names}
    for part in some.components:
        for name in total:
            total[name] = total[name] + part.payload.change(name, base[name])  # type: ignore[union-attr]
    with some.applied(wide):
        for name, weight in total.items():
            assert torch.equal(wide.denoiser.get_parameter(name), weight.float())
    edit.apply(wide)
    for concept in edit.concepts:
        edit.only(concept.target).revert(wide)
    assert all(torch.equal(weight, base[n]) for n, weight in wide.denoiser.named_parameters())


def test_directions_that_all_parameters_share_are_stored_once(wide: Model) -> None:
    edit = erase(wide, "ghost", "sepce", **{**SHORT, "max_base": 4})
    (part,) = edit.components
    rows = sum(len(wide.base_weight(name)) for name in edit.names)
    assert edit.size == 4 * (rows * 4 + 4 * 128)
    assert set(part.payload.tensors()) == {"down", *(f"up:{name}" for name in edit.names)}


def test_a_concept_that_is_added_later_leaves_the_earlier_ones_alone(wide: Model) -> None:
    old = erase(wide, "ghost", "sepce", **SHORT)
    later = Policy(erase=(Concept(target="dog"),), keep=("ghost",))
    both = old + erase(wide, later, "sepce", protect=1, **SHORT)
    assert max(moved(wide, both.only("dog"), ["", "ghost"])) < 1e-6
    assert both.without("dog").id == old.id


# --- what is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_method": "x"}, "train_method"),
        ({"rank": 4}, "rank: Extra inputs"),
        ({"variant": "joint"}, 'needs fidelity="original"'),
        ({"fidelity": "original", "variant": "joint", "accumulation": 2}, "one batch a step"),
        ({"fidelity": "original", "protect": 1}, 'protect: only with fidelity="corrected"'),
        ({"fidelity": "original", "tolerance": 0.1}, 'tolerance: only with fidelity="corrected"'),
        ({"basis": "sparse"}, "basis"),
        ({"tolerance": 0.0}, "tolerance"),
    ],
)
def test_wrong_settings_are_named(wide: Model, values: dict[str, object], message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        erase(wide, "dog", "sepce", **values)
    assert message in str(caught.value)


def test_a_model_without_room_says_so(pico: Model) -> None:
    """Its prompts have 16 rows of width 32."""
    with pytest.raises(ExpungeError, match="of 32 directions none is left"):
        erase(pico, ["ghost", "dog", "cat"], "sepce", contexts=["{}"], **SHORT)


def test_the_bases_of_all_concepts_are_those_of_each(wide: Model) -> None:
    method = SepCE(basis="orthonormal", max_base=0, protect=0, contexts=("{}",))
    words = ("ghost", "dog", "cat", "man")
    bases = method.bases(wide, Policy.of(words))
    for turn, basis in enumerate(bases):
        others = [word for index, word in enumerate(words) if index != turn]
        alone = null_space(wide.encode(["", *others]).flatten(0, 1))
        assert len(basis) == len(alone) == 128 - 16 - 3 * 15
        assert torch.allclose(basis.T @ basis, alone.T @ alone, atol=1e-4)
    assert len(null_spaces([wide.encode(["ghost"])[0]], null_space(wide.encode([""])[0]))) == 1
