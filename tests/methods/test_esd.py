from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase, load
from expunge.formats import lora
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.methods.esd.method import ESD
from expunge.models import Condition
from expunge.training.loop import fit

SHORT = {"iterations": 2, "trajectories": 2, "num_inference_steps": 4}


@pytest.mark.parametrize("role", ["x", "x-strict", "u", "selfattn", "full"])
def test_only_the_chosen_role_changes(pico: Model, role: str) -> None:
    before = {name: weight.clone() for name, weight in pico.denoiser.named_parameters()}
    edit = erase(pico, "noto style", "esd", train_method=role, **SHORT)
    assert set(edit.names) == set(ESD(train_method=role).parameters(pico))
    assert all(torch.equal(w, before[n]) for n, w in pico.denoiser.named_parameters())
    changes = edit.components[0].payload.tensors()
    assert sum(bool(change.abs().max() > 0) for change in changes.values()) > 0.8 * len(changes)


@pytest.mark.parametrize("variant", ["compvis", "alt", "diffusers-sd", "trainer-2026"])
def test_the_released_programs_run_from_end_to_end(pico: Model, variant: str) -> None:
    edit = erase(
        pico, "ghost", "esd", fidelity="original", variant=variant, iterations=2,
        num_inference_steps=5,
    )  # fmt: skip
    assert edit.provenance[0].settings["batch_size"] == 1


def test_released_defaults_are_those_of_the_program() -> None:
    method = ESD(fidelity="original", variant="alt")
    assert (method.train_method, method.iterations, method.lr) == ("full", 200, 2e-5)
    assert method.negative_guidance == 2.0


def test_targets_follow_the_equation(pico: Model) -> None:
    """eps*(a) - eta (eps*(c) - eps*(a)), evaluated apart from the trajectories."""
    method = ESD(negative_guidance=1.5, **SHORT, batch_size=8)
    concept = Concept(target="ghost", anchor="dog", keep=["cat"])
    policy, student = Policy.of(concept), Student(pico, method.parameters(pico))
    batch = next(method.batches(Run(student, policy, 0), range(1)))
    latents, timestep = batch["latents"], batch["timestep"]
    pairs = {pair.erase: pair.anchor for pair in concept.pairs()}
    known = {p: pico.encode([p])[0] for p in (*pairs, *policy.kept_prompts())}
    kept = 0
    for row in range(8):
        at = slice(row, row + 1)
        condition = batch["condition"][at]
        erased = pico.predict(latents[at], timestep[at], condition)
        prompt = min(known, key=lambda p: float((known[p] - condition.rows[0]).norm()))
        if prompt not in pairs:
            target = erased
            kept += 1
        else:
            anchor = pico.condition([pairs[prompt]])
            base = pico.predict(latents[at], timestep[at], anchor)
            target = base - 1.5 * (erased - base)
        assert torch.allclose(batch["target"][at], target, atol=1e-4)
    assert kept == 4


def nearest(model: Model, condition: Condition, prompts: Sequence[str]) -> str:
    """Which of these prompts a condition is of."""
    rows = condition.rows
    return min(prompts, key=lambda prompt: float((model.encode([prompt]) - rows).norm()))


@pytest.mark.parametrize("anchor", ["", "cat"])
def test_a_concept_is_taken_out_of_one_prompt_only(pico: Model, anchor: str) -> None:
    """eps*(f) - eta (eps*(c) - eps*(a)), for the prompt f alone, evaluated apart."""
    concept = Concept(target="ghost", synonyms=["santa claus"], anchor=anchor, keep=["noto"])
    method = ESD(erase_from="a dog man", negative_guidance=1.5, batch_size=12, **SHORT)
    student = Student(pico, method.parameters(pico))
    batch = next(method.batches(Run(student, Policy.of(concept), 0), range(1)))
    taken: set[str] = set()
    for row in range(12):
        latents, timestep, condition = (
            batch[key][row : row + 1] for key in ("latents", "timestep", "condition")
        )
        found = nearest(pico, condition, ["a dog man", *Policy.of(concept).kept_prompts()])
        if found != "a dog man":
            continue

        def noise(prompt: str) -> torch.Tensor:
            return pico.predict(latents, timestep, pico.condition([prompt]))  # noqa: B023

        targets = {
            phrase: noise("a dog man") - 1.5 * (noise(phrase) - noise(anchor))
            for phrase in concept.phrases
        }
        close = {
            p for p, t in targets.items() if torch.allclose(batch["target"][row], t, atol=1e-4)
        }
        assert len(close) == 1
        taken |= close
    assert taken == set(concept.phrases)


