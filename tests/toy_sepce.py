"""What the tests of SepCE erase, and what they look at."""

from itertools import islice
from typing import Any

import torch

from expunge import Concept, Edit, Model, Policy
from expunge.edits.applied import edited_weights
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.methods.sepme.sepce import SepCE
from expunge.methods.sepme.shifts import Shifts

SHORT: dict[str, Any] = {"iterations": 4, "trajectories": 2, "num_inference_steps": 4, "lr": 1e-2}
TWO = Policy(
    erase=(
        Concept(target="ghost", anchor="man"),
        Concept(target="santa claus", synonyms=["santa"]),
    ),
    keep=("cat",),
)


def made(model: Model, policy: Policy = TWO, size: float = 0.02, **values: Any) -> Shifts:
    """A student with random coefficients."""
    student = SepCE(**values).student(model, policy, 0)
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in student.weights.values():
            weight += size * torch.randn(weight.shape, generator=draws)
    return student


def taken(method: SepCE, student: Shifts, policy: Policy, count: int) -> list[Batch]:
    return list(islice(method.batches(Run(student, policy, 0), range(count)), count))


def moved(model: Model, edit: Edit, prompts: list[str]) -> list[float]:
    """By how much the keys and values of each prompt change, as a share of what they are."""
    changes = edited_weights(model, edit.components, edit.names)
    base = {name: model.base_weight(name).double() for name in edit.names}
    shares = []
    for prompt in prompts:
        rows = model.encode([prompt])[0].double()
        change = torch.stack([((w - base[n]) @ rows.T).norm() for n, w in changes.items()]).norm()
        before = torch.stack([(base[n] @ rows.T).norm() for n in changes]).norm()
        shares.append(float(change / before))
    return shares
