"""MACE: its equations layer by layer, its rows, its attention loss, its settings."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from expunge import Concept, Edit, ExpungeError, Model, Policy, erase
from expunge.edits.applied import edited_weights
from expunge.methods import configured
from expunge.methods.mace.adapters import Adapter, layer_norms, suppression
from expunge.methods.mace.batches import AdapterBatch, columns, focal, training_batches
from expunge.methods.mace.closed import aligned
from expunge.methods.mace.method import MACE
from expunge.prior import Prior, moment

GHOST = Concept(target="ghost", anchor="man")
SANTA = Concept(target="santa claus", anchor="dog", synonyms=["santa"])
ALONE = SANTA.model_copy(update={"synonyms": ()})
SENTENCES = ("{}", "a picture of {}", "a {} photo", "{} and a cat")
QUICK: dict[str, Any] = {
    "contexts": SENTENCES,
    "iterations": 2,
    "pictures": {words: [Image.new("RGB", (16, 16), "teal")] for words in ("ghost", "santa claus")},
}


def priors(model: Model) -> dict[str, Prior]:
    return {
        "prior": Prior.of(model, ["a dog photo", "a cat", "an image of man"]),
        "domain": Prior.of(model, ["art", "noto style"]),
    }


def literal_rows(model: Model, old: str, new: str) -> tuple[Tensor, Tensor]:
    """The rows of two prompts that differ in some words, found by looking at the tokens."""
    special = model.pipe.tokenizer
    ids = [model.tokens(prompt) for prompt in (old, new)]
    first, second = ([special.bos_token_id, *one, special.eos_token_id] for one in ids)
    before = 0
    while first[before] == second[before] and before < min(len(first), len(second)) - 1:
        before += 1
    after = 0
    while first[-1 - after] == second[-1 - after] and after + before < min(len(first), len(second)):
        after += 1
    left = [*range(before), *range(len(first) - after, len(first)), *range(len(first), 16)]
    right = [*range(before), *range(len(second) - after, len(second)), *range(len(second), 16)]
    count = 16 - max(len(first), len(second)) + before + after
    f, e = model.encode([old, new]).double()
    return f[left[:count]], e[right[:count]]


def literal_refinement(
    model: Model, concepts: list[Concept], kept: Tensor, lamb: float, phrases: bool
) -> dict[str, Tensor]:
    """W' of B2, with one inverse a matrix."""
    x, o = torch.zeros(32, 32).double(), torch.zeros(32, 32).double()
    for concept in concepts:
        for words in concept.phrases if phrases else [concept.target]:
            for sentence in SENTENCES:
                pair = sentence.format(words), sentence.format(concept.replacement)
                f, e = literal_rows(model, *pair)
                x, o = x + e.T @ f, o + f.T @ f
    identity = lamb * torch.eye(32).double()
    return {
        name: model.base_weight(name).double()
        @ (identity + x + kept)
        @ torch.linalg.inv(identity + o + kept)
        for name in model.select("cross_attention.kv")
    }


def weights(model: Model, edit: Edit) -> dict[str, Tensor]:
    found = edited_weights(model, edit.components, edit.names)
    return {name: weight for name, weight in found.items() if weight is not None}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-8) for name in ours
    )


def test_the_original_refinement_squares_the_weight_of_the_prior(pico: Model) -> None:
    known, s, w = priors(pico), 0.3, 2.5
    edit = erase(
        pico, [GHOST, ALONE], "mace", fidelity="original", rank=0, contexts=SENTENCES, lamb=0.2,
        train_preserve_scale=s, preserve_weight=w, **known,
    )  # fmt: skip
    kept = s**2 * (known["prior"].gram + w * known["domain"].gram)
    theirs = literal_refinement(pico, [GHOST, ALONE], kept, 0.2, phrases=False)
    assert same(weights(pico, edit), theirs)


