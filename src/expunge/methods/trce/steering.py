"""TRCE: Towards Reliable Malicious Concept Erasure (Chen et al., ICCV 2025), both stages.

Stage 1 (``closed.py``) changes what prompts say. What shows through all the same, in wordings that
it doesn't know, stage 2 steers aside early in the denoising, where a picture's content is decided.
It trains the self-attention and the queries of the cross-attention. On the way x that the base
model f0 takes from the erased prompt p-, the student f is drawn to where guidance would lead from
the safe prompt p+ and pushed off from where it would lead from p-, for p- and without a prompt:

    f+ = u + g (f0(x, p+) - u)      f- = u + g (f0(x, p-) - u)      u = f0(x, "")

    h_q = beta max(0, |f(x, q) - f+|^2 - |f(x, q) - f-|^2 + m)      q in {p-, ""}

    L = mean of h_q + lambda mean of |f(x', p') - f1(x', p')|^2

where everything else is held: f1 is stage 1, x' lies on trajectories of the empty prompt and of
the prompts p' to keep. The schedule, that is which steps of which trajectories all batches use,
is drawn first, and no trajectory is computed beyond it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import (
    Field,
    InstanceOf,
    NonNegativeFloat,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from torch import Tensor

from expunge.concepts import Context, Pair, Policy, explain
from expunge.edits.edit import Edit
from expunge.method.base import Fixed, Part
from expunge.method.batch import Batch
from expunge.method.edits import edit_of
from expunge.method.run import Run
from expunge.method.student import Student
from expunge.method.training import TrainedWeights
from expunge.methods.trce.closed import RELEASED as RELEASED_STAGE1
from expunge.methods.trce.closed import TRCE
from expunge.models import Condition, Model, Process
from expunge.prior import PriorFile
from expunge.seeding import derive, generator, integer
from expunge.settings import or_file
from expunge.training.latents import TrajectoryPoint, latents_at
from expunge.training.trajectories import Timetable, ddim

RELEASED: Mapping[str, Any] = {
    "gradients": "cumulative",
    "align_timestep": False,
    "lamb": RELEASED_STAGE1["lamb"],
    "stage1_preserve_scale": RELEASED_STAGE1["preserve_scale"],
}
"""The program's settings where they differ from the corrected defaults."""
RELEASED_FRAME = ("a photo of {}",)
"""The sentence of the program's trajectories."""
RELEASED_REPEATS = 5
"""The program's trajectories of each prompt."""
RELEASED_EMPTY = 2000
"""The program's trajectories of the empty prompt."""
RELEASED_CONSTANT = 0.01
"""What the program adds to the sum of the distances from stage 1, without any effect."""
STAGE1 = ("prior", "token_weight_scale", "stage1_preserve_scale", "lamb")
"""Settings of stage 1, which a saved edit has behind it."""


EditFile = Annotated[
    InstanceOf[Edit],
    or_file(Edit.load),
    PlainSerializer(lambda edit: edit.id, return_type=str),
]
"""A setting that is an ``Edit`` or the path of one; a record of it holds its id."""


def released(process: Process, steps: int) -> Any:
    """``ddim`` with the timesteps ``(1000 / steps) j`` of the released program."""
    return process.scheduler(
        "ddim", steps, set_alpha_to_one=False, steps_offset=0, timestep_spacing="leading"
    )


class Ways(NamedTuple):
    """Trajectories of one sort."""

    prompts: tuple[str, ...]
    """One a trajectory."""
    others: tuple[str, ...]
    """The other prompt that matters there: the safe one of an erased one, the empty one else."""
    guidance_scale: float


class Visit(NamedTuple):
    """A place on a trajectory of some sort, and with what timestep and prompts it's looked at."""

    sort: str
    place: TrajectoryPoint
    timestep: int
    prompt: str
    safe: str = ""


class BatchVisits(NamedTuple):
    """What one batch looks at."""

    steered: list[Visit]
    held: list[Visit]


