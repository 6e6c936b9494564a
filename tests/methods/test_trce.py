import pytest
import torch
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.edits.applied import edited_weights
from expunge.methods.trce.closed import RELEASED_CAPTIONS, TRCE, SafePair
from expunge.prior import Prior

SENTENCES = ("a picture of a {}", "{} in an image", "a photo of {} and a cat")
GHOST = Concept(target="ghost", synonyms=["spook"], anchor="man")
SANTA = Concept(target="santa claus", anchor="a dog")


def captions(count: int = 40) -> list[str]:
    words = ("dog", "cat", "man", "art", "tree", "boat", "noto", "style")
    return [f"a {words[i % 8]} in {words[(3 * i + i // 8) % 8]} {i}" for i in range(count)]


@pytest.fixture
def patched(pico: Model) -> Model:
    """A text encoder whose rows span the whole space, as those of trained ones do."""
    norm = dict(pico.pipe.text_encoder.named_modules())
    (final,) = (module for name, module in norm.items() if name.endswith("final_layer_norm"))
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        final.weight.add_(0.2 * torch.randn(32, generator=draws))
        final.bias.add_(0.3 * torch.randn(32, generator=draws))
    return pico


def rows(model: Model, prompt: str) -> Tensor:
    return model.encode([prompt])[0].double()


def released(model: Model, edit: Edit, prior: Prior, s: float, lamb: float, w: list[float]) -> None:
    """A_l B_l^-1 for every layer, pair by pair and row by row, as the program forms them."""
    pairs = [
        (sentence.format(words), sentence.format(safe), sentence.split().index("{}") + 1)
        for words, safe in (("ghost", "man"), ("spook", "man"), ("santa claus", "a dog"))
        for sentence in SENTENCES
    ]
    matches = [
        (scale * times / len(pairs), rows(model, old)[source], rows(model, new)[target])
        for old, new, word in pairs
        for n, m in [(len(old.split()), len(new.split()))]
        for scale, (source, target, times) in zip(
            w, ((0, 0, 1), (n + 1, m + 1, 1), (15, 15, 16 - n - 2), (word, 15, 1)), strict=True
        )
    ]
    eta = s**2 / RELEASED_CAPTIONS
    for name, weight in edited_weights(model, edit.components, edit.names).items():
        base = model.base_weight(name).double()
        a = lamb * base + eta * base @ prior.gram
        b = lamb * torch.eye(32).double() + eta * prior.gram
        for scale, source, target in matches:
            a = a + scale * torch.outer(base @ target, source)
            b = b + scale * torch.outer(source, source)
        expected = a @ torch.linalg.inv(b)
        assert weight is not None
        assert (weight - expected).norm() < 1e-6 * (expected - base).norm()


@pytest.mark.parametrize("w", [[0, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0.05, 0.5]])
def test_the_original_solves_the_released_system(patched: Model, w: list[float]) -> None:
    prior = Prior.of(patched, captions())
    for s, lamb in ((30.0, 0.0), (2.0, 0.3)):
        edit = erase(
            patched,
            Policy(erase=(GHOST, SANTA)),
            "trce",
            fidelity="original",
            prior=prior,
            contexts=SENTENCES,
            token_weight_scale=w,
            preserve_scale=s,
            lamb=lamb,
        )
        released(patched, edit, prior, s, lamb, w)


def test_the_corrected_solution_matches_the_equation(patched: Model) -> None:
    prior, concept = Prior.of(patched, captions()), GHOST.model_copy(update={"keep": ("cat",)})
    settings = {"prior": prior, "contexts": SENTENCES, "token_weight_scale": (1, 2, 0.5, 0.3)}
    edit = erase(patched, Policy(erase=(concept, SANTA)), "trce", **settings)
    eta, of_prior, lamb = 0.03, 0.003, 1.0
    kept = ["", "cat", *(sentence.format("cat") for sentence in SENTENCES)]
    stays = sum(rows(patched, prompt).T @ rows(patched, prompt) for prompt in kept) / len(kept)
    a = b = lamb * torch.eye(32).double() + of_prior * prior.gram / 40 + eta * stays
    for phrases, safe in ((("ghost", "spook"), "man"), (("santa claus",), "a dog")):
        for sentence in SENTENCES:
            for phrase in phrases:
                old, new = sentence.format(phrase), sentence.format(safe)
                n, m = len(patched.tokens(old)), len(patched.tokens(new))
                first = len(patched.tokens(sentence.split("{}")[0])) + 1
                c, s = rows(patched, old), rows(patched, new)
                listed = [(0, 0, 1), (n + 1, m + 1, 2), (15, 15, 0.5 * (16 - n - 2))]
                words = range(first, first + len(patched.tokens(phrase)))
                for source, target, weight in [*listed, *((at, 15, 0.3) for at in words)]:
                    share = weight / (len(SENTENCES) * len(phrases))
                    a = a + share * torch.outer(s[target], c[source])
                    b = b + share * torch.outer(c[source], c[source])
    assert torch.allclose(edit.components[0].payload.matrix, a @ torch.linalg.inv(b), atol=1e-8)


