from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from expunge import Concept, ExpungeError, Model, Policy, erase, load
from expunge.doctor import anatomy, costs, examine
from expunge.doctor.costs import cost, measure, timed
from expunge.doctor.facts import Caution, Cost, Pace, Timing
from expunge.doctor.words import compare, read, split, warn
from expunge.edits.applied import Applied
from expunge.edits.payloads import Dense
from expunge.method.base import Method, Need, Solves
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.methods import METHODS, configured
from expunge.models import Condition
from expunge.models.emoji import catalog

TINY = Path(__file__).parent / "data" / "reference" / "tiny-sd"
PACE = Pace(unet=Timing(seconds=0.01, repeats=1), text_encoder=Timing(seconds=0.01, repeats=1))


@pytest.fixture(scope="module")
def tiny() -> Model:
    """Random weights behind CLIP's own vocabulary."""
    return load(TINY, device="cpu")


@pytest.fixture(scope="module")
def emoji() -> Model:
    """The bundled model, to which words mean something."""
    return load("emoji", device="cpu")


def policy(target: str, anchor: str = "", *, keep: tuple[str, ...] = (), **of: object) -> Policy:
    return Policy(erase=(Concept(target=target, anchor=anchor, **of),), keep=keep)


def warnings(model: Model, chosen: Policy) -> list[Caution]:
    return list(warn(model, chosen, read(model, chosen), compare(model, chosen)))


# --- the model


def test_roles_count_what_an_edit_can_select(pico: Model) -> None:
    found = anatomy(pico)
    weights = dict(pico.denoiser.named_parameters())
    for role in found.roles:
        names = pico.select(role.name)
        assert role.tensors == len(names)
        assert role.parameters == sum(weights[name].numel() for name in names)
        assert role.bytes == 4 * role.parameters
    sizes = {part.name: part.parameters for part in (*found.networks, *found.roles)}
    attentions = sum(name.endswith(".attn2") for name, _ in pico.denoiser.named_modules())
    assert {part.name: part.tensors for part in found.roles}["cross_attention.kv"] == 2 * attentions
    assert sizes["cross_attention.kv"] < sizes["cross_attention"] < sizes["all"] == sizes["unet"]
    assert sizes["text_encoder"] == pico.pipe.text_encoder.num_parameters()


def test_the_model_is_described_as_it_is_loaded(pico_folder: Path) -> None:
    found = anatomy(load(pico_folder, dtype=torch.float16, device="cpu"))
    assert (found.dtype, found.device, found.text_width, found.positions) == (
        "float16",
        "cpu",
        32,
        16,
    )
    assert (found.latent_shape, found.image_size) == ((4, 8, 8), (16, 16))
    assert found.classes == {
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "unet": "UNet2DConditionModel",
    }
    assert all(part.bytes == 2 * part.parameters for part in (*found.networks, *found.roles))
    assert found.versions["torch"] == torch.__version__


# --- the words


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("santa claus", "santa claus"),
        ("Thomas Kinkade", "thomas kin|kade"),
        ("café", "café"),
        ("beksiński", "bek|si|part of ń|part of ń|ski"),
        ("", ""),
    ],
)
def test_pieces_are_those_of_the_tokenizer(tiny: Model, text: str, pieces: str) -> None:
    split_up = split(tiny, text)
    words: dict[int, list[str]] = {}
    for piece in split_up:
        words.setdefault(piece.word, []).append(piece.text)
    assert " ".join("|".join(parts) for parts in words.values()) == pieces
    assert [piece.id for piece in split_up] == tiny.tokens(text)


def test_every_phrase_is_read_with_its_last_row(tiny: Model) -> None:
    chosen = policy("thomas kinkade", "art", synonyms=("kinkade",), kind="style")
    phrases = read(tiny, chosen)
    assert [(phrase.text, phrase.role, phrase.last_row) for phrase in phrases] == [
        ("thomas kinkade", "target", 3),
        ("kinkade", "synonym", 2),
        ("art", "anchor", 1),
    ]
    assert all(phrase.last_row == tiny.last_token(phrase.text) for phrase in phrases)


