"""Where in a picture a concept is, and where the pictures come from."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from expunge import Concept, ExpungeError, Model, erase
from expunge.methods.mace.batches import imagenet_latents
from expunge.methods.mace.method import MACE
from expunge.pictures import GroundedSam, MaskFolder, concept_masks, latents_of, threshold, whole

GHOST = Concept(target="ghost", anchor="man")


def spot(colour: tuple[int, int, int] = (200, 30, 30)) -> Image.Image:
    picture = Image.new("RGB", (16, 16), (250, 240, 230))
    picture.paste(colour, (4, 4, 12, 10))
    return picture


def test_threshold_finds_what_is_not_background() -> None:
    (mask,) = threshold([spot()], "spot")
    wanted = torch.zeros(16, 16)
    wanted[4:10, 4:12] = 1
    assert torch.equal(mask, wanted)


def test_a_picture_in_which_nothing_is_found_counts_as_a_whole() -> None:
    plain = Image.new("RGB", (16, 16), (9, 9, 9))
    masks = concept_masks(threshold, [spot(), plain], "spot")
    assert 0 < float(masks[0].mean()) < 1
    assert float(masks[1].min()) == 1


def test_masks_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "masks" / "ghost").mkdir(parents=True)
    for number, box in enumerate([(0, 0, 8, 16), (0, 0, 16, 8)]):
        mask = Image.new("L", (32, 32), 0)
        mask.paste(255, tuple(2 * side for side in box))
        mask.save(tmp_path / "masks" / "ghost" / f"{number}.png")
    masks = MaskFolder(tmp_path / "masks")([spot(), spot()], "ghost")
    assert masks.shape == (2, 16, 16)
    assert float(masks[0, :, :7].min()) == 1
    assert float(masks[0, :, 9:].max()) == 0
    with pytest.raises(ExpungeError, match="2 masks for 1 pictures"):
        MaskFolder(tmp_path / "masks")([spot()], "ghost")
    with pytest.raises(ExpungeError, match="no picture there"):
        MaskFolder(tmp_path / "masks")([spot()], "dog")


def test_own_pictures_replace_drawn_ones(pico: Model, tmp_path: Path) -> None:
    (tmp_path / "ghost").mkdir()
    spot().resize((32, 32)).save(tmp_path / "ghost" / "1.png")
    spot((0, 0, 90)).save(tmp_path / "ghost" / "2.png")
    method = MACE(pictures=str(tmp_path), segmenter="threshold", iterations=1)
    examples = method.examples(pico, GHOST, 0)
    assert examples.mean.shape == (2, 4, 8, 8)
    given = MACE(pictures={"ghost": [spot()]}).examples(pico, GHOST, 0)
    pixels = torch.tensor(list(spot().getdata()), dtype=torch.uint8).view(1, 16, 16, 3)
    as_bytes = MACE(pictures={"ghost": list(pixels)}).examples(pico, GHOST, 0)
    assert torch.equal(given.mean, as_bytes.mean)
    edit = erase(pico, GHOST, method)
    record = edit.provenance[0].settings
    assert (record["pictures"].keys(), record["segmenter"]) == ({"ghost"}, "threshold")
    with pytest.raises(ExpungeError, match="none of 'dog'; there are some of ghost"):
        erase(pico, "dog", method)


def test_a_style_is_everywhere_in_its_pictures(pico: Model) -> None:
    style = Concept(target="noto", kind="style")
    method = MACE(pictures={"noto": [spot()], "ghost": [spot()]}, segmenter=threshold)
    assert float(method.examples(pico, style, 0).masks.mean()) == 1
    assert float(method.examples(pico, GHOST, 0).masks.mean()) < 1


def test_the_original_scales_colours_as_imagenet_does(pico: Model) -> None:
    picture = torch.full((1, 16, 16, 3), 128, dtype=torch.uint8)
    ours, theirs = (make(pico, picture)[0] for make in (latents_of, imagenet_latents))
    shade = 128 / 255
    for mean, colours in (
        (ours, [2 * shade - 1] * 3),
        (theirs, [(shade - 0.485) / 0.229, (shade - 0.456) / 0.224, (shade - 0.406) / 0.225]),
    ):
        pixels = torch.tensor(colours).view(1, 3, 1, 1).expand(1, 3, 16, 16)
        with torch.no_grad():
            assert torch.allclose(mean, pico.pipe.vae.encode(pixels).latent_dist.mean, atol=1e-5)


def test_a_segmenter_that_gives_something_else_is_refused() -> None:
    with pytest.raises(ExpungeError, match=r"shape \(1, 2, 2\); wanted \(1, 16, 16\)"):
        concept_masks(lambda pictures, words: torch.ones(1, 2, 2), [spot()], "spot")
    with pytest.raises(ExpungeError, match=r"with numbers in 0\.\.1"):
        concept_masks(lambda pictures, words: 255 * whole(pictures, words), [spot()], "spot")


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    missing = GroundedSam(str(tmp_path / "one"), str(tmp_path / "two"))
    with pytest.raises(ExpungeError, match="can't load these weights; give two folders"):
        missing([spot()], "spot")


def test_a_segmenter_is_recorded_as_it_is_named(tmp_path: Path) -> None:
    for name in ("whole", "threshold", str(tmp_path), "grounded-sam:one,two"):
        assert MACE(segmenter=name).model_dump(mode="json")["segmenter"] == name


@pytest.mark.slow
def test_grounded_sam_runs_on_models_of_its_shape(tmp_path: Path) -> None:
    """Random weights: boxes and masks mean nothing, but every call is the real one."""
    _save_detector(tmp_path / "dino")
    _save_segmenter(tmp_path / "sam")
    pictures = [Image.new("RGB", (64, 48), colour) for colour in ("teal", "gold")]
    places = str(tmp_path / "dino"), str(tmp_path / "sam")
    masks = concept_masks(GroundedSam(*places, box_threshold=0, text_threshold=0), pictures, "dog")
    assert masks.shape == (2, 48, 64)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    nothing = GroundedSam(*places, box_threshold=1)
    assert float(nothing(pictures, "dog").max()) == 0
    assert float(concept_masks(nothing, pictures, "dog").min()) == 1


def _save_detector(folder: Path) -> None:
    import transformers as hf

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "dog"]
    (folder / "vocab.txt").write_text("\n".join(words))
    pictures = hf.SwinConfig(
        embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_indices=[2, 3, 4]
    )
    text = hf.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    config = hf.GroundingDinoConfig(
        backbone_config=pictures, text_config=text, d_model=32, encoder_layers=1,
        decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=5,
    )  # fmt: skip
    hf.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    size = {"shortest_edge": 256, "longest_edge": 256}
    tokens = hf.BertTokenizer(str(folder / "vocab.txt"))
    images = hf.GroundingDinoImageProcessor(size=size)
    hf.GroundingDinoProcessor(images, tokens).save_pretrained(folder)


def _save_segmenter(folder: Path) -> None:
    import transformers as hf

    vision = hf.SamVisionConfig(
        hidden_size=16, output_channels=8, num_hidden_layers=1, num_attention_heads=2,
        image_size=64, window_size=2, global_attn_indexes=[0], mlp_dim=16, num_pos_feats=4,
    )  # fmt: skip
    prompts = hf.SamPromptEncoderConfig(hidden_size=8, image_size=64, mask_input_channels=4)
    decoder = hf.SamMaskDecoderConfig(
        hidden_size=8, mlp_dim=8, num_hidden_layers=1, num_attention_heads=2,
        iou_head_hidden_dim=8,
    )  # fmt: skip
    config = hf.SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )
    hf.SamModel(config).save_pretrained(folder)
    images = hf.SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip
    hf.SamProcessor(images).save_pretrained(folder)
