from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import ValidationError

from expunge.errors import ExpungeError
from expunge.prompts import Case, PromptSet

HEADER = "case_number,prompt,evaluation_seed\n"


def load(folder: Path, text: str | bytes) -> PromptSet:
    path = folder / "prompts.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return PromptSet.load(path)


def test_columns_of_the_field(tmp_path: Path) -> None:
    text = HEADER + '3,"a dog, sitting",42\n\n7, a cat ,18446744073709551615\n'
    prompts = load(tmp_path, text)
    assert [(row.case_number, row.prompt, row.seed) for row in prompts] == [
        ("3", "a dog, sitting", 42),
        ("7", "a cat", 2**64 - 1),
    ]
    assert prompts.sha256 == sha256(text.encode()).hexdigest()
    assert (len(prompts), prompts.dropped) == (2, 0)


def test_aliases_and_other_columns(tmp_path: Path) -> None:
    header = ",id,prompt,sd_seed,sd_guidance_scale,sd_image_height,sd_image_width,artist\n"
    row = load(tmp_path, b"\xef\xbb\xbf" + f"{header}0,5,a dog,1,7.5,64,,Someone\n".encode()).rows[
        0
    ]
    assert (row.case_number, row.seed, row.guidance_scale) == ("5", 1, 7.5)
    assert (row.height, row.width, row.extra) == (64, None, {"artist": "Someone"})


def test_the_first_alias_wins(tmp_path: Path) -> None:
    row = load(tmp_path, "index,case_number,prompt,evaluation_seed,seed\n0,9,a dog,1,2\n").rows[0]
    assert (row.case_number, row.seed) == ("9", 1)
    assert row.extra == {"index": "0", "seed": "2"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prompts.csv: the file is empty"),
        (HEADER, "prompts.csv: no prompt in it"),
        ("case_number,prompt\n1,a dog\n", "row 1: no column evaluation_seed or sd_seed or seed"),
        ("prompt,prompt,seed,id\n", "row 1: the column 'prompt' is there twice"),
        (HEADER + "1,a dog,4\n2,a cat,x4\n", "row 3: evaluation_seed 'x4'"),
        (HEADER + "1,a dog,-4\n", "row 2: evaluation_seed '-4'"),
        (HEADER + "1,a dog,4.5\n", "row 2: evaluation_seed '4.5'"),
        (HEADER + "1,a dog,18446744073709551616\n", "row 2: evaluation_seed"),
        (HEADER + "1,a dog,\n", "row 2: evaluation_seed ''"),
        (HEADER + "1,  ,4\n", "row 2: prompt '  '"),
        (HEADER + ",a dog,4\n", "row 2: case_number ''"),
        (HEADER + "../1,a dog,4\n", "row 2: case_number '../1'"),
        (HEADER + "1,a dog,4\n2,a cat,5\n1,an owl,6\n", "row 4: the case number 1 is in row 2"),
        (HEADER + "1,a dog, sitting,4\n", "row 2: 4 fields, the header has 3"),
        (HEADER + '1,"a dog"x,4\n', "row 2: not well-formed CSV"),
        (HEADER + '1,"a dog,4\n', "row 2: not well-formed CSV"),
        ("id,prompt,seed,guidance\n1,a dog,4,nan\n", "row 2: guidance 'nan'"),
        (HEADER.encode() + b"1,caf\xe9,2\n", "prompts.csv: not UTF-8 text (line 2)"),
    ],
)
def test_a_fault_is_one_line_with_file_and_row(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    with pytest.raises(ExpungeError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert str(tmp_path / "prompts.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match="can't read the prompts: No such file"):
        PromptSet.load(tmp_path / "none.csv")


def test_refused_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    header = "case_number,prompt,seed,categories\n"
    prompts = load(tmp_path, header + "1,a child,1,sexual\n2,a dog,2,sexual\n3,a child,3,\n")
    assert [row.case_number for row in prompts] == ["2", "3"]
    assert prompts.dropped == 1
    with pytest.raises(ExpungeError, match="all 1 were dropped by the lexicon"):
        load(tmp_path, header + "1,a child,1,sexual\n")


def test_no_other_way_in() -> None:
    with pytest.raises(ValidationError, match="never drawn"):
        Case(case_number="1", prompt="nude child", seed=0)
    with pytest.raises(ExpungeError, match=r"prompt 1: .*never drawn"):
        PromptSet.of(["nude child"])


def test_prompts_from_the_command_line() -> None:
    prompts = PromptSet.of(["a dog", "a cat"], seed=3)
    assert [(row.case_number, row.seed) for row in prompts] == [("0", 3), ("1", 3)]
    with pytest.raises(ExpungeError, match="prompt 2"):
        PromptSet.of(["a dog", " "])
    with pytest.raises(ExpungeError, match="no prompt given"):
        PromptSet.of([])
