"""``expunge protocols``: all of them, and one as YAML."""

import subprocess
import sys

import pytest
import yaml

from expunge.cli import main
from expunge.evaluation.protocols import PublishedProtocol, protocols


def test_every_protocol_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for each in protocols().values():
        assert f"{each.name}: {each.title}" in lines


@pytest.mark.parametrize("name", protocols())
def test_the_yaml_is_the_protocol(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols", name]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert PublishedProtocol.model_validate(values) == protocols()[name]


def test_an_unknown_protocol_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols", "nudity/masse"]) == 2
    assert "unknown protocol 'nudity/masse'; did you mean nudity/" in capsys.readouterr().err


def test_lists_need_no_torch() -> None:
    script = """
import sys
from expunge.cli import main
main(["protocols"])
main(["prompts"])
print("heavy:", {"torch", "diffusers", "transformers"} & sys.modules.keys())
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("heavy: set()\n")
