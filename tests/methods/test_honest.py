"""Methods do what they record: no share of a batch vanishes, nothing ignored counts as erased."""

import warnings

import pytest
import torch

from expunge import erase
from expunge.algebra.ridge import Rows
from expunge.cli import main
from expunge.concepts import Concept, Policy
from expunge.edits import Dense
from expunge.edits.negative_prompt import NegativePrompt
from expunge.edits.residual_gates import ResidualGates
from expunge.edits.ridge import Ridge
from expunge.edits.safe_guidance import SafeGuidance
from expunge.edits.safree import Safree
from expunge.errors import ExpungeError, Ignored
from expunge.method.base import Part
from expunge.method.edits import edit_of
from expunge.methods import configured
from expunge.methods.ac.prompts import anchor_prompts, target_prompts
from expunge.methods.cpe.bank import nearest_names
from expunge.methods.cpe.method import CPE
from expunge.methods.kept import kept_count
from expunge.methods.trce.steering import TRCESteering
from expunge.methods.turns import wordings_in_turn
from expunge.spelling import names
from expunge.testing import membrane, random


@pytest.mark.parametrize("size", range(2, 9))
@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.9, 0.99])
def test_neither_erasing_nor_keeping_vanishes_from_a_batch(size, share):
    assert 1 <= kept_count("batch_size", size, share) <= size - 1
    assert abs(kept_count("batch_size", size, share) - size * share) <= 1


def test_a_share_of_none_or_all_is_taken_at_its_word_and_one_row_cant_be_shared():
    assert (kept_count("anchors", 4, 0), kept_count("anchors", 4, 1)) == (0, 4)
    with pytest.raises(ExpungeError, match="raise anchors to 2 or more, or set keep_share=0"):
        kept_count("anchors", 1, 0.5)


def test_esd_refuses_a_batch_too_small_to_keep_anything(pico):
    policy = Policy(erase=(Concept(target="ghost"),), keep=("dog",))
    with pytest.raises(ExpungeError, match="raise batch_size to 2"):
        erase(pico, policy, "esd", batch_size=1, iterations=1)


@pytest.mark.parametrize("method", ["uce", "mace", "fmn", "cie", "esd", "cpe", "rece", "ac"])
def test_synonyms_that_a_released_program_ignores_are_refused(pico, method):
    concept = Concept(target="ghost", synonyms=("santa",), anchor="dog")
    with pytest.raises(ExpungeError, match=f"released program of {method} erases the target alone"):
        erase(pico, concept, method, fidelity="original")


def test_debiasing_refuses_synonyms_instead_of_leaving_them_out(pico):
    concept = Concept(target="ghost", synonyms=("santa",))
    with pytest.raises(ExpungeError, match="list it as a concept of its own"):
        erase(pico, concept, "uce-debias", attributes=["cat", "dog"])


def unmoved(model, form):
    """A payload of this form that leaves the model as it is."""
    names = model.select("cross_attention.kv")
    width = model.text_width
    if form == "ridge":
        rows = random(3, width)
        return Ridge(names, Rows(rows, rows, torch.ones(3)), rows[:0].double(), 0.5)
    if form == "dense":
        return Dense({name: torch.zeros_like(model.base_weight(name)) for name in names})
    if form == "negative_prompt":
        return NegativePrompt(model.unconditional(), model.condition([""]))
    if form == "safe_guidance":
        return SafeGuidance(model.condition(["ghost"]), configured("sld", scale=0).rule())
    if form == "safree":
        return Safree(torch.zeros(1, width), configured("safree").rule())
    if form == "membranes":
        return membrane(model, Concept(target="ghost"), scale=0.0).components[0].payload
    widths = tuple(len(model.base_weight(name)) for name in names)
    one, down = random(1, 2, width), random(1, len(names), 1, width)
    return ResidualGates(names, one, None, one[:, 0], down, torch.zeros(1, 1, sum(widths)), widths)


GUARDS = ["negative_prompt", "safe_guidance", "safree"]


@pytest.mark.parametrize("form", ["ridge", "dense", *GUARDS, "membranes", "gates"])
def test_an_edit_that_changes_nothing_is_refused_whatever_its_form(pico, form):
    payload, policy = unmoved(pico, form), Policy.of("ghost")
    part = Part(policy.erase, payload)
    with pytest.raises(ExpungeError, match="nothing would change for ghost"):
        edit_of(configured("uce"), pico, policy, [part], seed=0)


