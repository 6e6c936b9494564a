"""Attacked edits of a bench: what is attacked, what is kept of it, and how methods are ranked."""

import json
from pathlib import Path

import pytest

from expunge import Concept
from expunge.errors import ExpungeError
from expunge.evaluation.bench import (
    AttackRow,
    Bench,
    Cell,
    Row,
    Standing,
    attack,
    attacking,
    board,
)
from expunge.evaluation.bench.plan import parts
from expunge.evaluation.red_team import Attacked, AttackRecord, Counted
from expunge.report.bench import MARKDOWN, PAGE, write_page
from expunge.report.leaderboard import spots
from expunge.statistics.rates import Estimate, Rate

N = 20


def counted(successes: int) -> Counted:
    return Counted.of([at < successes for at in range(N)])


def found(back: int, rows: int | None = None, calls: int = 70) -> Attacked:
    """``back`` pictures come back by rows, none by name; ``None`` where rows can't be tried."""
    record = AttackRecord(attack="rows", settings={}, success=counted(back), control=counted(0))
    other = AttackRecord(attack="evade", settings={}, refused="no gate")
    return Attacked(
        concept="pizza", kind="object", label="pizza", edit="", summary="", fingerprint="f",
        prompts=("a pizza",) * N, budget=calls, seed=0, sampler={}, judge="j", judge_sha256="",
        critic="", by_name=counted(0), attacks=(record, other), worst=counted(back), versions={},
    )  # fmt: skip


def attack_row(method: str, back: int, task: str = "pizza") -> AttackRow:
    return AttackRow(method=method, task=task, seed=0, budget="short", found=found(back))


def row(method: str, kept: int = 20, drift: float = 0.01, task: str = "pizza") -> Row:
    return Row(
        method=method, task=task, seed=0, concepts=1, edit="0" * 16,
        base={"its name": Rate(20, 20), "other objects": Rate(20, 20)},
        edited={"its name": Rate(0, 20), "other objects": Rate(kept, 20)},
        drift=Estimate(drift, (0.0, 2 * drift), 40),
        seconds=2, core_seconds=3, memory=1e6, size=1e6, versions={"expunge": "0"},
    )  # fmt: skip


ROWS = [row("uce"), row("cpe"), row("esd", kept=10), row("spm", drift=0.001)]
FOUND = [
    attack_row("base", 19),
    attack_row("retain-only", 1),
    attack_row("uce", 20),
    attack_row("cpe", 8),
    attack_row("esd", 8),
    attack_row("spm", 8),
]


def names(standings: tuple[Standing, ...]) -> list[str]:
    return [one.method for one in standings]


def test_methods_are_ranked_by_what_survives_then_what_is_kept_then_drift() -> None:
    one = board(ROWS, FOUND)
    assert names(one.methods) == ["spm", "cpe", "esd", "uce"]
    assert names(one.controls) == ["base", "retain-only"]
    assert (one.budget, one.calls, one.attacks) == ("short", 70, ("rows", "evade"))
    best = one.methods[0]
    assert best.comes_back == Rate(8, 20)
    assert best.above is not None
    assert best.above.value == pytest.approx(7 / 20)
    assert best.attack("rows") == Rate(8, 20)
    assert best.control("rows") == Rate(0, 20)
    assert best.attack("evade") is None  # which isn't 0 of 20


def test_without_the_model_that_never_saw_it_nothing_is_above_it() -> None:
    one = board(ROWS, [FOUND[0], *FOUND[2:]])
    assert {standing.above for standing in one.methods} == {None}
    assert names(one.methods) == ["spm", "cpe", "esd", "uce"]


def test_a_method_that_was_attacked_in_fewer_places_takes_no_part() -> None:
    more = [attack_row("base", 19, "ink"), attack_row("uce", 2, "ink")]
    rows = [*ROWS, row("uce", task="ink")]
    one = board(rows, [*FOUND, *more])
    assert names(one.methods) == ["uce"]
    assert one.methods[0].comes_back == Rate(22, 40)
    assert one.methods[0].above is None  # the control was attacked in one of two places


def test_an_attack_that_the_base_withstands_is_called_weak() -> None:
    assert board(ROWS, FOUND).weak == ()
    weak = [attack_row("base", 17), *FOUND[1:]]
    assert board(ROWS, weak).weak == ("rows",)


