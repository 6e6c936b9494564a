"""Commands that draw or read prompts say which are longer than the model reads."""

from pathlib import Path

import pytest

from expunge.cli import main

LONG = " ".join(["dog"] * 20)


def test_generate_counts_prompts_that_are_cut_off_and_draws_the_same(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(
        f"case_number,prompt,evaluation_seed\n7,{LONG} cat,1\n8,dog,1\n9,{LONG} and a noto,1\n"
    )
    options = ["--model", str(pico_folder), "--steps", "1", "--output", str(tmp_path / "out")]
    assert main(["generate", "--prompts", str(prompts), *options]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "Token indices" not in said  # transformers' own remark on what the pipeline cuts
    assert (
        "2 of 3 prompts are longer than the 14 pieces that the model reads (up to 25; first: "
        "case 7); the rest has no effect"
    ) in said
    one, other = ((tmp_path / "out" / f"{case}_0.png").read_bytes() for case in (7, 9))
    assert one == other


def test_prompts_that_fit_are_not_spoken_of(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(pico_folder), "--steps", "1", "--output", str(tmp_path / "out")]
    assert main(["generate", "--prompt", "dog", *options]) == 0
    assert "longer" not in capsys.readouterr().err


def test_prior_counts_captions_that_are_cut_off(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text(f"a dog\n{LONG}\n")
    output = tmp_path / "prior.safetensors"
    options = ["--model", str(pico_folder), "--output", str(output)]
    assert main(["prior", "--prompts", str(captions), *options]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 2 captions is longer than the 14 pieces" in said
    assert output.exists()


@pytest.mark.parametrize("sentence", ["a {red|blue} {} on a table", "a {{}} here", "{} {8k, hdr}"])
@pytest.mark.parametrize("method", ["uce", "trce", "mace", "rece"])
def test_a_policy_with_braces_makes_an_edit(
    pico_folder: Path, tmp_path: Path, method: str, sentence: str
) -> None:
    policy, output = tmp_path / "policy.yaml", tmp_path / "edit.safetensors"
    policy.write_text(f'erase: [{{target: ghost, anchor: man, contexts: ["{sentence}"]}}]\n')
    command = ["--policy", str(policy), "--model", str(pico_folder), "--output", str(output)]
    assert main(["erase", "--method", method, *command]) == 0
    assert output.exists()
