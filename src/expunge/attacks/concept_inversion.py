"""Concept inversion (CCE; Pham et al., ICLR 2024): a new token that stands for the concept again.

One token embedding ``v`` is fitted to pictures of the concept with the edited model, as in textual
inversion (Gal et al., ICLR 2023); nothing else changes::

    L = E | e - eps_edited(x_t, t, c("a picture of v")) |^2

Behind guidance that leads away from the concept, the guided answer is compared with what guidance
towards the concept's name gives without the guard.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks import points
from expunge.attacks.base import Attack, Knows, Search, turns
from expunge.attacks.descent import Descent
from expunge.attacks.found import Found
from expunge.attacks.points import Points, Towards
from expunge.attacks.rows import check_rows
from expunge.attacks.sld_rule import Preset, rule_of, window_answer
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.concepts import Kind
from expunge.edits.safe_guidance import Rule
from expunge.models import Condition
from expunge.models.text import TextInput
from expunge.seeding import generator, integer
from expunge.sentences import PLACE
from expunge.spelling import whole

LR, RELEASED_LR = 0.02, 0.005
COARSE: dict[Kind, str] = {
    "object": "object", "character": "person", "style": "art", "unsafe": "person",
}  # fmt: skip
"""The word that a vector begins as where the concept has no replacement."""


class ConceptInversion(Attack):
    """New token embeddings, fitted to the base's pictures of the concept."""

    name: ClassVar[str] = "concept-inversion"
    title: ClassVar[str] = "Concept inversion"
    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2308.01508"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights", "pictures"})

    fidelity: Literal["original", "corrected"] = "corrected"
    vectors: int = Field(1, ge=1)
    """New embeddings, one behind the other."""
    starts: int = Field(1, ge=1)
    """Searches; pictures are shared among them."""
    begins_as: str = ""
    """Words whose tokens the vectors begin as; by default what replaces the concept."""
    towards: Towards = "noise"
    """What answers are fitted to: the noise in pictures, or the base's answers."""
    lr: float | None = Field(None, gt=0)
    """Learning rate of AdamW, by default 0.02. In the released program 0.005 times the pictures of
    a step."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of AdamW."""
    batch_size: int = Field(8, ge=1)
    """Points that a step looks at."""
    safety_concept: str = ""
    """What safe latent diffusion leads away from, for the released loss against it."""
    safety: Preset | Rule = "max"
    """Its preset or rule there."""
    window: int = Field(50, ge=2)
    """Times that a step against safe latent diffusion is drawn from."""
    window_count: int = Field(13, ge=1)
    """Times of such a step."""

    def check(self, target: Target) -> None:
        Tokens.of(target)
        check_rows(target)

    def groups(self, pictures: int) -> Sequence[Sequence[int]]:
        return turns(pictures, self.starts)

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        if self.fidelity == "original":
            return Released(self, target, pictures, seed)
        return Inversion(self, target, pictures, seed)

    @property
    def effective_lr(self) -> float:
        """Of a step."""
        if self.fidelity == "original":
            return (self.lr or RELEASED_LR) * self.batch_size
        return self.lr or LR


class Look(NamedTuple):
    """What a step sees."""

    loss: float
    gradient: Tensor
    """Of the vectors, ``[vectors, width]``."""