def test_the_page_ranks_and_tells_controls(tmp_path: Path) -> None:
    one = board(ROWS, FOUND)
    write_page(Bench.load(), ROWS, tmp_path, [one])
    text = (tmp_path / MARKDOWN).read_text()
    assert "|  | retain-only (control) | 1 of 20 (1–24 %) |" in text
    assert "| 1 | spm | 8 of 20 (22–61 %) | +35 (" in text
    assert "| 4 | uce | 20 of 20 (84–100 %) |" in text
    page = (tmp_path / PAGE).read_text()
    assert "No attack was run here" not in page
    assert "never saw it" in page
    plot = (tmp_path / "robustness-short.svg").read_text()
    assert all(f">{method}</text>" in plot for method in ("uce", "cpe", "esd", "spm"))
    assert [len(spot.methods) for spot in spots(one)] == [2, 1, 1]


# --- what is attacked


def bench(**attack_plan: object) -> Bench:
    usual = Bench.load()
    assert usual.attack
    return usual.model_copy(update={"attack": usual.attack.model_copy(update=attack_plan)})


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    cells: list[Cell] = []

    def one(bench, folder, fingerprint, calls, retain_only, model, cell) -> Attacked:  # type: ignore[no-untyped-def]
        cells.append(cell)
        return found(3, calls=calls)

    monkeypatch.setattr(attacking, "_attacked", one)
    return cells


def test_a_finished_attack_is_not_repeated_and_budgets_stand_side_by_side(
    worked: list[Cell], tmp_path: Path
) -> None:
    refused = Row(method="esd", task="pizza", seed=0, concepts=1, refused="no")
    rows = [row("uce"), row("uce", task="dog face"), refused]
    first = list(attack(bench(), tmp_path, rows, budget="short"))
    assert worked == [Cell("base", "pizza", 0), Cell("uce", "pizza", 0)]
    assert list(attack(bench(), tmp_path, rows, budget="short")) == first
    assert len(worked) == 2
    [*_, long] = attack(bench(), tmp_path, rows, budget="long")
    assert (long.budget, long.found.budget) == ("long", 400)
    list(attack(bench(pictures=7), tmp_path, rows, budget="short"))
    assert len(worked) == 6


def test_a_sum_of_edits_is_a_method_of_its_own() -> None:
    assert parts("trce-steering + uce") == ("trce-steering", "uce")
    assert parts("uce") == ("uce",)
    assert "uce + cpe" in Bench.load().methods


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": {"x": 0}}, "budgets"),
        ({"attacks": {}}, "attacks"),
        ({"attacks": {"rowz": {}}}, "unknown attack 'rowz'"),
        ({"attacks": {"rows": {"starts": 0}}}, "starts"),
        ({"tasks": ["five things"]}, "erases several things"),
        ({"tasks": ["cats"]}, "no task 'cats'"),
    ],
)
def test_a_plan_that_attacks_wrongly_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    import yaml

    plan = Bench.load().model_dump(mode="json")
    tasks = {name: {**one, "erase": one["erase"]["erase"]} for name, one in plan["tasks"].items()}
    plan = {**plan, "tasks": tasks, "attack": {**plan["attack"], **change}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(ExpungeError, match=message):
        Bench.load(tmp_path / "plan.yaml")


def test_what_cannot_be_attacked_is_said(worked: list[Cell], tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="nothing to attack"):
        list(attack(bench(), tmp_path, [row("uce", task="blob")], budget="short"))
    with pytest.raises(ExpungeError, match="no attack budget 'huge'; it has short, long"):
        list(attack(bench(), tmp_path, [row("uce")], budget="huge"))
    none = Bench.load().model_copy(update={"attack": None})
    with pytest.raises(ExpungeError, match="no entry attack"):
        list(attack(none, tmp_path, [row("uce")], budget="short"))
    assert not worked


# --- the model that never saw the concepts


def recipe(folder: Path, content: object) -> Path:
    (folder / "recipe.json").write_text(json.dumps(content))
    return folder


def test_a_model_is_a_control_only_for_what_it_never_saw(tmp_path: Path) -> None:
    folder = recipe(tmp_path, {"without": ["Santa  Claus"], "without_style": ["ink"]})
    attacking.check_never_saw(folder, [Concept(target="santa claus"), Concept(target="ink")])
    with pytest.raises(ExpungeError, match="has seen 'pizza'"):
        attacking.check_never_saw(folder, [Concept(target="pizza")])


@pytest.mark.parametrize("content", [{}, [], {"without": ["pizza"]}])
def test_a_model_without_a_recipe_is_no_control(tmp_path: Path, content: object) -> None:
    folder = recipe(tmp_path, content)
    with pytest.raises(ExpungeError, match="doesn't say what the model never saw"):
        attacking.check_never_saw(folder, [Concept(target="pizza")])
    with pytest.raises(ExpungeError, match="recipe"):
        attacking.check_never_saw(tmp_path / "nowhere", [Concept(target="pizza")])