def test_the_corrected_refinement_erases_synonyms_and_keeps_what_is_named(pico: Model) -> None:
    known, s, w = priors(pico), 0.3, 2.5
    policy = Policy(erase=(GHOST, SANTA), keep=("cat", "art"))
    edit = erase(
        pico, policy, "mace", rank=0, contexts=SENTENCES, lamb=0.2,
        train_preserve_scale=s, preserve_weight=w, **known,
    )  # fmt: skip
    prompts = ["", *(t.format(c) for c in ("cat", "art") for t in SENTENCES)]
    kept = s * (known["prior"].gram + w * known["domain"].gram) + moment(pico, prompts) / 2
    theirs = literal_refinement(pico, [GHOST, SANTA], kept, 0.2, phrases=True)
    assert same(weights(pico, edit), theirs)


def test_by_default_all_captions_together_weigh_as_much_as_one_prompt(pico: Model) -> None:
    known = priors(pico)
    one = erase(pico, "ghost", "mace", rank=0, **known)
    two = erase(
        pico, "ghost", "mace", rank=0, train_preserve_scale=1 / 3, preserve_weight=1.5, **known
    )
    assert same(weights(pico, one), weights(pico, two))


def test_all_words_maps_every_row_in_its_place(pico: Model) -> None:
    edit = erase(
        pico, GHOST, "mace", fidelity="original", rank=0, contexts=("a {}",), all_words=True
    )
    f, e = pico.encode(["a ghost", "a man"]).double()
    theirs = {
        name: pico.base_weight(name).double()
        @ (0.5 * torch.eye(32).double() + e.T @ f)
        @ torch.linalg.inv(0.5 * torch.eye(32).double() + f.T @ f)
        for name in edit.names
    }
    assert same(weights(pico, edit), theirs)


@pytest.mark.parametrize("fidelity", ["original", "corrected"])
def test_the_fusion_matches_the_equation_layer_by_layer(pico: Model, fidelity: str) -> None:
    """The sum over concepts as it is written, W' and adapters and all, in float64."""
    known, concepts = priors(pico), [GHOST, ALONE if fidelity == "original" else SANTA]
    method = MACE(
        fidelity=fidelity, lamb=0.1, train_preserve_scale=0.3, fuse_preserve_scale=0.2,
        preserve_weight=0.5, lr=1e-2, **known, **QUICK,
    )  # fmt: skip
    policy = Policy(erase=tuple(concepts))
    edit = erase(pico, policy, method, seed=3)
    captions = known["prior"].gram + 0.5 * known["domain"].gram
    named = moment(pico, [""]) if fidelity == "corrected" else torch.zeros(32, 32).double()
    mu, phrases = (0.09, False) if fidelity == "original" else (0.3, True)
    refined = literal_refinement(pico, concepts, mu * captions + named, 0.1, phrases)
    adapters = [method.adapter(pico, refined, concept, 3) for concept in concepts]
    own = [moment(pico, [p for p, _ in method.prompts(concept)]) for concept in concepts]
    identity, theirs = 0.1 * torch.eye(32).double(), {}
    for name, w in refined.items():
        # The refinement stays in the sums; the named prompts stay as the captions do.
        base = pico.base_weight(name).double()
        left = w @ (identity + sum(own)) + base @ (0.2 * captions + named)
        for adapter, c in zip(adapters, own, strict=True):
            left = left + adapter.up[name].double() @ (adapter.down[name].double() @ c)
        theirs[name] = left @ torch.linalg.inv(identity + sum(own) + 0.2 * captions + named)
    assert any(
        adapter.change(n, refined[n]).abs().max() > 1e-3 for adapter in adapters for n in refined
    )
    assert same(weights(pico, edit), theirs)


@pytest.mark.parametrize(
    ("old", "new", "pairs"),
    [
        # start, a, [cat | dog], end, padding
        ([5, 7], [5, 8], [(0, 0), (1, 1), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)]),
        # two tokens against one: the longer padding is cut
        ([5, 7, 9, 6], [5, 8, 6], [(0, 0), (1, 1), (4, 3), (5, 4), (6, 5), (7, 6)]),
        # against nothing, at the end
        ([5, 7], [5], [(0, 0), (1, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6)]),
        # a token of both: what is before the difference goes first
        ([5, 5, 7], [5, 7], [(0, 0), (1, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6)]),
        ([5], [5], [(at, at) for at in range(8)]),
    ],
)
def test_rows_that_say_the_same_are_paired(
    old: list[int], new: list[int], pairs: list[tuple[int, int]]
) -> None:
    assert list(zip(*aligned(old, new, 8), strict=True)) == pairs