def test_concepts_that_share_a_prompt_are_all_taken_out_of_it(pico: Model) -> None:
    """On average over its trajectories, the target leads away from their sum."""
    policy = Policy.of(["ghost", "santa claus"])
    method = ESD(erase_from="a dog man", trajectories=1, num_inference_steps=4)
    run = Run(Student(pico, method.parameters(pico)), policy, 0)
    rows = method._taken_out(run)
    for trajectory, concept in enumerate(("ghost", "santa claus")):
        for step in range(4):
            at = rows.latents[trajectory, step][None], rows.timestep[trajectory, step][None]
            whole, gone, empty = (
                pico.predict(*at, pico.condition([text])) for text in ("a dog man", concept, "")
            )
            target = rows.target[trajectory, step]
            assert torch.allclose(target, whole - 2 * (gone - empty), atol=1e-4)
    apart = ESD(erase_from=["a dog man", "a cat"], trajectories=1, num_inference_steps=4)
    rows = apart._taken_out(run).condition.rows
    assert torch.allclose(rows, pico.encode(["a dog man", "a cat"]), atol=1e-6)


@pytest.mark.parametrize("variant", ["alt", "diffusers-sd"])
def test_released_programs_draw_one_of_the_pairs_each_step(pico: Model, variant: str) -> None:
    method = ESD(
        fidelity="original", variant=variant, erase_from=["a dog man", "a cat"],
        num_inference_steps=4,
    )  # fmt: skip
    policy, student = Policy.of(["ghost", "santa claus"]), Student(pico, pico.select("all"))
    pairs = set()
    for batch in method.batches(Run(student, policy, 0), range(8)):
        trained = nearest(pico, batch["condition"], ["a dog man", "a cat"])
        pairs.add((nearest(pico, batch["erase"], ["ghost", "santa claus"]), trained))
    assert pairs == {("ghost", "a dog man"), ("santa claus", "a cat")}


def test_every_concept_has_trajectories_of_its_own(pico: Model) -> None:
    policy = Policy.of(["ghost", "santa claus", "dog"])
    method = ESD(**SHORT)
    rows = method._erased(Run(Student(pico, method.parameters(pico)), policy, 0))
    prompts = [pair.erase for concept in policy.erase for pair in concept.pairs()]
    found = [nearest(pico, rows.condition[at : at + 1], prompts) for at in range(6)]
    owners = [next(c.target for c in policy.erase if c.target in prompt) for prompt in found]
    assert owners == ["ghost"] * 2 + ["santa claus"] * 2 + ["dog"] * 2


