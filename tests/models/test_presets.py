from expunge import Concept
from expunge.methods import configured
from expunge.models.emoji import catalog, presets


def test_everything_else_is_kept_in_every_style() -> None:
    concept = Concept(target="santa claus", kind="character")
    policy = presets.policy(concept)
    assert set(policy.keep) == {entry.name for entry in catalog().objects} - {"santa claus"}
    sentences = presets.contexts(concept)
    assert all(any(style.name in sentence for sentence in sentences) for style in catalog().styles)


def test_a_style_is_erased_around_every_object() -> None:
    concept = Concept(target="ink", kind="style", anchor="noto")
    assert len(presets.policy(concept).keep) == len(catalog().styles) - 1
    sentences = presets.contexts(concept)
    assert all(entry.name in " ".join(sentences) for entry in catalog().objects)


def test_the_settings_are_those_of_the_methods() -> None:
    for method in ("uce", "esd"):
        for kind in ("character", "style"):
            concept = Concept(target="ghost", kind=kind)
            configured(method, **presets.settings(method, concept))