def test_what_is_cut_off_is_counted(pico: Model, capsys: pytest.CaptureFixture[str]) -> None:
    (phrase, _) = read(pico, policy("dog " * 20))
    assert (len(phrase.pieces), phrase.cut_off, phrase.last_row) == (20, 6, 14)
    assert list(phrase.ids[:14]) == pico.tokens(phrase.text)
    assert capsys.readouterr().err == ""


def test_the_cosines_are_those_of_the_text_encoder(tiny: Model) -> None:
    (found,) = compare(tiny, policy("santa claus", "a man"))
    rows = []
    for prompt in ("santa claus", "a man"):
        ids = tiny.pipe.tokenizer(prompt, return_tensors="pt").input_ids
        assert ids[0, 3] == tiny.pipe.tokenizer.eos_token_id
        rows.append(tiny.pipe.text_encoder(ids).last_hidden_state[0].double())
    for row, cosine in ((2, found.last_piece), (3, found.end)):
        one, two = (embedding[row] for embedding in rows)
        assert cosine == pytest.approx(float(one @ two / one.norm() / two.norm()), abs=1e-9)


def test_a_broken_text_encoder_is_named(pico: Model) -> None:
    pico.pipe.text_encoder.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ExpungeError, match="gives infinity or NaN for 'ghost'"):
        compare(pico, policy("ghost"))


WORDS = {
    "cut off": ("pico", policy("dog " * 20), "cut_off", "has 20 pieces, and the model reads 14"),
    "unknown letters": (
        "pico",
        policy("dog é"),
        "unknown",
        "'dog é' holds 2 pieces that the tokenizer doesn't know and reads as '<|endoftext|>'",
    ),
    "a rare word": (
        "tiny",
        policy("zdzisław"),
        "rare",
        "falls apart into 5 pieces (z|dz|is|ł|aw)",
    ),
    "a blank anchor": ("tiny", policy("cat", " "), "blank", "the anchor ' ' is blank"),
    "other white space": (
        "tiny",
        policy("ghost-ship", synonyms=("spook", "ghost - ship")),
        "same_tokens",
        "the target 'ghost-ship' and the synonym 'ghost - ship' are the same to the model (it "
        "reads the same pieces): remove one of them",
    ),
    "an anchor that is the target": (
        "tiny",
        policy("santa-claus", "santa - claus"),
        "same_tokens",
        "nothing would be erased",
    ),
    "an anchor that is erased too": (
        "tiny",
        Policy(erase=(Concept(target="cat", anchor="big - dog"), Concept(target="big-dog"))),
        "same_tokens",
        "what is drawn instead of one concept is erased as another",
    ),
    "kept and erased": (
        "tiny",
        policy("santa-claus", keep=("santa - claus",)),
        "same_tokens",
        "'santa-claus' is erased and 'santa - claus' is kept",
    ),
    "the same last piece": (
        "tiny",
        policy("santa claus", "mrs claus"),
        "same_last_piece",
        "end in the same piece ('claus')",
    ),
    "the same meaning": (
        "emoji",
        policy("santa claus", "father christmas"),
        "same_meaning",
        "mean nearly the same to the model: cosine 0.9",
    ),
}


@pytest.mark.parametrize(("which", "chosen", "problem", "message"), WORDS.values(), ids=WORDS)
def test_a_surprise_in_the_words_is_told(
    which: str, chosen: Policy, problem: str, message: str, request: pytest.FixtureRequest
) -> None:
    (found,) = warnings(request.getfixturevalue(which), chosen)
    assert found.problem == problem
    assert message in found.message


