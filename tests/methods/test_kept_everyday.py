"""Trainings keep everyday prompts where nothing to keep is named."""

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.method.run import Run
from expunge.methods import METHODS, configured
from expunge.methods.kept import KeepsEveryday
from expunge.methods.spm.method import SPM
from expunge.methods.trce.steering import TRCESteering
from expunge.prompts.everyday import everyday, naming

WALKS: dict[str, Any] = {"num_inference_steps": 4, "lr": 3e-3, "iterations": 12}
STRONG: dict[str, dict[str, Any]] = {
    "esd": {**WALKS, "trajectories": 4, "preserve_scale": 100.0},
    "ac": {**WALKS, "images": 4, "prior_weight": 30.0},
    "cie": {**WALKS, "trajectories": 4, "preserve_scale": 1000.0},
    "sepce": {**WALKS, "trajectories": 4, "lr": 3e-2, "preserve_scale": 1000.0, "tolerance": 0.3},
    "fmn": {**WALKS, "images": 2, "preserve_scale": 100.0},
    "cpe": {
        "rounds": 1, "first_iterations": 40, "gate_rank": 4, "lr": 1e-2, "lr_warmup": 1,
        "shifts": 2, "pal": 1e6,
    },
}  # fmt: skip
"""Short trainings that weigh what stays more than they should."""
KEEPING = (*STRONG, "spm", "trce-steering")
DOG = Concept(target="dog", synonyms=["Hot-Dogs", "puppies"], anchor="man")
KEPT = 3


def keeping(name: str, **values: Any) -> KeepsEveryday:
    method = configured(name, **values)
    assert isinstance(method, KeepsEveryday)
    return method


def moved(model: Model, edit: Edit, prompts: tuple[str, ...]) -> float:
    """How far an edit moves the predictions of some prompts."""
    prompts *= 8
    latents = torch.randn(len(prompts), *model.latent_shape, generator=torch.manual_seed(5))
    times = torch.linspace(50, 900, len(prompts)).long()
    base = model.predict(latents, times, model.condition(prompts))
    with edit.applied(model):
        edited = model.predict(latents, times, model.condition(prompts))
    return float((edited - base).square().mean())


def test_every_training_keeps_them_but_one_that_keeps_a_prior() -> None:
    trained = {name for name in METHODS if "iterations" in METHODS.get(name).model_fields}
    assert {n for n in METHODS if issubclass(METHODS.get(n), KeepsEveryday)} == set(KEEPING)
    assert trained - set(KEEPING) <= {"mace", "uce-debias"}


def test_erased_words_are_never_among_them() -> None:
    every = keeping("spm", everyday=len(everyday())).everyday_prompts(Policy.of(DOG), 0)
    erased = naming(everyday(), DOG.phrases)
    assert len(erased) > 3
    assert set(every) == set(everyday()) - {everyday()[at] for at in erased}
    assert "a puppy" not in " ".join(every)


def test_the_same_seed_gives_the_same_prompts_and_another_gives_others() -> None:
    policy = Policy.of(DOG)
    few, more = (keeping("cpe", everyday=count) for count in (5, 9))
    assert few.everyday_prompts(policy, 3) == few.everyday_prompts(policy, 3)
    assert few.everyday_prompts(policy, 3) == more.everyday_prompts(policy, 3)[:5]
    assert few.everyday_prompts(policy, 3) != few.everyday_prompts(policy, 4)
    assert len(set(more.everyday_prompts(policy, 3))) == 9


def test_what_is_named_stays_instead() -> None:
    policy = Policy(erase=(DOG,), keep=("cat",))
    assert keeping("spm", everyday=9).stays(policy, ("{}",), 0) == ("cat",)
    assert keeping("spm", everyday=0).stays(Policy.of(DOG), ("{}",), 0) == ()


@pytest.mark.parametrize("name", KEEPING)
def test_an_original_run_keeps_none(name: str) -> None:
    assert keeping(name, fidelity="original").everyday == 0
    with pytest.raises(ExpungeError, match='everyday: only with fidelity="corrected"'):
        configured(name, fidelity="original", everyday=5)


@pytest.mark.parametrize("name", STRONG)
def test_training_with_them_holds_their_predictions(name: str, pico: Model) -> None:
    edits = [erase(pico, DOG, name, everyday=count, **STRONG[name]) for count in (0, KEPT)]
    kept = keeping(name, everyday=KEPT).everyday_prompts(Policy.of(DOG), 0)
    loose, held = (moved(pico, edit, kept) for edit in edits)
    assert held < 0.9 * loose
    assert [edit.components[0].provenance.settings["everyday"] for edit in edits] == [0, KEPT]


def test_a_membrane_has_them_among_its_anchors(pico: Model) -> None:
    method, policy = SPM(everyday=KEPT, num_inference_steps=4, batch_size=1), Policy.of(DOG)
    run = Run(method.student(pico, policy, 0), policy, 0)
    anchors = [batch["anchors"].rows[1] for batch in method.batches(run, range(8))]
    kept = pico.encode(method.everyday_prompts(policy, 0))
    assert all(any(torch.equal(anchor, row) for row in kept) for anchor in anchors)
    assert len({tuple(anchor.flatten().tolist()) for anchor in anchors}) > 1


def test_steering_holds_their_trajectories() -> None:
    method, policy = TRCESteering(everyday=KEPT, trajectories=7), Policy.of(DOG)
    kept = method.everyday_prompts(policy, 0)
    assert method.ways(policy, 0)["kept"].prompts == (*kept, *kept, kept[0])
    assert "kept" not in TRCESteering(everyday=0).ways(policy, 0)


def test_a_training_goes_on_only_with_the_same_everyday_prompts(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**STRONG["fmn"], "iterations": 2, "everyday": KEPT, "checkpoints": tmp_path}
    erase(pico, DOG, "fmn", **values)
    monkeypatch.setattr("expunge.training.saving.everyday", lambda: ("a cat",))
    with pytest.raises(ExpungeError, match="another"):
        erase(pico, DOG, "fmn", **values)