@pytest.mark.parametrize("form", ["membranes", "gates"])
def test_a_gate_that_adds_anything_anywhere_is_a_change(pico, form):
    payload, policy = unmoved(pico, form), Policy.of("ghost")
    factor = next(t for name, t in payload.tensors().items() if name.split(":")[0] == "up")
    factor.view(-1)[-1] = 1e-6
    part = Part(policy.erase, payload)
    assert edit_of(configured("spm"), pico, policy, [part], seed=0).concepts == policy.erase


def test_the_seed_decides_which_anchors_cpe_leaves_out(pico):
    method = CPE(anchor_limit=4)
    policy = Policy(erase=(Concept(target="ghost"),), keep=("dog", "cat", "fox", "man"))
    banks = [method.plan(pico, policy, seed).banks for seed in (0, 0, 1)]
    assert banks[0] == banks[1] != banks[2]


def test_a_kept_word_is_no_part_of_another_in_trce():
    policy = Policy(erase=(Concept(target="ghost"),), keep=("art", "a party hat"))
    kept = TRCESteering(trajectories=40)._kept(policy, 0)
    assert not any("party" in prompt for prompt in kept[::2])
    assert all("party" in prompt for prompt in kept[1::2])
    assert any(prompt != "art" for prompt in kept[::2])


def test_words_are_named_as_wholes():
    assert names("modern Art, please", ["art"])
    assert not names("a party hat", ["art"])
    assert names("two churches", ["church"], plural=True)
    assert not names("two churches", ["church"])
    assert not names("anything", [])


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_training_learns_though_its_caller_needs_no_gradients(pico, off):
    settings = {"iterations": 2, "batch_size": 1}
    with off():
        made = erase(pico, "dog", "spm", **settings)
    assert made.id == erase(pico, "dog", "spm", **settings).id


# --- what a run has no use for


SHORT = {"iterations": 2, "num_inference_steps": 2}
TOWARDS = Policy(erase=(Concept(target="ghost", anchor="man", keep=("cat",)),), keep=("dog",))


@pytest.mark.parametrize(
    ("method", "values", "kept", "anchor"),
    [
        ("uce", {}, ("dog", "cat"), "man"),
        ("uce", {"preserve": ["fox"]}, (), "man"),
        ("rece", {"preserve": ["fox"]}, ("dog", "cat"), "man"),
        ("rece", {"preserve": ["fox"], "uce_preserve": ["fox"]}, (), "man"),
        ("negative-prompt", {}, (), None),
        ("sld", {}, (), None),
        ("safree", {}, (), None),
        ("esd", {"fidelity": "original", "lr": 1e-2, **SHORT}, (), None),
        ("fmn", {"images": 1, "lr": 1e-2, **SHORT}, ("dog", "cat"), None),
        ("fmn", {"fidelity": "original", "images": 1, "lr": 1e-2, **SHORT}, (), None),
        ("cie", {"fidelity": "original", "lr": 1e-2, **SHORT}, (), None),
        ("spm", {"fidelity": "original", "lr": 1e-2, **SHORT}, (), "man"),
        ("trce", {"fidelity": "original", "lamb": 1.0}, (), "man"),
        ("ac", {"fidelity": "original", "images": 1, "lr": 1e-2, **SHORT}, (), "man"),
        ("ac", {"fidelity": "original", "variant": "sepme", "lr": 1e-2, **SHORT}, (), None),
    ],
)
def test_no_record_claims_what_a_run_has_no_use_for(pico, method, values, kept, anchor):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        edit = erase(pico, TOWARDS, method, **values)
    record = edit.provenance[-1]
    assert (record.keep, record.concepts[0].anchor) == (kept, anchor)
    assert record.concepts[0].keep == (("cat",) if kept else ())
    said = [str(one.message) for one in told if one.category is Ignored]
    assert len(said) == (not kept or anchor is None)
    assert all(("keep (dog, cat)" in text) is not bool(kept) for text in said)
    assert all(("anchor ('man')" in text) is (anchor is None) for text in said)


def test_a_long_list_that_has_no_use_is_cut_short(pico):
    policy = Policy(erase=TOWARDS.erase, keep=("dog", "fox", "hat", "tree"))
    with pytest.warns(Ignored, match=r"keep \(dog, fox, hat and 2 more\)") as told:
        erase(pico, policy, "negative-prompt")
    assert [one.filename for one in told if one.category is Ignored] == [__file__]


def test_what_has_no_use_changes_nothing_in_the_edit(pico):
    """The same numbers with it and without: the record is right to leave it out."""
    values = {"fidelity": "original", "lr": 1e-2, **SHORT}
    for method in ("esd", "cie", "spm"):
        anchor = "man" if method == "spm" else None
        with pytest.warns(Ignored):
            one = erase(pico, TOWARDS, method, **values)
        two = erase(pico, Concept(target="ghost", anchor=anchor), method, **values)
        assert one.id == two.id