class TRCESteering(TrainedWeights):
    """TRCE's closed form, then contrastive fine-tuning of the early denoising steps."""

    name: ClassVar[str] = "trce-steering"
    title: ClassVar[str] = "TRCE with denoising trajectory steering"
    year: ClassVar[int] = 2025
    url: ClassVar[str] = "https://arxiv.org/abs/2503.07389"
    released: ClassVar[Mapping[str, Any]] = RELEASED
    released_fixed: ClassVar[Fixed] = {
        **TrainedWeights.released_fixed,
        "batch_size": (1, "the released program trains on one prompt at a time"),
    }
    corrected_only: ClassVar[tuple[str, ...]] = ("trajectories", "keep_share")

    guidance: float = 15.0
    """g: guidance of the two targets. The released program adds 1 to it."""
    beta: float = Field(1.0, gt=0)
    """Weight of the steering."""
    margin: float = Field(0.01, allow_inf_nan=False)
    """m: how much nearer to the safe target than to the other is near enough."""
    max_early_timestep: int = Field(25, ge=0)
    """The last step of a trajectory that is steered, counted from 0."""
    preserve_scale: float = Field(100.0, ge=0)
    """lambda: weight of staying where stage 1 is."""
    regularization_batch_size: int = Field(4, ge=1)
    """Latents in one step at which the student is held to stage 1."""
    iterations: int = Field(300, ge=1)
    """Optimiser steps."""
    lr: float = Field(1e-6, gt=0)
    """Learning rate."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of the trained weights."""
    start_guidance: float = 3.0
    """Guidance scale of the trajectories."""
    num_inference_steps: int = Field(50, ge=2, le=1000)
    """Steps of a whole trajectory."""
    align_timestep: bool = True
    """Look at latents with their own timestep. The released program looks at those after a step
    with the timestep before it."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words; by default the words alone and the templates. original:
    by default its trajectories are of ``a photo of {}``."""
    batch_size: int = Field(1, ge=1)
    """Erased prompts in one step."""
    trajectories: int = Field(32, ge=1)
    """Trajectories of the erased prompts, at least one for each wording; as many of the empty
    prompt, and of the prompts to keep, if any."""
    keep_share: float = Field(0.5, ge=0, le=1)
    """Part of the held latents that comes from trajectories of the prompts to keep, if any."""
    stage1: EditFile | None = None
    """A saved edit to go on from; by default stage 1 is solved first, with the settings below."""
    prior: PriorFile | None = None
    """Stage 1: ordinary captions that stay, a file that ``expunge prior`` wrote."""
    token_weight_scale: tuple[NonNegativeFloat, ...] = Field(
        (0.0, 1.0, 0.0, 0.0), min_length=1, max_length=4
    )
    """Stage 1: weights of the rows start, end of text, last of the padding, erased words."""
    stage1_preserve_scale: float = Field(0.03, ge=0)
    """Stage 1: its ``preserve_scale``, the weight of what stays."""
    lamb: float = Field(1.0, ge=0)
    """Stage 1: weight of staying near the old weights; 0 in the original."""

    @model_validator(mode="after")
    def _consistent(self) -> "TRCESteering":
        if self.max_early_timestep >= self.num_inference_steps:
            raise ValueError(
                f"max_early_timestep: {self.num_inference_steps} steps are numbered from 0 to "
                f"{self.num_inference_steps - 1}"
            )
        try:
            _ = self.closed_form
        except ValidationError as error:
            raise ValueError(explain(error)) from None
        default = type(self).model_construct(**RELEASED if self.fidelity == "original" else {})
        for name in STAGE1 if self.stage1 else ():
            if getattr(self, name) != getattr(default, name):
                raise ValueError(f"{name}: stage1 is solved already; give one of the two")
        return self

    @property
    def closed_form(self) -> TRCE:
        """Stage 1."""
        return TRCE(
            fidelity=self.fidelity,
            contexts=self.contexts,
            prior=self.prior,
            token_weight_scale=self.token_weight_scale,
            preserve_scale=self.stage1_preserve_scale,
            lamb=self.lamb,
        )

    def student(self, model: Model, policy: Policy, seed: int) -> Student:
        """What is trained on top of stage 1."""
        start = self.stage1_edit(model, policy, seed)
        names = self.parameters(model)
        return Student(model, names, rank=self.rank, seed=seed, start=start)

    def stage1_edit(self, model: Model, policy: Policy, seed: int) -> Edit:
        """The edit that the steering goes on from.

        Raises:
            ExpungeError: stage 1 has no solution, or the saved edit is of another model.
        """
        if self.stage1 is None:
            solved = Part(policy.erase, self.closed_form.solve(model, policy, seed))
            return edit_of(self.closed_form, model, policy, [solved], seed=seed)
        with self.stage1.applied(model):  # which is refused if it isn't of this model
            return self.stage1

    def parameters(self, model: Model) -> tuple[str, ...]:
        return model.select("self_attention | cross_attention.q")

    # --- the loss

    def loss(self, student: Student, batch: Batch) -> dict[str, Tensor]:
        """The steering ``erase``, the ``regularization``, and their weighted sum.

        ``erase`` is the mean of ``erase_prompt`` and ``erase_empty``, which are 0 where the
        student is nearer to the safe target by the margin.
        """
        latents, timestep, erased = batch["latents"], batch["timestep"], batch["condition"]
        held = batch["held_latents"], batch["held_timestep"], batch["held_condition"]
        empty = batch["empty"].expand(len(erased))
        positive, negative = self.targets(student, batch)
        predicted = student.predict(
            torch.cat([latents, latents, held[0]]),
            torch.cat([timestep, timestep, held[1]]),
            Condition.cat([erased, empty, held[2]]),
        )
        steered, stayed = predicted.tensor_split([2 * len(latents)])
        nearer = _distance(steered, positive.repeat(2, 1, 1, 1)) - _distance(
            steered, negative.repeat(2, 1, 1, 1)
        )
        hinges = self.beta * (nearer + self.margin).clamp(min=0)
        moved = hinges.new_zeros(())
        if len(stayed):
            moved = _distance(stayed, student.began(*held)).sum()
        if self.fidelity == "original":
            moved = moved + RELEASED_CONSTANT
        regularization = moved / self.regularization_batch_size
        return {
            "loss": hinges.mean() + self.preserve_scale * regularization,
            "erase": hinges.mean(),
            "erase_prompt": hinges[: len(latents)].mean(),
            "erase_empty": hinges[len(latents) :].mean(),
            "regularization": regularization,
        }

    def targets(self, student: Student, batch: Batch) -> tuple[Tensor, Tensor]:
        """f+ and f-, shaped like the latents, out of one pass of the base model."""
        latents, erased = batch["latents"], batch["condition"]
        g = self.guidance + 1 if self.fidelity == "original" else self.guidance
        safe, unsafe, u = student.teach(
            latents.repeat(3, 1, 1, 1),
            batch["timestep"].repeat(3),
            Condition.cat([batch["safe"], erased, batch["empty"].expand(len(erased))]),
        ).chunk(3)
        return u + g * (safe - u), u + g * (unsafe - u)

    # --- the data

    def batches(self, run: Run, numbers: Iterable[int]) -> Iterator[Batch]:
        ways = self.ways(run.policy, run.seed)
        schedule = self.schedule(run.model, ways, run.seed)
        table = self._table(
            run, ways, [v for draw in schedule for v in (*draw.steered, *draw.held)]
        )
        for number in numbers:
            steered, held = schedule[number]
            yield {
                **table.rows(steered),
                "safe": table.condition([visit.safe for visit in steered]),
                "empty": table.condition([""]),
                **{f"held_{key}": rows for key, rows in table.rows(held).items()},
            }

    def schedule(self, model: Model, ways: Mapping[str, Ways], seed: int) -> list[BatchVisits]:
        """What every batch of the training looks at."""
        timesteps = self._timetable(model.process, self.num_inference_steps).timesteps
        count = self.iterations * self.accumulation
        return [self._draw(ways, timesteps.tolist(), number, seed) for number in range(count)]

    def _draw(
        self, ways: Mapping[str, Ways], times: list[int], number: int, seed: int
    ) -> BatchVisits:
        """The trajectories take turns; what is random of one batch are the steps on them."""
        draws = generator(seed, "trce batch", number)
        original, late = self.fidelity == "original", int(not self.align_timestep)
        steered, held = [], []
        erased = ways["erased"]
        for row in range(self.batch_size):
            at = (number * self.batch_size + row) % len(erased.prompts)
            step = integer(draws, 0, self.max_early_timestep + 1)
            place = TrajectoryPoint(at, step + late)
            steered.append(
                Visit("erased", place, times[step], erased.prompts[at], erased.others[at])
            )
        turn = number % len(erased.prompts) if original else number
        for row in range(self.regularization_batch_size):
            step = integer(draws, 0, len(times) + original)
            kept = "kept" in ways and float(torch.rand((), generator=draws)) < self.keep_share
            sort = "kept" if kept else "empty"
            way = ways[sort]
            at = (turn * self.regularization_batch_size + row) % len(way.prompts)
            if step == len(times):  # the released program draws one too many and skips it
                continue
            offset = integer(draws, 0, 1000 // len(times)) if original else 0
            # guidance also asks what is drawn there without a prompt
            prompt = (way.prompts, way.others)[integer(draws, 0, 2)][at]
            held.append(Visit(sort, TrajectoryPoint(at, step + late), times[step] + offset, prompt))
        return BatchVisits(steered, held)

    def ways(self, policy: Policy, seed: int) -> dict[str, Ways]:
        """All trajectories that the schedule may use, by sort: erased, empty and kept."""
        original = self.fidelity == "original"
        pairs = _released_pairs(policy, self.contexts) if original else self._pairs(policy, seed)
        empties = ("",) * (RELEASED_EMPTY if original else self.trajectories)
        ways = {
            "erased": Ways(
                tuple(pair.erase for pair in pairs),
                tuple(pair.anchor for pair in pairs),
                self.start_guidance,
            ),
            "empty": Ways(empties, empties, 1.0),  # guidance of the empty prompt changes nothing
        }
        kept = () if original else self._kept(policy, seed)
        if kept and self.keep_share:
            ways["kept"] = Ways(kept, ("",) * len(kept), self.start_guidance)
        return ways

    def _pairs(self, policy: Policy, seed: int) -> tuple[Pair, ...]:
        """One pair a trajectory: the concepts take turns, and the wordings of each; the sentence
        is drawn."""
        draws, concepts = generator(seed, "trce pairs"), policy.erase
        wordings = max(len(concept.phrases) for concept in concepts)
        chosen = []
        for number in range(max(self.trajectories, len(concepts) * wordings)):
            concept = concepts[number % len(concepts)]
            pairs = list(concept.pairs(self.contexts))
            sentences = len(pairs) // len(concept.phrases)
            wording = number // len(concepts) % len(concept.phrases)
            chosen.append(pairs[wording * sentences + integer(draws, 0, sentences)])
        return tuple(chosen)

    def _kept(self, policy: Policy, seed: int) -> tuple[str, ...]:
        """One prompt a trajectory: what is kept takes turns, the sentence is drawn."""
        draws, words = generator(seed, "trce kept"), policy.kept
        prompts = policy.kept_prompts(self.contexts)
        chosen = []
        for number in range(max(self.trajectories, len(words)) if words else 0):
            choice = [prompt for prompt in prompts if words[number % len(words)] in prompt]
            chosen.append(choice[integer(draws, 0, len(choice))])
        return tuple(chosen)

    def _table(self, run: Run, ways: Mapping[str, Ways], visits: Sequence[Visit]) -> "VisitTable":
        """The latents of all visits, and the conditions of their prompts."""
        latents: dict[tuple[str, TrajectoryPoint], Tensor] = {}
        for sort, (prompts, _, scale) in ways.items():
            places = sorted({visit.place for visit in visits if visit.sort == sort})
            if not places:
                continue
            found = latents_at(
                run,
                sort,
                prompts,
                [derive(run.seed, "trajectory", sort, p, at) for at, p in enumerate(prompts)],
                places,
                steps=self.num_inference_steps,
                guidance_scale=scale,
                scheduler=self._timetable,
            )
            latents |= {(sort, place): row for place, row in zip(places, found, strict=True)}
        texts = sorted({"", *(v.prompt for v in visits), *(v.safe for v in visits)})
        numbers = {text: at for at, text in enumerate(texts)}
        return VisitTable(latents, numbers, run.model.condition(texts))

    @property
    def _timetable(self) -> Timetable:
        return released if self.fidelity == "original" else ddim


class VisitTable(NamedTuple):
    """What the visits of a training need."""

    latents: Mapping[tuple[str, TrajectoryPoint], Tensor]
    texts: Mapping[str, int]
    """Where each prompt's condition is."""
    conditions: Condition

    def rows(self, visits: Sequence[Visit]) -> dict[str, Any]:
        """Latents, timesteps and conditions of some visits, one a row; perhaps none."""
        like = next(iter(self.latents.values()))
        latents = [self.latents[visit.sort, visit.place] for visit in visits]
        return {
            "latents": torch.stack(latents) if latents else like.new_zeros((0, *like.shape)),
            "timestep": torch.tensor([v.timestep for v in visits], device=like.device).long(),
            "condition": self.condition([visit.prompt for visit in visits]),
        }

    def condition(self, prompts: Sequence[str]) -> Condition:
        """What the denoiser is told of some prompts."""
        return self.conditions[[self.texts[prompt] for prompt in prompts]]


def _released_pairs(policy: Policy, contexts: tuple[Context, ...]) -> tuple[Pair, ...]:
    """Every pair as often as the program draws it."""
    return tuple(
        pair
        for concept in policy.erase
        for pair in concept.pairs(contexts or RELEASED_FRAME)
        for _ in range(RELEASED_REPEATS)
    )


def _distance(one: Tensor, two: Tensor) -> Tensor:
    """Mean squared distance of each row, ``[batch]``."""
    return (one - two).square().flatten(1).mean(1)
