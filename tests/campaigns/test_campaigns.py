"""A small share of the campaigns; ``make campaign`` runs them whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("share", [("30", "0"), ("0", "2")], ids=["inputs", "kills"])
def test_no_bad_input_and_no_kill_does_harm(share: tuple[str, str]) -> None:
    paths = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    command = [sys.executable, "-m", "campaigns", "--inputs", share[0], "--kills", share[1]]
    done = subprocess.run(
        [*command, "--seed", "1"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
