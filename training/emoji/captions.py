"""Captions for pictures, and the tokenizer learned from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from common import parser, settings, write
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import CLIPTokenizer

from expunge.models.emoji.vocabulary import Catalog, EmojiObject, catalog, paired

LENGTH = 32  # tokens per prompt; the longest caption has 27
START, END = "<|startoftext|>", "<|endoftext|>"


class Captions:
    """Draws captions for (object, style, background) in varying words."""

    def __init__(self, source: Catalog) -> None:
        self.catalog = source
        self.with_background = [t for t in source.templates if "{background}" in t]
        self.plain = [t for t in source.templates if "{background}" not in t]

    def draw(self, thing: int, style: int, background: int, generator: torch.Generator) -> str:
        """One caption; background 0 is white and may go unmentioned."""
        entry = self.catalog.objects[thing]
        chance = torch.rand(4, generator=generator).tolist()
        wording = _worded(entry, entry.wordings[1:], chance[0], chance[1])
        template = self._template(background, chance[2], chance[3], generator)
        return self._filled(template, style, background, object=wording)

    def draw_pair(
        self, first: int, second: int, style: int, background: int, generator: torch.Generator
    ) -> str:
        """One caption for two things, by their names or synonyms; the first is on the left."""
        chance = torch.rand(6, generator=generator).tolist()
        names = [
            _worded(entry, entry.synonyms, *dice)
            for entry, dice in (
                (self.catalog.objects[first], chance[2:4]),
                (self.catalog.objects[second], chance[4:6]),
            )
        ]
        template = paired(self._template(background, chance[0], chance[1], generator))
        return self._filled(template, style, background, first=names[0], second=names[1])

    def _template(
        self, background: int, plainly: float, barely: float, generator: torch.Generator
    ) -> str:
        pool = self.plain if background == 0 and plainly < 0.8 else self.with_background
        # A style goes unmentioned in one caption of six, whatever the number of templates.
        styled = [t for t in pool if "{style}" in t]
        bare = [t for t in pool if "{style}" not in t]
        pool = bare if barely < 1 / 6 else styled
        return pool[int(torch.randint(len(pool), (), generator=generator))]

    def _filled(self, template: str, style: int, background: int, **names: str) -> str:
        return template.format(
            style=self.catalog.styles[style].name,
            background=self.catalog.backgrounds[background].name,
            **names,
        )

    def corpus(self) -> Iterator[str]:
        """Every wording in every template, styles and backgrounds taken in turn."""
        turn = 0
        for entry in self.catalog.objects:
            for wording in entry.wordings:
                for template in self.catalog.templates:
                    turn += 1
                    yield template.format(
                        object=wording,
                        style=self.catalog.styles[turn % len(self.catalog.styles)].name,
                        background=self.catalog.backgrounds[
                            turn % len(self.catalog.backgrounds)
                        ].name,
                    )


def _worded(entry: EmojiObject, others: Sequence[str], chance: float, which: float) -> str:
    """Its name, or in 28 % one of the other words."""
    return others[int(which * len(others))] if others and chance < 0.28 else entry.name


def train_tokenizer(corpus: Iterator[str], folder: Path, size: int = 1600) -> None:
    """A byte-pair vocabulary in CLIP's format, with words of the catalogue as few tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace("  ", " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[START, END],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    for letter in alphabet:  # so that any word, in any place, has tokens
        vocabulary.setdefault(letter, len(vocabulary))
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    clip = CLIPTokenizer(
        vocab=vocabulary,
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=LENGTH,
    )
    write(folder, clip.save_pretrained)


def load_tokenizer(work: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """[n, LENGTH] token numbers, padded with the end token as Stable Diffusion 1 does."""
    encoded = tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    ids: torch.Tensor = encoded.input_ids
    return ids


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--copy", type=Path, help="a tokenizer to take instead of learning one")
    args = options.parse_args()
    run = settings(args)
    corpus = list(Captions(catalog()).corpus())
    if args.copy:
        write(run.work / "tokenizer", CLIPTokenizer.from_pretrained(args.copy).save_pretrained)
    else:
        train_tokenizer(iter(corpus), run.work / "tokenizer")
    tokenizer = load_tokenizer(run.work)
    lengths = [len(ids) for ids in tokenizer(corpus).input_ids]
    names = [len(tokenizer(entry.name).input_ids) - 2 for entry in catalog().objects]
    print(
        f"{len(tokenizer)} tokens; captions {max(lengths)} at most; "
        f"names {sum(names) / len(names):.2f} on average, {max(names)} at most"
    )


if __name__ == "__main__":
    main()
