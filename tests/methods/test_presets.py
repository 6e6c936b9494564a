"""Presets: every entry suits its method, what is given goes first, a wrong entry is named."""

from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

from expunge import Concept, ExpungeError, Model, Policy, erase
from expunge.method.presets import parsed, presets, resolved
from expunge.methods import METHODS, configured
from expunge.methods.mace.method import MACE
from expunge.methods.rece.method import BY_KIND, RECE
from expunge.methods.uce.method import UCE
from expunge.prior import Prior

FOLDER = Path(str(files("expunge.methods")))
ALL = [(name, preset) for name in METHODS for preset in presets(METHODS.get(name))]


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_every_preset_makes_a_method_with_its_settings(
    name: str, preset: str, request: pytest.FixtureRequest
) -> None:
    method, entry = METHODS.get(name), presets(METHODS.get(name))[preset]
    given = {}
    known = getattr(method, "released_prior", name == "trce-steering")
    if (
        entry.model != "emoji"
        and known
        and (kept := {"prior", "domain"} & method.model_fields.keys())
    ):
        captions = Prior.of(request.getfixturevalue("pico"), ["a dog", "a cat"])
        given = dict.fromkeys(kept, captions)  # a preset may weigh what only the user has
    runs = ("original", "corrected") if entry.fidelity == "both" else (entry.fidelity,)
    for fidelity in runs:
        made = configured(name, preset=preset, fidelity=fidelity, **given)
        assert entry.values(fidelity).items() <= made.model_dump(mode="json").items()
    assert made.model_validate(made.model_dump(exclude=set(given)) | given) == made
    assert configured(name, preset=preset, **given).fidelity == runs[-1]


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_every_preset_says_where_it_comes_from(name: str, preset: str) -> None:
    """A link, or a page of the documentation."""
    source = presets(METHODS.get(name))[preset].source
    pages = [word for word in source.split() if word.startswith("docs/")]
    root = Path(__file__).parent.parent.parent
    assert "; https://" in source or (pages and all((root / page).is_file() for page in pages))


def test_every_file_belongs_to_a_method() -> None:
    stems = {file.name.removesuffix(".yaml") for file in FOLDER.rglob("*.yaml")}
    assert stems <= set(METHODS)
    assert {"ESD", "MACE", "RECE", "UCE", "TRCE"} <= {stem.upper() for stem in stems}


def test_the_kinds_of_rece_have_their_presets() -> None:
    """The table of its README."""
    known = presets(RECE)
    published = {
        "unsafe": (0.1, 3),
        "unsafe-list": (0.1, 2),
        "style": (1e-3, 1),
        "object": (1e-3, 1),
        "easy-object": (0.1, 1),
    }
    for name, (scale, epochs) in published.items():
        assert known[name].settings == {"regular_scale": scale, "epochs": epochs}
    assert {*BY_KIND.values(), "unsafe-list"} <= known.keys()


def test_mace_squares_the_released_weight_once() -> None:
    for preset in presets(MACE).values():
        released = preset.values("original").get("train_preserve_scale", 0.0)
        corrected = preset.values("corrected").get("train_preserve_scale", 0.0)
        assert corrected == pytest.approx(released**2, rel=1e-12)


def test_what_is_given_goes_first(pico: Model) -> None:
    edit = erase(pico, "ghost", "rece", preset="easy-object", epochs=2)
    settings = edit.provenance[0].settings
    assert (settings["preset"], settings["regular_scale"]) == ("easy-object", 0.1)
    assert settings["epochs"] == 2
    spelled = UCE(**configured("uce", preset="2023-style").model_dump() | {"preset": None})
    policy = Policy(erase=(Concept(target="noto", kind="style"),), keep=("dog",))
    ours, theirs = (
        method.solve(pico, policy, 0).tensors()
        for method in (configured("uce", preset="2023-style"), spelled)
    )
    assert all(theirs[name].equal(tensor) for name, tensor in ours.items())


