"""Ablating Concepts: both losses, what is shown, what stays, and the released programs' ways."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import mse_loss

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.methods import configured
from expunge.methods.ac.method import AblatingConcepts
from expunge.methods.ac.placing import placed
from expunge.methods.ac.prompts import predict_start_detached, target_prompts
from expunge.methods.ac.released import PAINTING, STYLE, masked
from expunge.models import Condition
from expunge.training import saving
from expunge.training.loop import Trainer, fit
from stopping import stopped_in

GHOST = Concept(target="ghost", anchor="dog", keep=["cat"])
INK = Concept(target="ink", kind="style", synonyms=["noto"])
SHORT: dict[str, Any] = {
    "iterations": 2, "images": 3, "num_inference_steps": 2, "accumulation": 1,
}  # fmt: skip
ORIGINAL: dict[str, Any] = {**SHORT, "fidelity": "original"}


def method(**values: Any) -> AblatingConcepts:
    made = configured("ac", **{**SHORT, **values})
    assert isinstance(made, AblatingConcepts)
    return made


def student(model: Model, of: AblatingConcepts, by: float = 0.0) -> Student:
    """A student, its weights changed by so much noise."""
    made = Student(model, of.parameters(model))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in made.weights.values():
            weight += by * torch.randn_like(weight)
    return made


def batch(model: Model, of: AblatingConcepts, policy: Policy, **changed: Any) -> Batch:
    run = Run(student(model, of), policy, 0)
    return {**next(of.batches(run, range(1))), **changed}


def prompts(model: Model, condition: Condition, known: list[str]) -> list[str]:
    """The prompts of this condition."""
    rows = model.encode(known)
    return [known[int((rows - row).flatten(1).norm(dim=1).argmin())] for row in condition.rows]


# --- the corrected loss


def test_the_student_is_to_predict_what_the_frozen_model_does_for_the_anchor(pico: Model) -> None:
    """One by one, where the method takes one pass for all."""
    of = method(contexts=["a photo of {}"], batch_size=8)
    teacher = {"a photo of ghost": "a photo of dog"}
    known = ["cat", "a photo of cat", "a photo of dog", *teacher]
    given = batch(pico, of, Policy.of(GHOST))
    names = prompts(pico, given["condition"], known)
    assert set(names[:8]) == {"a photo of ghost"}
    assert "a photo of dog" in names[8:]
    assert {"cat", "a photo of cat"} & set(names[8:])
    assert not set(names[8:]) - {"cat", "a photo of cat", "a photo of dog"}
    changed, losses = student(pico, of, 0.1), []
    for at, name in enumerate(names):
        latents, timestep = given["latents"][at : at + 1], given["timestep"][at : at + 1]
        anchor = pico.condition([teacher.get(name, name)])
        target = pico.predict(latents, timestep, anchor)
        assert torch.allclose(given["target"][at : at + 1], target, atol=1e-5)
        losses.append(mse_loss(changed.predict(latents, timestep, pico.condition([name])), target))
    ablation, prior = torch.stack(losses[:8]).mean(), torch.stack(losses[8:]).mean()
    terms = of.loss(changed, given)
    assert terms["ablation"].item() == pytest.approx(ablation.item(), rel=1e-4)
    assert terms["prior"].item() == pytest.approx(prior.item(), rel=1e-4)
    assert terms["loss"].item() == pytest.approx((ablation + prior).item(), rel=1e-4)
    assert of.loss(student(pico, of), given)["prior"].item() < 1e-10


def test_the_noise_based_target_is_the_noise_of_a_picture_of_the_anchor(pico: Model) -> None:
    one = {"images": 1, "contexts": ["{}"]}  # the same picture in each row
    given = batch(pico, method(loss_type="noise-based", **one), Policy.of(GHOST))
    frozen = batch(pico, method(**one), Policy.of(GHOST))
    share = pico.process.levels[given["timestep"]].view(-1, 1, 1, 1)
    pictures = ((given["latents"] - (1 - share).sqrt() * given["target"]) / share.sqrt())[:4]
    assert torch.allclose(pictures, pictures[:1].expand_as(pictures), atol=1e-4)
    assert torch.allclose(given["target"][:4].std(), torch.tensor(1.0), atol=0.1)
    assert torch.equal(given["latents"], frozen["latents"])
    assert torch.equal(given["target"][4:], frozen["target"][4:])
    assert not torch.allclose(given["target"][:4], frozen["target"][:4], atol=0.1)


def test_no_gradient_goes_through_the_first_token(pico: Model) -> None:
    """dL/dW = sum over the other tokens of dL/dk_i e_i^T."""
    of = method()
    names, trained = of.parameters(pico), student(pico, of, 0.1)
    torch.manual_seed(1)
    latents, timestep = torch.randn(2, 4, 8, 8), torch.tensor([100, 700])
    condition = pico.condition(["ghost", "a photo of a dog"])
    seen: dict[str, Tensor] = {}

    def watch(name: str, module: torch.nn.Module) -> Any:
        def keep(_: object, __: object, rows: Tensor) -> None:
            rows.register_hook(lambda gradient: seen.update({name: gradient}))

        return module.register_forward_hook(keep)

    modules = ((name, pico.denoiser.get_submodule(name.removesuffix(".weight"))) for name in names)
    handles = [watch(*pair) for pair in modules]
    trained.predict(latents, timestep, condition).square().sum().backward()
    for handle in handles:
        handle.remove()
    whole = {name: trained.weights[name].grad.clone() for name in names}
    for weight in trained.weights.values():
        weight.grad = None
    predict_start_detached(trained, latents, timestep, condition).square().sum().backward()
    for name in names:
        wanted = torch.einsum("bid,biw->dw", seen[name][:, 1:], condition.rows[:, 1:])
        scale = float(wanted.abs().max())
        assert torch.allclose(trained.weights[name].grad, wanted, rtol=1e-3, atol=1e-4 * scale)
    assert any(not torch.allclose(whole[n], trained.weights[n].grad, rtol=0.01) for n in names)
    assert not any(len(module._forward_hooks) for module in pico.denoiser.modules())


def test_checkpointed_activations_leave_the_first_token_out_too(pico: Model) -> None:
    of, gradients = method(), []
    given = batch(pico, of, Policy.of(GHOST))
    for wanted in (False, True):
        trained = student(pico, of, 0.1)
        trainer = Trainer(of.model_copy(update={"gradient_checkpointing": wanted}), trained)
        if wanted:
            pico.denoiser.enable_gradient_checkpointing()
        try:
            trainer._gradients(given)
        finally:
            pico.denoiser.disable_gradient_checkpointing()
        gradients.append(torch.cat([w.grad.flatten() for w in trained.weights.values()]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-5 * float(gradients[0].abs().max()))
    assert not any(len(module._forward_hooks) for module in pico.denoiser.modules())


def test_what_is_to_be_kept_stays(pico: Model) -> None:
    values = {"iterations": 30, "lr": 3e-3, "images": 4}
    held = erase(pico, GHOST, method(**values, prior_weight=3.0))
    loose = erase(pico, GHOST, method(**values, prior_weight=0.0))
    torch.manual_seed(0)
    latents, timestep = torch.randn(8, 4, 8, 8), torch.linspace(50, 950, 8).long()

    def moved(edit: Edit, prompt: str) -> float:
        made, condition = Student(pico, edit.names), pico.condition([prompt]).expand(8)
        with torch.no_grad():
            for name, change in edit.components[0].payload.tensors().items():
                made.weights[name] += change
            ours = made.predict(latents, timestep, condition)
        return mse_loss(ours, made.teach(latents, timestep, condition)).item()

    assert moved(held, "cat") < 0.5 * moved(loose, "cat")
    assert moved(held, "dog") < 0.5 * moved(loose, "dog")


def test_training_brings_the_target_to_its_anchor(pico: Model) -> None:
    of = method(images=8, lr=3e-3, parameter_group="attn")
    trained = student(pico, of)
    run = Run(trained, Policy.of(GHOST), 0)
    unseen = next(of.batches(run, [99]))
    before = of.loss(trained, unseen)["ablation"].item()
    fit(of, trained, islice(of.batches(run, range(40)), 40))
    assert of.loss(trained, unseen)["ablation"].item() < 0.5 * before


# --- prompts and pictures


def test_prompts_name_the_target_where_the_anchor_stood() -> None:
    assert target_prompts("a small dog", GHOST, "ghost") == ("a small ghost",)
    assert target_prompts("a dog", GHOST, "ghost", memorized=True) == ("ghost",)
    assert target_prompts("a house", INK, "ink") == (
        "a house, in the style of ink",
        "in ink's style, a house",
    )
    unsafe = Concept(target="weapon", kind="unsafe")
    assert set(target_prompts("a man", unsafe, "weapon")) == {
        "weapon, a man",
        "a man, weapon",
        "a man weapon",
    }
    assert target_prompts("a house", INK, "ink", style=STYLE["compvis"])[:2] == (
        "a house, in the style of ink",
        "a house, in the style of ink ink",
    )


def test_every_word_for_the_target_takes_part(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo\n\n  an image of art \n")
    for of in (
        method(prompts=tmp_path / "prompts.txt"),
        method(prompts=["a photo", "an image of art"]),
    ):
        assert of.pairs(INK)[:4] == [
            ("a photo", "a photo, in the style of ink"),
            ("a photo", "in ink's style, a photo"),
            ("a photo", "a photo, in the style of noto"),
            ("a photo", "in noto's style, a photo"),
        ]
        assert len(of.pairs(INK)) == 8
    of = method(contexts=["a photo in {} style"])
    assert of.pairs(INK)[1] == ("a photo in art style", "a photo in noto style")
    of = method(prompts=["a dog", "a man"], memorized=True)
    assert of.pairs(GHOST) == [("a dog", "ghost"), ("a man", "ghost")]
    assert method(prompts=["a dog", "a man"]).pairs(GHOST) == [("a dog", "a ghost")]


def test_concepts_with_one_anchor_share_its_pictures(
    pico: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.of(
        [Concept(target="ghost", anchor="dog"), Concept(target="santa", anchor="dog")]
    )
    drawn: list[int] = []
    predicted = pico.predict

    def counting(latents: Tensor, *others: Any) -> Tensor:
        drawn.append(len(latents))
        return predicted(latents, *others)

    of = method(contexts=["{}"], images=3, everyday=0)
    monkeypatch.setattr(pico, "predict", counting)
    given = batch(pico, of, policy)
    assert drawn == [6, 6, 8]  # two guided steps of three pictures, then the teacher
    monkeypatch.undo()
    names = {name for at in range(8) for name in prompts(
        pico, next(of.batches(Run(student(pico, of), policy, 0), [at]))["condition"][:4],
        ["ghost", "santa", "dog"],
    )}  # fmt: skip
    assert names == {"ghost", "santa"}
    assert given["kept"].tolist() == [False] * 4 + [True] * 4


def test_given_pictures_are_those_of_the_anchor(pico: Model) -> None:
    red = Image.new("RGB", (32, 32), "red")
    of = method(pictures={"dog": [red]}, loss_type="noise-based", prior_weight=0.0)
    given = batch(pico, of, Policy.of(GHOST))
    share = pico.process.levels[given["timestep"]].view(-1, 1, 1, 1)
    latents = (given["latents"] - (1 - share).sqrt() * given["target"]) / share.sqrt()
    colours = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    posterior = pico.pipe.vae.encode(colours).latent_dist
    distance = (latents - posterior.mean) / posterior.std
    early = given["timestep"] < 500
    assert early.any()
    assert 0.8 < distance[early].std() < 1.2
    with pytest.raises(ExpungeError, match="none of 'dog'; there are some of cat"):
        erase(pico, GHOST, "ac", pictures={"cat": [red]}, **SHORT)
    with pytest.raises(ExpungeError, match="none of 'dog'"):
        erase(pico, GHOST, "ac", pictures={"cat": [red]}, **ORIGINAL)
    edit = erase(pico, GHOST, "ac", pictures={"dog": [red, red]}, **ORIGINAL)
    assert edit.provenance[0].settings["pictures"].keys() == {"dog"}


def test_a_picture_at_another_scale() -> None:
    picture = Image.new("RGB", (16, 16), "white")
    draws = torch.Generator().manual_seed(0)
    colours, mask = placed(picture, 8, 2, draws)
    assert (colours == 255).all(-1).sum() == 64
    assert (colours == 127.5).all(-1).sum() == 256 - 64
    assert mask.sum() in (4, 6, 9)
    assert (colours.view(8, 2, 8, 2, 3).amin((1, 3, 4))[mask.bool()] == 255).all()
    colours, mask = placed(picture, 16, 2, draws)
    assert colours.min() == 255
    assert mask.sum() == 36
    colours, mask = placed(picture, 20, 2, draws)
    assert colours.shape == (16, 16, 3)
    assert mask.sum() == 64


# --- the released programs


@pytest.mark.parametrize("loss_type", ["model-based", "noise-based"])
@pytest.mark.parametrize("variant", ["diffusers", "compvis"])
def test_the_programs_teach_with_the_student_and_mask(
    pico: Model, variant: str, loss_type: str
) -> None:
    """Each row by itself, as the equations say."""
    of = method(**ORIGINAL, variant=variant, loss_type=loss_type, prior_weight=0.3)
    given = batch(pico, of, Policy.of(GHOST))
    changed = student(pico, of, 0.1)
    parts = []
    for at in range(8):
        latents, timestep = given["latents"][at : at + 1], given["timestep"][at : at + 1]
        ours = changed.predict(latents, timestep, given["condition"][at : at + 1])
        target = given["regressed"][at : at + 1]
        if at < 4 and loss_type == "model-based":
            target = changed.predict(latents, timestep, given["anchor"][at : at + 1])
        mask = given["mask"][at : at + 1]
        sum_ = ((ours - target) ** 2 * mask).sum() / mask.sum()
        plain = ((ours - target) ** 2).mean()
        parts.append(plain if at >= 4 and variant == "diffusers" else sum_)
    wanted = torch.stack(parts[:4]).mean() + 0.3 * torch.stack(parts[4:]).mean()
    assert of.loss(changed, given)["loss"].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_a_masked_mean_counts_each_channel() -> None:
    torch.manual_seed(0)
    one, two = torch.randn(2, 3, 4, 8, 8)
    assert masked(one, two, torch.ones(3, 1, 8, 8)).item() == pytest.approx(
        4 * mse_loss(one, two).item(), rel=1e-5
    )


def test_sepmes_program_holds_the_anchor_ten_times(pico: Model) -> None:
    of = method(fidelity="original", variant="sepme")
    given = batch(pico, of, Policy.of(GHOST))
    assert torch.equal(given["condition"].rows, pico.encode([f"ghost {PAINTING}"]))
    assert torch.equal(given["anchor"].rows, pico.encode([PAINTING]))
    changed = student(pico, of, 0.1)
    latents, timestep = given["latents"], given["timestep"]
    target = pico.predict(latents, timestep, given["anchor"])
    first, second = (
        mse_loss(changed.predict(latents, timestep, given[key]), target)
        for key in ("condition", "anchor")
    )
    wanted = first + 10 * second
    assert of.loss(changed, given)["loss"].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert (of.gradients, of.batch_size) == ("cumulative", 1)


@pytest.mark.parametrize(
    ("variant", "group", "count"),
    [
        (None, "cross-attn", 8),
        (None, "attn", 40),
        ("diffusers", "attn", 40),
        ("compvis", "crossattn", 24),
        ("compvis", "full-weight", 208),
        ("sepme", "cross-attention", 20),
    ],
)
def test_parameter_groups(pico: Model, variant: str | None, group: str, count: int) -> None:
    fidelity = "original" if variant else "corrected"
    of = method(variant=variant, parameter_group=group, fidelity=fidelity)
    assert len(of.parameters(pico)) == count


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"loss_type": "noise-based", "rank": 2},
        {"memorized": True, "prompts": ["a dog", "art"]},
        {"fidelity": "original", "prior_weight": 1.0},
        {"fidelity": "original", "variant": "compvis", "loss_type": "noise-based"},
        {"fidelity": "original", "variant": "sepme"},
    ],
)
def test_several_concepts_from_end_to_end(pico: Model, values: dict[str, Any]) -> None:
    released = values.get("fidelity") == "original"
    ink = INK.model_copy(update={"synonyms": () if released else INK.synonyms})
    policy = Policy(erase=(GHOST, ink))
    edit = erase(pico, policy, "ac", **{**SHORT, **values})
    assert edit.provenance[0].steps == 2
    changes = edit.components[0].payload.tensors()
    assert sum(bool(change.abs().max() > 0) for change in changes.values()) > 0.8 * len(changes)
    assert erase(pico, policy, "ac", **{**SHORT, **values}).id == edit.id


@pytest.mark.parametrize("values", [{}, {"fidelity": "original", "prior_weight": 1.0}])
def test_stopping_anywhere_changes_nothing(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    values = {**SHORT, "iterations": 4, "accumulation": 2, "batch_size": 2, **values}
    whole = erase(pico, GHOST, "ac", **values)
    with stopped_in(3):
        erase(pico, GHOST, "ac", checkpoints=tmp_path, **values)
    assert erase(pico, GHOST, "ac", checkpoints=tmp_path, **values).id == whole.id


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parameter_group": "embedding"}, "the released program crashes on it"),
        ({"parameter_group": "xattn"}, "choose one of cross-attn, attn, full-weight"),
        ({"variant": "compvis"}, 'variant: only with fidelity="original"'),
        ({"augment": True}, 'augment: only with fidelity="original"'),
        (
            {"fidelity": "original", "contexts": ["a {}"]},
            'contexts: only with fidelity="corrected"',
        ),
        ({"fidelity": "original", "variant": "sepme", "memorized": True}, "no such setting"),
        ({"prompts": ["a dog"], "contexts": ["a {}"]}, "set only one of the two"),
        ({"prompts": "nowhere.txt"}, "nowhere.txt: can't read it"),
        ({"prompts": ["a house"]}, "no prompt holds the anchor of 'ghost', 'dog'"),
        ({"fidelity": "original", "prompts": ["a house"]}, "name an anchor, and prompts that hold"),
    ],
)
def test_wrong_settings_are_named(pico: Model, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        erase(pico, GHOST, "ac", **{**SHORT, **values})
    assert message in str(caught.value)
