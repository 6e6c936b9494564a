"""CiE: its equations row by row, its stopping rule, its concepts in turn, its settings."""

from collections.abc import Iterator
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
from expunge.methods.sepme.cie import CiE
from expunge.methods.sepme.examples import rows_of
from expunge.methods.sepme.loss import FIRST_TEST, momentum, settled
from expunge.models import Condition
from expunge.training import saving
from expunge.training.loop import Trainer
from stopping import stopped_in
from toy_batches import same

SHORT: dict[str, Any] = {"iterations": 2, "trajectories": 2, "num_inference_steps": 4}
GHOST = Concept(target="ghost", anchor="dog", keep=["cat"])
TWO = Policy(erase=(GHOST, Concept(target="santa claus", synonyms=["santa"])))


def moved(model: Model, names: tuple[str, ...], size: float = 0.02) -> Student:
    """A student whose weights aren't the model's any more."""
    student, draws = Student(model, names), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in student.weights.values():
            weight += size * torch.randn(weight.shape, generator=draws)
    return student


def taken(method: CiE, student: Student, policy: Policy, count: int) -> list[Batch]:
    return list(islice(method.batches(Run(student, policy, 0), range(count)), count))


def trained(student: Student, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
    """The student's prediction for one row, apart from ``predict``: its weights written down."""
    names = student.names
    student.model.weights.write({name: student.value(name).detach() for name in names})
    try:
        with torch.no_grad():
            return student.model.predict(latents, timestep, condition)
    finally:
        student.model.weights.write(dict.fromkeys(names))


def rows(batch: Batch) -> Iterator[dict[str, Any]]:
    for at in range(len(batch["latents"])):
        yield {key: v[at : at + 1] for key, v in batch.items() if key not in ("turn", "held")}


def test_the_original_loss_is_that_of_the_paper(pico: Model) -> None:
    method = CiE(fidelity="original", reg_beta=3e-4)
    student = moved(pico, method.parameters(pico))
    latents, timestep = torch.randn(1, 4, 8, 8), torch.tensor([421])
    e_c, e_0 = pico.condition(["ghost"]), pico.condition([""])
    batch = rows_of(student, latents, timestep, e_c, e_0)._asdict() | {"turn": torch.tensor(0.0)}
    r = pico.predict(latents, timestep, e_c) - pico.predict(latents, timestep, e_0)
    r_student = trained(student, latents, timestep, e_c) - trained(student, latents, timestep, e_0)
    d = sum(float(a) * float(b) for a, b in zip(r.flatten(), r_student.flatten(), strict=True))
    norms = [float(change.abs().sum()) for change in student.changes().values()]
    ours = method.loss(student, batch)
    assert ours["direction"].item() == pytest.approx(d / r.numel(), rel=1e-3)
    assert ours["weights"].item() == pytest.approx(sum(norms) / len(norms), rel=1e-5)
    expected = d / r.numel() + 3e-4 * sum(norms) / len(norms)
    assert ours["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert set(student.names) == {n for n, _ in pico.denoiser.named_parameters() if ".attn2." in n}


@pytest.mark.parametrize("pictures", [False, True])
def test_the_corrected_loss_is_the_mean_of_each_latents_share(pico: Model, pictures: bool) -> None:
    """Row by row: what is left of r, no less than nothing, while ``a`` is the frozen model's."""
    given = {
        words: [Image.new("RGB", (20, 30), colour) for colour in ("teal", "red")]
        for words in ("ghost", "santa claus")
    }
    values = {"pictures": given} if pictures else SHORT
    method = CiE(**values, batch_size=5, reg_beta=0.7, preserve_scale=3.0)
    student = moved(pico, method.parameters(pico), 0.3)
    for batch in taken(method, student, TWO, 2):
        shares = []
        batch["representation"][0] *= -1  # so that one row has gone beyond nothing
        for row in rows(batch):
            at = row["latents"], row["timestep"]
            a = pico.predict(*at, row["empty"])
            r = (pico.predict(*at, row["concept"]) - a) * (1 if shares else -1)
            assert torch.allclose(r, row["representation"], atol=2e-5)
            left = trained(student, *at, row["concept"]) - a
            shares.append(float((left * r).sum() / (r * r).sum()))
        change = sum(float(change.abs().sum()) for change in student.changes().values())
        size = sum(float(pico.base_weight(name).abs().sum()) for name in student.names)
        ours = method.loss(student, batch)
        assert ours["direction"].item() == pytest.approx(sum(shares) / 5, abs=2e-2)
        assert ours["weights"].item() == pytest.approx(change / size, rel=1e-4)
        kept = student.projection_change(batch["held"])
        expected = sum(max(share, 0.0) for share in shares) / 5 + 0.7 * change / size + 3.0 * kept
        assert ours["loss"].item() == pytest.approx(expected.item(), rel=1e-2)
        assert min(shares) < 0 < max(shares)


def test_nothing_is_erased_at_the_start(pico: Model) -> None:
    method = CiE(**SHORT)
    student = Student(pico, method.parameters(pico))
    for batch in taken(method, student, TWO, 2):
        terms = method.loss(student, batch)
        assert terms["direction"].item() == pytest.approx(1.0, abs=1e-2)
        assert terms["weights"].item() == terms["held"].item() == 0.0


def test_concepts_take_turns_in_their_own_prompts(pico: Model) -> None:
    method = CiE(**SHORT, accumulation=2, batch_size=3)
    student = Student(pico, method.parameters(pico))
    prompts = [
        {"ghost": "dog", "a photo of a ghost": "a photo of a dog"},
        {"santa claus": "", "santa": "", "a picture of a santa": ""},
    ]
    known = [
        {pair: (pico.encode([pair[0]])[0], pico.encode([pair[1]])[0]) for pair in method.pairs(c)}
        for c in TWO.erase
    ]
    for turn, wanted in enumerate(prompts):
        assert wanted.items() <= dict(known[turn].keys()).items()
    batches = taken(method, student, TWO, 8)
    assert [round(batch["turn"].item()) for batch in batches] == [0, 0, 1, 1, 0, 0, 1, 1]
    for batch in batches:
        own = known[round(batch["turn"].item())].values()
        for c, a in zip(batch["concept"].rows, batch["empty"].rows, strict=True):
            assert any(torch.equal(c, one) and torch.equal(a, other) for one, other in own)
    again = next(method.batches(Run(student, TWO, 0), [5]))
    assert same(again, batches[5])


def test_the_statistic_is_the_published_one() -> None:
    directions = [4.0, 2.0, -6.0]
    assert momentum(directions) == pytest.approx([4.0, 3.8, 0.9 * 3.8 - 0.6])
    falling = [1.0] * 11 + [-99.0]
    assert not settled(falling[:11], 2.0)
    assert settled(falling[:12], 2.0)
    assert momentum(falling)[-1] == pytest.approx(-9.0)
    assert settled(falling, -8.9)
    assert not settled(falling, -9.1)
    assert not settled([0.0] * 50, 0.0)


def test_training_ends_when_every_concept_is_there() -> None:
    method = CiE(threshold=0.5)

    def history(*series: list[float]) -> list[dict[str, float]]:
        """What is logged when these concepts take turns."""
        return [
            {"turn": float(turn), "direction": value}
            for values in zip(*series, strict=True)
            for turn, value in enumerate(values)
        ]

    low, high = [0.0] * 40, [1.0] * 40
    assert not method.finished([])
    assert method.finished(history(low[:12], low[:12]))
    assert not method.finished(history(low[:12], low[:12])[:-1])
    assert not method.finished(history(low, high))
    back = [0.0] * 12 + [9.0] * 28
    assert not method.finished(history(back, low))


def test_a_run_ends_by_itself(pico: Model, tmp_path: Path) -> None:
    values = {**SHORT, "iterations": 60, "threshold": 1e9, "checkpoints": tmp_path}
    edit = erase(pico, TWO, "cie", **values)
    assert edit.provenance[0].steps == 2 * FIRST_TEST
    assert erase(pico, TWO, "cie", **values).id == edit.id


def test_a_killed_run_stops_at_the_same_step(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SAVE_EVERY", 1)
    monkeypatch.setattr(saving, "SAVE_SHARE", 1.0)
    values = {**SHORT, "iterations": 40, "lr": 1e-3, "threshold": 0.75, "reg_beta": 0.0}
    whole = erase(pico, TWO, "cie", **values)
    assert 2 * FIRST_TEST <= (whole.provenance[0].steps or 0) < 40
    with stopped_in(20):
        erase(pico, TWO, "cie", checkpoints=tmp_path, **values)
    resumed = erase(pico, TWO, "cie", checkpoints=tmp_path, **values)
    assert resumed.id == whole.id
    assert resumed.provenance[0].steps == whole.provenance[0].steps


def test_gradients_add_up_in_the_original(pico: Model) -> None:
    """Adam on the sum of all gradients so far, written out."""
    method = CiE(fidelity="original", lr=1e-3, num_inference_steps=2)
    student = Student(pico, method.parameters(pico))
    batches = taken(method, student, Policy.of("ghost"), 3)
    trainer = Trainer(method, student)
    for batch in batches:
        trainer.step([batch])
    literal = Student(pico, method.parameters(pico))
    adam = torch.optim.Adam(literal.weights.values(), lr=1e-3)
    for batch in batches:
        at = batch["latents"], batch["timestep"]
        own = literal.predict(*at, batch["concept"]) - literal.predict(*at, batch["empty"])
        change = sum((w - pico.base_weight(n)).abs().sum() for n, w in literal.weights.items())
        d = (own * batch["representation"]).mean() + 1e-5 * change / len(literal.weights)
        d.backward()  # no gradient is ever reset
        adam.step()
    total = sum(float(change.square().sum()) for change in literal.changes().values())
    apart = sum(
        float((student.changes()[name] - change).square().sum())
        for name, change in literal.changes().items()
    )
    assert apart < 1e-4 * total


def test_the_original_takes_pictures_that_the_model_draws(pico: Model) -> None:
    method = CiE(fidelity="original", num_inference_steps=2)
    student = Student(pico, method.parameters(pico))
    batches = taken(method, student, Policy.of("ghost"), 18)
    assert len({float(batch["latents"].sum()) for batch in batches}) == 18
    alone = next(method.batches(Run(student, Policy.of("ghost"), 0), [17]))
    assert torch.equal(alone["latents"], batches[17]["latents"])
    assert torch.equal(alone["empty"].rows, pico.encode([""]))


def test_training_takes_the_direction_away(pico: Model) -> None:
    values = {**SHORT, "iterations": 80, "lr": 2e-3, "reg_beta": 0.0, "preserve_scale": 0.0}
    method = CiE(**values)
    student = Student(pico, method.parameters(pico))
    trainer = Trainer(method, student)
    history = [trainer.step([batch]) for batch in taken(method, student, TWO, 80)]
    for turn in (0.0, 1.0):
        assert momentum(r["direction"] for r in history if r["turn"] == turn)[-1] < 0.3


def test_both_weights_hold_back(pico: Model) -> None:
    """The weight term keeps all weights, the other term the keys and values of what is kept."""
    values = {**SHORT, "iterations": 30, "lr": 1e-3}

    def run(reg_beta: float, preserve_scale: float) -> dict[str, float]:
        method = CiE(**values, reg_beta=reg_beta, preserve_scale=preserve_scale)
        student = Student(pico, method.parameters(pico))
        trainer = Trainer(method, student)
        batches = taken(method, student, Policy.of(GHOST), 30)
        return [trainer.step([batch]) for batch in batches][-1]

    free = run(0.0, 0.0)
    assert run(1000.0, 0.0)["weights"] < 0.5 * free["weights"]
    assert run(0.0, 1000.0)["held"] < 0.2 * free["held"]


def test_what_is_held_is_kept_and_compared_with(pico: Model) -> None:
    policy = Policy(
        erase=(Concept(target="ghost", anchor="dog"), Concept(target="art")), keep=("cat",)
    )
    method = CiE(contexts=("{}",))
    student = Student(pico, method.parameters(pico))
    embeddings = pico.encode(["dog", "", "cat"]).double()
    expected = torch.einsum("ptw,ptv->wv", embeddings, embeddings) / 3
    assert torch.allclose(method._held(Run(student, policy, 0)).double(), expected, rtol=1e-5)


@pytest.mark.parametrize("train_method", ["x", "x-strict"])
def test_only_the_chosen_parameters_change(pico: Model, train_method: str) -> None:
    before = {name: weight.clone() for name, weight in pico.denoiser.named_parameters()}
    edit = erase(pico, ["ghost", "santa claus"], "cie", train_method=train_method, **SHORT)
    role = "cross_attention" if train_method == "x" else "cross_attention.kv"
    assert set(edit.names) == set(pico.select(role))
    assert all(torch.equal(w, before[n]) for n, w in pico.denoiser.named_parameters())


def test_own_pictures_from_folders(pico: Model, tmp_path: Path) -> None:
    (tmp_path / "ghost").mkdir()
    for number, colour in enumerate(("teal", "red")):
        Image.new("RGB", (20, 30), colour).save(tmp_path / "ghost" / f"{number}.png")

    def run(**values: Any) -> Edit:
        return erase(pico, "ghost", "cie", iterations=2, pictures=str(tmp_path), **values)

    assert run().id == run().id != run(fidelity="original").id
    with pytest.raises(ExpungeError, match="don't last for 3 batches"):
        erase(pico, "ghost", "cie", fidelity="original", iterations=3, pictures=str(tmp_path))
    with pytest.raises(ExpungeError, match="none of 'dog'; there are some of ghost"):
        erase(pico, "dog", "cie", iterations=2, pictures=str(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_method": "full"}, "train_method"),
        ({"threshold": float("nan")}, "threshold"),
        ({"contexts": ["no place"]}, "must hold {} once"),
        ({"fidelity": "original", "batch_size": 2}, "one picture at a time"),
        ({"fidelity": "original", "contexts": ["a {}"]}, 'contexts: only with fidelity="corr'),
        ({"fidelity": "original", "preserve_scale": 2.0}, 'preserve_scale: only with fidelity="c'),
        ({"fidelity": "original", "rank": 2}, "train whole parameters"),
        ({"lr": 1e30}, "the loss became"),
    ],
)
def test_wrong_settings_are_named(pico: Model, values: dict[str, object], message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        erase(pico, "dog", "cie", **{"iterations": 5, "num_inference_steps": 4, **values})
    assert message in str(caught.value)


def test_the_original_erases_one_concept(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="one concept in a run"):
        erase(
            pico,
            ["ghost", "santa"],
            "cie",
            fidelity="original",
            iterations=2,
            num_inference_steps=2,
        )


def test_released_defaults() -> None:
    method = CiE(fidelity="original", lr=1e-5)
    assert (method.train_method, method.gradients, method.batch_size) == ("x", "cumulative", 1)
    assert (method.lr, method.iterations, method.threshold) == (1e-5, 1001, 5e-5)
    assert CiE().gradients == "reset"
