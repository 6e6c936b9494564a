"""Pictures from what attacks found, drawn as a user of the model would, and judged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from expunge.attacks.found import Found
from expunge.attacks.known import BLOCK, drawing_seed
from expunge.attacks.probes import Probe
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.errors import ExpungeError, Unsupported
from expunge.evaluation.evaluate import Question
from expunge.evaluation.red_team.records import Counted
from expunge.evaluation.suite import Plan, Prompt
from expunge.files import replacing
from expunge.generation import ImageRequest, Sampler, sample
from expunge.models import Condition
from expunge.progress import track

Asked = str | Condition
"""What asks for a picture: a prompt, or rows that no prompt needs to have."""


class Drawing:
    """Draws and judges a target's pictures; the noise of each is the same for all attacks.

    Args:
        target: what is attacked.
        question: whose judge looks.
        seed: decides the noise.
        folder: where pictures are written; nowhere if ``None``.
    """

    def __init__(self, target: Target, question: Question, seed: int, folder: Path | None) -> None:
        self.target, self.question, self.seed, self.folder = target, question, seed, folder
        [self.plan] = question.plans

    def on(self, target: Target) -> Self:
        """The same for another target."""
        return type(self)(target, self.question, self.seed, self.folder)

    def asked(self, found: Found) -> Asked:
        """What a user would send: the text of ids, or the rows themselves.

        Raises:
            ExpungeError: it is a text that is never drawn.
        """
        if found.ids is None:
            assert found.condition is not None
            return found.condition
        tokens = Tokens.of(self.target)
        if not tokens.allowed(found.ids):
            raise ExpungeError("an attack found a prompt that is never drawn")
        return tokens.text(found.ids)

    def __call__(self, name: str, asked: Mapping[int, Asked]) -> Counted:
        """Whether each picture shows the concept, in the order of their numbers."""
        model = self.target.model
        requests = [self._request(number, asked[number]) for number in sorted(asked)]
        try:
            drawn = self._sampled(requests)
        finally:
            for number in asked:
                model.remembered.pop(_stand_in(number), None)
        return Counted.of(self._judged(name, sorted(asked), drawn))

    def kept(self, name: str) -> Counted:
        """Whether pictures of what should be kept are right; about as many as are attacked.

        Raises:
            Unsupported: the suite doesn't say what they should show.
        """
        told = kept_prompts(self.plan)[::2]
        if not told:
            raise Unsupported(
                f"the {self.plan.suite} suite doesn't say what other pictures should show, so a "
                "broken model couldn't be told from one that has forgotten"
            )
        count = min(len(told), len(self.target.prompts))
        chosen = [told[at * len(told) // count] for at in range(count)]
        seeds = [drawing_seed(self.seed, one.text, at) for at, one in enumerate(chosen)]
        drawn = self._sampled(
            [
                ImageRequest(case_number=str(at), prompt=one.text, seed=seed)
                for at, (one, seed) in enumerate(zip(chosen, seeds, strict=True))
            ]
        )
        seen = self._labels(name, dict(enumerate(chosen)), drawn)
        wanted = [one.expected[self.plan.attribute] for one in chosen]
        return Counted.of([a == b for a, b in zip(seen, wanted, strict=True)])

    def _sampled(self, requests: Sequence[ImageRequest]) -> list[Tensor]:
        model = self.target.model
        with self.target.deployed():
            sampler = Sampler.of(model, self.question.sampler)
            return [pixels for _, pixels in sample(model, requests, sampler)]

    def probed(self, name: str, probe: Probe) -> Counted:
        """Whether each picture shows the concept in any of the ways in which a probe draws it."""
        numbers = range(len(self.target.prompts))
        ways = [
            self._judged(f"{name}-{attempt}", numbers, self._drawn(probe, numbers, attempt))
            for attempt in track(range(probe.attempts), probe.name, total=probe.attempts)
        ]
        return Counted.of([any(column) for column in zip(*ways, strict=True)])

    def _drawn(self, probe: Probe, numbers: Sequence[int], attempt: int) -> list[Tensor]:
        model = self.target.model
        found: list[Tensor] = []
        for at in range(0, len(numbers), BLOCK):
            block = numbers[at : at + BLOCK]
            seeds = [torch.Generator().manual_seed(self._seed(number)) for number in block]
            noise = torch.stack([torch.randn(model.latent_shape, generator=one) for one in seeds])
            noise = noise.to(model.device, model.dtype)
            found += model.decode(probe.draw(self.target, block, noise, self.seed, attempt))
        return found

    def _judged(self, name: str, numbers: Sequence[int], drawn: Sequence[Tensor]) -> list[bool]:
        """Whether each picture shows the concept."""
        wanted = {self.plan.attribute: self.plan.label}
        texts = {number: self.target.prompts[number] for number in numbers}
        prompts = {at: Prompt(text=text, expected=wanted) for at, text in texts.items()}
        return [label == self.plan.label for label in self._labels(name, prompts, drawn)]

    def _labels(
        self, name: str, prompts: Mapping[int, Prompt], drawn: Sequence[Tensor]
    ) -> list[str]:
        """What each picture shows; it is kept as the picture of its number."""
        pictures = [Image.fromarray(pixels.numpy()) for pixels in drawn]
        for number, picture in zip(prompts, pictures, strict=True):
            self._keep(name, number, picture)
        seen = self.question.judge.judge(pictures, [one.text for one in prompts.values()])
        if len(seen) != len(pictures):
            raise ExpungeError(f"{self.question.judge.name} didn't judge every picture")
        read = map(self.question.judge.read, seen, prompts.values())
        return [one.labels[self.plan.attribute] for one in read]

    def _seed(self, number: int) -> int:
        return drawing_seed(self.seed, self.target.prompts[number], number)

    def _request(self, number: int, asked: Asked) -> ImageRequest:
        prompt = asked if isinstance(asked, str) else _stand_in(number)
        if isinstance(asked, Condition):
            self.target.model.remember({prompt: asked})
        return ImageRequest(case_number=str(number), prompt=prompt, seed=self._seed(number))

    def _keep(self, name: str, number: int, picture: Image.Image) -> None:
        if self.folder is None:
            return
        with replacing(self.folder / "pictures" / name / f"{number:03}.png") as path:
            picture.save(path, format="png")


def _stand_in(number: int) -> str:
    """The name of rows that have no prompt."""
    return f"rows of picture {number}"


def kept_prompts(plan: Plan) -> list[Prompt]:
    """Prompts for what should be kept, of which the judge can say whether a picture is right.

    Every other one is judged; attacks may learn from those between.
    """
    return [
        prompt
        for group in plan.of_role("retention")
        for prompt in group.prompts
        if plan.attribute in prompt.expected
    ]
