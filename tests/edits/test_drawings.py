"""Drawings: what guards remember lives in one batch on its way, and never reaches another."""

import copy
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, Model, erase
from expunge.edits.base import Base
from expunge.edits.component import Component, Provenance
from expunge.edits.drawings import Step, drawing
from expunge.edits.guards import Denoiser
from expunge.generation import ImageRequest, Sampler, sample
from expunge.testing import membrane


@dataclass(frozen=True, eq=False)
class Counting:
    """Writes down what it is told of every step."""

    form: ClassVar[str] = "counting"
    reads_text: ClassVar[bool] = False
    reads_tokens: ClassVar[bool] = False
    reroutes: ClassVar[bool] = False
    names: tuple[str, ...] = ()
    seen: list[tuple[int, list[bool] | None]] = field(default_factory=list)

    @classmethod
    def of(cls, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> "Counting":
        return cls()

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def acts(self) -> bool:
        return True

    def predict(self, denoiser: Denoiser, step: Step) -> Tensor:
        told = None if step.guided is None else step.guided.tolist()
        self.seen.append((step.number, told))
        return denoiser(step)

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.seen]


def counting(model: Model) -> tuple[Edit, Counting]:
    provenance = Provenance(
        method="made up",
        settings={},
        concepts=(),
        keep=(),
        seed=0,
        base=Base.of(model, ()),
        versions={},
    )
    guard = Counting()
    return Edit((Component(guard, provenance),)), guard


def drawn(model: Model, prompt: str | list[str] = "a dog", seed: int = 3, **options: Any) -> Tensor:
    """Final latents as the pipeline draws them."""
    model.pipe.set_progress_bar_config(disable=True)
    many = isinstance(prompt, list)
    noise = [torch.Generator().manual_seed(seed + at) for at in range(len(prompt) if many else 1)]
    given = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent", **options}
    latents: Tensor = model.pipe(prompt, generator=noise if many else noise[0], **given).images
    return latents


def test_the_pipelines_steps_are_counted_and_every_call_begins_anew(pico: Model) -> None:
    edit, guard = counting(pico)
    with edit.applied(pico):
        for options in ({}, {}, {"num_inference_steps": 1}, {"num_inference_steps": 1}):
            drawn(pico, **options)
    assert guard.seen == [(n, [True]) for n in (0, 1, 2, 3, 0, 1, 2, 3, 0, 0)]


def test_a_drawing_that_was_broken_off_leaves_nothing(pico: Model) -> None:
    edit, guard = counting(pico)

    def stop(*_: object) -> dict[str, Any]:
        raise ZeroDivisionError

    with edit.applied(pico):
        with pytest.raises(ZeroDivisionError):
            drawn(pico, callback_on_step_end=stop)
        drawn(pico, num_inference_steps=2)
    assert guard.numbers == [0, 0, 1]


@pytest.mark.parametrize("scheduler", ["pndm", "lms", "euler", "dpm++"])
def test_every_call_of_a_schedule_is_a_step_even_where_a_time_comes_twice(
    pico: Model, scheduler: str
) -> None:
    edit, guard = counting(pico)
    pico.pipe.scheduler = pico.process.scheduler(scheduler, 4, skip_prk_steps=True)
    with edit.applied(pico):
        drawn(pico)
    calls = 5 if scheduler == "pndm" else 4
    assert guard.numbers == list(range(calls))


def test_without_guidance_no_picture_is_guided(pico: Model) -> None:
    edit, guard = counting(pico)
    with edit.applied(pico):
        drawn(pico, guidance_scale=1.0, num_inference_steps=1)
        drawn(pico, ["a dog", "a cat"], guidance_scale=1.0, num_inference_steps=1)
        requests = [
            ImageRequest(case_number=str(n), prompt="a dog", seed=n, guidance_scale=scale)
            for n, scale in enumerate((1.0, 4.0))
        ]
        list(sample(pico, requests, Sampler(steps=1)))
    told = [one for _, one in guard.seen if one]
    assert [one for _, one in guard.seen[:2]] == [None, None]
    assert [one[:2] for one in told if len(one) >= 2 and not one[0]] == [[False, True]]


def test_the_same_condition_goes_on_until_time_rises_or_its_numbers_change(pico: Model) -> None:
    edit, guard = counting(pico)
    condition = pico.condition(["a dog"])
    latents = torch.randn(1, *pico.latent_shape)
    with edit.applied(pico), torch.no_grad():
        for time in (900, 500, 500, 100, 900):
            pico.predict(latents, time, condition)
        pico.predict(latents.repeat(1, 1, 2, 2), 800, condition)
        condition.rows.mul_(2)
        pico.predict(latents.repeat(1, 1, 2, 2), 700, condition)
    assert guard.numbers == [0, 1, 2, 3, 0, 0, 0]


def test_a_loop_of_ones_own_says_what_it_draws(pico: Model) -> None:
    edit, guard = counting(pico)
    latents = torch.randn(4, *pico.latent_shape)
    with edit.applied(pico), torch.no_grad():
        with drawing(pico, torch.tensor([True, False]), step=7):
            for time in (5, 900):
                pico.predict(latents, time, pico.condition(["a dog"] * 4))
            with drawing(pico):
                pico.predict(latents, 3, pico.condition(["a dog"] * 4))
            pico.predict(latents, 2, pico.condition(["a dog"] * 4))
        pico.predict(latents, 1, pico.condition(["a dog"] * 4))
    own = [True, False]
    assert guard.seen == [(7, own), (8, own), (0, None), (9, own), (0, None)]


def test_threads_have_drawings_of_their_own(pico: Model) -> None:
    edit, guard = counting(pico)
    edit.apply(pico)
    condition, latents = pico.condition(["a dog"]), torch.randn(1, *pico.latent_shape)

    def steps(_: int) -> None:
        with torch.no_grad(), drawing(pico):
            for time in (900, 500, 100):
                pico.predict(latents, time, condition)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(steps, range(8)))
    edit.revert(pico)
    assert sorted(guard.numbers) == sorted([0, 1, 2] * 8)


def test_a_copy_of_the_denoiser_is_at_no_drawing(pico: Model) -> None:
    edit, _ = counting(pico)
    condition, latents = pico.condition(["a dog"]), torch.randn(1, *pico.latent_shape)
    with edit.applied(pico), torch.no_grad(), drawing(pico, step=3):
        pico.predict(latents, 5, condition)
        twin = copy.deepcopy(pico.denoiser)
        twin(latents, 5, condition.rows)
        [counter] = set(twin.forward.at_work.guards)
    assert counter.numbers == [3, 0]


def test_gates_stay_open_for_the_few_conditions_of_a_step(pico: Model, monkeypatch) -> None:
    """A guard that asks for another condition in every step doesn't open them again."""
    from expunge.edits.membranes import Membranes

    opened, found = [], Membranes.additions

    def counting(gate, rows, tokens):
        opened.append(rows)
        return found(gate, rows, tokens)

    monkeypatch.setattr(Membranes, "additions", counting)
    sld = erase(pico, "ghost", "sld", preset="max")
    with (membrane(pico, Concept(target="dog")) + sld).applied(pico):
        drawn(pico)
    assert len(opened) == 2
