"""Text and YAML from files: what is wrong is one sentence, and nothing is lost or hangs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from expunge import ExpungeError, Policy
from expunge.cli.options import assignments
from expunge.evaluation.bench import Bench
from expunge.evaluation.records import Report
from expunge.method.presets import parsed
from expunge.methods.uce.method import UCE
from expunge.prompts import PromptSet
from expunge.prompts.lists import contexts
from expunge.prompts.published import published
from expunge.texts import parse_yaml, read_text


def test_a_key_that_stands_twice_is_an_error_with_its_line() -> None:
    with pytest.raises(ExpungeError, match=r"it: the key 'erase' is there twice \(line 3\)"):
        parse_yaml("erase: [a]\nkeep: []\nerase: [b]", "it")
    with pytest.raises(ExpungeError, match=r"the key 'target' is there twice \(line 2\)"):
        parse_yaml("erase:\n- {target: a, kind: style, 'target': b}", "it")


def test_a_merged_key_may_be_given_anew() -> None:
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, x: 3}\ntwo: *b"
    assert parse_yaml(text, "it")["one"] == {"x": 3, "y": 2}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(30)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 20_000, "more than 50 levels"),
        ("- " * 20_000, "more than 50 levels"),
        (BOMB, "more than 200,000 entries, each alias counted"),
        ("&a [*a]", "an alias of what it stands in"),
        ("&a {x: [*a]}", "an alias of what it stands in"),
        ("erase: [", "not a YAML file: "),
        ("a: 1\n b: 2", "not a YAML file: .*line 2"),
        ("a\n---\nb", "not a YAML file: "),
        ("\x07", "not a YAML file: "),
        ("a: 2001-13-13", "not a YAML file: "),
        ("!!int x", "not a YAML file: "),
        ("!!bool x", "not a YAML file: "),
        ("!!timestamp x", "not a YAML file: "),
        ("!!python/name:os.system x", "not a YAML file: "),
        ("? [a]\n: b", "not a YAML file: "),
        ("9" * 5000, "not a YAML file: "),
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_yaml_that_we_read_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(ExpungeError, match=f"^it: {message}") as caught:
        parse_yaml(text, "it")
    assert "\n" not in str(caught.value)


def presets(file: Path) -> object:
    return parsed(UCE, read_text(file))


READERS: dict[str, Callable[[Path], object]] = {
    "policy": Policy.load,
    "bench": Bench.load,
    "report": Report.load,
    "presets": presets,
    "prompts": PromptSet.load,
    "sentences": contexts,
    "names": lambda file: published("unlearncanvas", file),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_file_that_is_not_utf_8_is_named(read: Callable[[Path], object], tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_bytes("erase:\n  - target: bebé\n".encode("cp1252"))
    with pytest.raises(ExpungeError, match=r"old\.yaml: not UTF-8 text \(line 2\); save it as"):
        read(file)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_folder_in_place_of_a_file_is_one_sentence(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / "report.json").mkdir()  # a report may be named by its folder
    with pytest.raises(ExpungeError, match=r"can't read .*directory"):
        read(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_marked_encoding_is_read(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_bytes("erase: [{target: bebé}]".encode(encoding))
    assert Policy.load(file).erase[0].target == "bebé"


WRONG = {
    Policy: ["5", "[a]", "erase: 5", "{1: 2}", "erase: [[a]]", "~", ""],
    Bench: ["5", "[a]", "tasks: 5", "{1: 2}", "tasks: {a: 5}", "tasks: {1: {}}"],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind in WRONG for text in WRONG[kind]])
def test_wrong_types_are_one_sentence(
    kind: type[Policy] | type[Bench], text: str, tmp_path: Path
) -> None:
    file = tmp_path / "given.yaml"
    file.write_text(text)
    with pytest.raises(ExpungeError, match=r"given\.yaml: ") as caught:
        kind.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["5", "[a]", "x: 5", "x: {1: 2}", "x: {name: y}", "1: {}"])
def test_wrong_types_in_presets_are_one_sentence(text: str) -> None:
    with pytest.raises(ExpungeError, match=r"uce\.yaml beside") as caught:
        parsed(UCE, text)
    assert "\n" not in str(caught.value)


def test_a_list_on_the_command_line_is_read_alike() -> None:
    assert assignments("uce", ['contexts=["a {} b", "c {}"]']) == {"contexts": ["a {} b", "c {}"]}
    with pytest.raises(ExpungeError, match=r"--set contexts=.*the key 'a' is there twice"):
        assignments("uce", ["contexts=[{a: 1, a: 2}]"])
    with pytest.raises(ExpungeError, match=r"--set contexts=.*not a YAML file"):
        assignments("uce", ["contexts=[a"])
