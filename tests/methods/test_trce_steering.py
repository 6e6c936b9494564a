from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.edits.applied import edited_weights
from expunge.method.base import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.methods.trce.schedule import RELEASED_EMPTY, released
from expunge.methods.trce.steering import TRCESteering
from expunge.seeding import derive
from expunge.training import saving
from expunge.training.latents import TrajectoryPoint, latents_at
from expunge.training.loop import fit
from expunge.training.trajectories import ddim
from stopping import stopped_in

SHORT: dict[str, Any] = {"num_inference_steps": 6, "max_early_timestep": 3, "iterations": 3}
FEW: dict[str, Any] = {**SHORT, "trajectories": 3}
ORIGINAL: dict[str, Any] = {**SHORT, "fidelity": "original", "lamb": 1.0}
GHOST = Concept(target="ghost", synonyms=["santa"], anchor="a dog", keep=["cat"])
SANTA = Concept(target="santa claus", kind="character", anchor="man")


@contextmanager
def counted(model: Model) -> Iterator[list[int]]:
    """Samples of each pass through the UNet."""
    passes: list[int] = []
    hook = model.denoiser.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    try:
        yield passes
    finally:
        hook.remove()


def started(model: Model, method: TRCESteering, policy: Policy) -> Student:
    return method.student(model, policy, 0)