def test_a_method_says_once_what_it_has_no_use_for_on_the_command_line(tmp_path, capsys):
    output = str(tmp_path / "edit.safetensors")
    command = ["erase", "--concept", "ghost", "--keep", "dog", "--method", "negative-prompt"]
    assert main([*command, "--output", output]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "has no use for" in line]
    assert len(told) == 1
    assert "keep (dog)" in told[0]


# --- anchors inside of other words


def test_an_anchor_is_replaced_as_whole_words_only():
    concept = Concept(target="grumpy cat", anchor="cat")
    prompts = ["a Cat in a category", "a category", "concatenate", "two  cats"]
    assert anchor_prompts(prompts, concept) == ("a Cat in a category",)
    told = target_prompts(prompts[0], concept, r"grumpy \\1 cat")
    assert told == (r"a grumpy \\1 cat in a category",)
    assert anchor_prompts(["in black  white"], Concept(target="x", anchor="black white"))
    with pytest.raises(ExpungeError, match="name an anchor, and prompts that hold it"):
        anchor_prompts(prompts[1:], concept)


def test_the_released_ac_replaces_parts_of_words():
    concept = Concept(target="grumpy cat", anchor="cat")
    assert anchor_prompts(["a category", "a Cat"], concept, parts=True) == ("a category",)
    assert target_prompts("a category", concept, "x", parts=True) == ("a xegory",)


def test_braces_in_a_sentence_are_text_for_trce():
    policy = Policy(erase=(Concept(target="ghost"),), keep=("art",))
    kept = TRCESteering(contexts=("a {} of {style}",))._kept(policy, 0)
    assert set(kept) == {"art", "a art of {style}"}


# --- a turn for every wording


MANY = Concept(target="ghost", synonyms=("noto", "man", "fox"))


@pytest.mark.parametrize("method", ["esd", "cie"])
def test_fewer_trajectories_than_wordings_are_refused(pico, method):
    values = {**SHORT, "iterations": 4, "trajectories": 3}
    with pytest.raises(ExpungeError, match="trajectories: 3 can't show the 4 wordings of 'ghost'"):
        erase(pico, MANY, method, **values)


@pytest.mark.parametrize("trajectories", [4, 5, 9, 40])
def test_wordings_take_turns_and_so_do_their_sentences(trajectories):
    pairs = MANY.neutral_pairs()
    draws = torch.Generator().manual_seed(trajectories)
    chosen = wordings_in_turn(MANY, pairs, trajectories, draws)
    shown = [sum(names(prompt, [words]) for prompt, _ in chosen) for words in MANY.phrases]
    assert sum(shown) == trajectories
    assert max(shown) - min(shown) <= 1
    assert len(set(chosen)) == min(trajectories, len(pairs))


@pytest.mark.parametrize(
    ("method", "values", "fewest"),
    [
        ("fmn", {"batch_size": 2}, 3),
        ("cie", {"batch_size": 4}, 2),
        ("cie", {"batch_size": 2}, 4),
        ("spm", {}, 2),
        ("trce-steering", {"batch_size": 2, "max_early_timestep": 1}, 4),
        ("esd", {"batch_size": 5}, 1),
        ("ac", {"batch_size": 1, "accumulation": 1}, 5),
    ],
)
def test_a_training_too_short_for_every_wording_is_refused(pico, method, values, fewest):
    policy = Policy(erase=(MANY, Concept(target="dog", anchor="art")))
    run = configured(method, iterations=max(1, fewest - 1), num_inference_steps=2, **values)
    assert run.fewest_steps(policy) == fewest
    if fewest > 1:
        with pytest.raises(ExpungeError, match=f"raise it to {fewest} or more"):
            erase(pico, policy, run)


def test_the_released_steering_needs_all_repeats_before_the_last_wording(pico):
    policy = Policy(erase=(Concept(target="ghost"), Concept(target="dog")))
    run = configured("trce-steering", fidelity="original", iterations=5, lamb=1.0)
    with pytest.raises(ExpungeError, match="raise it to 6 or more"):
        erase(pico, policy, run)


def test_synonyms_and_doubles_take_no_place_among_the_nearest_names(pico):
    pool = ["santa", "Santa", "ghost", "dog", "Dog", "cat", "santas"]
    concept = Concept(target="ghost", synonyms=("santa",))
    [near] = nearest_names(pico, pool, [concept], 3)
    assert sorted(near) == ["cat", "dog", "santas"]
    [released] = nearest_names(pico, pool, [concept], 7, parts=True)
    assert sorted(released) == sorted(set(pool) - {"ghost"})
