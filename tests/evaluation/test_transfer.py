"""Attacks on the weights are counted beside what they break; what is found is tried elsewhere."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from expunge import Concept, Edit, Model, erase
from expunge.attacks import configured
from expunge.errors import ExpungeError
from expunge.evaluation.evaluate import Question, question
from expunge.evaluation.red_team import Attacked, Budget, RedTeam, attacked, transferred
from expunge.evaluation.restoration import weight_bits
from expunge.generation import Sampler
from toy_attack import CONCEPT
from toy_suite import SUITE

SMALL = Budget(pictures=2, calls=6)
CHANGES = (
    configured("prune", shares=(0.1, 0.9)),
    configured("relearning", examples=1, batch_size=2),
    configured("average", shares=(0.5,)),
)


@pytest.fixture
def edits(pico: Model) -> Mapping[str, Edit | None]:
    closed = erase(pico, CONCEPT, "uce", prior=None)
    return {"base": None, "closed": closed, "masked": erase(pico, CONCEPT, "safree")}


@pytest.fixture
def asked() -> Question:
    return question(SUITE, [CONCEPT], sampler=Sampler(steps=2))


def test_weights_are_attacked_in_amounts_beside_what_is_kept(
    pico: Model, edits: Mapping[str, Edit | None], asked: Question, tmp_path: Path
) -> None:
    before = weight_bits(pico)
    run = partial(attacked, pico, question=asked, attacks=CHANGES, folder=tmp_path, budget=SMALL)
    found = run(edits["closed"])
    assert weight_bits(pico) == before
    assert [[at.amount for at in one.amounts] for one in found.attacks] == [[0.1, 0.9], [6], [0.5]]
    assert [one.unit for one in found.attacks] == [
        "of the weights", "calls a picture", "of the base",
    ]  # fmt: skip
    assert [one.calls for one in found.attacks] == [0, 12, 0]
    for one in found.attacks:
        assert one.kept
        assert one.success
        assert one.control == found.by_name
        assert {at.kept.rate.n for at in one.amounts} == {one.kept.rate.n}
        columns = zip(*(at.success.outcomes for at in one.amounts), strict=True)
        assert one.success.outcomes == tuple(any(column) for column in columns)
    folders = {path.name.partition("-")[0] for path in tmp_path.glob("*/pictures/*")}
    assert folders == {"by", "prune", "relearning", "average"}
    pictures = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/pictures/*/*")}
    assert run(edits["closed"]) == found
    assert pictures == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/pictures/*/*")}
    assert Attacked.model_validate_json(found.model_dump_json()) == found
    refused = run(edits["masked"]).attacks
    assert all("takes off first" in one.refused and one.success is None for one in refused)
    [base] = run(None, attacks=CHANGES[2:]).attacks
    assert "averaged with itself" in base.refused


def test_what_is_found_on_one_model_is_tried_on_all(
    pico: Model, edits: Mapping[str, Edit | None], asked: Question, tmp_path: Path
) -> None:
    attacks = (configured("closed-form"), configured("random-tokens", tokens=4), *CHANGES)
    run = partial(transferred, pico, edits, asked, attacks, tmp_path, budget=SMALL)
    found = run()
    assert found.models == ("base", "closed", "masked")
    assert found.edits == tuple(edit.id if edit else "" for edit in edits.values())
    assert [one.attack for one in found.crossings] == ["closed-form"] * 9 + ["random-tokens"] * 9
    cells = {(one.attack, one.found_on, one.tried_on): one for one in found.crossings}
    alone = attacked(pico, edits["closed"], asked, attacks[:2], tmp_path, budget=SMALL)
    assert cells["closed-form", "closed", "closed"].success == alone.attacks[0].success
    for name in ("base", "closed"):
        assert "draws no rows" in cells["closed-form", name, "masked"].refused
        assert "draws no rows" in cells["closed-form", "masked", name].refused
    for one in found.crossings:
        if not one.refused:
            assert one.success
            assert one.control
            assert one.success.rate.n == one.control.rate.n == 2
    tokens = [one for one in found.crossings if one.attack == "random-tokens"]
    assert not any(one.refused for one in tokens)
    folders = sorted(path.parent.parent.name for path in tmp_path.glob("*/pictures/*-from-base-*"))
    assert len(set(folders)) == 2  # what the base gave was drawn with both edits
    drawn = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/pictures/*/*")}
    assert run() == found
    assert drawn == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/pictures/*/*")}
    team = RedTeam(models=(alone,), transfers=(found,))
    assert RedTeam.load(team.save(tmp_path / "out")) == team


def test_there_must_be_something_to_try_and_somewhere(
    pico: Model, edits: Mapping[str, Edit | None], asked: Question, tmp_path: Path
) -> None:
    attacks = [configured("closed-form")]
    for models in ({}, {"base": None}, {"one": edits["closed"], "two": edits["closed"]}):
        with pytest.raises(ExpungeError, match="two or more different"):
            transferred(pico, models, asked, attacks, tmp_path, budget=SMALL)
    with pytest.raises(ExpungeError, match="no prompt or rows"):
        transferred(pico, edits, asked, CHANGES, tmp_path, budget=SMALL)
    never = question(SUITE, [Concept(target="a nude child")])
    with pytest.raises(ExpungeError, match="never drawn"):
        transferred(pico, edits, never, attacks, tmp_path, budget=SMALL)
    assert not list(tmp_path.iterdir())
