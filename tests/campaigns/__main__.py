"""``python -m campaigns --inputs 1000 --kills 70``: both campaigns, each with a closing line."""

import argparse
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=70)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    lines, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        if asked.kills:  # first: forking needs a process in which torch hasn't computed yet
            from campaigns import kills

            killed = kills.campaign(asked.kills, asked.seed, Path(folder) / "kills")
            lines.append(str(killed))
            failed |= bool(killed.faults)
            print(*killed.faults, sep="\n")
        if asked.inputs:
            from campaigns import trying

            tally = trying.campaign(asked.inputs, asked.seed, Path(folder) / "inputs")
            lines.append(str(tally))
            for kind, found in tally.faults.items():
                failed |= bool(found)
                for one in found:
                    print(f"--- {kind}: {one}")
    print(*lines, sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
