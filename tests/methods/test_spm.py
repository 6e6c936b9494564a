"""SPM: its loss written down, its own latents, its anchors, a membrane for each concept."""

import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.edits.membranes import Membranes
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.methods import configured
from expunge.methods.spm.anchors import acting, noise_anchors
from expunge.methods.spm.method import SPM
from expunge.methods.spm.student import MembraneStudent
from expunge.models import Condition
from expunge.training import saving
from expunge.training.loop import Monitor, Trainer
from stopping import stopped_in
from toy_batches import same

SHORT: dict[str, Any] = {"iterations": 2, "num_inference_steps": 4, "batch_size": 2, "lr": 1e-2}
GHOST = Concept(target="ghost", keep=["cat"])
TWO = Policy(erase=(GHOST, Concept(target="santa claus", synonyms=["santa"], anchor="man")))


def student_of(method: SPM, model: Model, policy: Policy, moved: float = 0.3) -> MembraneStudent:
    """A student whose membranes are open and not empty."""
    student = method.student(model, policy, 0)
    draws = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in student.weights.values():
            weight += moved * torch.randn(weight.shape, generator=draws)
    return student


def taken(method: SPM, student: Student, policy: Policy, numbers: Sequence[int]) -> list[Batch]:
    return list(islice(method.batches(Run(student, policy, 0), numbers), len(numbers)))


@torch.no_grad()
def through(student: MembraneStudent, turn: int, *at: Any) -> Tensor:
    """A prediction with a membrane, apart from the student: its products written into weights."""
    model, scale = student.model, student.alpha / student.rank
    changed = {}
    for name in student.names:
        up, down = (student.weights[f"{side}:{turn}:{name}"] for side in ("up", "down"))
        base = model.base_weight(name)
        changed[name] = base + (scale * up @ down).reshape(base.shape)
    model.weights.write(changed)
    try:
        return model.predict(*at)
    finally:
        model.weights.write(dict.fromkeys(changed))


def original(**values: Any) -> SPM:
    made = configured("spm", fidelity="original", **values)
    assert isinstance(made, SPM)
    return made


@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_original_loss_is_the_released_one_pass_by_pass(pico: Model, count: int) -> None:
    """With both halves of guidance everywhere, and the first half of the anchors thrown away."""
    method = original(anchors=count, negative_guidance=1.5, la_strength=30.0, positive="a man")
    student = student_of(method, pico, TWO)
    latents, timestep = torch.randn(1, *pico.latent_shape), torch.tensor([433])
    target, positive, neutral, empty = (
        pico.condition([words]) for words in ("ghost", "a man", "a dog", "")
    )
    drawn = torch.randn(count, *target.rows.shape[1:])
    batch = {
        "turn": torch.tensor(0.0),
        "latents": latents,
        "timestep": timestep,
        "target": target,
        "positive": positive,
        "neutral": neutral,
        "anchors": Condition(acting(drawn, empty.rows, method.anchor_split)),
    }
    eps = [pico.predict(latents, timestep, e) for e in (positive, neutral)]
    away = eps[1] - 1.5 * (eps[0] - eps[1])
    erased = (through(student, 0, latents, timestep, target) - away).square().mean()
    interleaved = [row for anchor in drawn for row in (empty.rows[0], anchor)]
    moved = []
    for row in interleaved[count:]:
        at = latents, timestep, Condition(row[None])
        moved.append((through(student, 0, *at) - pico.predict(*at)).square().mean())
    ours = method.loss(student, batch)
    torch.testing.assert_close(ours["erase"], erased, rtol=1e-4, atol=0)
    torch.testing.assert_close(ours["anchoring"], torch.stack(moved).mean(), rtol=1e-4, atol=0)
    torch.testing.assert_close(ours["loss"], erased + 30 * torch.stack(moved).mean())


def test_the_corrected_loss_is_a_mean_over_latents_and_over_anchors(pico: Model) -> None:
    method = SPM(num_inference_steps=6, batch_size=3, anchors=5, la_strength=20.0)
    student = student_of(method, pico, TWO)
    for batch in taken(method, student, TWO, [0, 1]):
        turn, erased, moved = int(batch["turn"]), [], []
        for row in range(3):
            at = batch["latents"][row : row + 1], batch["timestep"][row : row + 1]
            neutral = pico.predict(*at, batch["neutral"])
            away = 2 * neutral - pico.predict(*at, batch["positive"])
            seen = through(student, turn, *at, batch["target"])
            erased.append((seen - away).square().mean())
        for row in range(5):
            at = batch["latents"][row % 3][None], batch["timestep"][row % 3][None]
            anchor = batch["anchors"][row : row + 1]
            kept = pico.predict(*at, anchor)
            moved.append((through(student, turn, *at, anchor) - kept).square().mean())
        ours = method.loss(student, batch)
        expected = torch.stack(erased).mean() + 20 * torch.stack(moved).mean()
        torch.testing.assert_close(ours["loss"], expected, rtol=1e-4, atol=0)