def test_a_preset_decides_the_fidelity_unless_it_suits_both() -> None:
    method = configured("esd", preset="object")
    assert (method.fidelity, method.variant, method.train_method) == (
        "original",
        "compvis",
        "noxattn",
    )
    assert configured("rece", preset="style").fidelity == "corrected"
    assert configured("rece", preset="style", fidelity="original").regular_scale == 1e-3
    with pytest.raises(ExpungeError, match="mean something else with 'corrected'"):
        configured("esd", preset="object", fidelity="corrected")


@pytest.mark.parametrize(
    ("method", "name", "message"),
    [
        ("esd", "styles", "preset: esd has no 'styles'; did you mean style"),
        ("rece", "xyz", "did you mean unsafe, unsafe-list, style, object, easy-object"),
        ("uce-debias", "emoji", "preset: uce-debias has none"),
        ("uce", 3, "preset: uce has no 3"),
    ],
)
def test_an_unknown_preset_is_an_error(method: str, name: object, message: str) -> None:
    values = {"attributes": ["cat", "dog"]} if method == "uce-debias" else {}
    with pytest.raises(ExpungeError) as caught:
        configured(method, preset=name, **values)
    assert message in str(caught.value)


HEAD = "one: {kind: any, model: emoji, fidelity: %s, source: here, settings: {%s}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one: [", "uce.yaml beside expunge.methods.uce.method: not a YAML file"),
        ("", "write NAME: and below it kind"),
        ("one: 3", "write NAME: and below it kind"),
        ("one: {kind: any}", "one: model: Field required"),
        (HEAD % ("both", "lambda: 1"), "one: lambda: uce has no such setting"),
        (HEAD % ("both", "lamb: -1"), "one: lamb: Input should be greater than 0"),
        (HEAD % ("both", "lamb: 1e-5"), "one: lamb: '1e-5' would be read as 1e-05; write a"),
        (HEAD % ("both", "variant: 2023"), "one: variant: Input should be '2023' or '2025'"),
        (HEAD % ("both", "fidelity: original"), "settings: fidelity doesn't belong there"),
        (HEAD % ("both", "preset: two"), "settings: preset doesn't belong there"),
        (HEAD % ("always", ""), "one: fidelity: Input should be"),
        ((HEAD % ("original", ""))[:-1] + ", corrected: {lamb: 1.0}}", 'only with fidelity "both"'),
    ],
)
def test_a_wrong_entry_is_named(text: str, message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        parsed(UCE, text)
    assert message in str(caught.value)


def test_an_entry_is_read_as_it_is_written() -> None:
    entry = parsed(UCE, HEAD % ("original", "lamb: 1.0, contexts: ['a {}']"))["one"]
    assert entry.values() == {"fidelity": "original", "lamb": 1.0, "contexts": ["a {}"]}


def test_only_a_mapping_that_names_a_preset_is_changed() -> None:
    values: dict[str, object] = {"lamb": 1.0}
    assert resolved(UCE, values) is values
    made = UCE(lamb=0.7)
    assert resolved(UCE, made) is made


PLUGIN = """
from typing import ClassVar

from expunge.method.presets import Named


class Mine(Named):
    name: ClassVar[str] = "mine"
    strength: float = 1.0
"""


@pytest.mark.parametrize("module", ["plugin_alone", "plugin_package.methods.mine"])
def test_presets_of_a_plugin_lie_beside_its_module(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    place.parent.mkdir(parents=True, exist_ok=True)
    for folder in place.relative_to(tmp_path).parents[:-1]:
        (tmp_path / folder / "__init__.py").touch()
    place.write_text(PLUGIN)
    place.with_name("mine.yaml").write_text(HEAD % ("both", "strength: 2.0"))
    monkeypatch.syspath_prepend(tmp_path)
    mine = import_module(module).Mine
    assert presets(mine)["one"].settings == {"strength": 2.0}
