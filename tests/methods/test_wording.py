"""What a model reads as the same can't be erased and kept, and what it doesn't read is told."""

import warnings
from pathlib import Path

import pytest

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.cli import main
from expunge.doctor import examine
from expunge.errors import CutOff
from expunge.methods import configured

FILL = " ".join(["dog"] * 14)
"""As long as the window of the small model."""


def policy(*erased: Concept, keep: tuple[str, ...] = ()) -> Policy:
    return Policy(erase=erased, keep=keep)


GHOST = Concept(target="ghost", anchor="man")

CUT = pytest.mark.filterwarnings("ignore::expunge.errors.CutOff")


@CUT
def test_phrases_that_are_equal_once_cut_are_not_erased_twice(pico: Model) -> None:
    twice = policy(Concept(target=f"{FILL} cat"), Concept(target=f"{FILL} noto"))
    with pytest.raises(ExpungeError, match=r"the same \(it cuts them off\); name one of the two"):
        erase(pico, twice)


@CUT
def test_an_erased_and_a_kept_phrase_that_are_equal_once_cut_are_refused(pico: Model) -> None:
    with pytest.raises(ExpungeError, match=r"is both erased .* and kept \(it cuts them off\)"):
        erase(pico, policy(Concept(target=f"{FILL} cat"), keep=(f"{FILL} noto",)))


@CUT
def test_an_anchor_that_is_equal_once_cut_is_refused(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="is erased itself: the model reads it as"):
        erase(pico, Concept(target=f"{FILL} cat", anchor=f"{FILL} noto"))


@pytest.mark.parametrize("method", ["uce", "trce", "mace", "rece", "cpe", "esd", "spm", "sepce"])
def test_a_sentence_that_a_method_erases_cannot_be_kept(pico: Model, method: str) -> None:
    templates = {"templates": True} if method in ("uce", "rece") else {}
    with pytest.raises(ExpungeError, match="'a picture of a ghost' is both erased and kept"):
        erase(pico, policy(GHOST, keep=("a picture of a ghost",)), method, **templates)


def test_a_sentence_that_a_method_does_not_erase_may_be_kept(pico: Model) -> None:
    assert erase(pico, policy(GHOST, keep=("a picture of a ghost", "ghost.")))


def test_synonyms_that_the_model_reads_alike_count_once(pico: Model) -> None:
    one = erase(pico, Concept(target="ghost", anchor="man", synonyms=("gh ost", "art")))
    two = erase(
        pico, Concept(target="ghost", anchor="man", synonyms=("Ghost", "gh ost", "gh  ost", "art"))
    )
    assert one.concepts == two.concepts
    assert one.ids == two.ids


def test_a_sentence_that_is_cut_before_the_words_is_an_error(pico: Model) -> None:
    late = Concept(target="ghost", contexts=(f"{FILL} and {{}}",))
    with pytest.raises(ExpungeError, match="is cut before 'ghost' ends: the model reads 14 pieces"):
        erase(pico, late)


@pytest.mark.parametrize(
    "given",
    [
        policy(Concept(target=f"{FILL} cat", anchor="man")),
        policy(Concept(target="ghost", synonyms=(f"{FILL} cat",))),
        policy(Concept(target="ghost", anchor=f"{FILL} cat")),
        policy(GHOST, keep=(f"{FILL} cat",)),
        policy(GHOST.model_copy(update={"contexts": (f"{{}} {FILL}",)})),
    ],
    ids=["target", "synonym", "anchor", "kept", "sentence"],
)
def test_prompts_that_are_cut_off_are_warned_of(pico: Model, given: Policy) -> None:
    with pytest.warns(CutOff, match=r"longer than the 14 pieces .* \(up to 15; first: "):
        erase(pico, given)


def test_prompts_that_fit_give_no_warning(pico: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        erase(pico, Concept(target=FILL, anchor="man"))


def test_a_method_that_draws_never_draws_what_the_lexicon_refuses(pico: Model) -> None:
    both = Concept(target="nude", synonyms=("nude kid",), anchor="man")
    with pytest.raises(ExpungeError, match="which is never done; use a method that only reads"):
        erase(pico, both, "esd")
    assert erase(pico, both, "uce")
    [refusal] = examine(pico, Policy.of(both), configured("esd")).refusals
    assert "which is never done" in refusal.reason


@pytest.mark.parametrize(
    ("method", "settings"),
    [("esd", {"erase_from": ["a nude kid"]}), ("spm", {"positive": ["a nude kid"]}),
     ("ac", {"prompts": ["a nude kid"]}), ("fmn", {"contexts": ["a nude kid and {}"]})],
)  # fmt: skip
def test_settings_of_a_method_that_draws_go_through_the_lexicon(
    pico: Model, method: str, settings: dict[str, list[str]]
) -> None:
    with pytest.raises(ExpungeError, match="which is never done"):
        erase(pico, GHOST.model_copy(update={"kind": "unsafe"}), method, **settings)


def test_an_old_file_with_doubles_still_loads_and_is_the_same_edit(
    pico: Model, tmp_path: Path
) -> None:
    [part] = erase(pico, GHOST).components
    old = GHOST.model_copy(update={"synonyms": ("Ghost",), "keep": ("gho\u00adst",)})
    record = part.provenance.model_copy(update={"concepts": (old,)})
    edit = Edit((type(part)(part.payload, record),))
    edit.save(tmp_path / "old.safetensors")
    again = Edit.load(tmp_path / "old.safetensors")
    assert again.id == edit.id
    assert again.only("GHOST ").ids == edit.ids


def test_the_command_line_warns_in_one_line_and_goes_on(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "e.safetensors"
    command = ["erase", "--model", str(pico_folder), "--concept", "ghost", "--output", str(output)]
    assert main([*command, "--keep", f"{FILL} cat"]) == 0
    [line] = [one for one in capsys.readouterr().err.splitlines() if "warning" in one]
    assert line.startswith("warning: 1 of ")
    assert line.endswith("; the rest has no effect")
    assert output.exists()
    assert main([*command, "--keep", "Gh\u200bost"]) == 2
