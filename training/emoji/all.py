"""Every stage in order. Stop it at any point; run it again and it goes on from there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from common import HERE, PACKAGE, parser, settings
from left_out import LeftOut


def stages(processes: int, without: LeftOut, work: Path, pipe: Path) -> list[list[str]]:
    """The commands, without the options that all share.

    A model that leaves something out is read and judged with the tokenizer and the judges of the
    bundled one.
    """
    judges = str(PACKAGE / "judges")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    side_by_side = torchrun if processes > 1 else []
    single = str(work / "pipe")
    copied = ["captions.py", "--copy", str(PACKAGE / "pipe" / "tokenizer")]
    numbers = pipe / "results.json" if without else HERE / "results.json"
    both = ["--pairs", "1000"]
    return [
        ["render.py"],
        *([copied] if without else [["captions.py"], ["judges.py", "--into", judges]]),
        ["autoencoder.py"],
        ["text_encoder.py"],
        [*side_by_side, "unet.py"],
        ["autoencoder.py", "--decoder-only"],
        ["assemble.py", "--into", single],
        [*side_by_side, "pairs.py", "--pipe", single],
        ["assemble.py", "--base", single, "--into", str(pipe)],
        ["evaluate.py", "--pipe", str(pipe), "--judges", judges, "--json", str(numbers), *both],
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--processes", type=int, default=1, help="processes that train the UNet")
    options.add_argument("--into", type=Path, help="the model's folder, the package's by default")
    args = options.parse_args()
    run = settings(args)
    if run.without and not args.into:
        options.error(f"a model without {run.without} isn't the bundled one: give --into FOLDER")
    pipe = args.into.resolve() if args.into else PACKAGE / "pipe"
    shared = ["--work", str(run.work.resolve()), "--device", run.device, "--seed", str(run.seed)]
    for stage in stages(args.processes, run.without, run.work.resolve(), pipe):
        shares = args.processes if {"unet.py", "pairs.py"} & set(stage) else 1
        command = [sys.executable, *stage, *shared, "--threads", str(max(1, run.threads // shares))]
        print("$", *command[1:], flush=True)
        subprocess.run(command, cwd=HERE, check=True)


if __name__ == "__main__":
    main()
