"""Seed-faithful sampling with classifier-free guidance.

A picture's bits must depend on its request alone. Kernels, however, round differently for
different batch sizes, and some even for different rows of one batch. So the network always gets
the same number of pictures: a short batch is filled up by repetition. A number is only used after a
check that all rows of such a batch come out alike here. Text is encoded and pictures are decoded
one by one.

Kernels round differently for different numbers of threads, too. On the CPU each small picture is
therefore drawn by one thread, several pictures at a time, which is also faster than splitting small
kernels. For large pictures that isn't worthwhile; there the number of threads does matter.
"""

import inspect
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import groupby, islice
from threading import Lock
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from expunge.edits.drawings import drawing
from expunge.errors import ExpungeError
from expunge.generation.sampler import Sampler
from expunge.generation.turns import Turns, workers_for
from expunge.models import Condition, Model
from expunge.models.sampling import Sampling
from expunge.prompts import Case, PromptSet

LatentSize = tuple[int, int]

_LATENT_PIXELS = {"cpu": 4 * 16 * 16, "cuda": 4 * 64 * 64}
"""Latent pixels to draw at once: about the fewest that keep such a device busy."""
LATE = 1000
"""The number of a step that is after everything that guards do in the first steps only."""
LARGEST = 16
"""How many times larger than the model's own size the side of a picture may be."""


class ImageRequest(Case):
    """One picture: a prompt with its seed, and which of the seed's pictures."""

    sample: Annotated[int, Field(ge=0)] = 0
    """0 starts from the seed's first draw of noise, 1 from its second, and so on."""


Drawn = list[tuple[ImageRequest, Tensor]]


def requests(prompts: PromptSet, samples: int = 1) -> Iterator[ImageRequest]:
    """``samples`` pictures of every prompt."""
    for row in prompts:
        for number in range(samples):
            yield ImageRequest(**row.model_dump(exclude={"extra"}), sample=number)


def sample(
    model: Model, requests: Iterable[ImageRequest], sampler: Sampler
) -> Iterator[tuple[ImageRequest, Tensor]]:
    """Draw every request, in order, as uint8 ``[height, width, 3]`` on the CPU.

    Every picture shows the edits that were applied when this was called. Other threads can change
    the model between batches, if they change it back.

    Raises:
        ExpungeError: a size that the model can't draw, too many steps, a picture that became
            infinite or NaN, or other edits applied than at the call.
    """
    model.check_draws()
    return _drawn(Turns(model), requests, sampler.sampling(model))


def _drawn(
    turns: Turns, requests: Iterable[ImageRequest], sampling: Sampling
) -> Iterator[tuple[ImageRequest, Tensor]]:
    model, pending = turns.model, deque[Future[Drawn]]()
    texts = _Texts(model)
    with workers_for(model) as (pool, workers):
        for size, alike in groupby(requests, key=lambda request: latent_size(model, request)):
            lanes = turns.start(pool, _lanes, model, size, texts).result()
            while batch := list(islice(alike, lanes)):
                pending.append(turns.start(pool, _draw, model, batch, sampling, size, lanes, texts))
                if len(pending) > 2 * workers:
                    yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def latent_size(model: Model, request: ImageRequest) -> LatentSize:
    """Height and width of a request's latents.

    Raises:
        ExpungeError: its size in pixels is no multiple of what the model needs, or so large that
            it would only exhaust the memory.
    """
    (height, width), (_, rows, _) = model.image_size, model.latent_shape
    factor = height // rows
    largest = LARGEST * max(height, width)
    height, width = request.height or height, request.width or width
    if max(height, width) > largest:
        raise ExpungeError(
            f"case {request.case_number}: {height}×{width} pixels; with this model at most "
            f"{largest} a side"
        )
    if height % factor or width % factor:
        raise ExpungeError(
            f"case {request.case_number}: {height}×{width} pixels; this model draws "
            f"multiples of {factor}"
        )
    return height // factor, width // factor


