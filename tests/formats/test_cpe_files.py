"""The published files of CPE: what they hold is what acts, and ours are such files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, erase, load
from expunge.cli import main
from expunge.edits.residual_gates import ResidualGates
from expunge.formats import cpe

MODULE = "attention_gate.encoder_layer.slf_attn."
SHORT: dict[str, Any] = {
    "rounds": 1, "first_iterations": 3, "batch_size": 2, "gate_rank": 3, "lr": 1e-2,
    "lr_warmup": 0,
}  # fmt: skip


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 2


def tensors(model: Model, seed: int, r: int, h: int, alpha: float = 1.0) -> dict[str, Tensor]:
    """A file's content with random numbers."""
    width = model.text_width
    made = {
        f"{MODULE}attention_module1.w_qs.weight": random(1, width, r, seed=seed),
        f"{MODULE}attention_module1.w_ks.weight": random(1, width, r, seed=seed + 50),
        f"{MODULE}gate.scaler.weight": random(1, width, 1, seed=seed + 100),
    }
    for number, name in enumerate(model.select("cross_attention.kv")):
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        out = len(model.base_weight(name))
        made[f"{key}.alpha"] = torch.tensor(alpha)
        made[f"{key}.lora_down.weight"] = random(1, width, h, seed=seed + 200 + number)
        made[f"{key}.lora_up.weight"] = random(1, h, out, seed=seed + 300 + number)
    return made


def folder(
    model: Model, place: Path, ranks: list[tuple[int, int, float]]
) -> list[dict[str, Tensor]]:
    """A folder as the program leaves it; the contents in the order of the paths."""
    contents = []
    for number, (r, h, alpha) in enumerate(ranks):
        content = tensors(model, 1000 * number, r, h, alpha)
        own = place / f"concept_{number}"
        own.mkdir(parents=True)
        header = {"prompts": f"concept {number}", "rank": str(h), "alpha": str(alpha)}
        save_file(content, own / "singleton_last.safetensors", header)
        save_file({"a": torch.zeros(1)}, own / "singleton_adv_prompts_last.safetensors")
        save_file({"a": torch.zeros(1)}, own / "singleton_stage1.safetensors")
        contents.append(content)
    return contents


def literal(contents: list[dict[str, Tensor]], rows: Tensor, key: str) -> tuple[Tensor, list[int]]:
    """A loop over concepts and tokens: what is added in one layer, and who wins; float64.

    P = X Q, A = softmax(P P^T), E = A X, g = sigmoid(E s); the concept with the largest g adds
    alpha / h (g E D) U.
    """
    rows = rows.double()
    best: list[tuple[float, int]] = [(-1.0, 0)] * len(rows)
    edited = []
    for n, content in enumerate(contents):
        q = content[f"{MODULE}attention_module1.w_qs.weight"][0].double()
        s = content[f"{MODULE}gate.scaler.weight"][0].double()
        p = rows @ q
        e = torch.softmax(p @ p.T, -1) @ rows
        g = torch.sigmoid(e @ s)
        edited.append(g * e)
        for token, opening in enumerate(g[:, 0].tolist()):
            if opening > best[token][0]:
                best[token] = (opening, n)
    added = []
    for token, (_, n) in enumerate(best):
        down, up = (contents[n][f"{key}.lora_{part}.weight"][0].double() for part in ("down", "up"))
        scale = float(contents[n][f"{key}.alpha"]) / down.shape[1]
        added.append(scale * (edited[n][token] @ down) @ up)
    return torch.stack(added), [n for _, n in best]


def golden(tokens: int, width: int) -> Tensor:
    """The input of the golden numbers, ``[2, tokens, width]``."""
    b, t, d = torch.meshgrid(
        *(torch.arange(size, dtype=torch.float64) for size in (2, tokens, width)), indexing="ij"
    )
    values = torch.sin(0.37 * (d + 1) + 0.11 * (t + 1) * (b + 1) + 0.003 * (t + 1) * (d + 1))
    return values.float()


def test_the_golden_input_is_that_of_the_specification() -> None:
    assert float(golden(77, 768).double().square().sum()) == pytest.approx(59139.905, abs=1e-3)


def test_a_folder_acts_as_the_program_merges_it(pico: Model, tmp_path: Path) -> None:
    ranks = [(3, 1, 1.0), (3, 1, 1.0), (5, 4, 1.0), (2, 3, 2.0), (3, 2, 0.5)]
    contents = folder(pico, tmp_path, ranks)
    edit = cpe.load(tmp_path, pico)
    assert [concept.target for concept in edit.concepts] == [f"concept {n}" for n in range(5)]
    assert {part.method for part in edit.provenance} == {"imported"}
    payloads = [part.payload for part in edit.components]
    assert all(isinstance(payload, ResidualGates) for payload in payloads)
    gates = ResidualGates.joined(payloads)
    conditions = golden(16, pico.text_width)
    additions, seen = gates.additions(conditions, [None, None]), set()
    for row, rows in enumerate(conditions):
        for name in gates.names:
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            added, winners = literal(contents, rows, key)
            assert gates.opened(rows).winner.tolist() == winners
            ours = additions[name](conditions)[row].double()
            assert (ours - added).norm() < 1e-6 * added.norm()
            seen |= set(winners)
    assert len(seen) > 2


