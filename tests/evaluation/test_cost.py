"""The price of an edit: what isn't known isn't 0, and both models are timed alike."""

import pytest

from expunge import Edit, ExpungeError, Model, erase
from expunge.edits.applied import Applied
from expunge.evaluation import cost as module
from expunge.evaluation.cost import cost
from expunge.evaluation.restoration import weight_bits
from expunge.generation import Sampler, requests
from expunge.prompts import PromptSet

ASKED = list(requests(PromptSet.of(["santa claus", "a dog"])))


@pytest.fixture
def edit(pico: Model) -> Edit:
    return erase(pico, "santa claus", "uce")


def test_all_costs_are_in_one_record(pico: Model, edit: Edit) -> None:
    before = weight_bits(pico)
    found = cost(pico, edit, ASKED, sampler=Sampler(steps=1), rounds=3, seconds=1.5)
    assert (found.seconds, found.peak_bytes, found.stored_bytes) == (1.5, None, edit.size)
    assert (found.latency.pictures, len(found.latency.base), len(found.latency.edited)) == (2, 3, 3)
    assert min(found.latency.base) > 0
    assert type(found).model_validate_json(found.model_dump_json()) == found
    assert weight_bits(pico) == before
    assert not Applied.to(pico).components


def test_the_median_of_each_rounds_ratio(
    pico: Model, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture takes 1 s, with the edit 3 s, and in the last round all takes 10 times that."""
    clock, drawn = [0.0], []

    def sample(model: Model, asked: object, sampler: Sampler) -> list[object]:
        drawn.append(bool(Applied.to(model).components))
        clock[0] += (
            2 * (3.0 if Applied.to(model).components else 1.0) * (10 if len(drawn) > 5 else 1)
        )
        return []

    monkeypatch.setattr(module, "sample", sample)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    found = cost(pico, edit, ASKED, rounds=3).latency
    assert drawn == [False, False, True, True, False, False, True]
    assert (found.base, found.edited) == ((1, 1, 10), (3, 3, 30))
    assert (found.ratio, found.ratios, found.added) == (3, (3, 3, 3), 2)


def test_nothing_to_time_is_refused(pico: Model, edit: Edit) -> None:
    with pytest.raises(ExpungeError, match="nothing to time"):
        cost(pico, edit, [])
    with pytest.raises(ExpungeError, match="nothing to time"):
        cost(pico, edit, ASKED, rounds=0)
    with edit.applied(pico), pytest.raises(ExpungeError, match="revert it"):
        cost(pico, edit, ASKED)
