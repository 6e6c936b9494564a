"""A pico model under attack."""

from functools import partial

import pytest

from expunge.attacks.known import Known, know
from expunge.attacks.target import Target
from expunge.concepts import Concept
from expunge.models import Model, load
from expunge.models.sampling import Sampling
from toy_attack import Dark

SAMPLING = Sampling("ddim", 2, 4.0)
PROMPTS = ("a picture of ghost", "a photo of ghost")
GHOST = Concept(target="ghost", anchor="dog", synonyms=("cat",))


@pytest.fixture(scope="session")
def pico_known(pico_folder) -> Known:  # type: ignore[no-untyped-def]
    return know(load(pico_folder, device="cpu"), PROMPTS, SAMPLING, 0, points=4)


@pytest.fixture
def target(pico: Model, pico_known: Known) -> Target:
    """The base itself."""
    return make_target(pico, pico_known)


def make_target(model: Model, known: Known, concept: Concept = GHOST, **given: object) -> Target:
    make = partial(Target, model, None, concept, PROMPTS, known, SAMPLING)
    return make(**{"critic": Dark(), **given})  # type: ignore[arg-type]