class _Texts:
    """Conditions of prompts, each encoded once and on its own."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[str | None, Condition] = {}
        self._lock = Lock()  # tokenizers can't be used by two threads at once

    def __getitem__(self, prompt: str | None) -> Condition:
        """The condition of a prompt; ``None`` is what guidance leads away from."""
        with self._lock:
            if prompt not in self._known:
                model = self._model
                found = model.unconditional() if prompt is None else model.condition([prompt])
                self._known[prompt] = found.to(dtype=model.dtype)
            return self._known[prompt]


def _lanes(model: Model, size: LatentSize, texts: _Texts) -> int:
    """Pictures per batch for a size on this device: efficient, then halved until rows agree."""
    lanes = max(1, _LATENT_PIXELS.get(model.device.type, 0) // (size[0] * size[1]))
    while lanes > 1 and not _rows_agree(model, 2 * lanes, size, texts):
        lanes //= 2
    return lanes


@torch.no_grad()
def _rows_agree(model: Model, rows: int, size: LatentSize, texts: _Texts) -> bool:
    """Whether pictures come out alike, in early and late steps: guards may act in some only."""
    noise = _noise(torch.Generator().manual_seed(0), 0, model, size)
    latents = noise.to(model.device, model.dtype).repeat(rows, 1, 1, 1)
    condition = Condition.cat([texts["a picture"]] * rows)
    guided = torch.ones(rows // 2, dtype=torch.bool, device=model.device)
    for step in (0, LATE):
        with drawing(model, guided, step):
            halves = model.predict(latents, 1, condition).view(2, -1, *latents.shape[1:])
        if not torch.equal(halves, halves[:, :1].expand_as(halves)):
            return False
    return True


def _draw(
    model: Model,
    batch: Sequence[ImageRequest],
    sampling: Sampling,
    size: LatentSize,
    lanes: int,
    texts: _Texts,
) -> Drawn:
    latents = _denoise(model, batch, sampling, size, lanes, texts)[: len(batch)]
    for request, latent in zip(batch, latents, strict=True):
        if not bool(latent.isfinite().all()):
            raise ExpungeError(
                f"case {request.case_number}: the picture became infinite or NaN; "
                "the weights or the edit are broken, or the precision is too low"
            )
    return [
        (request, model.decode(latent[None])[0])
        for request, latent in zip(batch, latents, strict=True)
    ]


@torch.no_grad()
def _denoise(
    model: Model,
    batch: Sequence[ImageRequest],
    sampling: Sampling,
    size: LatentSize,
    lanes: int,
    texts: _Texts,
) -> Tensor:
    """Final latents ``[lanes, channels, h, w]``; rows beyond the batch are padding."""
    filled = [*batch, *[batch[-1]] * (lanes - len(batch))]
    generators = [torch.Generator().manual_seed(request.seed) for request in filled]
    noise = [
        _noise(generator, request.sample, model, size)
        for generator, request in zip(generators, filled, strict=True)
    ]
    condition = Condition.cat([texts[None]] * lanes + [texts[one.prompt] for one in filled])
    scales = [request.guidance_scale or sampling.guidance_scale for request in filled]
    guidance = torch.tensor(scales, device=model.device).view(-1, 1, 1, 1)
    # Multistep schedulers keep a history, so each batch has its own.
    scheduler = model.process.scheduler(sampling.scheduler, sampling.steps)
    options = _generator_option(scheduler, generators)
    latents = torch.cat(noise).to(model.device) * scheduler.init_noise_sigma
    with drawing(model, guided=guidance.flatten() > 1):
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, timestep).to(model.dtype)
            doubled = torch.cat([scaled, scaled])
            predicted = model.predict(doubled, timestep.to(model.device), condition).float()
            without, with_prompt = predicted.chunk(2)
            guided = without + guidance * (with_prompt - without)
            latents = scheduler.step(guided, timestep, latents, **options).prev_sample
    final: Tensor = latents
    return final


def _noise(generator: torch.Generator, number: int, model: Model, size: LatentSize) -> Tensor:
    """The generator's ``number``-th draw, ``[1, channels, h, w]``: float32 on the CPU."""
    shape = (number + 1, model.latent_shape[0], *size)
    return torch.randn(shape, generator=generator)[number:]


def _generator_option(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    """Ancestral schedulers draw noise in every step; each picture's seed decides its own."""
    accepts = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": generators} if accepts else {}
