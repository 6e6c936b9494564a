"""The closed-form methods beside the published programs' way of computing, in time and memory.

    python benchmarks/closed_form.py [--only uce art-2025 art-2023 rece mace thousand] [--runs 3]
                                      [--model sd14]

Both sides get the same keys and values of Stable Diffusion 1.4's size (32 random matrices, 24,960
rows of 768) and the same made-up text embeddings with the statistics of CLIP's: rows of length 27,
one start row for all prompts, padding rows that are nearly multiples of each other. The text
encoder that is timed has the size of CLIP-L and random weights.

The other side are transcriptions of what the papers' programs compute, loop by loop: single
precision, an explicit inverse for each layer; in UCE and RECE the outputs of all layers inside of
each layer, and outer products written out before they are summed; in MACE the outputs of all
tokens stored. What would take longer than about a minute is timed in part and scaled up; the row
says so. Both sides agree on a small model before anything is timed.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from comparison.made_up import sd14
from comparison.sides import check
from comparison.table import HEADER
from comparison.works import COUNTS, WORKS, Setting
from expunge import load, testing
from sizes import SIZES
from timing import typical


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), metavar="NAME")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", choices=COUNTS, default="sd14", help="pico has few prompts, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        check(folder)
        single, double = (rate(kind, 3 * arguments.runs) for kind in (torch.float32, torch.float64))
        print(
            f"{torch.get_num_threads()} threads: {single:.0f} GFLOP/s in single and {double:.0f} "
            f"in double precision\n\n{HEADER}"
        )
        for name in arguments.only:
            model = sd14(folder) if arguments.model == "sd14" else load(testing.pipeline(folder))
            setting = Setting(model, folder, arguments.runs, COUNTS[arguments.model])
            for row in WORKS[name](setting):
                print(row, flush=True)


def rate(dtype: torch.dtype, runs: int) -> float:
    """Billions of operations a second in a product of large matrices."""
    sizes = SIZES["sd14"]
    rows = torch.ones(sum(sizes.outputs) // 8, sizes.width, dtype=dtype)
    return len(rows) * 2 * sizes.width**2 / typical(lambda: rows.T @ rows, runs) / 1e9


if __name__ == "__main__":
    main()
