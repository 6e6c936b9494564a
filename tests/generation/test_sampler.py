"""What isn't said of drawing, the model says; records hold what was used."""

from pathlib import Path

import pytest
from diffusers import EulerDiscreteScheduler

from expunge import ExpungeError, Model, evaluate, generate, load
from expunge.concepts import Concept
from expunge.evaluation.evaluate import suite_for
from expunge.generation import Sampler
from expunge.models.sdxl import SDXL
from expunge.prompts import PromptSet
from expunge.testing import membrane
from tiny_sdxl import pipeline

PROMPTS = PromptSet.of(["a dog"])
FIELD = Sampler(scheduler="native", steps=50, guidance_scale=7.5)
OWN = Sampler(scheduler="ddim", steps=20, guidance_scale=4.0)


def test_each_family_is_drawn_as_the_field_draws_it(pico: Model, tmp_path: Path) -> None:
    assert Sampler.of(pico) == FIELD
    assert Sampler.of(SDXL(pipeline(tmp_path))) == FIELD.model_copy(update={"guidance_scale": 5.0})


def test_the_bundled_model_is_known_by_its_shape_wherever_it_lies(tmp_path: Path) -> None:
    model = load("emoji", device="cpu")
    model.save(tmp_path / "copy")
    copy = load(tmp_path / "copy", device="cpu")
    assert Sampler.of(model) == Sampler.of(copy) == OWN
    assert suite_for(copy, None) == "emoji"


def test_the_model_fills_in_what_a_sampler_leaves_open(pico: Model) -> None:
    given = Sampler(steps=3)
    assert Sampler.of(pico, given) == FIELD.model_copy(update={"steps": 3})
    assert Sampler.of(pico, OWN) == OWN


def test_pictures_are_drawn_and_recorded_as_the_model_says(pico: Model, tmp_path: Path) -> None:
    settings = generate(pico, PROMPTS, tmp_path / "usual").settings
    assert settings.sampler == FIELD
    assert settings.native.startswith("DDIMScheduler ")
    assert generate(pico, PROMPTS, tmp_path / "own", OWN).settings.native == ""
    usual, own = ((tmp_path / name / "0_0.png").read_bytes() for name in ("usual", "own"))
    assert usual != own


def test_another_scheduler_of_the_pipelines_own_is_another_setting(
    pico: Model, tmp_path: Path
) -> None:
    few = Sampler(steps=2)
    generate(pico, PROMPTS, tmp_path, few)
    pico.pipe.scheduler = EulerDiscreteScheduler.from_config(pico.pipe.scheduler.config)
    with pytest.raises(ExpungeError, match=r"native DDIMScheduler .*, now EulerDiscreteScheduler"):
        generate(pico, PROMPTS, tmp_path, few)


def test_only_the_bundled_model_has_a_suite_of_its_own(pico: Model, tmp_path: Path) -> None:
    edit = membrane(pico, Concept(target="ghost"))
    with pytest.raises(ExpungeError, match=r"say which suite measures .*artists, coco, objects"):
        evaluate(pico, edit, folder=tmp_path)
    assert suite_for(pico, "objects") == "objects"
