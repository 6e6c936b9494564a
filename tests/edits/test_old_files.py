"""Edits that version 0.1 saved are the same edits today, and do the same."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from expunge import Edit, Model

FOLDER = Path(__file__).parents[1] / "data" / "edits_0.1"
FORMS = (
    "ridge", "shared_matrix", "low_rank", "dense", "sum", "residual_gates", "membranes",
)  # fmt: skip


def expected(mark: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What begins with ``mark``, and the ids by form."""
    with safe_open(FOLDER / "expected.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(mark)]  # noqa: SIM118
        tensors = {name.removeprefix(mark): file.get_tensor(name) for name in names}
        return tensors, file.metadata()


@torch.no_grad()
def predicted(model: Model) -> Tensor:
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = model.condition(["a picture of ghost", "a cat"])
    return model.predict(latents, torch.tensor([500, 20]), condition)


@pytest.mark.parametrize("form", FORMS)
def test_an_edit_of_version_01_is_the_same_edit(pico: Model, form: str, tmp_path: Path) -> None:
    edit = Edit.load(FOLDER / f"{form}.safetensors")
    tensors, ids = expected(f"{form}:")
    assert {part.payload.form for part in edit.components} == {form}
    assert edit.id == ids[form]
    base = expected("base")[0][""]
    torch.testing.assert_close(predicted(pico), base, rtol=1e-5, atol=1e-5)
    with edit.applied(pico):
        found = predicted(pico)
        torch.testing.assert_close(found, tensors.pop("predicted"), rtol=1e-5, atol=1e-5)
        assert (found - base).abs().max() > 1e-4
        assert set(tensors) <= set(edit.changed)
        assert bool(tensors) == (not edit.gated)
        for name, weight in tensors.items():
            torch.testing.assert_close(
                pico.denoiser.get_parameter(name).detach(), weight, rtol=1e-6, atol=1e-7
            )
    edit.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        FOLDER / f"{form}.safetensors"
    ).read_bytes()
