import re

import pytest

from expunge import Concept
from expunge.evaluation.bench import presets
from expunge.method.presets import presets as table
from expunge.methods import METHODS, configured
from expunge.models.emoji import catalog


def test_everything_else_is_kept_in_every_style() -> None:
    concept = Concept(target="santa claus", kind="character")
    policy = presets.policy(concept)
    assert set(policy.kept) == {entry.name for entry in catalog().objects} - {"santa claus"}
    sentences = policy.erase[0].sentences()
    assert all(any(style.name in sentence for sentence in sentences) for style in catalog().styles)


def test_a_style_is_erased_around_every_object() -> None:
    concept = Concept(target="ink", kind="style", anchor="noto")
    policy = presets.policy(concept)
    assert len(policy.kept) == len(catalog().styles) - 1
    sentences = policy.erase[0].sentences()
    assert all(entry.name in " ".join(sentences) for entry in catalog().objects)


def test_a_style_and_an_object_have_each_their_own_sentences_and_neighbours() -> None:
    ink, santa = Concept(target="ink", kind="style"), Concept(target="santa claus")
    both = presets.policy(santa, ink)
    for concept, alone in zip(both.erase, map(presets.policy, (santa, ink)), strict=True):
        assert len(concept.contexts) == len(alone.erase[0].contexts) - 1
        assert not any(re.search(r"\bink\b|santa", sentence) for sentence in concept.contexts)
        assert set(concept.keep) <= set(alone.kept)
    prompts = set(both.kept_prompts())
    assert not any("pizza style" in prompt or "pizza drawing" in prompt for prompt in prompts)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "uce-debias"])
@pytest.mark.parametrize("kind", ["character", "style"])
def test_the_settings_are_the_preset_of_the_method(method: str, kind: str) -> None:
    concept = Concept(target="ghost", kind=kind)
    made = configured(method, **presets.settings(method, concept))
    tuned = table(METHODS.get(method)).get("emoji")
    assert made.preset == (tuned and "emoji")
    assert (tuned.values() if tuned else {}).items() <= made.model_dump(mode="json").items()


def test_presets_of_other_models_are_not_taken() -> None:
    concept = Concept(target="ghost")
    for method in METHODS:
        named = presets.settings(method, concept).get("preset")
        assert named is None or table(METHODS.get(method))[named].model == "emoji"
    assert presets.settings("esd", concept)["preset"] == "emoji"
