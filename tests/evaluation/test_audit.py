"""Any checkpoint is measured, alone or beside a base, and is the same model afterwards."""

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

import toy_judges
import toy_suite
from expunge import Model, Policy, erase, load
from expunge import evaluate as module_evaluate
from expunge import testing as small
from expunge.concepts import Concept, Limit
from expunge.errors import ExpungeError
from expunge.evaluation import audit as module
from expunge.evaluation.evaluate import question
from expunge.evaluation.records import Report
from expunge.evaluation.suite import NO_OPTIONS, SUITES, Options
from expunge.generation import Sampler
from expunge.report.html import to_html

GHOST = Concept(target="ghost")
CHURCH = Concept(target="church", keep=("beagle",))
FEW = Sampler(steps=2)

audit = partial(module.audit, suite="toy", sampler=FEW)
objects = partial(module.audit, suite="objects", size="brief", sampler=FEW)


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    toy_judges.register(monkeypatch)
    monkeypatch.setitem(SUITES.places, "toy", "toy_suite:SUITE")


@pytest.fixture
def edit(pico):
    return erase(pico, GHOST, "uce")


def state(model):
    return {name: value.clone() for name, value in model.denoiser.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def pictures(folder: Path) -> list[Path]:
    return list(folder.rglob("*.png"))


def test_a_model_alone_has_no_base_anywhere(pico, tmp_path):
    (evaluation,) = audit(pico, Policy(erase=(GHOST,)), folder=tmp_path).evaluations
    assert not evaluation.compared
    assert (evaluation.edit, evaluation.base, evaluation.provenance) == ("", None, ())
    assert all(row.base is row.difference is None for row in evaluation.measurements)
    assert len(pictures(tmp_path)) == 5
    page = to_html(Report.load(tmp_path))
    assert "there is no base model beside it" in page
    assert "Base model" not in page


def test_an_edit_is_measured_beside_the_model_without_it(pico, edit, tmp_path):
    before = state(pico)
    (evaluation,) = audit(pico, Policy(erase=(GHOST,)), edit=edit, folder=tmp_path).evaluations
    assert same(before, state(pico))
    assert evaluation.compared
    assert evaluation.edit == edit.id
    assert evaluation.base is None
    assert len(pictures(tmp_path)) == 2 * 5


def test_an_audit_with_the_edit_is_an_evaluation_of_it(pico, edit, tmp_path):
    from expunge.evaluation.evaluate import evaluate

    audited = audit(pico, Policy(erase=(GHOST,)), edit=edit, folder=tmp_path)
    evaluated = evaluate(pico, edit, suite="toy", sampler=FEW, folder=tmp_path)
    assert audited.evaluations == evaluated.evaluations


def other_model(folder: Path):
    torch.manual_seed(5)
    pipe = small.pipeline(folder)
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(0.1)
    pipe.save_pretrained(folder / "pipe")
    return load(folder / "pipe", device="cpu")


def test_another_model_can_be_the_base(pico, tmp_path_factory, tmp_path):
    other = other_model(tmp_path_factory.mktemp("other"))
    before, loaded = (state(pico), state(other)), []

    def base():
        loaded.append(other)
        return other

    (evaluation,) = audit(pico, Policy(erase=(GHOST,)), base=base, folder=tmp_path).evaluations
    assert loaded == [other]
    assert evaluation.compared
    assert evaluation.edit == ""
    assert evaluation.base.fingerprint == other.fingerprint() != pico.fingerprint()
    assert evaluation.protocol.fingerprint == pico.fingerprint()
    assert same(before[0], state(pico))
    assert same(before[1], state(other))
    page = to_html(Report.load(tmp_path))
    assert f"beside <b>{other.name}</b>" in page


def test_a_base_of_pictures_of_another_size_is_refused_before_it_draws(
    pico, tmp_path_factory, tmp_path
):
    torch.manual_seed(0)
    net = small.unet()
    net.register_to_config(sample_size=16)
    folder = tmp_path_factory.mktemp("wide")
    small.pipeline(folder, net).save_pretrained(folder / "pipe")
    wide = load(folder / "pipe", device="cpu")
    with pytest.raises(ExpungeError, match=r"32×32 pictures.*16×16; they can't be compared"):
        audit(pico, Policy(erase=(GHOST,)), base=lambda: wide, folder=tmp_path)
    assert not pictures(tmp_path)


def test_an_edit_of_another_base_is_refused_before_anything_is_drawn(
    pico, edit, tmp_path_factory, tmp_path
):
    other = other_model(tmp_path_factory.mktemp("other"))
    with torch.no_grad():
        for name in edit.changed:
            other.denoiser.get_parameter(name).add_(0.5)
    wrong = erase(other, GHOST, "uce")
    with pytest.raises(ExpungeError, match="base"):
        audit(pico, Policy(erase=(GHOST,)), edit=wrong, folder=tmp_path)
    assert not pictures(tmp_path)
    with pytest.raises(ExpungeError, match="give no other base"):
        audit(pico, Policy(erase=(GHOST,)), edit=edit, base=lambda: other, folder=tmp_path)


@pytest.fixture
def asked_for(monkeypatch) -> Counter[str]:
    """How often each whole model was fingerprinted, by the name of its pipeline's folder."""
    counted, found = Counter(), Model.fingerprint

    def counting(model, names=None):
        counted[model.name] += names is None
        return found(model, names)

    monkeypatch.setattr(Model, "fingerprint", counting)
    return counted


def test_a_whole_model_is_fingerprinted_once(pico, edit, pico_folder, tmp_path, asked_for):
    both = Policy(erase=(CHURCH, Concept(target="parachute")))
    measured = partial(objects, pico, both, options=Options(judge="things"))
    measured(folder=tmp_path / "alone")
    assert dict(asked_for) == {pico.name: 1}
    asked_for.clear()
    measured(edit=edit, folder=tmp_path / "edited")
    assert dict(asked_for) == {pico.name: 1}
    asked_for.clear()
    measured(base=lambda: named(load(pico_folder, device="cpu"), "base"), folder=tmp_path / "base")
    assert dict(asked_for) == {pico.name: 1, "base": 1}
    asked_for.clear()
    module_evaluate(pico, edit, suite="toy", sampler=FEW, folder=tmp_path / "evaluated")
    assert dict(asked_for) == {pico.name: 1}


def named(model: Model, name: str) -> Model:
    model.name = name
    return model


def test_a_base_with_another_scheduler_of_its_own_needs_one_named(pico, pico_folder, tmp_path):
    base = load(pico_folder, device="cpu")
    base.pipe.scheduler = EulerDiscreteScheduler.from_config(base.pipe.scheduler.config)
    compared = partial(audit, pico, Policy(erase=(GHOST,)), base=lambda: base, folder=tmp_path)
    with pytest.raises(ExpungeError, match="another scheduler of its own"):
        compared()
    assert not pictures(tmp_path)
    (evaluation,) = compared(sampler=Sampler(scheduler="ddim", steps=2)).evaluations
    assert evaluation.compared


def test_a_distance_needs_a_base(pico, edit, tmp_path):
    with pytest.raises(ExpungeError, match="give a base too"):
        audit(pico, Policy(erase=(GHOST,)), options=Options(perceptual="efficientnet"))


def test_what_the_policy_keeps_is_kept_for_each_concept(pico, monkeypatch):
    kept = []

    def plan(concept, **chosen):
        kept.append(concept.keep)
        return toy_suite.plan(concept, **chosen)

    monkeypatch.setattr(toy_suite, "SUITE", replace(toy_suite.SUITE, plan=plan))
    own = Concept(target="dog", keep=("wolf",))
    policy = Policy(erase=(GHOST, own), keep=("cat",))
    module.asking(policy, suite="toy", size="quick", seeds=None, sampler=FEW, options=NO_OPTIONS)
    assert kept == [("cat",), ("wolf", "cat")]


def test_a_plan_is_the_same_however_the_concept_was_erased():
    trained = GHOST.model_copy(update={"keep": ("cat",), "contexts": ("a {}",)})
    assert toy_suite.plan(trained) == toy_suite.plan(GHOST)


def test_limits_are_judged_and_saved(pico, tmp_path):
    limits = (Limit(group="explicit", at_most=1), Limit(group="others", at_least=1.0))
    report = audit(pico, Policy(erase=(GHOST,), limits=limits), folder=tmp_path)
    assert report.verdicts[0].passed
    assert Report.load(tmp_path) == report
    assert "limits missed" in to_html(report)


@pytest.mark.parametrize("limit", [{"group": "none"}, {"group": "explicit", "concept": "cat"}])
def test_a_wrong_limit_is_told_before_anything_is_drawn(pico, tmp_path, limit):
    policy = Policy(erase=(GHOST,), limits=(Limit(**limit, at_most=1),))
    with pytest.raises(ExpungeError, match="limits: there"):
        audit(pico, policy, folder=tmp_path)
    assert not pictures(tmp_path)


# --- the suites, from end to end


def test_objects_are_measured_without_a_clip(pico, tmp_path):
    (evaluation,) = objects(pico, Policy(erase=(CHURCH,)), folder=tmp_path).evaluations
    assert evaluation.find("explicit", "concept drawn").edited.n == 2
    assert evaluation.find("other objects", "object right").edited.n == 5
    assert evaluation.find("everyday scenes", "blank pictures").edited.n == 10
    assert "everyday scenes" in to_html(Report.load(tmp_path))


def test_objects_beside_a_base_have_everything(pico, edit, tmp_path):
    given = Options(clip="folder")
    (evaluation,) = objects(
        pico, Policy(erase=(CHURCH,)), edit=edit, options=given, folder=tmp_path
    ).evaluations
    for group in ("explicit", "other objects", "everyday scenes"):
        row = evaluation.find(group, "fit of picture and prompt")
        assert row.base.n == row.edited.n == row.difference.n
    assert evaluation.find("explicit", "concept drawn").paired is not None
    assert evaluation.curve.edited[0].n == 2
    assert [one.n for one in evaluation.distances] == [15]
    page = to_html(Report.load(tmp_path))
    assert "things + clip" in page


def test_the_share_of_faces_stands_beside_every_person(pico, tmp_path):
    ada = Concept(target="Ada", kind="character", keep=("Bob",))
    (evaluation,) = objects(
        pico,
        Policy(erase=(ada,)),
        suite="people",
        options=Options(judge="faces:folder"),
        folder=tmp_path,
    ).evaluations
    metrics = [(row.group, row.metric) for row in evaluation.measurements]
    for row in (("explicit", "concept drawn"), ("explicit", "face right")):
        assert row in metrics
    for row in (("other people", "person right"), ("other people", "face right")):
        assert row in metrics
    assert ("everyday scenes", "face right") not in metrics


def test_coco_measures_drift_and_fit_and_nothing_erased(pico, edit, tmp_path):
    policy = Policy(erase=(GHOST, CHURCH))
    coco = partial(objects, pico, policy, suite="coco", edit=edit, folder=tmp_path)
    (evaluation,) = coco().evaluations
    assert {row.role for row in evaluation.measurements} == {"retention"}
    assert evaluation.find("kept prompts", "feature drift").edited.n == 10
    assert (evaluation.curve, evaluation.drawn_instead, evaluation.counted) == (None, (), ())
    to_html(Report.load(tmp_path))
    (evaluation,) = coco(options=Options(clip="folder")).evaluations
    assert evaluation.find("captions", "fit of picture and prompt").edited.n == 10
    to_html(Report.load(tmp_path))


def test_unsafe_pictures_are_blurred_in_the_page(pico, tmp_path):
    nudity = Concept(target="nudity", kind="unsafe")
    report = objects(
        pico,
        Policy(erase=(nudity,)),
        suite="unsafe",
        options=Options(judge="safety"),
        folder=tmp_path,
    )
    assert "Pictures of sensitive prompts are blurred" in to_html(report)
    assert to_html(report) != to_html(report, blur=False)


def test_several_unsafe_concepts_keep_their_names_and_their_pairs(pico, tmp_path):
    both = tuple(Concept(target=words, kind="unsafe") for words in ("nudity", "gore"))
    report = objects(
        pico,
        Policy(erase=both),
        suite="unsafe",
        options=Options(judge="safety"),
        folder=tmp_path,
    )
    assert [one.concept for one in report.evaluations] == ["nudity", "gore"]
    files = sorted(path.stem.rpartition("-")[2] for path in tmp_path.glob("pairs-*.jsonl"))
    assert files == ["gore", "nudity"]


def test_kept_pictures_may_differ_in_size(pico, edit, tmp_path):
    rows = "prompt,sd_seed,width,height\na tree,7,32,16\na tree,8,,\na lake,9,16,32\n"
    (tmp_path / "list.csv").write_text(rows)
    (evaluation,) = objects(
        pico,
        Policy(erase=(GHOST,)),
        suite="coco",
        edit=edit,
        options=Options(captions=str(tmp_path / "list.csv")),
        folder=tmp_path,
    ).evaluations
    assert evaluation.find("kept prompts", "pixel drift").reference.n == 3
    assert {Image.open(file).size for file in pictures(tmp_path)} == {(32, 16), (16, 16), (16, 32)}


# --- before it is done


def test_the_outlook_counts_pictures_and_leaves_the_folder_alone(pico, edit, tmp_path):
    asked = question("toy", (GHOST,), sampler=FEW)
    before = state(pico)
    seen = module.outlook(asked, pico, tmp_path / "new", edit=edit)
    assert same(before, state(pico))
    assert not (tmp_path / "new").exists()
    assert seen.groups == (("dark", "explicit", 2), ("dark", "others", 3))
    assert (seen.models, seen.pictures, seen.drawn) == (2, 5, 0)
    assert seen.seconds_a_picture > 0
    audit(pico, Policy(erase=(GHOST,)), folder=tmp_path / "new")
    assert module.outlook(asked, pico, tmp_path / "new").drawn == 5


def test_an_edit_has_no_other_base_in_a_dry_run_either(pico, edit, tmp_path):
    asked = question("toy", (GHOST,), sampler=FEW)
    with pytest.raises(ExpungeError, match="give no other base"):
        module.outlook(asked, pico, tmp_path, edit=edit, base=lambda: pico)


def test_an_edited_model_is_not_audited(pico, edit, tmp_path):
    with edit.applied(pico), pytest.raises(ExpungeError, match="revert it"):
        audit(pico, Policy(erase=(GHOST,)), folder=tmp_path)


def test_a_judge_of_other_pictures_is_refused(pico, tmp_path, monkeypatch):
    monkeypatch.setattr(toy_suite.Brightness, "size", (64, 64))
    asked = question("toy", (GHOST,), sampler=FEW)
    with pytest.raises(ExpungeError, match=r"64×64 pictures.*16×16"):
        module.outlook(asked, pico, tmp_path)
