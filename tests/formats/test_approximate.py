"""Weights for gates: as near as least squares come, and honest about the rest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from changes import edit_of
from safetensors import safe_open
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase, load
from expunge.cli import main
from expunge.edits import Dense
from expunge.edits.component import Component
from expunge.edits.gates import Addition, Tokens
from expunge.errors import Unsupported
from expunge.formats import approximate
from expunge.formats.approximate import approximated

SHORT: dict[str, Any] = {
    "rounds": 1, "first_iterations": 30, "batch_size": 2, "gate_rank": 3, "lr": 3e-2, "pal": 1.0,
}  # fmt: skip
POLICY = Policy(erase=(Concept(target="ghost", anchor="dog"),), keep=("cat", "art", "man"))


@dataclass(frozen=True, eq=False)
class Linear:
    """A gate that is no gate: it adds ``N x``, which weights can do exactly."""

    form: ClassVar[str] = "linear"
    reads_text: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = True
    names: tuple[str, ...]
    matrices: Mapping[str, Tensor]

    @classmethod
    def joined(cls, gates: "Sequence[Linear]") -> "Linear":
        return gates[0]

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "Linear":
        return cls(names, dict(tensors))

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.matrices)

    def additions(self, conditions: Tensor, tokens: Tokens) -> Mapping[str, Addition]:
        assert all(row is not None for row in tokens)
        return {
            name: (lambda inputs, matrix=matrix: inputs @ matrix.T)
            for name, matrix in self.matrices.items()
        }


def linear(model: Model, names: tuple[str, ...]) -> Edit:
    matrices = {name: torch.randn(model.base_weight(name).shape) / 9 for name in names}
    made = edit_of(Linear(names, matrices), model)
    record = made.provenance[0].model_copy(update={"concepts": POLICY.erase, "keep": POLICY.keep})
    return Edit((Component(made.components[0].payload, record),))


def test_what_weights_can_do_is_found(pico: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "LAMB", 1e-12)
    edit = linear(pico, pico.select("cross_attention.kv"))
    made, gap = approximated(edit, pico)
    assert not made.gated
    assert gap.erased < 1e-4
    assert gap.kept is not None
    assert gap.kept < 1e-4
    for name, exact in edit.components[0].payload.tensors().items():
        rows = pico.encode(["ghost", "a picture of a cat"]).flatten(0, 1)
        ours = made.components[0].payload.tensors()[name]
        assert ((ours - exact) @ rows.T).norm() < 1e-3 * (exact @ rows.T).norm()


def test_the_fit_is_the_ridge_solution_and_the_gap_is_of_other_prompts(pico: Model) -> None:
    edit = erase(pico, POLICY, "cpe", **SHORT)
    made, gap = approximated(edit, pico)
    payload, gates = made.components[0].payload, edit.components[0].payload
    assert isinstance(payload, Dense)
    sentences = ["{}", "a picture of a {}", "a photo of a {}", "an image of a {}"]
    erased = [s.format("ghost") for s in sentences]
    kept = ["", *(s.format(w) for s in sentences for w in POLICY.keep)]
    inner, outer = torch.zeros(32, 32).double(), dict.fromkeys(gates.names, 0)
    for prompts in (erased, kept):
        fitted = [prompt for at, prompt in enumerate(prompts) if at % 3 != 2]
        for prompt in fitted:
            x = pico.encode([prompt])
            rows = x[0].double()
            inner += rows.T @ rows / len(fitted)
            for name, added in gates.additions(x, [None]).items():
                outer[name] = outer[name] + added(x)[0].double().T @ rows / len(fitted)
    inner += approximate.LAMB * inner.trace() / 32 * torch.eye(32)
    for name in gates.names:
        exact = outer[name] @ torch.linalg.inv(inner)
        assert (payload.changes[name] - exact).norm() < 1e-5 * exact.norm()
    sums = {"missed": 0.0, "added": 0.0, "kept": 0.0, "whole": 0.0}
    for prompt in (erased[2], *kept[2::3]):
        x = pico.encode([prompt])
        for name, added in gates.additions(x, [None]).items():
            off = float((x @ payload.changes[name].T - added(x)).square().sum())
            sums["missed" if prompt == erased[2] else "kept"] += off
            if prompt == erased[2]:
                sums["added"] += float(added(x).square().sum())
            else:
                sums["whole"] += float((x @ pico.base_weight(name).T).square().sum())
    assert gap.erased == pytest.approx((sums["missed"] / sums["added"]) ** 0.5, rel=1e-3)
    assert gap.kept == pytest.approx((sums["kept"] / sums["whole"]) ** 0.5, rel=1e-3)
    assert (gap.erased_prompts, gap.kept_prompts) == (1, len(kept[2::3]))
    assert gap.erased > 1e-3
    assert made.provenance[0].settings["gap"] == gap._asdict()
    assert made.provenance[0].settings["of"] == edit.id


def test_changes_of_weights_stay_as_they_are(pico: Model) -> None:
    weights = erase(pico, "dog", "uce")
    made, _ = approximated(weights + erase(pico, POLICY, "cpe", **SHORT), pico)
    assert made.components[0].id == weights.id
    assert len(made.components) == 2


def test_what_cannot_be_approximated_is_refused(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="has no gates"):
        approximated(erase(pico, "dog", "uce"), pico)
    with pytest.raises(Unsupported, match="layers that see the picture too"):
        approximated(linear(pico, pico.select("*attn2.to_q.weight")), pico)
    with torch.no_grad():
        edit = erase(pico, POLICY, "cpe", **SHORT)
        pico.denoiser.get_parameter(edit.names[0])[0, 0] += 1
    with pytest.raises(ExpungeError, match="differ"):
        approximated(edit, pico)


def test_nothing_named_to_keep_is_said(pico: Model) -> None:
    assert approximated(erase(pico, "ghost", "cpe", **SHORT), pico)[1].kept is None


def test_the_command_tells_the_gap_and_writes_it(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pico = load(pico_folder, device="cpu")
    edit = erase(pico, POLICY, "cpe", **SHORT)
    edit.save(tmp_path / "edit.safetensors")
    options = ["export", str(tmp_path / "edit.safetensors"), "--model", str(pico_folder)]
    for to in ("lora", "weights", "checkpoint"):
        output = tmp_path / f"{to}.safetensors"
        arguments = [*options, "--to", to, "--output", str(output)]
        assert main(arguments) == 2
        assert "export an approximation (--approximate)" in capsys.readouterr().err
        assert main([*arguments, "--approximate"]) == 0
        assert "on 1 other prompts with the erased words off by" in capsys.readouterr().err
        with safe_open(output, framework="pt") as file:
            record = json.loads(file.metadata()["expunge_export"])
        assert record["provenance"][0]["settings"]["gap"] == approximated(edit, pico)[1]._asdict()
    output = str(tmp_path / "files")
    assert main([*options, "--to", "cpe", "--output", output, "--approximate"]) == 2
    assert "holds gates as they are" in capsys.readouterr().err