def test_thin_products_have_the_gradient_of_whole_weights(pico: Model) -> None:
    method = SPM(num_inference_steps=4, batch_size=2, rank=2)
    student = student_of(method, pico, Policy.of("ghost"), 0.1)
    batch = taken(method, student, Policy.of("ghost"), [0])[0]
    at = batch["latents"], batch["timestep"], batch["target"].expand(2)
    gradients = []
    for predict in (
        student.predict,
        lambda *at: Student.within(student, lambda: student._answer(*at)),
    ):
        loss = predict(*at).square().mean()
        gradients.append(torch.autograd.grad(loss, list(student.weights.values())))
    for thin, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(thin, whole, rtol=1e-3, atol=1e-6)


def test_equal_rows_are_predicted_once(pico: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    method = original(anchors=4, num_inference_steps=4)
    student = student_of(method, pico, Policy.of("ghost"))
    [batch] = taken(method, student, Policy.of("ghost"), [0])
    counts, real = [], Student._answer

    def counted(self: Student, latents: Tensor, *at: Any) -> Tensor:
        counts.append(len(latents))
        return real(self, latents, *at)

    monkeypatch.setattr(Student, "_answer", counted)
    method.loss(student, batch)
    assert counts == [4, 4]  # c and the empty prompt, which two anchors are, and two noises


@pytest.mark.parametrize("fidelity", ["original", "corrected"])
def test_latents_come_by_the_membrane_itself(pico: Model, fidelity: str) -> None:
    """A denoising written down, with the membrane in both branches, for the target alone."""
    method = configured("spm", fidelity=fidelity, num_inference_steps=5, start_guidance=2.5)
    assert isinstance(method, SPM)
    student = student_of(method, pico, TWO)
    student = student.taking_turn(1)
    noise, target, empty = (
        torch.randn(1, *pico.latent_shape),
        pico.condition(["ghost"]),
        pico.condition([""]),
    )
    settings = dict(pico.pipe.scheduler.config) | {"timestep_spacing": "leading"}
    if fidelity == "original":
        settings |= {"set_alpha_to_one": True, "steps_offset": 0}
    timetable, latents, visited = DDIMScheduler.from_config(settings), noise, []
    timetable.set_timesteps(5)
    for t in timetable.timesteps:
        visited.append(latents)
        c, u = (through(student, 1, latents, t, e) for e in (target, empty))
        latents = timetable.step(u + 2.5 * (c - u), t, latents).prev_sample
    ours = method.denoised_latents(student, noise, target, [3, 1, 4])
    torch.testing.assert_close(
        ours, torch.cat([visited[i] for i in (3, 1, 4)]), rtol=1e-4, atol=1e-5
    )
    own = [int(timetable.timesteps[i]) for i in (3, 1, 4)]
    late = [999 - 600, 999 - 200, 999 - 800]
    assert method.timesteps(pico, [3, 1, 4]).tolist() == (own if fidelity == "corrected" else late)


def test_noise_anchors_have_the_targets_size_and_any_direction() -> None:
    target = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    drawn = noise_anchors(torch.Generator().manual_seed(1), target, 400).flatten(1)
    lengths = drawn.norm(dim=1) / target.norm()
    assert lengths.min() >= 0.8
    assert lengths.max() <= 1.2
    assert lengths.std() > 0.1
    assert (drawn.mean(0) / target.norm()).norm() < 0.2
    narrow = torch.tensor([[1.0]])  # where half of the directions are the target's own
    assert (noise_anchors(torch.Generator().manual_seed(1), narrow, 20) < 0).all()


def test_corrected_anchors_are_the_empty_prompt_prompts_to_keep_and_noise(pico: Model) -> None:
    method = SPM(num_inference_steps=2, batch_size=1, anchors=4, keep_share=0.5, contexts=("a {}",))
    student = method.student(pico, TWO, 0)
    pool = pico.encode(["", "cat", "a cat"])
    found = set()
    for batch in taken(method, student, TWO, range(24)):
        assert len(batch["anchors"]) == 4
        known = [[torch.equal(row, one) for one in pool] for row in batch["anchors"].rows]
        assert [any(row) for row in known] == [True, True, False, False]
        assert known[0][0]  # guidance looks at the empty prompt in every step
        found.add(known[1].index(True))
    assert found == {1, 2}
    [alone] = taken(method, student, Policy(erase=(Concept(target="ghost"),)), [0])
    assert all(torch.equal(row, pool[0]) for row in alone["anchors"].rows[:2])
    [none] = taken(SPM(la_strength=0.0, **SHORT), student, TWO, [0])
    assert len(none["anchors"]) == 0
    assert set(SPM(la_strength=0.0, **SHORT).loss(student, none)) == {"loss", "erase", "turn"}


def test_concepts_take_turns_in_their_own_prompts(pico: Model) -> None:
    method = SPM(num_inference_steps=2, batch_size=1, accumulation=2)
    student = method.student(pico, TWO, 0)
    batches = taken(method, student, TWO, range(24))
    assert [int(batch["turn"]) for batch in batches[:6]] == [0, 0, 1, 1, 0, 0]
    for turn, concept in enumerate(TWO.erase):
        pairs = {pair.erase: pair.anchor if turn else "" for pair in concept.pairs()}
        known = {words: pico.encode([words]) for words in pairs}
        met = set()
        for batch in batches:
            if int(batch["turn"]) == turn:
                [words] = [w for w, e in known.items() if torch.equal(e, batch["target"].rows)]
                assert torch.equal(batch["neutral"].rows, pico.encode([pairs[words]]))
                assert torch.equal(batch["positive"].rows, batch["target"].rows)
                met.add(words)
        assert len(met) > 3
    again = taken(method, student, TWO, [5])[0]
    assert same(again, batches[5])


def test_a_step_moves_the_membrane_of_its_turn_alone(pico: Model) -> None:
    method = SPM(**{**SHORT, "iterations": 4})
    student = student_of(method, pico, TWO)
    trainer = Trainer(method, student)
    for turn in (0, 1, 0):
        before = {name: weight.detach().clone() for name, weight in student.weights.items()}
        trainer.step(taken(method, student, TWO, [turn]))
        moved = {name for name, w in student.weights.items() if not torch.equal(w, before[name])}
        assert moved == {name for name in before if f":{turn}:" in name}


def test_it_begins_shut(pico: Model) -> None:
    method = SPM(rank=2, **SHORT)
    student = method.student(pico, TWO, 0)
    assert {tuple(pico.base_weight(name).shape[2:]) for name in student.names} == {(), (1, 1)}
    for name, weight in student.weights.items():
        if name.startswith("up:"):
            assert not weight.any()
        else:
            bound = weight.shape[1] ** -0.5
            assert weight.abs().max() <= bound
    downs = (weight for name, weight in student.weights.items() if name.startswith("down:"))
    down = torch.cat([weight.detach().flatten() * weight.shape[1] ** 0.5 for weight in downs])
    assert down.abs().max() > 0.95
    assert abs(float(down.std()) - 3**-0.5) < 0.05
    [batch] = taken(method, student, TWO, [0])
    assert method.loss(student, batch)["anchoring"].item() == 0


def test_every_concept_is_a_part_of_its_own(pico: Model) -> None:
    both = erase(pico, TWO, "spm", strength=1.5, metric="tokenuni", **SHORT)
    payloads = [part.payload for part in both.components]
    assert [part.provenance.concepts for part in both.components] == [(c,) for c in TWO.erase]
    for concept, payload in zip(TWO.erase, payloads, strict=True):
        assert isinstance(payload, Membranes)
        assert payload.names == pico.select("transformers")
        close = payload.closeness(pico.encode(concept.phrases), [None] * len(concept.phrases))
        torch.testing.assert_close(close.diagonal(), torch.ones(len(concept.phrases)))
        assert all(bool(up.any()) for up in payload.up.values())
    opened = payloads[1].opened(pico.encode(["a santa", "dog"]), [pico.tokens("a santa"), []])
    assert opened.tolist() == [[1.5], [0.0]]
    rest = both - Edit(both.components[:1])
    assert rest.concepts == TWO.erase[1:]


def test_the_released_scale_of_a_higher_rank(pico: Model) -> None:
    method = SPM(rank=4, alpha=2.0, **SHORT)
    student = student_of(method, pico, TWO)
    name = student.names[3]
    payload = method.parts(student, TWO)[1].payload
    assert torch.equal(payload.up[name], student.weights[f"up:1:{name}"] / 2)
    assert torch.equal(payload.down[name], student.weights[f"down:1:{name}"])


@pytest.mark.parametrize("fidelity", ["original", "corrected"])
def test_stopping_anywhere_changes_nothing(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fidelity: str
) -> None:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    settings = {"iterations": 5, "num_inference_steps": 3, "fidelity": fidelity, "lr_warmup": 1}
    whole = erase(pico, TWO, "spm", lr=1e-2, **settings)
    with stopped_in(4):
        erase(pico, TWO, "spm", lr=1e-2, checkpoints=tmp_path, **settings)
    resumed = erase(pico, TWO, "spm", lr=1e-2, checkpoints=tmp_path, **settings)
    assert resumed.id == whole.id


def test_a_monitor_sees_the_gated_model(pico: Model) -> None:
    seen = []

    def score(model: Model) -> dict[str, float]:
        with torch.no_grad():
            at = torch.ones(1, *model.latent_shape), 300, model.condition(["a ghost"])
            seen.append(model.predict(*at))
        return {"erased": 0.0}

    edit = erase(pico, "ghost", "spm", monitor=Monitor(2, score), **SHORT)
    with edit.applied(pico):
        score(pico)
    score(pico)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


LAUNCHED = """
import sys
from expunge import erase, load
edit = erase(load(sys.argv[1], device="cpu"), ["ghost", "dog"], "spm", iterations=3, lr=1e-2,
             num_inference_steps=3, batch_size=2, accumulation=2)
edit.save(f"{sys.argv[2]}-{__import__('os').environ.get('RANK', 0)}.safetensors")
"""


@pytest.mark.slow
def test_two_processes_train_what_one_trains(pico_folder: Path, tmp_path: Path) -> None:
    """A membrane whose turn it isn't stays as it is, with several processes too."""
    (tmp_path / "train.py").write_text(LAUNCHED)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes"]
    for count in (1, 2):
        port = f"--main_process_port={29500 + count + torch.randint(1000, ()).item()}"
        several = ["--multi_gpu"] if count > 1 else []
        arguments = map(str, (tmp_path / "train.py", pico_folder, tmp_path / str(count)))
        command = [*launch, str(count), port, *several, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (Edit.load(tmp_path / f"{name}-0.safetensors").components for name in "12")
    for concept in (0, 1):
        for name, factor in one[concept].payload.up.items():
            other = two[concept].payload.up[name]
            torch.testing.assert_close(factor, other, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(
                one[concept].payload.down[name],
                two[concept].payload.down[name],
                rtol=1e-3,
                atol=1e-3,
            )


def test_sizes_of_the_original(pico: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(0)
    assert original()._shape(pico, draws) == pico.latent_shape
    monkeypatch.setattr(type(pico), "latent_shape", (4, 64, 64))
    monkeypatch.setattr(pico.pipe, "vae_scale_factor", 8)
    shapes = [original()._shape(pico, draws) for _ in range(200)]
    assert {shape[1] for shape in shapes} == {shape[2] for shape in shapes} == {32, 40, 48, 56}
    assert SPM()._shape(pico, draws) == (4, 64, 64)
    assert SPM(varied_size=True)._shape(pico, draws)[1] < 64


def test_what_the_schedule_does() -> None:
    """Three cosines after a warm-up, as the released configuration has them."""
    method = original(iterations=16, lr_warmup=1, lr=1.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule, rates = method.pace(optimizer, method.iterations), []
    for _ in range(16):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    cosine = [0.5 * (1 + float(torch.tensor(torch.pi * (n * 3 / 15 % 1)).cos())) for n in range(15)]
    assert rates == pytest.approx([0.0, *cosine], abs=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"anchor_split": "released"}, "anchor_split"),
        ({"fidelity": "original", "batch_size": 2}, "one latent at a time"),
        ({"fidelity": "original", "contexts": ["a {}"]}, "contexts: only with"),
        ({"fidelity": "original", "keep_share": 0.1}, "keep_share: only with"),
        ({"rank": 0}, "rank"),
        ({"metric": "cosine"}, "metric"),
    ],
)
def test_wrong_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ExpungeError, match=message):
        configured("spm", **values)


def test_positives_that_dont_fit(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="positive: 3 prompts for 2 concepts"):
        erase(pico, TWO, "spm", positive=["a", "b", "c"], **SHORT)
    with pytest.raises(ExpungeError, match="lr_schedule"):
        erase(pico, TWO, "spm", lr_schedule="bent", **SHORT)