def test_one_file_is_one_concept(pico: Model, tmp_path: Path) -> None:
    folder(pico, tmp_path, [(3, 1, 1.0), (3, 1, 1.0)])
    path = tmp_path / "concept_1" / "singleton_last.safetensors"
    assert cpe.recognised(path)
    edit = cpe.load(path, pico, kind="style")
    assert (edit.concepts[0].target, edit.concepts[0].kind) == ("concept 1", "style")
    whole = cpe.load(tmp_path, pico, [Concept(target="ghost"), Concept(target="dog")])
    assert [concept.target for concept in whole.concepts] == ["ghost", "dog"]


def test_other_files_are_not_taken_for_gates(pico: Model, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "b.pt").write_bytes(b"PK")
    for path in (tmp_path, tmp_path / "a.safetensors", tmp_path / "b.pt", tmp_path / "none"):
        assert not cpe.recognised(path)


def test_what_is_exported_is_a_published_file_and_comes_back(pico: Model, tmp_path: Path) -> None:
    policy = [Concept(target="santa claus", anchor="man"), Concept(target="ghost")]
    edit = erase(pico, policy, "cpe", adapter_rank=2, **SHORT)
    written = cpe.save(edit, pico, tmp_path / "out")
    assert [path.parent.name for path in written] == ["santa_claus", "ghost"]
    with safe_open(written[0], framework="pt") as file:
        header = file.metadata()
    assert {"prompts": "santa claus", "rank": "2", "alpha": "1.0"}.items() <= header.items()
    one = load_file(written[0])
    assert {name: tensor.shape for name, tensor in one.items()} == {
        name: tensor.shape for name, tensor in tensors(pico, 0, 3, 2).items()
    }
    back = {c.concepts[0].target: p for c, p in _parts(cpe.load(tmp_path / "out", pico))}
    for record, payload in _parts(edit):
        theirs = back[record.concepts[0].target].tensors()
        for name, tensor in payload.tensors().items():
            assert torch.equal(tensor, theirs[name])
    assert literal([one], pico.encode(["ghost"])[0], _key(pico))[0].shape[0] == 16


def _parts(edit: Edit) -> list[tuple[Any, Any]]:
    return [(part.provenance, part.payload) for part in edit.components]


def _key(model: Model) -> str:
    name = model.select("cross_attention.kv")[0]
    return "lora_unet_" + name.removesuffix(".weight").replace(".", "_")


def test_what_the_layout_cannot_hold_is_refused(pico: Model, tmp_path: Path) -> None:
    untied = erase(pico, "ghost", "cpe", tied=False, **SHORT)
    with pytest.raises(ExpungeError, match="a key map of their own"):
        cpe.save(untied, pico, tmp_path / "out")
    with pytest.raises(ExpungeError, match="holds residual attention gates, and a part"):
        cpe.save(erase(pico, "ghost", "uce"), pico, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_and_foreign_files_are_named(pico: Model, tmp_path: Path) -> None:
    good = tensors(pico, 0, 3, 1)
    key = _key(pico)

    def refused(content: dict[str, Tensor], message: str, header: str = "ghost") -> None:
        save_file(content, tmp_path / "x.safetensors", {"prompts": header} if header else {})
        with pytest.raises(ExpungeError, match=message):
            cpe.load(tmp_path / "x.safetensors", pico)

    refused({n: t for n, t in good.items() if n != f"{key}.alpha"}, "lacks 1 tensors")
    refused(good | {"lora_unet_other.alpha": torch.zeros(())}, "1 tensors have no place")
    refused(good | {f"{key}.lora_up.weight": torch.zeros(1, 1, 5)}, "it is for another model")
    refused(good | {f"{key}.lora_up.weight": good[f"{key}.lora_up.weight"] * torch.inf}, "finite")
    refused(good, "its header names no concept", header="")
    (tmp_path / "x.safetensors").write_bytes(b"1234567890")
    with pytest.raises(ExpungeError, match="not a safetensors file"):
        cpe.load(tmp_path / "x.safetensors", pico)
    with pytest.raises(ExpungeError, match=r"no file \*_last\.safetensors"):
        cpe.load(tmp_path / "none", pico)
    folder(pico, tmp_path / "two", [(3, 1, 1.0), (3, 1, 1.0)])
    with pytest.raises(ExpungeError, match="1 concepts for 2 files"):
        cpe.load(tmp_path / "two", pico, [Concept(target="ghost")])


def test_from_the_command_line_and_back(
    pico_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(pico_folder, device="cpu")
    folder(model, tmp_path / "in", [(3, 1, 1.0), (2, 2, 1.0)])
    options, made = ["--model", str(pico_folder)], tmp_path / "edit.safetensors"
    arguments = ["import", str(tmp_path / "in"), "--kind", "style", "--output", str(made)]
    assert main([*arguments, *options]) == 0
    assert "concept 0 (imported) + concept 1 (imported)" in capsys.readouterr().err
    edit = Edit.load(made)
    assert {concept.kind for concept in edit.concepts} == {"style"}
    out = tmp_path / "out"
    assert main(["export", str(made), "--to", "cpe", "--output", str(out), *options]) == 0
    assert "2 files of gates" in capsys.readouterr().err
    again = cpe.load(out, model)
    for one, two in zip(edit.components, again.components, strict=True):
        for name, tensor in one.payload.tensors().items():
            assert torch.equal(tensor, two.payload.tensors()[name])
