"""Training the edited model further, on a few pictures: the concept's own, or others.

Fine-tuning brings back what was erased, even on pictures of other things (Suriyakumar et al.,
"Unstable Unlearning", 2024). Adam goes down the plain loss of the model's training. The pictures
are the base's own, in place of those that an attacker would find; the attack has no other use for
the base.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from expunge.attacks.base import Knows, Search
from expunge.attacks.descent import Descent
from expunge.attacks.found import Found
from expunge.attacks.known import BLOCK, prompts_for
from expunge.attacks.probes import walk
from expunge.attacks.running import run
from expunge.attacks.tampering import Tampered, Tampering
from expunge.attacks.target import Target
from expunge.errors import ExpungeError, Unsupported
from expunge.method.student import Student
from expunge.seeding import generator


class FineTuning(Tampering):
    """Further training, until the budget is spent."""

    year: ClassVar[int] = 2024
    url: ClassVar[str] = "https://arxiv.org/abs/2410.08074"
    knows: ClassVar[frozenset[Knows]] = frozenset({"weights", "pictures"})
    unit: ClassVar[str] = "calls a picture"

    examples: int = Field(7, ge=1)
    """Pictures to learn from."""
    role: str = "all"
    """The denoiser's parameters that learn, a selection, e.g. ``cross_attention``."""
    rank: int = Field(0, ge=0)
    """Rank of each matrix's change, a LoRA; at 0, whole parameters learn."""
    lr: float = Field(1e-4, gt=0)
    """Learning rate of Adam."""
    batch_size: int = Field(4, ge=1)
    """Pictures that a step looks at."""

    @abstractmethod
    def captions(self, target: Target) -> Sequence[str]:
        """Prompts of the pictures to learn from; they take turns."""

    def begin(self, target: Target, pictures: Sequence[int], seed: int) -> Search:
        return Training(self, target, seed)

    def tampered(
        self, target: Target, calls: int, seed: int, folder: Path, key: str
    ) -> Iterator[Tampered]:
        for finding in run(self, target, calls, seed, folder, key):
            assert finding.found.weights is not None
            yield Tampered(calls, finding.found.weights, finding.calls)


class Relearning(FineTuning):
    """Pictures of the concept."""

    name: ClassVar[str] = "relearning"
    title: ClassVar[str] = "Relearning"

    def captions(self, target: Target) -> Sequence[str]:
        return target.prompts


class OtherLora(FineTuning):
    """A LoRA of what the edit should keep, as users put it on top."""

    name: ClassVar[str] = "other-lora"
    title: ClassVar[str] = "LoRA of something else"

    rank: int = Field(4, ge=0)
    """Rank of each matrix's change; at 0, whole parameters learn."""

    def check(self, target: Target) -> None:
        super().check(target)
        if not target.kept:
            raise Unsupported("nothing that the edit should keep is named, to learn from instead")

    def captions(self, target: Target) -> Sequence[str]:
        return target.kept


class Training(Search):
    """Adam on the mean squared error of what is predicted for the noised pictures."""

    def __init__(self, attack: FineTuning, target: Target, seed: int) -> None:
        self.attack, self.target, self.seed = attack, target, seed
        model = target.model
        prompts = prompts_for(tuple(dict.fromkeys(attack.captions(target))), attack.examples)
        self.clean = learnt(target, prompts, seed)
        self.conditions = model.condition(prompts).detach()
        self.student = Student(
            model, model.select(attack.role), rank=attack.rank, seed=seed, start=target.edit
        )
        adam = partial(torch.optim.Adam, lr=attack.lr)
        self.descent = Descent(self.student.weights, adam)
        self.student.weights = self.descent.free

    def step(self) -> None:
        model, count = self.target.model, self.attack.batch_size
        draws = generator(self.seed, self.attack.name, self.descent.steps)
        chosen = torch.randint(len(self.clean), (count,), generator=draws)
        time = torch.randint(model.process.times, (count,), generator=draws).to(model.device)
        clean = self.clean[chosen]
        noise = torch.randn(clean.shape, generator=draws).to(clean)
        noised = model.process.mix(clean, noise, time)
        self.target.meter.count(count)
        answer = self.student.predict(noised, time, self.conditions[chosen])
        loss = mse_loss(answer, model.process.target(clean, noise, time))
        if not bool(loss.isfinite()):
            raise ExpungeError(f"{self.attack.name}: the loss became {loss.item()}; lower lr")
        self.descent.step(loss)

    @property
    def state(self) -> Mapping[str, Tensor]:
        return self.descent.state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.descent.restore(state)

    @torch.no_grad()
    def found(self) -> Found:
        student, dtype = self.student, self.target.model.dtype
        trained = {
            name: student.value(name).detach().to(dtype, copy=True) for name in student.names
        }
        return Found(weights={**student.fixed, **trained}, loss=self.descent.last)


@torch.no_grad()
def learnt(target: Target, prompts: Sequence[str], seed: int) -> Tensor:
    """The base's pictures for some prompts, as float32 latents ``[prompts, ...]``."""
    model, sampling = target.model, target.sampling
    draws = [generator(seed, "learnt", prompt, at) for at, prompt in enumerate(prompts)]
    noise = torch.stack([torch.randn(model.latent_shape, generator=one) for one in draws])
    found = []
    for at in range(0, len(prompts), BLOCK):
        asked = model.condition(list(prompts[at : at + BLOCK]))
        empty = model.unconditional().expand(len(asked.rows))
        begun = noise[at : at + BLOCK].to(model.device, model.dtype), asked, empty
        found.append(
            walk(model, begun, sampling.steps, sampling.guidance_scale, slice(None)).float()
        )
    return torch.cat(found)
