"""Threads that draw with different edits of one model don't see each other's.

``EXPUNGE_THREAD_SECONDS`` says for how long they try; 3 if it isn't set.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier

import torch
from torch import Tensor

from expunge import Concept, Edit, Model, erase
from expunge.edits.applied import Applied
from expunge.generation import ImageRequest, Sampler, sample
from expunge.testing import membrane

SECONDS = float(os.environ.get("EXPUNGE_THREAD_SECONDS", "3"))
REQUESTS = [
    ImageRequest(case_number=str(seed), prompt=prompt, seed=seed)
    for seed, prompt in enumerate(["a picture of ghost", "santa claus"])
]


def drawn(model: Model, edit: Edit | None) -> list[Tensor]:
    with edit.applied(model) if edit else nullcontext():
        pictures = sample(model, REQUESTS, Sampler(steps=2))
        return [picture for _, picture in pictures]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_each_thread_draws_the_pictures_of_its_own_edit(pico: Model) -> None:
    before = {name: weight.clone() for name, weight in pico.denoiser.named_parameters()}
    weights = erase(pico, Concept(target="ghost", anchor="dog"), "uce", erase_scale=5.0)
    gates = membrane(pico, Concept(target="santa claus"), scale=1.0)
    edits = [weights, gates, weights + gates, None]
    alone = [drawn(pico, edit) for edit in edits]
    assert not any(same(alone[3], pictures) for pictures in alone[:3])
    together, end = Barrier(len(edits)), time.monotonic() + SECONDS

    def rounds(turn: int) -> int:
        together.wait()
        done = 0
        while not done or time.monotonic() < end:
            assert same(drawn(pico, edits[turn]), alone[turn])
            done += 1
        return done

    with ThreadPoolExecutor(len(edits)) as pool:
        counts = list(pool.map(rounds, range(len(edits))))
    assert min(counts) >= 1
    assert Applied.to(pico).components == ()
    assert all(torch.equal(w, before[name]) for name, w in pico.denoiser.named_parameters())
    assert not any("forward" in vars(module) for module in pico.denoiser.modules())


def test_a_thread_that_fails_leaves_the_model_to_the_others(pico: Model) -> None:
    edit = membrane(pico, Concept(target="ghost"), scale=1.0)
    base, edited = drawn(pico, None), drawn(pico, edit)

    def failing() -> None:
        with edit.applied(pico):
            raise ZeroDivisionError

    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(failing).exception(), ZeroDivisionError)
        assert same(pool.submit(drawn, pico, edit).result(), edited)
    assert same(drawn(pico, None), base)