def shaken(student: Student, size: float = 0.02) -> Student:
    """A student that isn't where it began."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in student.weights.values():
            weight += size * torch.randn(weight.shape, generator=draws).to(weight)
    return student


def literal(method: TRCESteering, student: Student, batch: Batch, g: float) -> Tensor:
    """The loss as the paper writes it, one prompt a pass."""
    terms = []
    for row in range(len(batch["latents"])):
        at = slice(row, row + 1)
        x, t, empty = batch["latents"][at], batch["timestep"][at], batch["empty"]
        unsafe, safe = batch["condition"][at], batch["safe"][at]
        u = student.teach(x, t, empty)
        positive = u + g * (student.teach(x, t, safe) - u)
        negative = u + g * (student.teach(x, t, unsafe) - u)
        for prompt in (unsafe, empty):
            f = student.predict(x, t, prompt)
            nearer = (f - positive).pow(2).mean() - (f - negative).pow(2).mean()
            terms.append(method.beta * torch.relu(nearer + method.margin))
    held = torch.zeros(())
    for row in range(len(batch["held_latents"])):
        at = slice(row, row + 1)
        where = [batch[f"held_{key}"][at] for key in ("latents", "timestep", "condition")]
        held = held + (student.predict(*where) - student.began(*where)).pow(2).mean()
    if method.fidelity == "original":
        held = held + 0.01
    return sum(terms) / len(terms) + method.preserve_scale * held / method.regularization_batch_size


@pytest.mark.parametrize("values", [{**FEW, "batch_size": 3}, ORIGINAL])
def test_one_pass_each_gives_the_loss_and_gradient_of_single_passes(
    pico: Model, values: dict[str, Any]
) -> None:
    method = TRCESteering(guidance=4.0, margin=0.05, beta=2.0, **values)
    policy = Policy.of([GHOST, SANTA])
    student = shaken(started(pico, method, policy))
    batch = next(method.batches(Run(student, policy, 0), range(1)))
    weights = list(student.weights.values())
    with counted(pico) as passes:
        terms = method.loss(student, batch)
    rows, held = len(batch["latents"]), len(batch["held_latents"])
    assert sorted(passes) == sorted([3 * rows, held, 2 * rows + held])
    slow = literal(method, student, batch, 5.0 if method.fidelity == "original" else 4.0)
    assert terms["loss"].item() == pytest.approx(slow.item(), rel=1e-5)
    assert terms["erase"].item() > 0
    ours, theirs = (torch.autograd.grad(loss, weights) for loss in (terms["loss"], slow))
    size = max(float(gradient.abs().max()) for gradient in theirs)
    assert all(torch.allclose(a, b, atol=1e-4 * size) for a, b in zip(ours, theirs, strict=True))


def test_what_is_steered_far_enough_is_left_alone(pico: Model) -> None:
    policy = Policy.of(GHOST)
    method = TRCESteering(margin=-1e6, **FEW)
    student = started(pico, method, policy)
    batch = next(method.batches(Run(student, policy, 0), range(1)))
    terms = method.loss(student, batch)
    assert terms["erase"].item() == terms["erase_prompt"].item() == terms["erase_empty"].item() == 0
    gradients = torch.autograd.grad(terms["erase"], list(student.weights.values()))
    assert all(not gradient.any() for gradient in gradients)


def test_one_call_gives_both_stages_and_each_can_be_taken_out(pico: Model) -> None:
    before = {name: weight.clone() for name, weight in pico.denoiser.named_parameters()}
    edit = erase(pico, [GHOST, SANTA], "trce-steering", lr=1e-3, **FEW | {"iterations": 4})
    first = erase(pico, [GHOST, SANTA], "trce")
    assert [part.method for part in edit.provenance] == ["trce", "trce-steering"]
    assert edit.ids[0] == first.id
    second = edit - first
    assert all(".attn1." in name or ".attn2.to_q." in name for name in second.names)
    assert set(second.names) | set(first.names) == set(edit.names)
    with edit.applied(pico):
        changed = [n for n, w in pico.denoiser.named_parameters() if not torch.equal(w, before[n])]
    assert set(changed) > set(first.names)
    assert all(torch.equal(weight, before[n]) for n, weight in pico.denoiser.named_parameters())


def test_a_saved_edit_takes_the_place_of_stage_1(pico: Model, tmp_path: Path) -> None:
    erase(pico, GHOST, "trce").save(tmp_path / "stage1.safetensors")
    whole = erase(pico, GHOST, "trce-steering", **FEW)
    again = erase(pico, GHOST, "trce-steering", start=tmp_path / "stage1.safetensors", **FEW)
    assert again.ids[0] == whole.ids[0]
    assert again.provenance[1].settings["start"] == whole.ids[0]
    one, two = (edit.components[1].payload.tensors() for edit in (whole, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = erase(pico, GHOST, "esd", iterations=2, trajectories=2, num_inference_steps=2, lr=1e-3)
    on_esd = erase(pico, GHOST, "trce-steering", start=other, **FEW)
    three = on_esd.components[1].payload.tensors()
    assert any(not torch.equal(one[name], three[name]) for name in one)
    with torch.no_grad():
        pico.denoiser.get_parameter(pico.select("cross_attention.kv")[0]).mul_(1.5)
    with pytest.raises(ExpungeError, match="differ from it"):
        erase(pico, GHOST, "trce-steering", start=tmp_path / "stage1.safetensors", **FEW)


@pytest.mark.parametrize("scheduler", [ddim, released])
def test_places_are_those_of_ddim_and_nothing_beyond_is_computed(
    pico: Model, scheduler: Any
) -> None:
    prompts, seeds, steps, g = ["ghost", "dog", "a cat", ""], [5, 6, 7, 8], 6, 3.0
    places = [
        TrajectoryPoint(0, 6),
        TrajectoryPoint(2, 0),
        TrajectoryPoint(0, 2),
        TrajectoryPoint(3, 4),
        TrajectoryPoint(0, 2),
    ]
    run = Run(Student(pico, pico.select("self_attention")), Policy.of("ghost"), 0)
    with counted(pico) as passes:
        latents = latents_at(
            run, "few", prompts, seeds, places, steps=steps, guidance_scale=g, scheduler=scheduler
        )
    assert passes == [6] * 4 + [6] * 2  # three trajectories are needed, up to the longest
    alphas = DDIMScheduler.from_config(pico.pipe.scheduler.config).alphas_cumprod
    stride, offset = 1000 // steps, int(scheduler is ddim)
    for place, found in zip(places, latents, strict=True):
        noise = torch.Generator().manual_seed(seeds[place.trajectory])
        x = torch.randn(1, *pico.latent_shape, generator=noise)
        for step in range(place.step):
            t = stride * (steps - 1 - step) + offset
            with torch.no_grad():
                both = pico.condition([prompts[place.trajectory], ""])
                c, u = pico.predict(x.repeat(2, 1, 1, 1), torch.tensor([t, t]), both)
            eps = u + g * (c - u)
            now, after = alphas[t], alphas[max(t - stride, 0)]
            x = after.sqrt() * (x - (1 - now).sqrt() * eps) / now.sqrt() + (1 - after).sqrt() * eps
        assert torch.allclose(found, x[0], atol=1e-4 * float(x.abs().max()))


def test_original_looks_where_the_released_program_looks(pico: Model) -> None:
    """Latents after a step with the timestep before it, and files in their order."""
    method = TRCESteering(**{**ORIGINAL, "iterations": 60})
    ways = method.ways(Policy.of([GHOST, SANTA]), 0)
    assert ways["erased"].prompts[::5] == (
        "a photo of ghost", "a photo of santa", "a photo of santa claus",
    )  # fmt: skip
    assert ways["erased"].others[::5] == ("a photo of a dog", "a photo of a dog", "a photo of man")
    assert len(ways["empty"].prompts) == RELEASED_EMPTY
    assert "kept" not in ways
    times = [166 * step for step in (5, 4, 3, 2, 1, 0)]
    skipped = 0
    for number, draw in enumerate(method.schedule(pico, ways, 0)):
        (steered,) = draw.steered
        assert steered.place.trajectory == number % 15
        assert steered.place.step <= 4
        assert steered.timestep == times[steered.place.step - 1]
        files = [4 * (number % 15) + row for row in range(4)]
        assert [v.place.trajectory for v in draw.held] == [
            file for file in files if any(v.place.trajectory == file for v in draw.held)
        ]
        skipped += 4 - len(draw.held)
        for visit in draw.held:
            start = times[visit.place.step - 1]
            assert start <= visit.timestep < start + 166
            assert visit.prompt == ""
    assert 60 * 4 / 7 / 2 < skipped < 60 * 4 / 7 * 2  # one of seven draws is out of range
    aligned = TRCESteering(**{**ORIGINAL, "align_timestep": True})
    for draw in aligned.schedule(pico, ways, 0):
        assert draw.steered[0].timestep == times[draw.steered[0].place.step]


def test_corrected_visits_every_wording_and_all_that_is_kept(pico: Model) -> None:
    concepts = (GHOST, SANTA, Concept(target="noto", kind="style", keep=["art", "an image"]))
    policy = Policy(erase=concepts, keep=("dog in art",))
    method = TRCESteering(trajectories=2, **{**SHORT, "iterations": 100})
    ways = method.ways(policy, 0)
    erased, kept = ways["erased"].prompts, ways["kept"].prompts
    for words in ("ghost", "santa", "santa claus", "noto"):
        assert any(words in prompt for prompt in erased)
    counts = [sum(words in prompt for prompt in erased) for words in ("claus", "noto")]
    assert counts == [2, 2]
    assert all(any(words in prompt for prompt in kept) for words in policy.kept)
    safe = {pair.erase: pair.anchor for concept in concepts for pair in concept.pairs()}
    times, seen = ddim(pico.process, 6).timesteps.tolist(), set()
    for draw in method.schedule(pico, ways, 0):
        assert len(draw.held) == 4
        for visit in (*draw.steered, *draw.held):
            assert visit.timestep == times[visit.place.step]
            seen.add((visit.sort, visit.place.trajectory, bool(visit.prompt)))
        assert all(safe[visit.prompt] == visit.safe for visit in draw.steered)
        assert all(visit.place.step <= 3 for visit in draw.steered)
    assert {at for sort, at, _ in seen if sort == "erased"} == set(range(len(erased)))
    assert {at for sort, at, full in seen if sort == "kept" and full} == set(range(len(kept)))
    assert {at for sort, at, full in seen if sort == "kept" and not full} == set(range(len(kept)))
    assert not any(full for sort, _, full in seen if sort == "empty")


def test_training_steers_and_what_is_kept_stays(pico: Model) -> None:
    """The hinges go down, and on trajectories of kept prompts the student stays at stage 1."""
    policy, count = Policy.of(GHOST), 15
    values: dict[str, Any] = {**FEW, "iterations": count, "lr": 1e-2, "batch_size": 2}
    loose, held = (
        TRCESteering(keep_share=1.0, preserve_scale=scale, **values) for scale in (0.0, 100.0)
    )
    terms = []
    for method in (loose, held):
        student = started(pico, method, policy)
        batches = list(method.batches(Run(student, policy, 0), range(count)))
        with torch.no_grad():
            before = [method.loss(student, batch)["erase"] for batch in batches[:4]]
        fit(method, student, batches)
        with torch.no_grad():
            after = [method.loss(student, batch) for batch in batches[:4]]
        erased, stayed = (
            torch.stack([one[key] for one in after]).mean() for key in ("erase", "regularization")
        )
        terms.append((erased / torch.stack(before).mean(), stayed))
    assert terms[0][0] < 0.7
    assert terms[1][1] < 0.2 * terms[0][1]


def test_fewer_evaluations_than_the_released_schedule(pico: Model) -> None:
    """The same number of training steps with less than a third of the samples in the UNet."""
    steps, pairs, repeats, count = 6, 2, 5, 6
    theirs = 2 * steps * (pairs * repeats + RELEASED_EMPTY) + count * (3 + 2 + 2 * 4)
    policy, own = Policy.of(Concept(target="ghost", synonyms=["santa"])), {}
    for name, values in (("corrected", {**SHORT, "everyday": 0}), ("original", ORIGINAL)):
        method = TRCESteering(**{**values, "iterations": count})
        student = started(pico, method, policy)
        with counted(pico) as passes:
            fit(method, student, method.batches(Run(student, policy, 0), range(count)))
        own[name] = sum(passes)
    assert 3 * own["original"] < theirs
    assert own["corrected"] < own["original"]


@pytest.mark.parametrize("values", [FEW, ORIGINAL])
def test_stopping_anywhere_changes_nothing(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    settings = {**values, "iterations": 6, "lr": 1e-3}
    whole = erase(pico, GHOST, "trce-steering", **settings)
    with stopped_in(5):
        erase(pico, GHOST, "trce-steering", checkpoints=tmp_path, **settings)
    with counted(pico) as passes:
        resumed = erase(pico, GHOST, "trce-steering", checkpoints=tmp_path, **settings)
    assert resumed.id == whole.id
    assert len(passes) == 2 * 3  # the trajectories are there already


def test_released_defaults() -> None:
    method = TRCESteering(fidelity="original")
    assert (method.gradients, method.align_timestep, method.optimizer) == (
        "cumulative", False, "torch.optim.AdamW",
    )  # fmt: skip
    stage1 = method.closed_form
    assert (stage1.fidelity, stage1.index, stage1.preserve_scale, stage1.lamb) == (
        "original", "word", 0.01, 0.0,
    )  # fmt: skip
    assert TRCESteering().closed_form.preserve_scale == 0.03
    assert derive(0, "trajectory", "empty", "", 0) != derive(0, "trajectory", "empty", "", 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_early_timestep": 6}, "numbered from 0 to 5"),
        ({"fidelity": "original", "trajectories": 3}, 'trajectories: only with fidelity="corr'),
        ({"fidelity": "original", "keep_share": 0.1}, 'keep_share: only with fidelity="corr'),
        ({"fidelity": "original", "batch_size": 2}, "one prompt at a time"),
        ({"token_weight_scale": (0.0,) * 4}, "all weights are 0"),
        ({"fidelity": "original"}, "use a larger lamb"),
        ({"margin": float("nan")}, "margin"),
        ({"contexts": ["no place"]}, "must hold {} once"),
        ({"start": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"start": 5}, "start"),
        ({"lr": 1e30}, "the loss became"),
    ],
)
def test_wrong_settings_are_named(pico: Model, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        erase(pico, "dog", "trce-steering", **{**SHORT, **values})
    assert message in str(caught.value)


def test_a_saved_stage_1_leaves_its_settings_behind(pico: Model) -> None:
    edit = erase(pico, GHOST, "trce")
    for fidelity in ("original", "corrected"):
        with pytest.raises(ExpungeError, match="lamb: is of the stage that start replaces"):
            erase(pico, GHOST, "trce-steering", start=edit, lamb=3.0, fidelity=fidelity)


def test_the_edit_is_loaded_as_it_was_saved(pico: Model, tmp_path: Path) -> None:
    edit = erase(pico, GHOST, "trce-steering", **FEW)
    edit.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    assert again.id == edit.id
    ours, theirs = (edited_weights(pico, e.components, e.names) for e in (edit, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_steering_with_nothing_to_steer_is_refused(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="its loss may leave nothing to change"):
        erase(pico, GHOST, "trce-steering", margin=-10.0, **FEW)


def test_an_edit_of_two_stages_lists_its_concept_once(pico: Model) -> None:
    edit = erase(pico, "ghost", "trce-steering", iterations=1, trajectories=1, margin=10.0,
                 num_inference_steps=4, max_early_timestep=2)  # fmt: skip
    assert len(edit.components) == 2
    assert [concept.target for concept in edit.concepts] == ["ghost"]