def pair(sentence: str, words: str, safe: str) -> SafePair:
    (made,) = TRCE(contexts=(sentence,)).pairs(Concept(target=words, anchor=safe))
    return made


ALL = {"token_weight_scale": (1.0, 1.0, 1.0, 1.0)}
WORD = TRCE(fidelity="original", **ALL)
PIECE = TRCE(fidelity="original", index="bpe", **ALL)
CORRECTED = TRCE(**ALL)


@pytest.mark.parametrize(
    ("method", "sentence", "words", "safe", "expected"),
    [
        # Every word is one token: both counts agree.
        (WORD, "a {} and cat", "ghost", "dog", [(0, 0, 1), (5, 5, 1), (15, 15, 10), (2, 15, 1)]),
        (PIECE, "a {}", "ghost", "dog", [(0, 0, 1), (3, 3, 1), (15, 15, 12), (2, 15, 1)]),
        # "tree" is four pieces: word counts stop short of the end, which is row 6.
        (WORD, "a {}", "tree", "dog", [(0, 0, 1), (3, 3, 1), (15, 15, 12), (2, 15, 1)]),
        (PIECE, "a {}", "tree", "dog", [(0, 0, 1), (6, 3, 1), (15, 15, 9), (2, 15, 1)]),
        # The words come after a word of several pieces.
        (PIECE, "tree {}", "ghost", "dog", [(0, 0, 1), (6, 6, 1), (15, 15, 9), (5, 15, 1)]),
        # Of several words or pieces the original takes the first, the corrected method all.
        (PIECE, "{}", "santa claus", "", [(0, 0, 1), (3, 1, 1), (15, 15, 12), (1, 15, 1)]),
        (
            CORRECTED,
            "{}",
            "santa claus",
            "",
            [(0, 0, 1), (3, 1, 1), (15, 15, 12), (1, 15, 1), (2, 15, 1)],
        ),
    ],
)
def test_rows_of_hand_made_pairs(
    pico: Model,
    method: TRCE,
    sentence: str,
    words: str,
    safe: str,
    expected: list[tuple[int, int, float]],
) -> None:
    assert list(method.matches(pico, pair(sentence, words, safe))) == expected


def test_rows_without_weight_do_not_move(pico: Model) -> None:
    one = pair("a {}", "ghost", "dog")
    assert TRCE().matches(pico, one) == ((3, 3, 1),)
    short = TRCE(fidelity="original", index="bpe", token_weight_scale=(0, 1))
    assert short.matches(pico, one) == ((3, 3, 1), (15, 15, 12), (2, 15, 1))


def test_words_that_are_part_of_others_are_not_found_by_counting(pico: Model) -> None:
    possessive = pair("{}'s cat", "ghost", "dog")
    TRCE(fidelity="original").matches(pico, possessive)
    with pytest.raises(ExpungeError, match="'ghost' can't be found when words are counted"):
        WORD.matches(pico, possessive)


def test_a_prompt_beyond_the_window_is_an_error(pico: Model) -> None:
    long = pair("{}" + 15 * " cat", "ghost", "dog")
    with pytest.raises(ExpungeError, match="isn't among the 16 rows"):
        TRCE(fidelity="original").matches(pico, long)
    with pytest.raises(ExpungeError, match="too long for its words or its padding"):
        TRCE(token_weight_scale=(0, 0, 1, 0)).matches(pico, long)


