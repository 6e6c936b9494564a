import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from changes import edit_of, predicted, random
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, erase, load
from expunge import testing as build
from expunge.edits import Dense, LowRank, SharedMatrix
from expunge.formats import published

DATA = Path(__file__).parent.parent / "data" / "reference"
Weights = dict[str, Tensor]
Write = Callable[[Weights, Path], Path]


def after(edit: Edit, model: Model) -> Weights:
    """The whole edited UNet."""
    with edit.applied(model):
        return {name: weight.clone() for name, weight in model.pipe.unet.state_dict().items()}


def relative(model: Model, edit: Edit, weights: Weights) -> float:
    """``|edited - published| / |published - base|``."""
    edited, base = after(edit, model), model.pipe.unet.state_dict()
    missed = sum(
        float((edited[n].double() - w.double()).square().sum()) for n, w in weights.items()
    )
    total = sum(float((base[n].double() - w.double()).square().sum()) for n, w in weights.items())
    return float((missed / total) ** 0.5)


def plain(weights: Weights, folder: Path) -> Path:
    torch.save(weights, folder / "erased.pt")
    return folder / "erased.pt"


def old_pickle(weights: Weights, folder: Path) -> Path:
    torch.save(weights, folder / "erased.pt", _use_new_zipfile_serialization=False)
    return folder / "erased.pt"


def wrapped(weights: Weights, folder: Path) -> Path:
    torch.save({"epoch": 2, "state_dict": weights}, folder / "erased.pt")
    return folder / "erased.pt"


def by_module(weights: Weights, folder: Path) -> Path:
    """As a demo of ESD saves it: a dict for each module."""
    modules: dict[str, Weights] = {}
    for name, weight in weights.items():
        module, _, parameter = name.rpartition(".")
        modules.setdefault(f"unet.{module}", {})[parameter] = weight
    torch.save(modules, folder / "erased.pt")
    return folder / "erased.pt"


def keys_and_values(weights: Weights, folder: Path) -> Path:
    kept = {n: w for n, w in weights.items() if ".attn2.to_k." in n or ".attn2.to_v." in n}
    save_file(kept, folder / "erased.safetensors")
    return folder / "erased.safetensors"


def unet_folder(weights: Weights, folder: Path) -> Path:
    unet = build.unet()
    unet.load_state_dict(weights)
    unet.save_pretrained(folder / "erased")
    return folder / "erased"


