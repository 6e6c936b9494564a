"""Memory and time of an edit of every weight, read from its file, applied and reverted.

    python benchmarks/dense.py make FOLDER [--model sd14] [--precision float32]
    python benchmarks/dense.py use FOLDER [--model sd14] [--precision float32]

``make`` writes the edit. ``use`` prints a line of JSON: bytes of the network and of the edit's
file, the most bytes that the process used above what it had with the model alone, and seconds.
The two run in processes of their own, so that making the edit doesn't count.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

import torch

from expunge import Concept, Edit, Model, testing
from expunge.memory import peak_memory
from models import NAMES, model_of
from timing import seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("step", choices=["make", "use"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=NAMES, default="sd14")
    parser.add_argument(
        "--precision", choices=["float32", "float16", "bfloat16"], default="float32"
    )
    options = parser.parse_args()
    model = model_of(options.model, latents=32)
    model.cast(getattr(torch, options.precision))
    path = options.folder / "dense.safetensors"
    if options.step == "make":
        testing.dense(model, Concept(target="ghost")).save(path)
        print(path)
    else:
        print(json.dumps(use(model, path)))


def use(model: Model, path: Path) -> dict[str, float]:
    """Load the edit, apply it and revert it."""
    with peak_memory() as used:
        began = perf_counter()
        edit = Edit.load(path)
        loaded = perf_counter() - began
        applied = seconds(lambda: edit.apply(model))
        reverted = seconds(lambda: edit.revert(model))
    parameters = model.denoiser.parameters()
    return {
        "network": sum(one.numel() * one.element_size() for one in parameters),
        "edit": path.stat().st_size,
        "added": used.added,
        "load": loaded,
        "apply": applied,
        "revert": reverted,
    }


if __name__ == "__main__":
    main()
