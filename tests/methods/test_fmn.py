"""Forget-Me-Not: its loss, its columns, its batches, its settings."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.methods.fmn.batches import ShownConcept, columns, row
from expunge.methods.fmn.losses import attention_norms, logit_distances
from expunge.methods.fmn.method import ForgetMeNot
from expunge.models import Condition
from expunge.training import saving
from expunge.training.inversion import inverted
from expunge.training.loop import Trainer, fit
from stopping import stopped_in

GHOST = Concept(target="ghost", synonyms=["noto"], keep=["cat", "fox"])
SANTA = Concept(target="santa claus", kind="character")
SHORT: dict[str, Any] = {"iterations": 2, "images": 2, "num_inference_steps": 3}


def batch(model: Model, prompts: list[tuple[str, str]], **values: Tensor) -> Batch:
    draws = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn((len(prompts), *model.latent_shape), generator=draws),
        "timestep": torch.randint(1000, (len(prompts),), generator=draws),
        "condition": model.condition([prompt for prompt, _ in prompts]),
        "columns": torch.stack([columns(model, *pair, "first") for pair in prompts]),
        **values,
    }


PROMPTS = [
    ("a picture of ghost", "ghost"),
    ("santa claus and a dog", "santa claus"),
    ("art", "art"),
]


@torch.no_grad()
def looked(model: Model, given: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Queries of every cross-attention, ``[batch, pixels, out]``, and its key matrix; float64."""
    layers = {n: m for n, m in model.denoiser.named_modules() if n.endswith(".attn2")}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, inputs, name=name: found.__setitem__(
                name,
                (inputs[0].double() @ layer.to_q.weight.double().T, layer.to_k.weight.double()),
            )
        )
        for name, layer in layers.items()
    ]
    model.predict(given["latents"], given["timestep"], given["condition"])
    for hook in hooks:
        hook.remove()
    return found


def heads(model: Model, layer: str, rows: Tensor) -> Tensor:
    """``[rows, out]`` as ``[heads, rows, width]``."""
    return rows.unflatten(1, (model.denoiser.get_submodule(layer).heads, -1)).transpose(0, 1)


def test_the_loss_is_one_norm_over_all_layers_heads_and_pixels(pico: Model) -> None:
    given = batch(pico, PROMPTS)
    ours = attention_norms(Student(pico, pico.select("cross_attention")), given)
    for sample, (prompt, _) in enumerate(PROMPTS):
        columns_ = []
        for layer, (queries, key) in looked(pico, given).items():
            keys = heads(pico, layer, pico.encode([prompt])[0].double() @ key.T)
            rows = heads(pico, layer, queries[sample])
            maps = (rows @ keys.mT / rows.shape[-1] ** 0.5).softmax(-1)
            columns_.append(maps[..., given["columns"][sample]].flatten())
        assert ours[sample].item() == pytest.approx(torch.cat(columns_).norm().item(), rel=1e-5)


def test_sepmes_loss_is_the_distance_of_logits(pico: Model) -> None:
    given = batch(pico, PROMPTS[:1], generic=pico.encode(["a picture of"]))
    ours = logit_distances(Student(pico, pico.select("cross_attention")), given)
    theirs = []
    for layer, (queries, key) in looked(pico, given).items():
        difference = (given["condition"].rows - given["generic"])[0].double() @ key.T
        rows = heads(pico, layer, queries[0])
        logits = rows @ heads(pico, layer, difference).mT / rows.shape[-1] ** 0.5
        theirs.append(logits.square().mean())
    assert torch.allclose(ours.double(), torch.stack(theirs), rtol=1e-4)
    total = ForgetMeNot(fidelity="original", variant="sepme").loss(
        Student(pico, pico.select("cross_attention")), given
    )
    assert total["loss"].item() == pytest.approx(float(sum(theirs)), rel=1e-4)


def gradients(model: Model, given: Batch) -> dict[str, Tensor]:
    student = Student(model, model.select("all"))
    ForgetMeNot().loss(student, given)["loss"].backward()
    return {n: w.grad for n, w in student.weights.items() if w.grad is not None}


