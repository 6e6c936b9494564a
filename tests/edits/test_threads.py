"""Threads that draw with different edits of one model don't see each other's.

``EXPUNGE_THREAD_SECONDS`` says for how long they try; 3 if it isn't set.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Barrier
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, erase
from expunge.edits.applied import Applied
from expunge.generation import ImageRequest, Sampler, sample
from expunge.testing import membrane

Result = TypeVar("Result")
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


FEW = Sampler(steps=2)
MANY = [one.model_copy(update={"case_number": f"{n}"}) for n in range(60) for one in REQUESTS[:1]]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Few pictures are drawn ahead of those that were asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def in_time(task: Callable[[], Result]) -> Result:
    """What a task gives in another thread; it fails if the model is never free for it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(task).result(timeout=60)


@pytest.mark.usefixtures("one_thread")
def test_a_drawing_left_unfinished_blocks_no_other(pico: Model) -> None:
    edit = membrane(pico, Concept(target="ghost"), scale=1.0)
    wanted = drawn(pico, edit)
    unfinished = sample(pico, MANY, FEW)
    next(unfinished)
    assert same(in_time(lambda: drawn(pico, edit)), wanted)
    assert len(list(unfinished)) == len(MANY) - 1


@pytest.mark.usefixtures("one_thread")
def test_a_drawing_can_be_finished_in_another_thread(pico: Model) -> None:
    wanted = [picture for _, picture in sample(pico, MANY, FEW)]
    begun = sample(pico, MANY, FEW)
    first = next(begun)[1]
    rest = in_time(lambda: [picture for _, picture in begun])
    assert same([first, *rest], wanted)
    edit = membrane(pico, Concept(target="ghost"))
    with edit.applied(pico):
        pass
    assert len(in_time(lambda: drawn(pico, edit))) == len(REQUESTS)


@pytest.mark.usefixtures("one_thread")
def test_no_drawing_goes_on_with_other_edits_than_it_began_with(pico: Model) -> None:
    gates = membrane(pico, Concept(target="ghost"))
    weights = erase(pico, Concept(target="ghost", anchor="dog"), "uce")
    for edit in (gates, weights):
        begun = sample(pico, MANY, FEW)
        next(begun)
        edit.apply(pico)
        with pytest.raises(ExpungeError, match="the edits applied to the model changed"):
            list(begun)
        edit.revert(pico)
        with edit.applied(pico):
            begun = sample(pico, MANY, FEW)
        with pytest.raises(ExpungeError, match="the edits applied to the model changed"):
            next(begun)


@pytest.mark.usefixtures("one_thread")
def test_a_drawing_goes_on_when_the_edits_are_back(pico: Model) -> None:
    weights = erase(pico, Concept(target="ghost", anchor="dog"), "uce", erase_scale=5.0)
    wanted = [picture for _, picture in sample(pico, MANY, FEW)]
    found = []
    for number, (_, picture) in enumerate(sample(pico, MANY, FEW)):
        found.append(picture)
        if number % 10 == 0:
            in_time(lambda: drawn(pico, weights))
    assert same(found, wanted)
