"""``make reference CASES=DIR``: our numbers beside those of the original programs.

Each folder below DIR with a ``case.json`` is one run of an original program: what it was given,
what it gave, and how closely two correct programs agree.
"""

import argparse
import fnmatch
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from conformance import (
    ac,
    cce,
    cpe,
    esd,
    fmn,
    mace,
    p4d,
    prior,
    probes,
    rab,
    rece,
    safree,
    sepme,
    sld,
    spm,
    trce,
    trce2,
    uce,
    uda,
)
from conformance.case import Case, Difference
from expunge.errors import ExpungeError, Unsupported

CHECKS: dict[tuple[str, str | None], Callable[[Case], Iterator[Difference]]] = {
    ("cache", None): prior.cache,
    ("cce", "run"): cce.steps,
    ("cpe", None): cpe.checks,
    ("p4d", "projection"): p4d.projection,
    ("p4d", "run"): p4d.steps,
    ("rece", None): rece.weights,
    ("concept-ablation", None): ac.steps,
    ("forget-me-not", None): fmn.steps,
    ("mace", None): mace.stages,
    ("mace-cfr", None): mace.refinement,
    ("completion-probe", "sampling"): probes.completion,
    ("noise-probe", "sampling"): probes.noise_run,
    ("noise-probe", "step"): probes.steps,
    ("rece-attack", "vector"): rab.rows,
    ("ring-a-bell", "fitness"): rab.fitness,
    ("ring-a-bell", "run"): rab.generations,
    ("ring-a-bell", "vector"): rab.vector,
    ("safree", "filter"): safree.filters,
    ("safree", "text"): safree.text,
    ("safree", "sampling"): safree.sampling,
    ("sepme", None): sepme.programs,
    ("sld", "guidance"): sld.guidance,
    ("sld", "sampling"): sld.sampling,
    ("spm", None): spm.programs,
    ("trce-stage1", None): trce.weights,
    ("trce-stage2", None): trce2.steps,
    ("uce", None): uce.weights,
    ("uda", "projection"): uda.projections,
    ("uda", "run"): uda.steps,
    ("uda", "single-step"): uda.steps,
    ("esd", "partial-denoising"): esd.denoising,
    ("esd", "single-step"): esd.step,
    ("esd", "step"): esd.trained_step,
    ("esd", "train"): esd.training,
    ("esd", "parameter-names"): esd.names,
}
"""What to compare, by method and kind of case."""


def check(case: Case) -> Difference:
    """The difference of a case that is largest beside its tolerance.

    Raises:
        Unsupported: this version has no such method, or the method doesn't do it yet.
    """
    checker = CHECKS.get((case["method"], case.get("kind")))
    if checker is None:
        raise Unsupported(f"no check for {case['method']} {case.get('kind') or ''}")
    return max(checker(case), key=lambda difference: difference.share)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder that holds the cases")
    parser.add_argument(
        "--models", type=Path, metavar="PATH", help="default: the one that holds DIR"
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="cases whose names match")
    options = parser.parse_args(arguments)
    folders = sorted(path.parent for path in options.dir.glob("**/case.json"))
    folders = [folder for folder in folders if fnmatch.fnmatch(folder.name, options.only)]
    if not folders:
        print(f"error: no case below {options.dir} matches {options.only!r}", file=sys.stderr)
        return 2
    counts = {"ok": 0, "FAILED": 0, "not supported": 0}
    models = options.models or options.dir.resolve().parent
    for folder in folders:
        verdict, numbers = _verdict(folder, models)
        counts[verdict] += 1
        print(f"{folder.name:<40} {numbers} {verdict}", flush=True)
    print(", ".join(f"{count} {verdict.lower()}" for verdict, count in counts.items()))
    return int(counts["FAILED"] > 0)


def _verdict(folder: Path, models: Path) -> tuple[str, str]:
    try:
        difference = check(Case(folder, models))
    except Unsupported:
        return "not supported", f"{'-':>9} {'-':>9}"
    except (ExpungeError, KeyError, OSError, ValueError) as error:
        return "FAILED", f"{'-':>9} {'-':>9}  ({' '.join(str(error).split())})"
    verdict = "ok" if difference.ok else "FAILED"
    return verdict, f"{difference.value:9.1e} {difference.tolerance:9.1e}"


if __name__ == "__main__":
    sys.exit(main())
