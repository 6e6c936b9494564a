"""``python -m expunge.reference DIR``: our numbers beside those of the original programs.

Each folder below DIR with a ``case.json`` is one run of an original program: what it was given,
what it gave, and how closely two correct programs agree.
"""

import argparse
import fnmatch
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from expunge.concepts import Concept, Policy
from expunge.edits.edit import edited_weights
from expunge.errors import ExpungeError, Unsupported
from expunge.formats.compvis import diffusers_name
from expunge.methods import METHODS, configured, erase
from expunge.methods.esd import ESD
from expunge.methods.esd_programs import Program, parameters
from expunge.models import Model, load
from expunge.training.loop import fit
from expunge.training.student import Student

Tensors = Mapping[str, Tensor]


class Difference(NamedTuple):
    """How far one of our results is from the original's, and how far it may be."""

    value: float
    tolerance: float

    @property
    def share(self) -> float:
        return self.value / self.tolerance if self.tolerance else float(self.value > 0)

    @property
    def ok(self) -> bool:
        return self.value <= self.tolerance


class Case:
    """One folder of the reference data; files are read when asked for."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.folder = folder
        self.models = models
        self.data: dict[str, Any] = json.loads((folder / "case.json").read_text(encoding="utf-8"))

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def get(self, key: str) -> Any:
        return self.data.get(key)

    def file(self, name: str) -> Tensors:
        """The tensors of a file of the case; none when there is no such file."""
        path = self.folder / f"{name}.safetensors"
        return load_file(path) if path.exists() else {}

    def model(self) -> Model:
        """The model that the case names, with the embeddings that the original used."""
        model = load(self.models / self["model"], device="cpu")
        stored = self.folder / str(self.get("text_embeddings")).partition(",")[0]
        if stored.is_file():
            rows = load_file(stored)
            model.remember({key.removeprefix("emb:"): value for key, value in rows.items()})
        return model


def pooled(ours: Tensors, theirs: Tensors) -> float:
    """Relative Frobenius distance over all tensors of ``theirs``."""
    distance = sum((ours[name].double() - theirs[name].double()).square().sum() for name in theirs)
    total = sum(tensor.double().square().sum() for tensor in theirs.values())
    return float((torch.as_tensor(distance) / torch.as_tensor(total)).sqrt())


def fingerprint(tensor: Tensor) -> Tensor:
    """Norm, projection on the ones direction, projection on the direction cos 0, cos 1, ..."""
    flat = tensor.double().flatten()
    wave = torch.cos(torch.arange(len(flat), dtype=torch.float64))
    return torch.stack([flat.norm(), flat.sum() / len(flat) ** 0.5, flat @ wave / wave.norm()])


def compared(ours: Tensors, case: Case, theirs: Tensors, tolerance: float) -> Iterator[Difference]:
    """Distance of whole tensors, and of the fingerprints of those too large to store."""
    yield Difference(pooled(ours, theirs), tolerance)
    marks = case.file("fingerprints")
    if marks:
        largest = max(float(mark[0]) for mark in marks.values())
        worst = max(float((fingerprint(ours[n]) - m).abs().max()) for n, m in marks.items())
        yield Difference(worst / largest, tolerance)


def uce(case: Case) -> Iterator[Difference]:
    """Weight changes of both released programs, in single and in double precision."""
    model = case.model()
    policy = Policy(erase=tuple(_concept(pair) for pair in case["pairs"]))
    edit = erase(
        model,
        policy,
        "uce",
        fidelity="original",
        variant=case["variant"],
        preserve=tuple(case.get("retain") or case.get("preserve") or ()),
        **case["params"],
    )
    edited = edited_weights(model, edit.components, edit.names)
    base = {name: model.base_weight(name).double() for name in edited}
    ours = {name: weight - base[name] for name, weight in edited.items() if weight is not None}
    for file, tolerance in case["tolerance"].items():
        if file == "expected" and case.get("fp32_reliable") is False:
            continue
        theirs = case.file(file)
        if "M" in theirs:
            theirs = {name: weight @ theirs["M"] for name, weight in base.items()}
        if set(theirs) != set(ours):
            raise ExpungeError(f"{file}: {len(theirs)} tensors change, here {len(ours)}")
        change = {name: weight.double() - base[name] for name, weight in theirs.items()}
        yield Difference(pooled(ours, change), tolerance["rel_fro_of_change"])


def _concept(pair: Mapping[str, str]) -> Concept:
    return Concept(target=pair["erase"], anchor=pair["guide"])


def _esd(case: Case, **values: Any) -> tuple[ESD, Program]:
    params = case.get("params") or {}
    known = {key: params[key] for key in ("negative_guidance", "start_guidance") if key in params}
    steps = params.get("ddim_steps") or params.get("num_inference_steps") or 50
    method = configured(
        "esd",
        fidelity="original",
        variant=case["variant"],
        erase_from=case.get("erase_from"),
        num_inference_steps=steps,
        **known,
        **values,
    )
    assert isinstance(method, ESD)
    assert method.program
    return method, method.program


def _stop(draw: Mapping[str, Any]) -> tuple[str, int]:
    """The name that a program gives its random step, and the step."""
    key = "i" if "i" in draw else "k"
    return key, int(draw[key])


def esd_denoising(case: Case) -> Iterator[Difference]:
    """Latents of the partial denoising."""
    (_, program), model = _esd(case), case.model()
    student = Student(model, model.select("all"))
    noise, expected = case.file("inputs")["initial_noise"], case.file("expected")
    for draw in case["results"]:
        key, stop = _stop(draw)
        latents = program.latents(student, case["prompt"], noise, stop, draw["scale"])
        theirs = expected[f"{key}{stop}_s{draw['scale']:g}"]
        yield Difference(
            pooled({"latents": latents}, {"latents": theirs}), case["tolerance"]["rel_fro"]
        )


def _batch(program: Program, model: Model, case: Case, latents: Tensor, timestep: int) -> Tensors:
    return {
        "latents": latents,
        "timestep": torch.tensor([timestep]),
        **program.embeddings(model, case["concept"]),
    }


def esd_step(case: Case) -> Iterator[Difference]:
    """Loss and gradients of one step."""
    (method, program), model = _esd(case), case.model()
    expected = case.file("expected")
    student = Student(model, [*expected, *case.file("fingerprints")])
    latents, timestep = case.file("inputs")["x_t"], case["params"]["timestep"]
    loss = method.loss(student, _batch(program, model, case, latents, timestep))
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {n: w.grad for n, w in student.weights.items() if w.grad is not None}
    yield _losses([loss.item()], [case["loss"]], case["tolerance"]["loss_rel"])
    yield from compared(gradients, case, expected, case["tolerance"]["grads_pooled_rel_fro"])


def esd_training(case: Case) -> Iterator[Difference]:
    """Losses and weight changes of a few steps on given latents."""
    method, program = _esd(case, train_method=case["train_method"], lr=case["params"]["lr"])
    model, inputs = case.model(), case.file("inputs")
    student = Student(model, method.parameters(model))
    if len(student.weights) != case["n_trained"]:
        raise ExpungeError(f"{case['n_trained']} parameters train, here {len(student.weights)}")
    steps = case["steps"]
    batches = [_batch(program, model, case, inputs[s["x_t"]], s["timestep"]) for s in steps]
    tolerance = case["tolerance"]
    yield _losses(fit(method, student, batches), case["losses"], tolerance["losses_rel"])
    ours = student.changes()
    theirs = {n: w - model.base_weight(n) for n, w in case.file("expected").items()}
    yield from compared(ours, case, theirs, tolerance["rel_fro_of_change"])
    worst = max(float((ours[name] - change).abs().max()) for name, change in theirs.items())
    yield Difference(worst, tolerance["max_abs"])


def _losses(ours: Iterable[float], theirs: Iterable[float], tolerance: float) -> Difference:
    return Difference(max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)), tolerance)


def esd_names(case: Case) -> Iterator[Difference]:
    """Names of the trained parameters, which must agree exactly."""
    from diffusers import UNet2DConditionModel

    for group, methods in case["names"].items():
        program, _, place = group.partition(" on ")
        variant = program.removesuffix("_native")
        folder = place or str(case["model"]).split()[0]
        unet = UNet2DConditionModel.from_pretrained(case.models / folder, subfolder="unet")
        for method, theirs in methods.items():
            if program != variant:
                theirs = [diffusers_name(name) for name in theirs]
            ours = parameters(unet, variant, method)
            yield Difference(float(len(set(ours) ^ set(theirs))), 0.0)


CHECKS: dict[tuple[str, str | None], Callable[[Case], Iterator[Difference]]] = {
    ("uce", None): uce,
    ("esd", "partial-denoising"): esd_denoising,
    ("esd", "single-step"): esd_step,
    ("esd", "train"): esd_training,
    ("esd", "parameter-names"): esd_names,
}
"""What to compare, by method and kind of case."""


def check(case: Case) -> Difference:
    """The difference of a case that is largest beside its tolerance.

    Raises:
        Unsupported: this version has no such method, or the method doesn't do it yet.
    """
    checker = CHECKS.get((case["method"], case.get("kind")))
    if checker is None or case["method"] not in METHODS:
        raise Unsupported(f"no check for {case['method']} {case.get('kind') or ''}")
    return max(checker(case), key=lambda difference: difference.share)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m expunge.reference", description=__doc__)
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
