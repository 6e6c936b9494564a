"""Size and time of a UCE edit on a UNet of Stable Diffusion 1.4's size with random weights.

    python benchmarks/sd14_edit.py [--runs 5]

Prints medians. Encoding the prompts is counted apart: the text encoder here is a small one of
the right width (768) and length (77).
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from expunge import Concept, erase, load, testing
from timing import seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = load(testing.sd14(folder, filled=False))
        for parameter in model.unet.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        concept = Concept(target="santa claus", anchor="man")
        model.remember({p: model.encode([p])[0] for p in ("", "santa claus", "man")})

        columns: dict[str, list[float]] = {"solve": [], "apply": [], "revert": []}
        for _ in range(runs + 1):
            columns["solve"].append(seconds(lambda: erase(model, concept, fidelity="original")))
            edit = erase(model, concept, fidelity="original")
            columns["apply"].append(seconds(lambda: edit.apply(model)))  # noqa: B023
            columns["revert"].append(seconds(lambda: edit.revert(model)))  # noqa: B023
        edit.save(folder / "edit.safetensors")
        print(f"edit file  {(folder / 'edit.safetensors').stat().st_size:,} bytes")
    for name, times in columns.items():
        counted = sorted(times[1:])
        spread = f"({counted[0]:.3f}-{counted[-1]:.3f})"
        print(f"{name:<10} {statistics.median(counted):.3f} s  {spread}")


if __name__ == "__main__":
    main()
