"""UCE debiasing: balances a concept's attributes (Gandikota et al., WACV 2024, section 3.3).

The words ``c`` of a concept get the outputs of a mixture with the words ``a_j`` of attributes::

    W' c  =  W (c + sum_j R_j a_j)

Drawing decides the shares ``R_j``: after each solution, a few pictures of the concept are
classified, and every ``R_j`` grows by the share that its attribute lacks. Each solution starts from
the base weights, so the result is one ridge system like any other.
"""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from expunge.algebra.ridge import Rows, kept_rows
from expunge.concepts import Concept, Policy, WordList
from expunge.detectors.base import detector
from expunge.detectors.vocabulary import WordClassifier, word_classifier
from expunge.edits.applied import tried
from expunge.edits.payloads import Change
from expunge.edits.ridge import Ridge
from expunge.errors import ExpungeError
from expunge.generation.sampler import Sampler
from expunge.generation.sampling import ImageRequest, sample
from expunge.method.base import Method, Need, PolicyPart
from expunge.models import Model
from expunge.progress import track
from expunge.seeding import derive


class BalancingRound(NamedTuple):
    """A solution, and what pictures drawn with it show."""

    payload: Ridge
    mixture: Tensor
    """``R``, ``[concepts, attributes]``."""
    observed: Tensor
    """The share of each attribute in the pictures of each concept, ``[concepts, attributes]``.

    Pictures that show no attribute count for none.
    """


