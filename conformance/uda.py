"""UnlearnDiffAtk beside its released program."""

from collections.abc import Iterator

import torch
from torch import Tensor

from conformance.attacked import attacked, distance, equal, target_of
from conformance.case import Case, Difference, Tensors, loss_difference
from expunge.attacks import configured, points
from expunge.attacks.simplex import bisected
from expunge.attacks.unlearn_diff_atk import Released, UnlearnDiffAtk


def projections(case: Case) -> Iterator[Difference]:
    """The projection of several kinds of rows."""
    given, expected, tolerance = case.file("inputs"), case.file("expected"), case["tolerance"]
    for name, rows in given.items():
        if name == "uniform_plus_step_signs":
            continue
        worst = float((bisected(rows) - expected[name]).abs().max())
        yield Difference(worst, tolerance[f"projection/{name}_max_abs"])
    signs = given["uniform_plus_step_signs"]
    ours = bisected(1 / signs.shape[1] + 0.01 * signs.float())
    theirs = expected["uniform_plus_step_sampled"]
    stride = -(-ours.numel() // len(theirs))
    worst = float((ours.reshape(-1)[::stride] - theirs).abs().max())
    yield Difference(worst, tolerance["projection/uniform_plus_step_max_abs"])


def steps(case: Case) -> Iterator[Difference]:
    """Losses, gradients, rows and ids of a run on given draws."""
    given, expected, params = case.file("inputs"), case.file("expected"), case["params"]
    search = _search(case, given["x0"])
    losses, inner = [], params["iterations_per_timestep"]
    for number, time in enumerate(time for time in params["timesteps"] for _ in range(inner)):
        noise = given[f"step{number}/noise"]
        where = points.noisy(search.target, given["x0"], noise, torch.tensor([time]))
        look = search.look(given[f"step{number}/sampled_ids"], where)
        search.advance(look)
        losses.append(look.loss)
        yield from _compared(case, search, number, look.embeddings, look.rows, expected)
        if (number + 1) % inner == 0:
            best = expected[f"step{number}/u_argmax"].tolist()
            ids = search.tokens.row(search.layout.filled(best)).tolist()
            yield equal(ids, expected["ids_after"][number // inner].tolist())
    if case["kind"] == "run":
        ours = search.descent["rows"].argmax(-1).tolist()
        yield equal(ours, expected[f"step{len(losses) - 1}/u_argmax"].tolist())
    yield loss_difference(losses, expected["losses"].tolist(), case["tolerance"]["loss_rel"])


def _search(case: Case, clean: Tensor) -> Released:
    params = case["params"]
    attack = configured(
        "unlearn-diff-atk",
        fidelity="original",
        tokens=params["k"],
        place=params["insertion_location"].removesuffix("_k"),
        lr=params["lr"],
        weight_decay=params["weight_decay"],
    )
    assert isinstance(attack, UnlearnDiffAtk)
    target = target_of(attacked(case), case["prompts"]["prompt"], clean)
    search = attack.begin(target, [0], 0)
    assert isinstance(search, Released)
    return search


def _compared(
    case: Case, search: Released, number: int, embeddings: Tensor, rows: Tensor, expected: Tensors
) -> Iterator[Difference]:
    tolerance, stride, at = case["tolerance"], case["params"]["sample_stride"], f"step{number}/"
    theirs = expected[f"{at}grad_inserted_embeddings"]
    yield Difference(distance(embeddings, theirs), tolerance["grad_inserted_embeddings_rel"])
    ours = rows.reshape(-1)[::stride]
    yield Difference(distance(ours, expected[f"{at}grad_u"]), tolerance["grad_u_rel"])
    now = search.descent["rows"].detach()
    worst = float((now.reshape(-1)[::stride] - expected[f"{at}u"]).abs().max())
    yield Difference(worst, tolerance["u_max_abs"])
