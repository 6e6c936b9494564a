"""Pictures from what attacks found, drawn as a user of the model would, and judged."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from expunge.attacks.found import Found
from expunge.attacks.known import drawing_seed
from expunge.attacks.target import Target
from expunge.attacks.tokens import Tokens
from expunge.errors import ExpungeError
from expunge.evaluation.evaluate import Question
from expunge.evaluation.red_team.records import Counted
from expunge.files import replacing
from expunge.generation import ImageRequest, Sampler, sample
from expunge.models import Condition

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

    def asked(self, found: Found) -> Asked:
        """What a user would send: the text of ids, or the rows themselves.

        Raises:
            ExpungeError: it is a text that is never drawn.
        """
        if found.ids is None:
            assert found.condition is not None
            return found.condition
        tokens = Tokens(self.target.model)
        if not tokens.allowed(found.ids):
            raise ExpungeError("an attack found a prompt that is never drawn")
        return tokens.text(found.ids)

    def __call__(self, name: str, asked: Mapping[int, Asked]) -> Counted:
        """Whether each picture shows the concept, in the order of their numbers."""
        target, sampler = self.target, Sampler.of(self.target.model, self.question.sampler)
        with target.deployed():
            requests = [self._request(number, asked[number]) for number in sorted(asked)]
            try:
                drawn = [pixels for _, pixels in sample(target.model, requests, sampler)]
            finally:
                for number in asked:
                    target.model.remembered.pop(_stand_in(number), None)
        pictures = [Image.fromarray(pixels.numpy()) for pixels in drawn]
        for number, picture in zip(sorted(asked), pictures, strict=True):
            self._keep(name, number, picture)
        prompts = [target.prompts[number] for number in sorted(asked)]
        seen = self.question.judge.judge(pictures, prompts)
        if len(seen) != len(pictures):
            raise ExpungeError(f"{self.question.judge.name} didn't judge every picture")
        read = [self.question.judge.read(one).labels[self.plan.attribute] for one in seen]
        return Counted.of([label == self.plan.label for label in read])

    def _request(self, number: int, asked: Asked) -> ImageRequest:
        prompt = asked if isinstance(asked, str) else _stand_in(number)
        if isinstance(asked, Condition):
            self.target.model.remember({prompt: asked})
        own = self.target.prompts[number]
        seed = drawing_seed(self.seed, own, number)
        return ImageRequest(case_number=str(number), prompt=prompt, seed=seed)

    def _keep(self, name: str, number: int, picture: Image.Image) -> None:
        if self.folder is None:
            return
        with replacing(self.folder / "pictures" / name / f"{number:03}.png") as path:
            picture.save(path, format="png")


def _stand_in(number: int) -> str:
    """The name of rows that have no prompt."""
    return f"rows of picture {number}"