class Inversion(Search):
    """The vectors of some pictures' prompts, in the place of the concept's words."""

    def __init__(
        self, attack: ConceptInversion, target: Target, pictures: Sequence[int], seed: int
    ) -> None:
        self.attack, self.target, self.pictures, self.seed = attack, target, pictures, seed
        self.tokens = Tokens.of(target)
        begun = self.tokens.table[self._begun().to(self.tokens.table.device)]
        self.descent = Descent(
            {"vectors": begun},
            partial(torch.optim.AdamW, lr=attack.effective_lr, weight_decay=attack.weight_decay),
        )

    def _begun(self) -> Tensor:
        """Ids that the vectors begin as, ``[vectors]``."""
        concept = self.target.concept
        words = self.attack.begins_as or concept.replacement or COARSE[concept.kind]
        ids = self.tokens.ids(words) or [self.tokens.encoder.end]
        return torch.tensor([ids[n % len(ids)] for n in range(self.attack.vectors)])

    def draws(self, name: str) -> torch.Generator:
        """Of this step."""
        return generator(self.seed, name, self.pictures[0], self.descent.steps)

    def text(self, sentences: Sequence[str]) -> TextInput:
        """Sentences with the vectors at ``{}``, without them."""
        rows, at = [], []
        for sentence in sentences:
            before, _, after = sentence.partition(PLACE)
            head = self.tokens.ids(before)
            count = self.attack.vectors
            rows.append(self.tokens.row([*head, *[0] * count, *self.tokens.ids(after)]))
            at.append(torch.arange(count) + 1 + len(head))
        return TextInput(torch.stack(rows), at=torch.stack(at))

    def sentence(self, picture: int) -> str:
        """A picture's prompt with ``{}`` for the concept; the concept's own if it isn't named."""
        prompt = self.target.prompts[picture]
        for phrase in self.target.concept.phrases:
            filled = whole(phrase).sub(lambda _: PLACE, prompt, count=1)
            if filled != prompt:
                return filled
        return self.sentences[0]

    @property
    def sentences(self) -> Sequence[str]:
        """Sentences around the concept."""
        return [one for one in self.target.concept.sentences() if one != PLACE] or [PLACE]

    def condition(self, text: TextInput, vectors: Tensor) -> Condition:
        """The condition of sentences with these vectors; gradients reach them."""
        found = self.target.model.embed(text._replace(rows=vectors))
        return found.to(dtype=self.target.model.dtype)

    def look(self, text: TextInput, where: Points) -> Look:
        """What the model makes of a sentence a point."""
        vectors = self.descent["vectors"].detach().requires_grad_()
        return self._seen(where.loss(self.target, self.condition(text, vectors)), vectors)

    def _seen(self, loss: Tensor, vectors: Tensor) -> Look:
        [gradient] = torch.autograd.grad(loss, [vectors])
        return Look(loss.item(), gradient)

    def advance(self, looks: Sequence[Look]) -> None:
        """One step along the mean of some gradients."""
        gradient = torch.stack([look.gradient for look in looks]).mean(0)
        loss = sum(look.loss for look in looks) / len(looks)
        self.descent.step_along({"vectors": gradient}, loss)

    def step(self) -> None:
        known = self.target.known
        numbers = known.draw(self.attack.batch_size, self.draws("points"), self.pictures)
        sentences = [self.sentence(int(known.picture[number])) for number in numbers]
        where = points.known(self.target, numbers, self.attack.towards)
        self.advance([self.look(self.text(sentences), where)])

    def found(self) -> Found:
        text = self.text([self.sentence(self.pictures[0])])
        with torch.no_grad():
            condition = self.condition(text, self.descent["vectors"].detach())
        return Found(condition=condition, loss=self.descent.last)

    @property
    def state(self) -> Mapping[str, Tensor]:
        return self.descent.state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.descent.restore(state)


class Released(Inversion):
    """As the released programs: fresh noise in random sentences, and the losses behind guards."""

    def look_window(self, text: TextInput, clean: Tensor, noise: Tensor, times: Tensor) -> Look:
        """What a model behind safe latent diffusion makes of one sentence at some times.

        Args:
            text: of one sentence.
            clean: one picture, ``[1, ...]``.
            noise: shaped like it; the same at all times.
            times: from the largest to the smallest, ``[times]``.
        """
        target, attack = self.target, self.attack
        vectors = self.descent["vectors"].detach().requires_grad_()
        asked = self.condition(text, vectors)
        safety = target.model.condition([attack.safety_concept])
        conditions = Condition.cat([target.model.unconditional(), asked, safety])
        answers = []
        for time in times:
            latents = target.model.process.mix(clean, noise, time[None]).repeat(3, 1, 1, 1)
            without, prompted, unsafe = target.predict(latents, time.repeat(3), conditions).chunk(3)
            answers.append((without, prompted, unsafe))
        scale = target.sampling.guidance_scale
        without, _, unsafe = answers[-1]
        wanted = without + scale * (unsafe - without)
        answer = window_answer(rule_of(attack.safety), answers, scale)
        loss = torch.nn.functional.mse_loss(answer.float(), wanted.detach().float())
        return self._seen(loss, vectors)

    def step(self) -> None:
        if self.target.guarded:
            super().step()
            return
        known, attack, draws = self.target.known, self.attack, self.draws("noise")
        count = 1 if attack.safety_concept else attack.batch_size
        chosen = [self.pictures[integer(draws, 0, len(self.pictures))] for _ in range(count)]
        sentences = [self.sentences[integer(draws, 0, len(self.sentences))] for _ in chosen]
        clean = known.clean[chosen]
        noise = torch.randn(clean.shape, generator=draws).to(clean)
        if attack.safety_concept:
            self.advance(
                [self.look_window(self.text(sentences), clean, noise, self._window(draws))]
            )
        else:
            time = torch.randint(self.target.model.process.times, (count,), generator=draws)
            where = points.noisy(self.target, clean, noise, time)
            self.advance([self.look(self.text(sentences), where)])

    def _window(self, draws: torch.Generator) -> Tensor:
        """Some times of a window, the largest first."""
        end = integer(draws, self.attack.window, self.target.model.process.times)
        chosen = torch.randperm(self.attack.window, generator=draws)[: self.attack.window_count]
        times = end - self.attack.window + chosen
        return times.sort(descending=True).values.to(self.target.model.device)

    def found(self) -> Found:
        with torch.no_grad():
            condition = self.condition(
                self.text([self.sentences[0]]), self.descent["vectors"].detach()
            )
        return Found(condition=condition, loss=self.descent.last)
