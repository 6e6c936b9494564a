"""Evading gates: the gate is kept shut, and gradients don't pass through it."""

import pytest
import torch

from expunge import Edit, Model
from expunge.attacks import configured
from expunge.edits.gates import Opens
from expunge.edits.membranes import Membranes
from expunge.edits.residual_gates import ResidualGates, openings
from expunge.testing import membrane
from toy_attack import CONCEPT, PROMPTS, target


@pytest.fixture
def gated(pico: Model) -> Edit:
    return membrane(pico, CONCEPT)


def test_the_opening_is_that_of_the_gate(pico: Model, gated: Edit) -> None:
    [part] = gated.components
    gate = part.payload
    assert isinstance(gate, Membranes)
    assert isinstance(gate, Opens)
    rows = pico.encode(["santa claus", "ghost"])
    opened = gate.opening(rows, [None, None])
    assert torch.equal(opened, gate.opened(rows, [None, None]).amax(1))
    assert opened[0] > opened[1]
    draws = torch.manual_seed(0)
    query, key, own = (torch.randn(2, *shape, generator=draws) for shape in ((3, 8), (3, 8), (8,)))
    residual = ResidualGates(
        ("a",), query, key, own, torch.zeros(2, 1, 1, 8), torch.zeros(2, 1, 4), (4,)
    )
    given = torch.randn(3, 5, 8, generator=draws)
    widest = torch.stack([openings(one, query, key, own).max() for one in given])
    assert torch.equal(residual.opening(given, [None] * 3), widest)


def test_it_searches_without_the_gate_and_ends_with_it_shut(pico: Model, gated: Edit) -> None:
    one = target(pico, gated)
    attack = configured("evade", starts=1, steps=2, level=0.1, lr=0.05)
    latents, time = one.known.latents[:2], one.known.time[:2]
    with pico.frozen():
        asked = pico.condition([PROMPTS[0]]).expand(2)
        with torch.no_grad():
            plain = pico.predict(latents, time, asked)
            with attack.view(one):
                assert torch.equal(pico.predict(latents, time, asked), plain)
        with attack.view(one):
            search = attack.begin(one, [0], seed=0)
            begun = search.found().condition
            for _ in range(60):
                search.step()
            found = search.found().condition
    [gate] = one.gates
    assert begun is not None
    assert found is not None
    assert gate.opening(begun.rows, [None]).item() > 0.5
    assert gate.opening(found.rows, [None]).item() < 0.2
