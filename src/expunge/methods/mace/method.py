"""MACE: Mass Concept Erasure in Diffusion Models (Lu et al., CVPR 2024).

MACE has three stages. The *refinement* changes each key and value projection ``W`` of the
cross-attention. It maps the rows ``f`` around a concept's words to the rows ``e`` of the same
sentence with other words, and keeps the rows of ordinary captions (second moment ``C``)::

    W' = W (lam I + sum e f^T + mu C) (lam I + sum f f^T + mu C)^-1

Then no other row of the prompt carries the concept. An *adapter* ``B_i D_i`` for each concept turns
the attention away from the concept's own rows (``adapters.py``). The *fusion* makes the projections
do on a concept's prompts (second moment ``C_i``) what its adapter does::

    W* = (lam W' + sum_i (W' + B_i D_i) C_i + s W C) (lam I + sum_i C_i + s C)^-1

Both closed forms (``closed.py``) invert one matrix for all layers.
"""

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import ClassVar, NamedTuple

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from expunge.algebra.ridge import gram, joined
from expunge.concepts import Concept, Context, Pair, Policy
from expunge.edits.payloads import Change, LowRank, SharedMatrix
from expunge.edits.ridge import LeftOut, Ridge, Stays
from expunge.errors import ExpungeError
from expunge.generation.sampler import Sampler
from expunge.generation.sampling import ImageRequest, sample
from expunge.method.base import Fixed, Need
from expunge.methods.kept import KeepsPrior, kept_with_empty, weighed_rows
from expunge.methods.mace.adapters import Adapter, fit
from expunge.methods.mace.batches import Examples, imagenet_latents, training_batches
from expunge.methods.mace.closed import PROMPTS, fusion, rows
from expunge.models import Model
from expunge.pictures import (
    Pictures,
    PicturesSetting,
    SegmenterSetting,
    concept_masks,
    latents_of,
    picture_bytes,
    pictures_of,
    whole,
)
from expunge.prior import Prior, PriorFile, is_everyday, left_out, moment
from expunge.progress import track
from expunge.seeding import derive
from expunge.sentences import fill

PHOTOS = {"style": "a photo in the style of {}", "": "a photo of the {}"}
"""The released program's prompts for its training pictures, by kind."""