class Debias(Method):
    """Balance the attributes that a concept is drawn with."""

    name: ClassVar[str] = "uce-debias"
    title: ClassVar[str] = "Unified Concept Editing, debiasing"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2308.14761"
    always_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"anchor"})
    needs: ClassVar[frozenset[Need]] = frozenset({"text", "drawing"})

    attributes: WordList
    """The attributes to balance, e.g. ``[female, male]``."""
    ratios: tuple[float, ...] = ()
    """Wanted share of each attribute. Default: equal shares."""
    wording: str = "{attribute} {concept}"
    """How a prompt names a concept with an attribute; original: the attribute alone."""
    classifier: str = "emoji"
    """The detector that decides which attribute a picture shows, e.g. ``clip:FOLDER``."""
    images: int = Field(10, ge=1)
    """Number of pictures of each concept in a round."""
    iterations: int = Field(30, ge=1)
    """Rounds at most."""
    tolerance: float = Field(0.05, gt=0, lt=1)
    """The rounds end when all shares are this close to the wanted ones."""
    step: float = Field(1.0, gt=0)
    """How much a mixture grows for a missing share of 1. Corrected: halved after overshooting."""
    num_inference_steps: int = Field(20, ge=1)
    """Denoising steps of each picture."""
    guidance_scale: float = Field(7.5, ge=1)
    """Guidance scale of each picture."""
    preserve_scale: float = Field(1.0, ge=0)
    """p: weight of the prompts to keep."""
    lamb: float = Field(0.5, gt=0)
    """lam: weight of staying near the old weights."""

    @field_validator("wording")
    @classmethod
    def _both_places(cls, wording: str) -> str:
        if wording.count("{attribute}") != 1 or wording.count("{concept}") != 1:
            raise ValueError(f"{wording!r} must hold {{attribute}} and {{concept}}, each once")
        return wording

    @model_validator(mode="after")
    def _consistent(self) -> "Debias":
        if len(self.attributes) < 2:
            raise ValueError("attributes: name at least two to balance")
        if self.ratios and len(self.ratios) != len(self.attributes):
            raise ValueError(f"ratios: give one for each of {len(self.attributes)} attributes")
        if self.ratios and (min(self.ratios) < 0 or sum(self.ratios) > 1 + 1e-6):
            raise ValueError("ratios: give numbers from 0 up, no more than 1 together")
        return self

    @property
    def wanted(self) -> Tensor:
        """Shares to reach, ``[attributes]`` float64."""
        equal = [1 / len(self.attributes)] * len(self.attributes)
        return torch.tensor(self.ratios or equal, dtype=torch.float64)

    def solve(self, model: Model, policy: Policy, seed: int) -> Change:
        """The solution whose pictures come closest to the wanted shares; original: the last one.

        Raises:
            ExpungeError: no picture of any round shows an attribute, or no round comes closer than
                the model as it is.
        """
        if synonyms := [words for concept in policy.erase for words in concept.synonyms]:
            raise ExpungeError(
                f"uce-debias: {synonyms[0]!r} is a synonym, and only targets are balanced; list it "
                "as a concept of its own"
            )
        rounds = list(self.rounds(model, policy, seed))
        if not any(bool(round.observed.any()) for round in rounds):
            raise ExpungeError(
                f"{self.classifier} saw none of {', '.join(self.attributes)} in any picture; "
                "use a larger step, other words for the attributes, or another classifier"
            )
        if self.fidelity == "original":
            return rounds[-1].payload
        best = min(
            rounds, key=lambda round: (self._error(round.observed), self._sum(round.observed))
        )
        if best is rounds[0]:
            raise ExpungeError(
                "uce-debias: no round came closer to the wanted shares than the model as it is; "
                "take more rounds (iterations), more pictures (images) or a smaller step"
            )
        return best.payload

    def rounds(self, model: Model, policy: Policy, seed: int) -> Iterator[BalancingRound]:
        """Solve, draw, classify and correct, until the shares are reached or rounds run out."""
        classifier = word_classifier(detector(self.classifier), self.attributes)
        kept = self._kept(model, policy)
        mixture = torch.zeros(len(policy.erase), len(self.attributes), dtype=torch.float64)
        step, before = torch.full((len(policy.erase), 1), self.step).double(), None
        for number in track(range(self.iterations), "balancing", total=self.iterations):
            payload = self._solution(model, policy, kept, mixture)
            observed = self._observed(model, policy, payload, classifier, seed, number)
            yield BalancingRound(payload, mixture, observed)
            if self._error(observed) < self.tolerance:
                return
            missing = self.wanted - observed
            if before is not None and self.fidelity == "corrected":
                step = step / torch.where((missing * before).sum(1, keepdim=True) < 0, 2.0, 1.0)
            mixture, before = mixture + step * missing, missing

    def _error(self, observed: Tensor) -> float:
        """How far the share that is furthest off is."""
        return float((observed - self.wanted).abs().max())

    def _sum(self, observed: Tensor) -> float:
        return float((observed - self.wanted).abs().sum())

    def _solution(self, model: Model, policy: Policy, kept: Tensor, mixture: Tensor) -> Ridge:
        parts = [self._rows(model, c, r) for c, r in zip(policy.erase, mixture, strict=True)]
        sources, targets = (torch.cat(column) for column in zip(*parts, strict=True))
        weights = torch.ones(len(sources), dtype=torch.float64, device=sources.device)
        names = model.select("cross_attention.kv")
        return Ridge(names, Rows(sources, targets, weights), kept, self.lamb)

    def _rows(self, model: Model, concept: Concept, mixture: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of a concept and of its mixture, ``[rows, width]`` each, float64.

        Original: only the last word piece, moved by the attributes' own rows. Corrected: all rows
        from there through the padding, which carries the concept too, moved by what the attribute
        changes in the wording.
        """
        words = concept.target
        first = model.last_token(words)
        source = model.encode([words])[0, first:].double()
        if self.fidelity == "original":
            source = source[:1]
            moves = [self._row(model, word, 1) for word in self.attributes]
        else:
            worded = [self._worded(a, words) for a in self.attributes]
            count = min(len(source), *(self._length(model, prompt) for prompt in worded))
            source = source[:count]
            moves = [self._row(model, prompt, count) - source for prompt in worded]
        shift = torch.einsum("a,arw->rw", mixture.to(source.device), torch.stack(moves))
        return source, source + shift

    def _worded(self, attribute: str, words: str) -> str:
        """The wording, in which only the two places are no text."""
        before, _, after = self.wording.partition("{concept}")
        return words.join(part.replace("{attribute}", attribute) for part in (before, after))

    @staticmethod
    def _row(model: Model, prompt: str, count: int) -> Tensor:
        """``count`` rows, starting at the last word piece, float64."""
        first = model.last_token(prompt)
        return model.encode([prompt])[0, first : first + count].double()

    @staticmethod
    def _length(model: Model, prompt: str) -> int:
        return model.encode([prompt]).shape[1] - model.last_token(prompt)

    def _kept(self, model: Model, policy: Policy) -> Tensor:
        """Rows of what is kept. Original: last word pieces. Corrected: all rows, also of ""."""
        prompts = policy.kept if self.fidelity == "original" else ("", *policy.kept)
        rows = (
            self._row(model, prompt, 1)
            if self.fidelity == "original"
            else model.encode([prompt])[0]
            for prompt in prompts
        )
        return kept_rows(rows, self.preserve_scale / max(1, len(policy.kept)), model.text_width)

    def _observed(
        self,
        model: Model,
        policy: Policy,
        payload: Ridge,
        classifier: WordClassifier,
        seed: int,
        number: int,
    ) -> Tensor:
        requests = [
            ImageRequest(
                case_number=f"{place}-{index}",
                prompt=concept.target,
                seed=derive(seed, "balance", number, index) % 2**31,
            )
            for place, concept in enumerate(policy.erase)
            for index in range(self.images)
        ]
        sampler = Sampler(steps=self.num_inference_steps, guidance_scale=self.guidance_scale)
        with tried(model, payload):
            drawn = [np.asarray(picture) for _, picture in sample(model, requests, sampler)]
        seen = classifier.likeliest_words([Image.fromarray(picture) for picture in drawn])
        table = torch.tensor([[word == one for one in self.attributes] for word in seen])
        return table.reshape(len(policy.erase), self.images, -1).double().mean(1)