def test_refinements_add_up_to_the_joint_one_and_adapters_can_be_taken_out(pico: Model) -> None:
    one, two = (erase(pico, c, "mace", rank=0) for c in (GHOST, SANTA))
    joint = erase(pico, [GHOST, SANTA], "mace", rank=0)
    assert same(weights(pico, one + two), weights(pico, joint))
    assert ((one + two) - two).id == one.id


def test_an_edit_survives_its_file_and_its_model(pico: Model, tmp_path: Path) -> None:
    before = {name: weight.clone() for name, weight in pico.denoiser.state_dict().items()}
    processors = {n: type(p) for n, p in pico.denoiser.attn_processors.items()}
    edit = erase(pico, Policy(erase=(GHOST, SANTA), keep=("dog",)), "mace", **QUICK)
    assert edit.components[0].payload.form == "sum"
    edit.save(tmp_path / "edit.safetensors")
    again = Edit.load(tmp_path / "edit.safetensors")
    assert again.id == edit.id
    ours, theirs = weights(pico, again), weights(pico, edit)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with again.applied(pico):
        assert not torch.equal(pico.denoiser.state_dict()[edit.names[0]], before[edit.names[0]])
    after = pico.denoiser.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert {n: type(p) for n, p in pico.denoiser.attn_processors.items()} == processors
    assert not any("get_attention_scores" in vars(module) for module in pico.denoiser.modules())


def test_the_same_seed_gives_the_same_edit_and_no_other_concept_matters(pico: Model) -> None:
    method = MACE(contexts=SENTENCES, images=2, num_inference_steps=2, iterations=2)
    base = {name: pico.base_weight(name) for name in pico.select("cross_attention.kv")}
    up = [method.adapter(pico, base, GHOST, seed).up for seed in (0, 0, 1)]
    assert all(torch.equal(up[0][name], up[1][name]) for name in base)
    assert not all(torch.equal(up[0][name], up[2][name]) for name in base)


# --- the adapter


def test_timesteps_are_drawn_around_the_middle() -> None:
    shares = focal()
    t = torch.arange(1000).double()
    weight = 1 / (1 + (-0.05 * (t - 200)).exp()) - 1 / (1 + (-0.05 * (t - 400)).exp())
    assert torch.allclose(shares, weight / weight.sum(), rtol=1e-9)
    assert float(shares.sum()) == pytest.approx(1)
    assert float((shares * t).sum()) == pytest.approx(300, abs=0.1)
    assert 0.85 < float(shares[200:401].sum()) < 0.87


def batches(
    model: Model, *, steps: int = 1, size: int = 1, focused: bool = True
) -> list[AdapterBatch]:
    method = MACE(**QUICK)
    options: dict[str, Any] = {"size": size, "steps": steps, "focused": focused}
    examples = method.examples(model, GHOST, 0)
    return list(training_batches(model, examples, method.prompts(GHOST), 0, **options))


def test_draws_follow_the_distribution_and_the_seed(pico: Model) -> None:
    many = batches(pico, steps=4, size=256)
    focused = torch.cat([batch.timestep for batch in many]).double()
    even = torch.cat([b.timestep for b in batches(pico, steps=4, size=256, focused=False)]).double()
    assert abs(float(focused.mean()) - 300) < 15
    assert 60 < float(focused.std()) < 110
    assert abs(float(even.mean()) - 499.5) < 40
    # A step's draws depend on its number, not on how many there are.
    assert torch.equal(many[1].latents, batches(pico, steps=2, size=256)[1].latents)


def adapter(model: Model, **values: Any) -> Adapter:
    base = {name: model.base_weight(name) for name in model.select("cross_attention.kv")}
    return Adapter.fresh(model, base, values.get("rank", 1), 0, "ghost")