def test_a_batch_gives_the_mean_of_its_samples_gradients(pico: Model) -> None:
    """Also where the prompts have different numbers of columns."""
    given = batch(pico, PROMPTS)
    assert len(set(given["columns"].sum(1).tolist())) > 1
    parts = [gradients(pico, {k: v[at : at + 1] for k, v in given.items()}) for at in range(3)]
    for name, whole in gradients(pico, given).items():
        mean = torch.stack([part[name] for part in parts]).mean(0)
        assert float((whole - mean).norm()) < 1e-4 * float(mean.norm()) + 1e-6


@pytest.mark.parametrize(
    ("pooler", "padding", "marked"),
    [
        ("none", True, {4, 5}),
        ("first", True, {4, 5, 6}),
        ("all", True, {4, 5, *range(6, 16)}),
        ("all", False, {4, 5, 6}),
    ],
)
def test_columns(pico: Model, pooler: Any, padding: bool, marked: set[int]) -> None:
    if not padding:
        pico.pipe.tokenizer.pad_token = "a</w>"
    marks = columns(pico, "a picture of santa claus", "santa claus", pooler)
    assert set(marks.nonzero()[:, 0].tolist()) == marked
    twice = columns(pico, "ghost and ghost", "ghost", "none")
    assert twice.sum() == 2
    with pytest.raises(ExpungeError, match="doesn't hold the tokens"):
        columns(pico, "a dog", "cat", pooler)


def test_what_the_loss_does_not_reach_stays_bit_for_bit(pico: Model) -> None:
    """The original decays its weights, but not those without a gradient."""
    edit = erase(pico, "ghost", "fmn", fidelity="original", lr=1e-3, **SHORT)
    changes = edit.components[0].payload.tensors()
    assert set(changes) == set(pico.select("all"))
    last = "up_blocks.1.attentions.1."
    behind = (f"{last}transformer_blocks.0.{part}" for part in ("attn2.to_v", "attn2.to_out", "ff"))
    still = (*behind, f"{last}transformer_blocks.0.norm3", f"{last}proj_out", "conv_norm_out")
    for name, change in changes.items():
        moved = bool(change.any())
        assert moved != name.startswith((*still, "conv_out")), name


def test_only_the_cross_attentions_gradient_is_cut_in_the_original(pico: Model) -> None:
    for method, cut in (("full", False), ("x", True)):
        fmn = ForgetMeNot(
            fidelity="original", train_method=method, optimizer="torch.optim.SGD", lr=1.0,
            weight_decay=0, **({"max_grad_norm": 1e-3} if cut else {}),
        )  # fmt: skip
        student = Student(pico, fmn.parameters(pico))
        Trainer(fmn, student).step([batch(pico, PROMPTS[:1])])
        length = torch.stack([c.double().norm() for c in student.changes().values()]).norm()
        assert (float(length) == pytest.approx(1e-3, rel=1e-3)) == cut


def test_released_defaults_are_those_of_the_programs() -> None:
    released = ForgetMeNot(fidelity="original")
    assert (released.variant, released.train_method, released.pooler) == ("released", "full", "all")
    assert (released.lr, released.iterations, released.weight_decay) == (2e-6, 35, 0.01)
    assert released.prompts(SANTA) == [("a photo of santa claus", "santa claus")]
    style = Concept(target="noto", kind="style")
    assert released.prompts(style)[0][0] == "a photo in the style of noto"
    sepme = ForgetMeNot(fidelity="original", variant="sepme")
    assert (sepme.gradients, sepme.max_grad_norm, sepme.iterations) == ("cumulative", None, 21)
    assert sepme.prompts(GHOST) == [("a painting of ghost", "ghost")]
    assert ("a photo of a noto", "noto") in ForgetMeNot().prompts(GHOST)


def shown(model: Model, pictures: int, start: float) -> ShownConcept:
    mean = start + torch.arange(pictures).float().view(-1, 1, 1, 1).expand(-1, *model.latent_shape)
    marks = columns(model, "ghost", "ghost", "first")[None]
    return ShownConcept(mean, torch.zeros_like(mean), model.condition(["ghost"]), marks)


