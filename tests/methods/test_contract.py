"""What every method says of itself, and what is refused where a method can't use it."""

from pathlib import Path
from typing import Any

import pytest

from expunge import ExpungeError, Model, Policy, erase
from expunge.cli import main
from expunge.method.base import Method, Solves, Trained
from expunge.methods import METHODS, configured
from expunge.training.loop import Monitor

SOLVED = {
    "uce": {},
    "rece": {},
    "trce": {},
    "mace": {"rank": 0},
    "negative-prompt": {},
    "safree": {},
    "sld": {},
    "uce-debias": {"attributes": ["cat", "dog"]},
}


def methods() -> list[type[Method]]:
    return [METHODS.get(name) for name in METHODS]


def test_every_method_either_solves_or_trains_and_says_what_it_needs() -> None:
    assert {m.name for m in methods() if issubclass(m, Solves)} == set(SOLVED)
    for method in methods():
        assert issubclass(method, Trained) != issubclass(method, Solves)
        assert "text" in method.needs
        assert not issubclass(method, Trained) or "training" in method.needs
    assert METHODS.get("uce").needs == {"text"}
    assert METHODS.get("uce-debias").needs == {"text", "drawing"}
    assert METHODS.get("mace").needs == METHODS.get("esd").needs
    assert METHODS.get("cpe").needs == {"text", "training"}
    assert configured("mace", rank=0).needed == {"text"}


@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("checkpoints", "state"),
        ("monitor", Monitor(1, lambda model: {})),
        ("tracker", "nonsense"),
    ],
)
def test_what_only_a_training_uses_is_refused_elsewhere(
    pico: Model, name: str, option: str, value: object
) -> None:
    given: dict[str, Any] = {option: value}
    with pytest.raises(ExpungeError, match=f"{option}: {name} can't be resumed, watched"):
        erase(pico, Policy.of("ghost"), name, **SOLVED[name], **given)


@pytest.mark.parametrize(
    "option", [["--checkpoints", "state"], ["--tracker", "nonsense"], ["--stop-when", "erased<=0"]]
)
def test_the_command_line_refuses_it_too(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "edit.safetensors"
    assert main(["erase", "--output", str(output), "--concept", "ghost", *option]) == 2
    assert f"{option[0]}: uce can't be resumed" in capsys.readouterr().err
    assert not output.exists()


CONTRACTS = [
    (method, name, fidelity)
    for method in methods()
    for names, fidelity in (
        (method.corrected_only, "original"),
        (method.original_only, "corrected"),
    )
    for name in names
]
OTHER: dict[str, object] = {
    "contexts": ["a {} there"],
    "index": "word",
    "variant": {"esd": "alt", "ac": "sepme", "fmn": "sepme"},
    "anchor_split": "released",
    "augment": True,
    "hflip": True,
    "keep_share": 0.25,
    "alone": 0.5,
    "warmup_by": "time",
}


@pytest.mark.parametrize(
    ("method", "name", "fidelity"), CONTRACTS, ids=[f"{m.name}-{n}" for m, n, _ in CONTRACTS]
)
def test_a_setting_of_the_other_fidelity_is_named(
    method: type[Method], name: str, fidelity: str
) -> None:
    value = OTHER.get(name, 3)
    if isinstance(value, dict):
        value = value[method.name]
    value = 1e-2 if name in ("tolerance", "inversion_lr") else value
    with pytest.raises(ExpungeError, match=f"{name}: only with fidelity="):
        configured(method.name, fidelity=fidelity, **{name: value})


@pytest.mark.parametrize("method", methods(), ids=list(METHODS))
def test_what_the_released_program_fixes_is_its_default_and_nothing_else(
    method: type[Method],
) -> None:
    for name, (value, reason) in method.released_fixed.items():
        assert getattr(configured(method.name, fidelity="original"), name) == value
        other = (not value) if isinstance(value, bool) else value + 1
        with pytest.raises(ExpungeError) as caught:
            configured(method.name, fidelity="original", **{name: other})
        assert f"{name}: {reason}; leave it at {value}" in str(caught.value)
