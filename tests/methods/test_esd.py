from itertools import islice

import pytest
import torch

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.methods.esd import ESD
from expunge.training.loop import fit
from expunge.training.run import Run
from expunge.training.student import Student

SHORT = {"iterations": 2, "trajectories": 2, "num_inference_steps": 4}


@pytest.mark.parametrize("role", ["x", "x-strict", "u", "selfattn", "full"])
def test_only_the_chosen_role_changes(pico: Model, role: str) -> None:
    before = {name: weight.clone() for name, weight in pico.unet.named_parameters()}
    edit = erase(pico, "noto style", "esd", train_method=role, **SHORT)
    assert set(edit.names) == set(ESD(train_method=role).parameters(pico))
    assert all(torch.equal(w, before[n]) for n, w in pico.unet.named_parameters())
    changes = edit.components[0].payload.tensors()
    assert sum(bool(change.abs().max() > 0) for change in changes.values()) > 0.8 * len(changes)


@pytest.mark.parametrize("variant", ["compvis", "alt", "diffusers-sd"])
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
        embedding = batch["embeddings"][at]
        erased = pico.predict_noise(latents[at], timestep[at], embedding)
        prompt = min(known, key=lambda p: float((known[p] - embedding[0]).norm()))
        if prompt not in pairs:
            target = erased
            kept += 1
        else:
            anchor = pico.encode([pairs[prompt]])
            base = pico.predict_noise(latents[at], timestep[at], anchor)
            target = base - 1.5 * (erased - base)
        assert torch.allclose(batch["target"][at], target, atol=1e-4)
    assert kept == 4


def test_the_student_starts_as_the_teacher(pico: Model) -> None:
    student = Student(pico, pico.select("cross_attention"))
    latents, timestep = torch.randn(2, 4, 8, 8), torch.tensor([5, 500])
    embeddings = pico.encode(["dog", "cat"])
    taught = student.teach(latents, timestep, embeddings)
    assert torch.equal(student.predict(latents, timestep, embeddings), taught)
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
    values = {**SHORT, "iterations": 40, "train_method": "x-strict", "lr": 1e-3, "keep_share": 0.0}
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
    words = ESD()._kept_words(pico, Policy.of(concept))["kept_words"]
    assert student.projection_change(words).item() == pytest.approx(moved(loose, kept), rel=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_method": "xattn"}, "choose one of x, x-strict"),
        ({"variant": "compvis"}, 'only with fidelity="original"'),
        ({"erase_from": "a dog"}, "use contexts here"),
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