def test_concepts_take_turns_and_every_picture_is_shown(pico: Model) -> None:
    student = Student(pico, pico.select("cross_attention"))
    run = Run(student, Policy.of([GHOST, SANTA]), 0)
    both = [shown(pico, 3, 0), shown(pico, 2, 100)]
    pictures = [round(float(row(run, both, turn)["latents"].mean())) for turn in range(12)]
    first, second = pictures[::2], pictures[1::2]
    assert sorted(first[:3]) == sorted(first[3:]) == [0, 1, 2]
    assert sorted(second[:2]) == sorted(second[2:4]) == sorted(second[4:]) == [100, 101]


def test_pictures_are_noised_to_their_timestep(pico: Model) -> None:
    teal = Image.new("RGB", (16, 16), "teal")
    fmn = ForgetMeNot(pictures={"ghost": [teal]}, batch_size=64)
    blank = ForgetMeNot(no_real_image=True, batch_size=64)
    run = Run(Student(pico, fmn.parameters(pico)), Policy.of("ghost"), 0)
    given, none = (next(method.batches(run, [0])) for method in (fmn, blank))
    shares = pico.process.levels
    kept = shares[given["timestep"]].view(-1, 1, 1, 1)
    colours = 2 * torch.tensor([0, 128, 128]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 255 - 1
    posterior = pico.pipe.vae.encode(colours).latent_dist
    x = torch.cat([posterior.mean] * 64)
    rest = (given["latents"] - kept.sqrt() * x) / (1 - kept + kept * posterior.std**2).sqrt()
    assert float(rest.mean()) == pytest.approx(0, abs=0.05)
    assert float(rest.std()) == pytest.approx(1, abs=0.05)
    kept = shares[none["timestep"]].view(-1, 1, 1, 1)
    assert float((none["latents"] / (1 - kept).sqrt()).std()) == pytest.approx(1, abs=0.05)


def test_drawn_pictures_are_the_concepts_own(pico: Model, tmp_path: Path) -> None:
    fmn = ForgetMeNot(**SHORT)
    student = Student(pico, fmn.parameters(pico))
    one = Run(student, Policy.of(GHOST), 0, tmp_path)
    two = Run(student, Policy.of([SANTA, GHOST]), 0)
    assert fmn._drawn_latents(two).shape == (2, 2, *pico.latent_shape)
    assert torch.allclose(fmn._drawn_latents(one)[0], fmn._drawn_latents(two)[1], atol=1e-5)
    assert not torch.equal(fmn._drawn_latents(two)[0], fmn._drawn_latents(two)[1])


@pytest.mark.parametrize("values", [{}, {"train_method": "x-strict"}, {"rank": 2, "lr": 1e-2}])
def test_training_takes_attention_off_the_concept(pico: Model, values: dict[str, Any]) -> None:
    fmn = ForgetMeNot(**{**SHORT, "lr": 2e-3, **values})
    student = Student(pico, fmn.parameters(pico), rank=fmn.rank)
    run = Run(student, Policy.of([Concept(target="ghost"), SANTA]), 0)
    unseen = next(fmn.batches(run, [999]))
    before = attention_norms(student, unseen).detach()
    fit(fmn, student, islice(fmn.batches(run, range(15)), 15))
    assert bool((attention_norms(student, unseen) < 0.95 * before).all())


def test_kept_keys_and_values_are_held(pico: Model) -> None:
    values = {**SHORT, "iterations": 20, "lr": 1e-3}
    loose, held = (erase(pico, GHOST, "fmn", preserve_scale=s, **values) for s in (0.0, 1000.0))

    def moved(edit: Edit, prompts: tuple[str, ...]) -> float:
        rows = pico.encode(prompts).flatten(0, 1)
        changes = edit.components[0].payload.tensors()
        shares = [
            (rows @ changes[n].T).norm() ** 2 / (rows @ pico.base_weight(n).T).norm() ** 2
            for n in pico.select("cross_attention.kv")
        ]
        return float(torch.stack(shares).mean())

    kept = Policy.of(GHOST).kept_prompts()
    assert moved(held, kept) < 0.3 * moved(loose, kept)
    assert moved(held, ("ghost",)) > moved(held, kept)


@pytest.mark.parametrize(
    "values",
    [
        {"inversion_steps": 2},
        {"fidelity": "original"},
        {"fidelity": "original", "variant": "sepme"},
    ],
)
def test_stopping_anywhere_changes_nothing(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    synonyms = () if "fidelity" in values else ("noto",)
    policy = Policy(erase=(Concept(target="ghost", synonyms=synonyms), SANTA))
    settings = {**SHORT, "iterations": 3, "lr": 1e-4, **values}
    whole = erase(pico, policy, "fmn", seed=4, **settings)
    assert whole.id != erase(pico, policy, "fmn", seed=5, **settings).id
    with stopped_in(2):
        erase(pico, policy, "fmn", seed=4, checkpoints=tmp_path, **settings)
    assert erase(pico, policy, "fmn", seed=4, checkpoints=tmp_path, **settings).id == whole.id


def test_inversion_fits_the_pictures_and_leaves_the_model_alone(pico: Model) -> None:
    before = {name: weight.clone() for name, weight in pico.pipe.text_encoder.state_dict().items()}
    draws = torch.Generator().manual_seed(0)
    mean = torch.randn((2, *pico.latent_shape), generator=draws)
    prompts = ["a picture of santa claus", "santa claus"]

    def condition(steps: int) -> Condition:
        return inverted(
            pico, prompts, "santa claus", mean, torch.zeros_like(mean), steps=steps, lr=3e-2, seed=0
        )

    none, some = condition(0), condition(60)
    assert torch.allclose(none.rows, pico.encode(prompts), atol=1e-6)
    # The rows in front of the words are what they were: start, a, picture, of.
    assert torch.equal(some.rows[0, :4], none.rows[0, :4])
    assert not torch.allclose(some.rows[0, 4], none.rows[0, 4], atol=1e-3)
    noise = torch.randn((64, *pico.latent_shape), generator=draws)
    timestep = torch.randint(1000, (64,), generator=draws)
    kept = pico.process.levels[timestep].view(-1, 1, 1, 1)
    latents = kept.sqrt() * mean.repeat(32, 1, 1, 1) + (1 - kept).sqrt() * noise

    @torch.no_grad()
    def loss(condition: Condition) -> float:
        predicted = pico.predict(latents, timestep, condition[1:].expand(64))
        return float((predicted - noise).square().mean())

    assert loss(some) < loss(none)
    after = pico.pipe.text_encoder.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not pico.pipe.text_encoder.get_input_embeddings()._forward_hooks
    pico.pipe.scheduler.register_to_config(prediction_type="v_prediction")
    with pytest.raises(ExpungeError, match="predicts v, not noise"):
        condition(1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variant": "sepme"}, 'only with fidelity="original"'),
        ({"pooler": "last"}, "pooler"),
        ({"train_method": "selfattn"}, "train_method"),
        ({"gradient_checkpointing": True}, "a smaller batch_size"),
        ({"no_real_image": True, "inversion_steps": 1}, "no picture to invert"),
        ({"no_real_image": True, "pictures": {"dog": []}}, "leave pictures out"),
        ({"pictures": {"cat": []}}, "none of 'dog'; there are some of cat"),
        ({"contexts": ["a {}s"]}, "doesn't hold the tokens"),
        ({"fidelity": "original", "batch_size": 2}, "work for one picture only"),
        ({"fidelity": "original", "max_grad_norm": 1.0}, "cuts no gradient of the whole UNet"),
        ({"fidelity": "original", "contexts": ["{}"]}, 'contexts: only with fidelity="corrected"'),
        ({"fidelity": "original", "train_method": "x-strict"}, "train_method: not x-strict"),
        ({"fidelity": "original", "variant": "sepme", "pooler": "all"}, "pooler: not with"),
        ({"fidelity": "original", "variant": "other"}, "variant"),
        ({"lr": 1e30}, "the loss became"),
    ],
)
def test_wrong_settings_are_named(pico: Model, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        erase(pico, "dog", "fmn", **{**SHORT, **values})
    assert message in str(caught.value)
