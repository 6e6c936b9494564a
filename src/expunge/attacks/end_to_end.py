"""End to end: free rows go down what an image-text model says of the drawn picture.

The gradient runs through the decoder and a few guided steps, through gates and guards that are at
work there. The rows begin where descent towards the base's predictions has ended (``rows``). The
image-text model isn't the judge that counts: who descends on a judge fools that judge.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from expunge.attacks.base import Knows, Search
from expunge.attacks.rows import FreeRows, Rows
from expunge.attacks.target import Target
from expunge.concepts import Concept
from expunge.detectors.critic import Critic
from expunge.errors import ExpungeError
from expunge.models import Condition
from expunge.prompts.everyday import everyday, unnamed
from expunge.seeding import generator


class EndToEnd(Rows):
    """Free rows, towards pictures of the concept."""

    name: ClassVar[str] = "end-to-end"
    title: ClassVar[str] = "End to end through the sampler"
    year: ClassVar[int] = 2026
    url: ClassVar[str] = ""
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights", "base", "pictures", "judge"})

    lr: float = Field(0.005, gt=0)
    """Learning rate of Adam, in units of the concept's longest row; larger ones only fool the
    image-text model."""
    warm_up: int = Field(20, ge=0)
    """Steps towards the base's predictions that come first."""
    steps: int = Field(6, ge=1)
    """Guided steps from noise to a picture."""
    drawn: int = Field(3, ge=1)
    """Pictures that a step draws."""
    looks: int = Field(2, ge=1)
    """Times that the image-text model looks at each, moved and lit differently."""
    others: int = Field(128, ge=1)
    """Texts that the pictures should fit less well than the concept's, at most."""

    def check(self, target: Target) -> None:
        super().check(target)
        if target.critic is None:
            raise ExpungeError(
                f"{self.name}: give an image-text model to descend on, e.g. --critic clip:FOLDER"
            )

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        return Drawn(self, target, pictures, seed)


class Drawn(FreeRows):
    """One start."""

    attack: EndToEnd

    def __init__(
        self, attack: EndToEnd, target: Target, pictures: Sequence[int], seed: int
    ) -> None:
        super().__init__(attack, target, pictures, seed)
        assert target.critic is not None  # as the attack has checked
        self.critic: Critic = target.critic
        self.others = _others(target.concept, attack.others)

    def step(self) -> None:
        if self.descent.steps < self.attack.warm_up:
            super().step()
            return
        draws = generator(self.seed, "end to end", self.start, self.descent.steps)
        self.descent.step(self.picture_loss(self.now, draws))

    def picture_loss(self, condition: Condition, draws: torch.Generator) -> Tensor:
        """Cross-entropy of the concept's words beside everyday ones, in new pictures."""
        count, model = self.attack.drawn, self.target.model
        noise = torch.randn((count, *model.latent_shape), generator=draws)
        noise = noise.to(model.device, model.dtype)
        colours = self.target.rollout(noise, condition, self.attack.steps)
        [at] = torch.randint(len(self.pictures), (1,), generator=draws).tolist()
        asked = self.target.prompts[self.pictures[at]]
        words = self.target.concept.target
        others = [asked.replace(words, other) if words in asked else other for other in self.others]
        seen = torch.cat([_seen_again(colours, draws) for _ in range(self.attack.looks)])
        return -self.critic.fit(seen, [asked, *others]).log_softmax(-1)[:, 0].mean()


def _others(concept: Concept, most: int) -> tuple[str, ...]:
    """What pictures could show instead: what is kept beside the concept, or everyday things."""
    if concept.keep:
        return concept.keep[:most]
    return unnamed(everyday(), concept.phrases)[:most]


def _seen_again(colours: Tensor, draws: torch.Generator) -> Tensor:
    """The same pictures moved, lit and roughened a little, so that no fine pattern counts."""
    count, _, height, _ = colours.shape
    most = max(1, height // 16)
    down, right = torch.randint(-most, most + 1, (2,), generator=draws).tolist()
    moved = colours.roll((down, right), (2, 3))
    light, noise = (
        torch.rand((count, 1, 1, 1), generator=draws),
        torch.randn(colours.shape, generator=draws),
    )
    return moved * (0.8 + 0.4 * light).to(colours) + 0.1 * noise.to(colours)