@pytest.mark.parametrize(
    "write", [plain, old_pickle, wrapped, by_module, keys_and_values, unet_folder]
)
def test_a_closed_form_result_comes_back_as_one_thin_matrix(
    write: Write, pico: Model, tmp_path: Path
) -> None:
    wanted = after(erase(pico, Concept(target="ghost", anchor="man"), "uce", variant="2025"), pico)
    path = write(wanted, tmp_path)
    edit = published.load(path, pico, [Concept(target="ghost", kind="character")])
    (payload,), record = [part.payload for part in edit.components], edit.provenance[0]
    assert isinstance(payload, SharedMatrix)
    assert payload.left.shape == (1, 32)
    assert payload.names == pico.select("cross_attention.kv")
    assert relative(pico, edit, {n: wanted[n] for n in payload.names}) < 1e-6
    assert record.method == "imported"
    assert record.concepts[0].kind == "character"
    assert record.settings["file"] == path.name
    assert record.settings["residual"] < 1e-6
    assert record.settings["parameters"]["changed"] == len(payload.names)
    if path.is_file():
        assert record.settings["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    edit.save(tmp_path / "edit.safetensors")
    assert Edit.load(tmp_path / "edit.safetensors").id == edit.id
    with torch.no_grad():
        pico.denoiser.get_parameter(edit.names[0])[0, 0] += 0.1
    with pytest.raises(ExpungeError, match=r"the weights of .* differ from it"):
        edit.apply(pico)


def test_the_matrix_keeps_as_many_directions_as_stand_out(pico: Model, tmp_path: Path) -> None:
    """A tenth of the tolerance as noise: the five directions stay, the noise doesn't."""
    left, right = random(5, 32, scale=1).double(), random(5, 32, scale=0.1, seed=1).double()
    made = edit_of(SharedMatrix(pico.select("cross_attention.kv"), left, right), pico)
    wanted = {n: w for n, w in after(made, pico).items() if n in made.names}
    change = {n: w - pico.base_weight(n) for n, w in wanted.items()}
    for number, (name, moved) in enumerate(change.items()):
        noise = random(*moved.shape, seed=number)
        wanted[name] += 2e-4 * noise * moved.norm() / noise.norm()
    edit = published.load(plain(wanted, tmp_path), pico)
    payload = edit.components[0].payload
    assert isinstance(payload, SharedMatrix)
    assert len(payload.left) == 5
    assert edit.provenance[0].settings["residual"] == pytest.approx(2e-4, rel=0.1)
    exact = torch.eye(32).double() + left.T @ right
    assert (payload.matrix - exact).norm() < 1e-3 * exact.norm()


def test_a_published_model_of_sepme_is_an_edit_of_low_rank(pico: Model, tmp_path: Path) -> None:
    """``models/NAME/NAME.pt``: a flat state dict of the whole UNet, saved by torch in float32.

    A separable change has a rank of its own in each matrix, and no matrix in common.
    """
    names = pico.select("cross_attention.kv")
    up = {n: random(len(pico.base_weight(n)), 3, seed=k) for k, n in enumerate(names)}
    wanted = after(edit_of(LowRank(up, dict.fromkeys(names, random(3, 32))), pico), pico)
    path = plain(wanted, tmp_path)
    edit = published.load(path, pico, [Concept(target="VanGogh", kind="style")])
    (payload,) = (part.payload for part in edit.components)
    assert isinstance(payload, LowRank)
    assert {factor.shape[1] for factor in payload.up.values()} == {3}
    assert edit.names == names
    assert relative(pico, edit, {n: wanted[n] for n in names}) < 1e-5
    assert edit.only("VanGogh").id == edit.id


@pytest.mark.parametrize(
    "name", ["uce2023_replace_uncond", "uce2025_expand_art", "trce_word_default"]
)
def test_results_of_the_original_programs_reduce_to_their_matrix(name: str) -> None:
    """Their single-precision weights, beside the matrix of a run in double precision."""
    model = load(DATA / "tiny-sd", device="cpu")
    case = DATA / "cases" / name
    edit = published.load(case / "expected.safetensors", model)
    payload, settings = edit.components[0].payload, edit.provenance[0].settings
    assert isinstance(payload, SharedMatrix)
    assert settings["residual"] < 2e-4
    weights = load_file(case / "expected.safetensors")
    assert relative(model, edit, weights) == pytest.approx(settings["residual"], rel=0.05)
    exact = load_file(case / "expected_fp64.safetensors")["M"]
    base = torch.cat([model.base_weight(name).double() for name in edit.names])
    change = base @ exact - base
    assert (base @ payload.matrix - base - change).norm() < 1e-3 * change.norm()


def test_the_technique_tensor_is_no_single_matrix(tmp_path: Path) -> None:
    model = load(DATA / "tiny-sd", device="cpu")
    path = DATA / "cases" / "uce2023_tensor_guided" / "expected.safetensors"
    edit = published.load(path, model)
    assert isinstance(edit.components[0].payload, Dense)
    assert relative(model, edit, load_file(path)) < 1e-6


def test_low_rank_changes_become_factors(pico: Model, tmp_path: Path) -> None:
    names = [*pico.select("cross_attention.kv"), *pico.select("self_attention")]
    names = [name for name in names if name.endswith(".weight")]
    up = {n: random(len(pico.base_weight(n)), 2, seed=i) for i, n in enumerate(names)}
    down = {n: random(2, pico.base_weight(n).shape[1], seed=i) for i, n in enumerate(names)}
    wanted = after(edit_of(LowRank(up, down), pico), pico)
    edit = published.load(plain(wanted, tmp_path), pico)
    payload = edit.components[0].payload
    assert isinstance(payload, LowRank)
    assert {factor.shape[1] for factor in payload.up.values()} == {2}
    assert set(payload.names) == set(names)
    assert relative(pico, edit, {n: wanted[n] for n in names}) < 1e-4


def test_any_other_change_is_stored_whole_and_exact(pico: Model, tmp_path: Path) -> None:
    changes = {n: random(*w.shape, scale=1e-3) for n, w in pico.denoiser.named_parameters()}
    wanted = after(edit_of(Dense(changes), pico), pico)
    edit = published.load(plain(wanted, tmp_path), pico)
    assert isinstance(edit.components[0].payload, Dense)
    assert len(edit.names) == len(wanted)
    edited = after(edit, pico)
    assert all(torch.allclose(edited[n], w, rtol=0, atol=1e-8) for n, w in wanted.items())


def test_rounding_to_half_precision_is_no_change(
    pico: Model, pico_folder: Path, tmp_path: Path
) -> None:
    """In the file or in the base: only what was edited is an edit."""
    wanted = after(erase(pico, Concept(target="ghost", anchor="man"), "uce"), pico)
    kv = pico.select("cross_attention.kv")
    rounded = {name: weight.half() for name, weight in wanted.items()}
    assert set(published.load(plain(rounded, tmp_path), pico).names) == set(kv)
    half = load(pico_folder, device="cpu", dtype=torch.float16)
    assert set(published.load(plain(wanted, tmp_path), half).names) == set(kv)


class Call:
    """What runs when a pickle of it is opened without care."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("code of the file runs",)


def bad(name: str, weights: Weights, folder: Path) -> Path:
    """A file or folder with one fault."""
    path, first = folder / "bad.pt", next(iter(weights))
    if name == "code":
        torch.save({"state_dict": weights, "extra": Call()}, path)
    elif name == "list":
        torch.save([1, 2], path)
    elif name == "empty":
        torch.save({"epoch": 3}, path)
    elif name == "names":
        torch.save({**weights, "decoder.conv.weight": torch.ones(2)}, path)
    elif name == "original":
        save_file({f"model.diffusion_model.{n}": w for n, w in weights.items()}, path)
    elif name == "shape":
        torch.save({**weights, first: weights[first][:-1]}, path)
    elif name == "nan":
        torch.save({**weights, first: weights[first] * float("nan")}, path)
    elif name == "cut pickle":
        path.write_bytes(plain(weights, folder).read_bytes()[:-1000])
    elif name == "cut safetensors":
        path.write_bytes(keys_and_values(weights, folder).read_bytes()[:-100])
    elif name == "text":
        path.write_text("these are no weights")
    elif name == "pipeline":
        path.mkdir()
        (path / "model_index.json").write_text("{}")
    elif name in ("lacking", "foreign"):
        shutil.move(unet_folder(weights, folder), path)
        state = load_file(path / "diffusion_pytorch_model.safetensors")
        taken = state.pop("conv_in.weight")
        if name == "foreign":
            state["of.another.net"] = taken
        save_file(state, path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    elif name == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("code", r"holds more than tensors \(it asks for \S*print\)"),
        ("list", "holds a list, not weights by name"),
        ("empty", "holds no tensor"),
        ("names", r"1 of \d+ tensors aren't of the UNet .* e\.g\. 'decoder\.conv\.weight'"),
        ("original", "208 of 208 tensors aren't of the UNet"),
        ("shape", "it was made from another model"),
        ("nan", "aren't finite"),
        ("cut pickle", "cut short or damaged"),
        ("cut safetensors", "not a safetensors file, or cut short"),
        ("text", "neither a safetensors file nor one that torch saved"),
        ("pipeline", r"a whole pipeline; give its UNet, .*bad\.pt/unet"),
        ("lacking", r"1 weights of .* are missing, e\.g\. conv_in\.weight"),
        ("foreign", r"1 of \d+ tensors aren't of the UNet .* e\.g\. 'of\.another\.net'"),
        ("folder", "no diffusers UNet folder"),
        ("nothing", "no such file or folder"),
    ],
)
def test_what_is_no_result_is_refused(
    name: str, message: str, pico: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = dict(pico.pipe.unet.state_dict())
    with pytest.raises(ExpungeError, match=message):
        published.load(bad(name, weights, tmp_path), pico)
    assert "code of the file" not in capsys.readouterr().out


@pytest.mark.parametrize("write", [plain, keys_and_values])
def test_a_result_of_another_base_is_refused(write: Write, pico: Model, tmp_path: Path) -> None:
    torch.manual_seed(9)
    other = UNet2DConditionModel.from_config(pico.pipe.unet.config)
    path = write(dict(other.state_dict()), tmp_path)
    with pytest.raises(ExpungeError, match="of the weights, in no common way"):
        published.load(path, pico)


def test_the_base_itself_and_an_edited_model_are_refused(pico: Model, tmp_path: Path) -> None:
    path = plain(dict(pico.pipe.unet.state_dict()), tmp_path)
    with pytest.raises(ExpungeError, match="nothing is erased"):
        published.load(path, pico)
    with erase(pico, "ghost").applied(pico), pytest.raises(ExpungeError, match="revert it"):
        published.load(path, pico)


def test_edited_parameters_are_written_as_uce_does(
    pico: Model, pico_folder: Path, tmp_path: Path
) -> None:
    edit = erase(pico, Concept(target="ghost", anchor="man"), "uce")
    path = tmp_path / "uce.safetensors"
    published.save(edit, pico, path)
    written = load_file(path)
    assert set(written) == set(pico.select("cross_attention.kv"))
    assert {weight.dtype for weight in written.values()} == {torch.float32}
    other = load(pico_folder, device="cpu")
    other.denoiser.load_state_dict(written, strict=False)
    with edit.applied(pico):
        assert torch.equal(predicted(other), predicted(pico))
    again = published.load(path, pico)
    assert relative(pico, again, written) < 1e-6


def test_a_write_that_fails_leaves_nothing(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(state: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(published, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        published.save(erase(pico, "ghost"), pico, tmp_path / "x.safetensors")
    assert not any(tmp_path.iterdir())