@pytest.mark.parametrize("known", [False, True])
def test_two_edits_add_up_to_the_edit_of_both(patched: Model, known: bool) -> None:
    settings = {"prior": Prior.of(patched, captions()) if known else None, **ALL}
    one, two = (
        erase(patched, Policy(erase=(concept,), keep=("cat",)), "trce", **settings)
        for concept in (GHOST, SANTA)
    )
    both = erase(patched, Policy(erase=(GHOST, SANTA), keep=("cat",)), "trce", **settings)
    summed = edited_weights(patched, (one + two).components, both.names)
    joint = edited_weights(patched, both.components, both.names)
    for name, weight in joint.items():
        base = patched.base_weight(name).double()
        assert (summed[name] - weight).norm() < 1e-9 * (weight - base).norm()
    assert ((one + two) - two).id == one.id


def test_more_prompts_of_a_concept_do_not_weigh_more(pico: Model) -> None:
    """The original dilutes each concept with every other; listing sentences twice is neutral."""
    once = erase(pico, GHOST, "trce", contexts=SENTENCES)
    twice = erase(pico, GHOST, "trce", contexts=SENTENCES * 2)
    matrices = [edit.components[0].payload.matrix for edit in (once, twice)]
    assert torch.allclose(*matrices, atol=1e-9)


def test_the_end_of_an_erased_prompt_becomes_the_safe_one(pico: Model) -> None:
    edit = erase(pico, Concept(target="ghost", anchor="man"), "trce", lamb=1e-3)
    old, new = rows(pico, "a picture of a ghost")[6], rows(pico, "a picture of a man")[6]
    moved = edit.components[0].payload.matrix @ old
    assert (moved - new).norm() < 0.1 * (old - new).norm()


def test_what_is_kept_moves_less(patched: Model) -> None:
    prior = Prior.of(patched, captions())
    row = rows(patched, "dog")[2]
    scales = {"preserve_scale": 1e3, "prior_scale": 1e3, "lamb": 0.1}

    def moved(keep: list[str], **settings: object) -> float:
        concept = Concept(target="ghost", anchor="man", keep=keep)
        edit = erase(patched, concept, "trce", **{**scales, **settings})
        return float((edit.components[0].payload.matrix @ row - row).norm())

    assert moved(["dog"], prior=None) < 0.1 * moved([], prior=None)
    assert moved([], prior=prior) < 0.1 * moved([], prior=None)
    assert moved(["dog"], prior=prior) < moved([], prior=prior)


def test_the_record_names_the_prior(pico: Model) -> None:
    prior = Prior.of(pico, captions(8))
    edit = erase(pico, "ghost", "trce", prior=prior)
    assert edit.provenance[0].settings["prior"] == prior.metadata.model_dump(mode="json")
    assert edit.provenance[0].settings["lamb"] == 1.0


def test_a_prior_can_be_named_by_its_file(pico: Model, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    prior = Prior.of(pico, captions(8))
    prior.save(path)
    named, given = (erase(pico, "ghost", "trce", prior=value) for value in (str(path), prior))
    assert named.id == given.id
    with pytest.raises(ExpungeError, match=r"prior: .*none: no such prior \(settings: fidelity"):
        erase(pico, "ghost", "trce", prior=path.parent / "none")


def test_a_prior_of_another_text_encoder_is_refused(pico: Model) -> None:
    prior = Prior.of(pico, captions(8))
    with torch.no_grad():
        next(pico.pipe.text_encoder.parameters()).mul_(1.5)
    with pytest.raises(ExpungeError, match="another text encoder"):
        erase(pico, "ghost", "trce", prior=prior)


def test_a_system_that_nothing_holds_says_so(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="use a larger lamb, or more to keep"):
        erase(pico, "ghost", "trce", fidelity="original")


def test_the_original_starts_from_the_released_settings() -> None:
    method = TRCE(fidelity="original")
    assert (method.index, method.preserve_scale, method.lamb) == ("word", 0.01, 0.0)
    assert method.kept(Policy(erase=(GHOST,), keep=("cat",))) == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token_weight_scale": (0, 0, 0, 0)}, "all weights are 0"),
        ({"token_weight_scale": (0, -1, 0, 1)}, "greater than or equal to 0"),
        ({"token_weight_scale": (0, 1)}, "give four weights (start, end, last, words)"),
        ({"index": "word"}, 'only with fidelity="original"'),
        ({"contexts": ["a photo"]}, "must hold {} once"),
        ({"prior": 3}, "prior: should be default, none, a Prior, or the file of one"),
    ],
)
def test_a_wrong_setting_is_named(pico: Model, values: dict[str, object], message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        erase(pico, "ghost", "trce", **values)
    assert message in str(caught.value)