@pytest.mark.parametrize(
    "chosen",
    [
        policy("santa claus", "robot", synonyms=("father christmas", "santa"), keep=("mrs claus",)),
        policy("kitchen knife", synonyms=("knife",)),
        Policy(erase=tuple(Concept(target=words, anchor="pizza") for words in ("ghost", "skull"))),
    ],
)
def test_plain_words_give_no_warning(emoji: Model, chosen: Policy) -> None:
    assert warnings(emoji, chosen) == []


@pytest.mark.parametrize("name", ["cat face", "ghost", "kitchen knife", "rocket", "rose"])
def test_a_synonym_means_the_same_and_a_neighbour_does_not(emoji: Model, name: str) -> None:
    entry = catalog().object(name)
    for anchor in (*entry.synonyms, *entry.neighbours):
        (found,) = compare(emoji, policy(name, anchor))
        assert (found.end >= found.alike_from) == (anchor in entry.synonyms), anchor


# --- what it costs


def tried(model: Model, chosen: Policy, name: str, **settings: object) -> Cost:
    return cost(model, chosen, configured(name, **settings), PACE)


SHORT = {"iterations": 3, "num_inference_steps": 4}
TRAININGS = [
    {"trajectories": 3, "batch_size": 2, **SHORT},
    {"fidelity": "original", "variant": "diffusers-sd", **SHORT},
]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("uce", {}),
        ("uce", {"technique": "tensor"}),
        ("esd", TRAININGS[0]),
        ("esd", {"train_method": "x-strict", **TRAININGS[0]}),
    ],
)
def test_the_change_is_that_of_the_real_edit(
    pico: Model, name: str, settings: dict[str, object]
) -> None:
    chosen = policy("ghost", "man", keep=("dog",))
    found = tried(pico, chosen, name, **settings)
    edit = erase(pico, chosen, name, **settings)
    assert (found.tensors, found.edit_bytes) == (len(edit.names), edit.size)
    assert edit.names == pico.select(found.role)
    assert found.role_tensors == found.tensors
    assert found.parameters == sum(pico.base_weight(each).numel() for each in edit.names)
    assert found.rows == (None if name == "esd" else 15)
    assert found.estimated == (name == "esd")
    assert found.peak_bytes > 1e7


def test_nothing_is_left_of_a_trial(pico: Model) -> None:
    before = pico.fingerprint()
    examine(pico, policy("ghost", "man"), configured("esd", **TRAININGS[0]))
    examine(pico, policy("ghost", "man"), configured("uce"))
    assert pico.fingerprint() == before
    assert "forward" not in vars(pico.denoiser)
    assert Applied.to(pico).components == ()
    assert not any(weight.requires_grad for weight in pico.denoiser.parameters())


def shapes(value: Tensor | Condition) -> tuple[int, ...]:
    return tuple((value.rows if isinstance(value, Condition) else value).shape)


@pytest.mark.parametrize("settings", TRAININGS)
def test_calls_noted_without_the_unet_are_those_of_a_real_run(
    pico: Model, settings: dict[str, object]
) -> None:
    method = configured("esd", **settings)
    student = Student(pico, method.parameters(pico))
    run = Run(student, policy("ghost", "man", keep=("dog",)), 0)
    calls: Counter[torch.Size] = Counter()
    hook = pico.denoiser.register_forward_pre_hook(
        lambda _, inputs: calls.update([inputs[0].shape])
    )
    real = list(method.batches(run, range(method.iterations)))
    hook.remove()
    with costs._denoiser_left_out(pico) as noted:
        without = list(method.batches(run, range(method.iterations)))
    assert noted == calls
    assert calls
    assert [{key: shapes(value) for key, value in batch.items()} for batch in real] == [
        {key: shapes(value) for key, value in batch.items()} for batch in without
    ]


