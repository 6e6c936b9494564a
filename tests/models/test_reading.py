"""Text is read as the pipeline reads it, and what it doesn't read is told."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import tiny_sdxl
from expunge import Concept, Edit, ExpungeError, Model, Policy, erase, load, testing
from expunge.doctor.words import split
from expunge.models.tokens import word_columns
from expunge.models.window import Cut, remark

LONG = " ".join(["dog"] * 20)


def taught(pipe: StableDiffusionPipeline, vectors: int) -> StableDiffusionPipeline:
    """The pipeline with ``<toy>``, a learnt token of several vectors."""
    width = pipe.text_encoder.config.hidden_size
    pipe.load_textual_inversion({"<toy>": testing.random(vectors, width)})
    return pipe


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline with a learnt token of three vectors."""
    folder = tmp_path_factory.mktemp("toy")
    taught(testing.pipeline(folder), 3).save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.fixture
def toy(toy_folder: Path) -> Model:
    return load(toy_folder, device="cpu")


PROMPTS = ("<toy>", "a picture of <toy>", "<toy> and <toy>", "a <toy> dog", "dog")


def test_a_learnt_token_of_several_vectors_is_read_as_the_pipeline_reads_it(toy: Model) -> None:
    for prompt in PROMPTS:
        theirs = toy.pipe.encode_prompt(prompt, "cpu", 1, False)[0]
        assert torch.equal(toy.encode([prompt]), theirs)


@pytest.mark.parametrize("vectors", [1, 2, 3])
def test_a_learnt_token_has_a_piece_for_each_vector(tmp_path: Path, vectors: int) -> None:
    model = load(taught(testing.pipeline(tmp_path), vectors))
    assert len(model.tokens("<toy>")) == vectors
    assert model.last_token("a <toy> dog") == vectors + 2


def test_both_encoders_of_sdxl_write_out_a_learnt_token(tmp_path: Path) -> None:
    pipe = tiny_sdxl.pipeline(tmp_path)
    pipe.tokenizer.add_tokens(["<toy>", "<toy>_1"])
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        encoder.resize_token_embeddings(len(pipe.tokenizer))
    model = load(pipe)
    theirs = pipe.encode_prompt("a <toy>", device="cpu", do_classifier_free_guidance=False)[0]
    assert len(model.tokens("<toy>")) == 2
    assert torch.equal(model.encode(["a <toy>"]), theirs)


def test_prompts_longer_than_the_window_are_found_with_their_length(pico: Model) -> None:
    fits = " ".join(["dog"] * 14)
    assert pico.cut([]) == pico.cut(["dog", "", fits]) == []
    assert pico.cut(["dog", LONG, f"{fits} cat"]) == [
        Cut(1, LONG, 20, 14),
        Cut(2, f"{fits} cat", 15, 14),
    ]


def test_a_cut_counts_the_pieces_of_a_learnt_token(toy: Model) -> None:
    [found] = toy.cut(["<toy> " * 5])
    assert (found.pieces, found.read) == (15, 14)


def test_cut_prompts_are_told_in_one_sentence(pico: Model) -> None:
    prompts = [LONG, "dog", f"{LONG} cat"]
    assert remark(pico.cut(prompts), len(prompts), "case 0") == (
        "2 of 3 prompts are longer than the 14 pieces that the model reads (up to 21; first: "
        "case 0); the rest has no effect"
    )
    assert remark(pico.cut(["dog"]), 1, "case 0") == ""


def test_the_rows_of_a_learnt_token_are_a_name(toy: Model) -> None:
    assert toy.last_name("a <toy>") == 2
    assert toy.last_token("a <toy>") == 4
    assert toy.last_name("a <toy> dog") == toy.last_token("a <toy> dog")
    assert toy.last_name("") == 0


KEYS = "cross_attention.kv"


def way(model: Model, edit: Edit, prompt: str, anchor: str) -> float:
    """How far the keys and values of a prompt get to those of another: 0 not at all, 1 there."""
    old, new = (model.encode([text])[0, 1:].double() for text in (prompt, anchor))
    left = whole = 0.0
    with edit.applied(model):
        for name in model.select(KEYS):
            base, edited = (
                weight.double()
                for weight in (model.base_weight(name), model.denoiser.get_parameter(name))
            )
            left += float((old @ edited.T - new @ base.T).norm() ** 2)
            whole += float(((old - new) @ base.T).norm() ** 2)
    return 1 - (left / whole) ** 0.5


def test_a_learnt_token_of_several_vectors_becomes_its_anchor(toy: Model) -> None:
    edit = erase(
        toy, Concept(target="<toy>", anchor="dog"), "uce", preserve=(), lamb=1e-8, prior="none"
    )
    assert way(toy, edit, "<toy>", "dog") > 0.95


def test_a_learnt_token_is_read_alike_as_synonym_anchor_and_kept_prompt(toy: Model) -> None:
    other = Concept(target="cat", synonyms=("a <toy> hat",), anchor="dog", keep=("<toy> hat",))
    assert erase(toy, other)
    with pytest.raises(ExpungeError, match="is erased itself"):
        erase(toy, Policy.of([Concept(target="cat", anchor="<toy>  <toy>"), "<toy><toy>"]))


def test_word_columns_hold_every_vector_of_a_learnt_token(toy: Model) -> None:
    marks = word_columns(toy, "a <toy> and <toy>", "<toy>")
    assert marks.nonzero().flatten().tolist() == [2, 3, 4, 8, 9, 10]


def test_a_phrase_table_holds_every_vector_and_the_pipeline_opens_it(toy: Model) -> None:
    edit = testing.membrane(toy, Concept(target="<toy>"), metric="tokenuni")
    with edit.applied(toy), torch.no_grad():
        latents = testing.random(1, *toy.latent_shape)
        ours = toy.predict(latents, 3, toy.condition(["a <toy>"]))
        rows = toy.pipe.encode_prompt("a <toy>", "cpu", 1, False)[0]
        theirs = toy.pipe.unet(latents, 3, rows).sample
    assert torch.equal(ours, theirs)
    with torch.no_grad():
        assert not torch.equal(ours, toy.predict(latents, 3, toy.condition(["a <toy>"])))


def test_the_doctor_lists_every_piece_of_a_learnt_token(toy: Model) -> None:
    assert [piece.text for piece in split(toy, "a <toy>")] == ["a", "<toy>", "<toy>_1", "<toy>_2"]


def test_threads_that_count_pieces_do_not_change_what_others_read(pico: Model) -> None:
    """A tokenizer keeps how it cuts and pads from call to call."""
    [text] = pico.text_encoders
    long = "a picture of a ghost " * 20
    ids, pieces = text.read([long, "a dog"]).ids, text.pieces([long, "a dog"])

    def asked(at: int) -> bool:
        if at % 2:
            return text.pieces([long, "a dog"]) == pieces
        return torch.equal(text.read([long, "a dog"]).ids, ids)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(asked, range(400)))