def literal_loss(model: Model, batch: AdapterBatch) -> Tensor:
    """The attention, computed again beside the UNet from the inputs of each layer."""
    inputs: dict[str, Tensor] = {}
    layers = {n: m for n, m in model.denoiser.named_modules() if n.endswith(".attn2")}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, name=name: inputs.__setitem__(name, given[0].double())
        )
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        model.predict(batch.latents, batch.timestep, batch.condition)
    for hook in hooks:
        hook.remove()
    total = torch.zeros(()).double()
    for name, layer in layers.items():
        queries = inputs[name][0] @ layer.to_q.weight.double().T
        keys = batch.condition.rows[0].double() @ layer.to_k.weight.double().T
        width = queries.shape[1] // layer.heads
        side = round(len(queries) ** 0.5)
        step = batch.masks.shape[1] // side
        shown = batch.masks[0, ::step, ::step].flatten() > 0.5
        squares = torch.zeros(()).double()
        for head in range(layer.heads):
            part = slice(head * width, (head + 1) * width)
            maps = (queries[:, part] @ keys[:, part].T / width**0.5).softmax(1)
            squares = squares + maps[shown][:, batch.columns[0]].square().sum()
        total = total + squares.sqrt()
    return total


def test_the_loss_is_the_attention_on_the_concepts_rows_where_it_is(pico: Model) -> None:
    (batch,) = batches(pico)
    masks = torch.zeros(1, 16, 16)
    masks[0, 4:12, 2:14] = 1
    batch = batch._replace(masks=masks)
    ours = suppression(adapter(pico), batch, nearest=True)
    assert ours.item() == pytest.approx(float(literal_loss(pico, batch)), rel=1e-5)
    norms = layer_norms(adapter(pico).attention(batch), batch, nearest=True)
    squared = suppression(adapter(pico), batch, nearest=True, squared=True)
    assert squared.item() == pytest.approx(norms.square().sum().item(), rel=1e-6)


def test_a_step_against_the_gradient_takes_attention_off_the_concept(pico: Model) -> None:
    (batch,) = batches(pico, size=2)
    student = adapter(pico)
    first = suppression(student, batch)
    first.backward()
    gradients = {key: weight.grad for key, weight in student.weights.items()}
    assert all(
        gradients[key] is None
        for key in gradients
        if "attn2.to_v" in key and "up_blocks.1.attentions.1" in key
    )
    with torch.no_grad():
        for key, weight in student.weights.items():
            if gradients[key] is not None:
                weight -= 0.05 * gradients[key]
    assert suppression(student, batch).item() < first.item()


@pytest.mark.parametrize("squared", [False, True])
def test_training_takes_attention_off_the_concept(pico: Model, squared: bool) -> None:
    method = MACE(**{**QUICK, "iterations": 12}, lr=1e-2, rank=2, squared=squared)
    base = {name: pico.base_weight(name) for name in pico.select("cross_attention.kv")}
    low = method.adapter(pico, base, GHOST, 0)
    factors = {f"up:{n}": m for n, m in low.up.items()} | {
        f"down:{n}": m for n, m in low.down.items()
    }
    trained, fresh = Adapter(pico, base, factors), adapter(pico)
    held_out = batches(pico, size=8)[0]
    with torch.no_grad():
        before, after = (suppression(a, held_out).item() for a in (fresh, trained))
    assert after < 0.97 * before


def test_a_mask_too_small_for_a_layer_counts_when_corrected(pico: Model) -> None:
    (batch,) = batches(pico)
    masks = torch.zeros(1, 16, 16)
    masks[0, 3, 3] = 1
    batch = batch._replace(masks=masks)
    maps = adapter(pico).attention(batch)
    assert float(layer_norms(maps, batch, nearest=True).detach().sum()) == 0
    assert bool((layer_norms(maps, batch, nearest=False) > 0).all())
    # An empty mask is no reason for a gradient that isn't a number.
    student = adapter(pico)
    suppression(student, batch, nearest=True).backward()
    assert all(w.grad is None or bool(w.grad.isfinite().all()) for w in student.weights.values())


def test_the_concepts_rows_are_its_words_and_all_after_the_end(pico: Model) -> None:
    def marked(prompt: str, words: str) -> list[int]:
        return columns(pico, prompt, words).nonzero().flatten().tolist()

    assert marked("a picture of santa claus", "santa claus") == [4, 5, *range(6, 16)]
    assert marked("ghost and ghost", "ghost") == [1, 5, *range(6, 16)]  # "and" is three pieces
    with pytest.raises(ExpungeError, match="must stand as a word by itself"):
        columns(pico, "ghostly", "ghost")
    with pytest.raises(ExpungeError, match="must stand as a word by itself"):
        erase(pico, "ghost", "mace", **{**QUICK, "contexts": ("a {}ly man",)})


