"""The closed-form methods beside the published programs' way of computing, in time and memory.

    python benchmarks/closed_form.py [--only uce art rece mace thousand] [--runs 3]

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
from comparison.works import WORKS
from sizes import OUTPUTS, WIDTH
from timing import typical


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), metavar="NAME")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        check(folder)
        print(f"{torch.get_num_threads()} threads: {rate(torch.float32):.0f} GFLOP/s in single and "
              f"{rate(torch.float64):.0f} in double precision\n\n{HEADER}")  # fmt: skip
        for name in arguments.only:
            model = sd14(folder)
            for row in WORKS[name](model, folder, arguments.runs):
                print(row, flush=True)


def rate(dtype: torch.dtype) -> float:
    """Billions of operations a second in a product of large matrices."""
    rows = torch.ones(sum(OUTPUTS) // 8, WIDTH, dtype=dtype)
    return len(rows) * 2 * WIDTH**2 / typical(lambda: rows.T @ rows, 9) / 1e9


if __name__ == "__main__":
    main()
