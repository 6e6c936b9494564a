"""Training a model further on pictures with captions, as its users do."""

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from expunge.errors import ExpungeError
from expunge.evaluation.suite import Record
from expunge.method.student import Student
from expunge.models import Condition, Model
from expunge.pictures import latents_of
from expunge.progress import track
from expunge.prompts.lexicon import refused
from expunge.seeding import generator


class Captioned(NamedTuple):
    """A picture to learn from, of the model's own size, with its prompt."""

    picture: Image.Image
    caption: str


class FineTuning(Record):
    """How the edited model is trained: Adam on the plain loss of noise prediction."""

    role: str = "all"
    """The UNet parameters that learn (see ``models.roles``), e.g. ``cross_attention``."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Learning rate."""
    batch: Annotated[int, Field(ge=1)] = 4
    """Pictures a step, drawn with replacement."""
    rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the learnt change of each matrix (LoRA); 0 trains whole parameters."""


class LearntPictures(NamedTuple):
    """Pictures as a model learns from them."""

    name: str
    mean: Tensor
    """Of the VAE's latents, ``[pictures, channels, h, w]``; ``deviation`` alike."""
    deviation: Tensor
    captions: list[str]


def learnt_pictures(model: Model, name: str, examples: Sequence[Captioned]) -> LearntPictures:
    """The latents and captions of a kind of pictures, which is called ``name``.

    Raises:
        ExpungeError: there is no picture, one is of another size than the model's, or a caption
            is one that is never drawn.
    """
    if not examples:
        raise ExpungeError(f"{name}: no picture to learn from; give at least one")
    height, width = model.image_size
    for example in examples:
        if example.picture.size != (width, height):
            across, down = example.picture.size
            raise ExpungeError(
                f"{name}: a picture of {down}×{across} pixels; {model.name!r} draws "
                f"{height}×{width}, so resize it"
            )
        if refused({"prompt": example.caption}):
            raise ExpungeError(
                f"{name}: a caption with a sexual word and a word for minors is never learnt from"
            )
    pixels = np.stack([np.asarray(example.picture.convert("RGB")) for example in examples])
    mean, deviation = latents_of(model, torch.from_numpy(pixels))
    return LearntPictures(name, mean, deviation, [example.caption for example in examples])


def training_losses(
    student: Student, data: LearntPictures, tuning: FineTuning, seed: int, steps: int
) -> Iterator[float]:
    """The loss of each step; a step is taken when its loss is asked for.

    Raises:
        ExpungeError: a loss isn't finite.
    """
    optimizer = torch.optim.Adam(student.weights.values(), lr=tuning.lr)
    conditions = student.model.condition(data.captions)  # encoded where gates can hear of it
    for step in track(range(steps), f"relearning from {data.name}", total=steps):
        draws = generator(seed, "relearning", data.name, step)
        with student.model.frozen():
            loss = _loss(student, data, conditions, tuning.batch, draws)
        if not bool(loss.isfinite()):
            raise ExpungeError(f"{data.name}: the loss became {loss.item()}; use a smaller lr")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield loss.item()


def _loss(
    student: Student,
    data: LearntPictures,
    conditions: Condition,
    batch: int,
    draws: torch.Generator,
) -> Tensor:
    """Mean squared error of what is predicted for noised latents of a few pictures.

    ``conditions`` are those of the captions, one a picture.
    """
    model = student.model
    chosen = torch.randint(len(data.mean), (batch,), generator=draws)
    timestep = torch.randint(model.process.times, (batch,), generator=draws).to(model.device)
    draw = torch.randn((2, batch, *data.mean.shape[1:]), generator=draws).to(model.device)
    latents, noise = data.mean[chosen] + draw[0] * data.deviation[chosen], draw[1]
    predicted = student.predict(
        model.process.mix(latents, noise, timestep), timestep, conditions[chosen]
    )
    return F.mse_loss(predicted, model.process.target(latents, noise, timestep))