def test_noise_is_added_as_the_scheduler_adds_it(pico: Model) -> None:
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    timestep = torch.tensor([0, 300, 999])
    wanted = pico.pipe.scheduler.add_noise(latents, noise, timestep)
    assert torch.allclose(pico.process.mix(latents, noise, timestep), wanted)


# --- settings


def test_presets_are_the_released_settings_and_what_is_given_goes_first(pico: Model) -> None:
    known = priors(pico)
    released = configured("mace", preset="celebrity-5", fidelity="original", **known)
    assert (released.lamb, released.preserve_weight, released.lr) == (0, 5e4, 1e-4)
    assert (released.train_preserve_scale, released.fuse_preserve_scale) == (1e-4, 1e-4)
    corrected = configured("mace", preset="celebrity-5", lr=1e-3, **known)
    assert corrected.train_preserve_scale == pytest.approx(1e-8)
    assert (corrected.fuse_preserve_scale, corrected.lr) == (1e-4, 1e-3)
    assert configured("mace", preset="unsafe-4", prior=known["prior"]).focal is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "celebrity-7"}, "preset: mace has no 'celebrity-7'; did you mean celebrity-"),
        ({"preset": "artist-100", "prior": None}, "train_preserve_scale: weighs a prior; give one"),
        (
            {"train_preserve_scale": 1.0, "prior": "none"},
            "train_preserve_scale: weighs a prior; give one",
        ),
        (
            {"fuse_preserve_scale": 1.0, "prior": "none"},
            "fuse_preserve_scale: weighs a prior; give one",
        ),
        ({"preserve_weight": 1.0}, "preserve_weight: weighs a domain; give one"),
        ({"rank": -1}, "rank"),
        ({"contexts": ["a photo"]}, "must hold {} once"),
        ({"fidelity": "original", "batch_size": 2}, "trains on one picture at a time"),
        ({"segmenter": "nowhere"}, "none of whole, threshold, grounded-sam"),
        ({"segmenter": "grounded-sam:one"}, "name the weights of both models"),
        ({"pictures": "nowhere"}, "one folder of pictures a concept"),
        ({"pictures": {"ghost": [1]}}, "a picture is a PIL image or bytes"),
        ({"itterations": 3}, "itterations: Extra inputs"),
    ],
)
def test_a_wrong_setting_is_named(pico: Model, values: dict[str, object], message: str) -> None:
    with pytest.raises(ExpungeError) as caught:
        erase(pico, "dog", "mace", **values)
    assert message in str(caught.value)


def test_what_can_not_be_kept_is_not_dropped_silently(pico: Model) -> None:
    known = priors(pico)
    with pytest.raises(ExpungeError, match="domain: goes beside a prior"):
        configured("mace", domain=known["domain"], prior=None)
    with pytest.raises(ExpungeError, match="train_preserve_scale: the released value differs"):
        configured("mace", fidelity="original", prior=known["prior"])
    policy = Policy(erase=(GHOST,), keep=("dog",))
    with pytest.raises(ExpungeError, match="prompts to keep are part of the domain"):
        erase(pico, policy, "mace", fidelity="original", rank=0)
    values: dict[str, Any] = {
        "fidelity": "original", "rank": 0, "contexts": SENTENCES, "train_preserve_scale": 0.5,
        "preserve_weight": 2.0, "prior": known["prior"],
    }  # fmt: skip
    kept = 0.25 * (known["prior"].gram + 2 * moment(pico, ["dog"]))
    theirs = literal_refinement(pico, [GHOST], kept, 0.5, phrases=False)
    assert same(weights(pico, erase(pico, policy, "mace", **values)), theirs)


def test_a_prior_of_another_text_encoder_is_refused(pico: Model) -> None:
    known = priors(pico)["prior"]
    with torch.no_grad():
        next(pico.pipe.text_encoder.parameters()).add_(1.0)
    with pytest.raises(ExpungeError, match="another text encoder"):
        erase(pico, "ghost", "mace", rank=0, prior=known)