@pytest.mark.parametrize("layout", ["lora", "kohya"])
def test_diffusers_draws_with_the_exported_factors_what_the_edit_draws(
    pico: Model, pico_folder: Path, tmp_path: Path, layout: lora.Layout
) -> None:
    def picture(model: Model) -> np.ndarray:
        model.pipe.set_progress_bar_config(disable=True)
        drawn = model.pipe(
            "ghost", num_inference_steps=4, output_type="np",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return np.asarray(drawn.images[0])

    edit = erase(pico, "ghost", "esd", rank=8, lr=3e-2, **SHORT)
    parts = lora.save(edit, pico, tmp_path / "ghost.safetensors", layout)
    assert {part.rank for part in parts.values()} == {8}
    assert max(part.residual for part in parts.values()) < 1e-6
    base, other = picture(pico), load(pico_folder, device="cpu")
    other.pipe.load_lora_weights(str(tmp_path / "ghost.safetensors"))
    with edit.applied(pico):
        edited = picture(pico)
    assert np.abs(edited - base).max() > 20 * 1e-4
    assert np.allclose(picture(other), edited, atol=1e-4)


def test_the_student_starts_as_the_teacher(pico: Model) -> None:
    student = Student(pico, pico.select("cross_attention"))
    latents, timestep = torch.randn(2, 4, 8, 8), torch.tensor([5, 500])
    condition = pico.condition(["dog", "cat"])
    taught = student.teach(latents, timestep, condition)
    assert torch.equal(student.predict(latents, timestep, condition), taught)
    assert all(float(change.abs().max()) == 0 for change in student.changes().values())


def test_training_learns_its_target(pico: Model) -> None:
    method = ESD(trajectories=4, num_inference_steps=10, lr=1e-3, train_method="full", batch_size=8)
    policy, student = Policy.of("ghost"), Student(pico, pico.select("all"))
    batches = method.batches(Run(student, policy, 0), range(200))
    unseen = next(method.batches(Run(student, policy, 0), [199]))
    before = method.loss(student, unseen).item()
    fit(method, student, islice(batches, 60))
    assert method.loss(student, unseen).item() < 0.7 * before


def test_kept_keys_and_values_are_held(pico: Model) -> None:
    concept = Concept(target="ghost", anchor="dog", keep=["cat", "fox"])
    values = {
        **SHORT, "iterations": 40, "train_method": "x-strict", "lr": 1e-3, "keep_share": 0.0,
        "prior": None,
    }  # fmt: skip
    loose, held = (
        erase(pico, concept, "esd", preserve_scale=scale, **values) for scale in (0.0, 100.0)
    )

    def moved(edit: Edit, prompts: tuple[str, ...]) -> float:
        """The relative change of keys and values, from the weights themselves."""
        rows = pico.encode(prompts).flatten(0, 1)
        payload = edit.components[0].payload
        shares = []
        for name in edit.names:
            weight = pico.base_weight(name)
            change = payload.change(name, weight).float()
            shares.append((rows @ change.T).norm() ** 2 / (rows @ weight.T).norm() ** 2)
        return float(torch.stack(shares).mean())

    kept = Policy.of(concept).kept_prompts()
    assert moved(held, kept) < 0.2 * moved(loose, kept)
    assert moved(held, ("ghost",)) > moved(held, kept)
    student = Student(pico, pico.select("cross_attention.kv"))
    with torch.no_grad():
        for name, change in loose.components[0].payload.tensors().items():
            student.weights[name] += change
    words = ESD(prior=None).kept_words(pico, Policy.of(concept), kept, 1.0)["kept_words"]
    assert student.projection_change(words).item() == pytest.approx(moved(loose, kept), rel=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_method": "xattn"}, "choose one of x, x-strict"),
        ({"variant": "compvis"}, 'only with fidelity="original"'),
        ({"erase_from": ["a dog", "a cat"]}, "2 prompts for 1 concepts"),
        ({"fidelity": "original", "erase_from": "a dog"}, "the compvis program doesn't have it"),
        ({"fidelity": "original", "variant": "diffusers-sdxl"}, "isn't for models of family sd"),
        ({"contexts": ["no place"]}, "must hold {} once"),
        ({"fidelity": "original", "variant": "compvis", "train_method": "esd-x"}, "it knows xattn"),
        ({"fidelity": "original", "variant": "compvis", "batch_size": 2}, "one latent at a time"),
        ({"fidelity": "original", "preserve_scale": 2.0}, 'preserve_scale: only with fidelity="c'),
        ({"lr": 1e30}, "the loss became"),
    ],
)
def test_wrong_settings_are_named(pico: Model, values: dict[str, object], message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        erase(pico, "dog", "esd", **{"iterations": 5, "num_inference_steps": 4, **values})
    assert message in str(caught.value)


def test_one_seed_one_edit(pico: Model) -> None:
    def run(seed: int) -> Edit:
        return erase(pico, "dog", "esd", seed=seed, **SHORT)

    assert run(1).id == run(1).id != run(2).id