def test_a_training_costs_its_first_batch_all_later_ones_and_its_steps(
    pico: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a UNet pass of one second, a step of ten, and no time for anything else."""
    monkeypatch.setattr(costs, "_now", lambda device: 0.0)
    monkeypatch.setattr(costs, "_prices", lambda model, shapes, one: dict.fromkeys(shapes, 1.0))
    monkeypatch.setattr(costs, "timed", lambda run, device: Timing(seconds=10.0, repeats=1))
    table = {"iterations": 100, "trajectories": 17, "num_inference_steps": 5}
    # Two blocks of trajectories, with the anchor's prediction beside the guided one.
    assert tried(pico, policy("ghost", "man"), "esd", **table).seconds == 2 * 5 * 2 + 1000
    # The guided prediction alone, where the anchor is the empty prompt.
    assert tried(pico, policy("ghost"), "esd", **table).seconds == 2 * 5 + 1000


def test_a_large_pass_is_scaled_and_a_small_one_measured(
    pico: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {torch.Size((rows, 4, 8, 8)) for rows in (2, 4)} | {torch.Size((1, 4, 16, 16))}
    measured = []

    def measure_one(model: Model, shape: torch.Size) -> Timing:
        measured.append(shape)
        return Timing(seconds=0.5, repeats=1)

    monkeypatch.setattr(costs, "_unet_pass", measure_one)
    prices = costs._prices(pico, sizes, 0.3)
    assert sorted(prices.values()) == [0.5, 1.2, 1.2]
    assert measured == [torch.Size((2, 4, 8, 8))]


def test_what_takes_long_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    cpu = torch.device("cpu")
    assert timed(lambda: calls.append(0), cpu).repeats == costs.REPEATS
    assert len(calls) == 1 + costs.REPEATS
    monkeypatch.setattr(costs, "PATIENCE", 0.0)
    assert timed(lambda: calls.append(0), cpu).repeats == 1
    assert len(calls) == 2 + costs.REPEATS


def test_both_networks_are_timed_at_their_own_size(pico: Model) -> None:
    shapes: Counter[tuple[int, ...]] = Counter()
    pico.denoiser.register_forward_pre_hook(lambda _, inputs: shapes.update([(*inputs[0].shape,)]))
    pace = measure(pico)
    assert shapes == {(1, 4, 8, 8): 1 + pace.unet.repeats}
    assert pace.text_encoder.seconds > 0


class Draws(Method):
    """Solves, but draws pictures to do so."""

    name: ClassVar[str] = "draws"
    needs: ClassVar[frozenset[Need]] = frozenset({"text", "drawing"})

    def solve(self, model: Model, policy: Policy, seed: int) -> Dense:
        raise AssertionError("it was run")


class Hides(Draws):
    """Trains inside of its solution."""

    name: ClassVar[str] = "hides"
    needs: ClassVar[frozenset[Need]] = frozenset({"text", "training", "gradients"})


@pytest.mark.parametrize(
    ("method", "reason"),
    [(Draws(), "drawing is part of its solution"), (Hides(), "training is part of its solution")],
)
def test_what_cannot_be_tried_in_short_is_said(pico: Model, method: Method, reason: str) -> None:
    found = examine(pico, policy("ghost"), method)
    assert [refusal.method for refusal in found.refusals] == [method.name]
    assert reason in found.refusals[0].reason
    assert not found.costs
    assert "forward" not in vars(pico.denoiser)


def test_all_that_solve_are_tried_or_say_why_not(pico: Model) -> None:
    found = examine(pico, policy("ghost", "man"))
    spoken = [*(one.method for one in found.costs), *(one.method for one in found.refusals)]
    assert sorted(spoken) == [name for name in METHODS if issubclass(METHODS.get(name), Solves)]
    assert "uce" in [one.method for one in found.costs]


def test_an_edited_model_and_a_method_for_nothing_are_refused(pico: Model) -> None:
    with pytest.raises(ExpungeError, match="uce: what it changes depends on what is erased"):
        examine(pico, None, configured("uce"))
    erase(pico, "ghost", "uce").apply(pico)
    with pytest.raises(ExpungeError, match="revert it"):
        examine(pico)
