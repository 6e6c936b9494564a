"""Every stage in order. Stop it at any point; run it again and it goes on from there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from common import HERE, parser, settings

PACKAGE = HERE.parent.parent / "src" / "expunge" / "models" / "emoji"


def stages(processes: int, pipe: Path, judges: Path) -> list[list[str]]:
    """The commands, without the options that all share."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return [
        ["render.py"],
        ["captions.py"],
        ["judges.py", "--into", str(judges)],
        ["autoencoder.py"],
        ["text_encoder.py"],
        [*torchrun, "unet.py"] if processes > 1 else ["unet.py"],
        ["autoencoder.py", "--decoder-only"],
        ["assemble.py", "--into", str(pipe)],
        ["evaluate.py", "--pipe", str(pipe), "--judges", str(judges), "--json", "results.json"],
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--processes", type=int, default=1, help="processes that train the UNet")
    args = options.parse_args()
    run = settings(args)
    shared = ["--work", str(run.work.resolve()), "--device", run.device, "--seed", str(run.seed)]
    for stage in stages(args.processes, PACKAGE / "pipe", PACKAGE / "judges"):
        threads = run.threads // args.processes if "unet.py" in stage else run.threads
        command = [sys.executable, *stage, *shared, "--threads", str(max(1, threads))]
        print("$", *command[1:], flush=True)
        subprocess.run(command, cwd=HERE, check=True)


if __name__ == "__main__":
    main()