class MACE(KeepsPrior):
    """Closed-form refinement, an attention adapter for each concept, and their fusion."""

    name: ClassVar[str] = "mace"
    title: ClassVar[str] = "Mass Concept Erasure"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2403.06135"
    needs: ClassVar[frozenset[Need]] = frozenset({"text", "drawing", "training", "gradients"})
    released_prior: ClassVar[bool] = True
    released_fixed: ClassVar[Fixed] = {
        "batch_size": (1, "the released program trains on one picture at a time"),
    }

    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words. Default: the words alone and the templates."""
    all_words: bool = False
    """Map every row, the concept's own included, to the row at the same position, instead of
    aligning the rows of the two sentences."""
    rank: int = Field(1, ge=0)
    """Rank of each concept's adapter. 0 does only the refinement, whose edits add up exactly."""
    lamb: float = Field(0.5, ge=0)
    """lam: weight of staying near the old weights."""
    domain: PriorFile | None = None
    """Captions of the same domain that stay, e.g. of other artists, as a second such file."""
    train_preserve_scale: float | None = Field(None, ge=0)
    """s1: weight of the prior in the refinement; the original squares it. Default when corrected:
    all captions together weigh as much as one erased prompt."""
    fuse_preserve_scale: float | None = Field(None, ge=0)
    """s2: weight of the prior in the fusion, never squared; its default is that of
    ``train_preserve_scale``."""
    preserve_weight: float | None = Field(None, ge=0)
    """w: weight of ``domain`` relative to ``prior``. Default: both weigh the same."""
    iterations: int = Field(50, ge=1)
    """Steps of each adapter."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate."""
    batch_size: int = Field(1, ge=1)
    """Noised pictures in one step."""
    focal: bool = True
    """Draw timesteps by concept-focal importance sampling; false draws them evenly."""
    squared: bool = False
    """Sum squared norms, as in the paper, instead of norms, as in the released code."""
    pictures: PicturesSetting | None = None
    """Your own pictures: a folder with one folder for each concept. Default: the model draws
    them."""
    images: int = Field(8, ge=1)
    """Number of pictures to draw of each concept."""
    num_inference_steps: int = Field(30, ge=1)
    """Denoising steps of these pictures."""
    guidance_scale: float = Field(7.5, ge=1)
    """Guidance scale of these pictures."""
    segmenter: SegmenterSetting = Field("whole", validate_default=True)
    """What finds the concept in a picture: ``whole``, ``threshold`` (anything on a plain ground), a
    folder of masks like ``pictures``, or ``grounded-sam:DETECTOR,SEGMENTER``. Styles use whole."""

    @model_validator(mode="after")
    def _consistent(self) -> "MACE":
        scales = {"train_preserve_scale": self.train_preserve_scale}
        if self.rank:
            scales["fuse_preserve_scale"] = self.fuse_preserve_scale
        if self.domain and not self.prior:
            raise ValueError("domain: goes beside a prior; give one, or use this file as the prior")
        if self.fidelity == "original":
            for name in (name for name, scale in scales.items() if self.prior and scale is None):
                raise ValueError(
                    f"{name}: the released value differs between tasks; give it, or a preset"
                )
            return self
        for name in (name for name, scale in scales.items() if scale and not self.prior):
            raise ValueError(f"{name}: weighs a prior; give one, or name what to keep")
        if self.preserve_weight and not self.domain:
            raise ValueError("preserve_weight: weighs a domain; give one, or name what to keep")
        return self

    @property
    def needed(self) -> frozenset[Need]:
        return self.needs if self.rank else frozenset({"text"})

    def solve(self, model: Model, policy: Policy, seed: int) -> Change:
        """The refinement as a ridge system; with adapters, a shared matrix and thin factors."""
        if self.prior == "default":
            return self.settled(model).solve(model, policy, seed)
        kept = self._kept(model, policy)
        refinement = self._refinement(model, policy, kept)
        if not self.rank:
            return refinement
        shared = SharedMatrix(refinement.names, *refinement.factors)
        base = {name: model.base_weight(name) for name in shared.names}
        refined = {name: weight + shared.change(name, weight) for name, weight in base.items()}
        concepts = track(policy.erase, "adapters", total=len(policy.erase))
        adapters = [self.adapter(model, refined, concept, seed) for concept in concepts]
        own = [moment(model, [p for p, _ in self.prompts(concept)]) for concept in policy.erase]
        stays = kept.weighed(self._scale(self.fuse_preserve_scale))
        return fusion(shared, adapters, own, gram(stays.rows), self.lamb)

    # --- refinement

    def _refinement(self, model: Model, policy: Policy, kept: "Kept") -> Ridge:
        pairs = [pair for concept in policy.erase for _, pair in self._pairs(concept)]
        pairs.sort(key=lambda pair: pair.anchor)  # puts rows with the same targets in one block
        blocks = (pairs[at : at + PROMPTS] for at in range(0, len(pairs), PROMPTS))
        parts = (joined([rows(model, block, all_words=self.all_words)]) for block in blocks)
        moved = reduce(lambda so_far, more: joined([so_far, more]), parts)
        scale = self._scale(self.train_preserve_scale)
        stays = kept.weighed(scale**2 if self.fidelity == "original" else scale)
        names = model.select("cross_attention.kv")
        return Ridge(names, moved, stays.kept, self.lamb, stays.left_out)

    def _pairs(self, concept: Concept) -> Iterator[tuple[str, Pair]]:
        """Each phrase with its pairs of prompts; the original uses only the target."""
        phrases = concept.phrases if self.fidelity == "corrected" else (concept.target,)
        for phrase in phrases:
            alone = concept.model_copy(update={"target": phrase, "synonyms": ()})
            yield from ((phrase, pair) for pair in alone.pairs(self.contexts))

    def prompts(self, concept: Concept) -> list[tuple[str, str]]:
        """Every prompt that names the concept, with the words that name it."""
        return [(pair.erase, phrase) for phrase, pair in self._pairs(concept)]

    def _scale(self, given: float | None) -> float:
        """The weight of the prior."""
        if given is None and isinstance(self.prior, Prior):
            return 1 / self.prior.metadata.count
        return given or 0.0

    def _kept(self, model: Model, policy: Policy) -> "Kept":
        """What stays: the captions and the prompts to keep, encoded once for both stages.

        In the original, prompts to keep are part of the domain.
        """
        captions = torch.zeros(model.text_width, model.text_width, dtype=torch.float64)
        for prior, weight in ((self.prior, 1.0), (self.domain, self._domain_weight)):
            if isinstance(prior, Prior):
                prior.check(model)
                captions = captions + weight * prior.gram
        captions = captions.to(model.device)
        if self.fidelity == "corrected":
            prompts, weight = kept_with_empty(policy, self.contexts), 1 / max(1, len(policy.kept))
            named = weighed_rows(model.encode, prompts, weight, model.text_width)
            own = isinstance(self.prior, Prior) and is_everyday(self.prior)
            return Kept(captions, named, self._left_out(model, policy), own)
        if policy.kept and not (self.preserve_weight and self.train_preserve_scale):
            raise ExpungeError(
                "keep: in the original, prompts to keep are part of the domain; give "
                'train_preserve_scale and preserve_weight, or use fidelity="corrected"'
            )
        if policy.kept:
            captions = captions + self._domain_weight * moment(model, policy.kept)
        return Kept(captions, captions[:0])

    def _left_out(self, model: Model, policy: Policy) -> LeftOut | None:
        if not isinstance(self.prior, Prior):
            return None
        phrases = [phrase for concept in policy.erase for phrase in concept.phrases]
        return left_out(model, self.prior, phrases)

    @property
    def _domain_weight(self) -> float:
        """w; the default makes the domain and the prior weigh the same."""
        if self.preserve_weight is None and isinstance(self.prior, Prior) and self.domain:
            return self.prior.metadata.count / self.domain.metadata.count
        return self.preserve_weight or 0.0

    # --- adapters

    def adapter(
        self, model: Model, refined: Mapping[str, Tensor], concept: Concept, seed: int
    ) -> LowRank:
        """The second stage for one concept: what is added to the ``refined`` weights.

        Other concepts affect it only through these weights.
        """
        words, original = concept.target, self.fidelity == "original"
        adapter = Adapter.fresh(model, refined, self.rank, seed, words)
        batches = training_batches(
            model,
            self.examples(model, concept, seed),
            self.prompts(concept),
            derive(seed, "mace", words),
            size=self.batch_size,
            steps=self.iterations,
            focused=self.focal,
        )
        steps = track(batches, f"adapter of {words}", total=self.iterations)
        fit(adapter, steps, self.lr, squared=self.squared, nearest=original)
        return adapter.low_rank()

    def examples(self, model: Model, concept: Concept, seed: int) -> Examples:
        """Pictures of a concept, drawn or given, with their masks.

        Raises:
            ExpungeError: pictures are given, but this concept has none.
        """
        words = concept.target
        if self.pictures is None:
            pictures = self._draw(model, concept, seed)
        else:
            pictures = pictures_of(model, self.pictures, words)
        segmenter = whole if concept.kind == "style" else self.segmenter
        masks = concept_masks(segmenter, pictures, words)
        encode = imagenet_latents if self.fidelity == "original" else latents_of
        return Examples(*encode(model, picture_bytes(pictures)), masks)

    def _draw(self, model: Model, concept: Concept, seed: int) -> Pictures:
        if self.fidelity == "original":
            prompts = [fill(PHOTOS.get(concept.kind, PHOTOS[""]), concept.target)]
        else:
            prompts = [prompt for prompt, _ in self.prompts(concept)]
        requests = [
            ImageRequest(
                case_number=str(number),
                prompt=prompts[number % len(prompts)],
                seed=derive(seed, "mace picture", concept.target, number),
            )
            for number in range(self.images)
        ]
        sampler = Sampler(
            scheduler="dpm++", steps=self.num_inference_steps, guidance_scale=self.guidance_scale
        )
        return [Image.fromarray(colours.numpy()) for _, colours in sample(model, requests, sampler)]


class Kept(NamedTuple):
    """What an edit must not change."""

    captions: Tensor
    """``C_p + w C_d``, ``[width, width]`` float64."""
    named: Tensor
    """Rows of the prompts to keep, times the root of their weight, ``[kept, width]`` float64."""

    left_out: LeftOut | None = None
    """Captions among them that name what is erased."""
    rounded: bool = False
    """Whether single precision is enough."""

    def weighed(self, scale: float) -> Stays:
        """Rows whose Gram matrix is that of both, the captions scaled."""
        if not scale or not self.captions.any():
            return Stays(self.named)
        total = scale * self.captions + gram(self.named)
        out = self.left_out and self.left_out.scaled(scale)
        return Stays.summed(total, out, rounded=self.rounded)
