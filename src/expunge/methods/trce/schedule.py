"""What TRCE's steering looks at: which steps of which trajectories, with which prompts.

All of it is decided before training, so that no trajectory is computed further than it is used.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from expunge.concepts import Context, Pair, Policy
from expunge.method.base import Fixed
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.method.training import TrainedWeights
from expunge.methods.kept import KeepsEveryday
from expunge.models import Condition, Model, Process
from expunge.seeding import derive, generator, integer
from expunge.sentences import fill
from expunge.training.latents import TrajectoryPoint, latents_at
from expunge.training.trajectories import Timetable, ddim

RELEASED_FRAME = ("a photo of {}",)
"""The sentence that the program's trajectories start from."""
RELEASED_REPEATS = 5
"""How many trajectories the program draws for each prompt."""
RELEASED_EMPTY = 2000
"""How many trajectories the program draws for the empty prompt."""


def released(process: Process, steps: int) -> Any:
    """``ddim`` with the timesteps ``(1000 / steps) j`` of the released program."""
    return process.scheduler(
        "ddim", steps, set_alpha_to_one=False, steps_offset=0, timestep_spacing="leading"
    )


class TrajectoryPrompts(NamedTuple):
    """What the trajectories of one sort start from."""

    prompts: tuple[str, ...]
    """One for each trajectory."""
    others: tuple[str, ...]
    """The other prompt used there: the safe one for an erased prompt, otherwise the empty one."""
    guidance_scale: float


class Visit(NamedTuple):
    """A place on a trajectory, and the timestep and prompts at which it is evaluated."""

    sort: str
    place: TrajectoryPoint
    timestep: int
    prompt: str
    safe: str = ""


class BatchVisits(NamedTuple):
    """What one batch evaluates."""

    steered: list[Visit]
    held: list[Visit]


class SteeringSchedule(KeepsEveryday, TrainedWeights):
    """The settings that decide what every batch looks at, and the batches."""

    released_fixed: ClassVar[Fixed] = {
        **TrainedWeights.released_fixed,
        "batch_size": (1, "the released program trains on one prompt at a time"),
    }
    corrected_only: ClassVar[tuple[str, ...]] = ("trajectories", "keep_share")

    max_early_timestep: int = Field(25, ge=0)
    """The last step of a trajectory that is steered, counted from 0."""
    regularization_batch_size: int = Field(4, ge=1)
    """Latents in one step at which the student is held to stage 1."""
    start_guidance: float = 3.0
    """Guidance scale of the trajectories."""
    num_inference_steps: int = Field(50, ge=2, le=1000)
    """Steps of a whole trajectory."""
    align_timestep: bool = True
    """Evaluate latents at their own timestep. The released program evaluates the latents after a
    step at the timestep before it."""
    contexts: tuple[Context, ...] = ()
    """Sentences with ``{}`` for the words. Default: the words alone and the templates; original:
    ``a photo of {}`` for the trajectories."""
    batch_size: int = Field(1, ge=1)
    """Erased prompts in one step."""
    trajectories: int = Field(32, ge=1)
    """Trajectories of the erased prompts, at least one for each wording. As many again start from
    the empty prompt, and from the prompts to keep if there are any."""
    keep_share: float = Field(0.5, ge=0, le=1)
    """Share of the held latents that comes from trajectories of the prompts to keep, if any."""

    def fewest_steps(self, policy: Policy) -> int:
        """Trajectories take turns, and wordings with them."""
        turns = len(policy.erase) * max(len(concept.phrases) for concept in policy.erase)
        if self.fidelity == "original":
            turns = len(_released_pairs(policy, self.contexts)) - RELEASED_REPEATS + 1
        return -(-turns // (self.accumulation * self.batch_size))

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

    def schedule(
        self, model: Model, ways: Mapping[str, TrajectoryPrompts], seed: int
    ) -> list[BatchVisits]:
        """The visits of every batch of the training."""
        timesteps = self._timetable(model.process, self.num_inference_steps).timesteps
        count = self.iterations * self.accumulation
        return [self._draw(ways, timesteps.tolist(), number, seed) for number in range(count)]

    def _draw(
        self, ways: Mapping[str, TrajectoryPrompts], times: list[int], number: int, seed: int
    ) -> BatchVisits:
        """The visits of one batch: trajectories take turns, the steps on them are random."""
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
            # guidance also asks for the prediction without a prompt
            prompt = (way.prompts, way.others)[integer(draws, 0, 2)][at]
            held.append(Visit(sort, TrajectoryPoint(at, step + late), times[step] + offset, prompt))
        return BatchVisits(steered, held)

    def ways(self, policy: Policy, seed: int) -> dict[str, TrajectoryPrompts]:
        """The prompts of all trajectories, by sort: erased, empty and kept."""
        original = self.fidelity == "original"
        pairs = _released_pairs(policy, self.contexts) if original else self._pairs(policy, seed)
        empties = ("",) * (RELEASED_EMPTY if original else self.trajectories)
        ways = {
            "erased": TrajectoryPrompts(
                tuple(pair.erase for pair in pairs),
                tuple(pair.anchor for pair in pairs),
                self.start_guidance,
            ),
            "empty": TrajectoryPrompts(
                empties, empties, 1.0
            ),  # guidance of the empty prompt changes nothing
        }
        kept = () if original else self._kept(policy, seed)
        if kept and self.keep_share:
            ways["kept"] = TrajectoryPrompts(kept, ("",) * len(kept), self.start_guidance)
        return ways

    def _pairs(self, policy: Policy, seed: int) -> tuple[Pair, ...]:
        """One pair for each trajectory. Concepts take turns, and so do the wordings of each; the
        sentence is random."""
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
        """One prompt for each trajectory. The kept words take turns; the sentence is random.

        Where nothing is named, everyday prompts take turns.
        """
        draws, prompts = generator(seed, "trce kept"), policy.kept_prompts(self.contexts)
        places = [
            {words, *(fill(sentence, words) for sentence in its)}
            for words, its in policy.kept_in(self.contexts).items()
        ]
        if everyday := self.everyday_prompts(policy, seed):
            return tuple(everyday[at % len(everyday)] for at in range(self.trajectories))
        chosen = []
        for number in range(max(self.trajectories, len(places)) if places else 0):
            choice = [prompt for prompt in prompts if prompt in places[number % len(places)]]
            chosen.append(choice[integer(draws, 0, len(choice))])
        return tuple(chosen)

    def _table(
        self, run: Run, ways: Mapping[str, TrajectoryPrompts], visits: Sequence[Visit]
    ) -> "VisitTable":
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
    """The latents and conditions of all visits of a training."""

    latents: Mapping[tuple[str, TrajectoryPoint], Tensor]
    texts: Mapping[str, int]
    """The row of each prompt's condition."""
    conditions: Condition

    def rows(self, visits: Sequence[Visit]) -> dict[str, Any]:
        """Latents, timesteps and conditions of some visits, a row each; there may be none."""
        like = next(iter(self.latents.values()))
        latents = [self.latents[visit.sort, visit.place] for visit in visits]
        return {
            "latents": torch.stack(latents) if latents else like.new_zeros((0, *like.shape)),
            "timestep": torch.tensor([v.timestep for v in visits], device=like.device).long(),
            "condition": self.condition([visit.prompt for visit in visits]),
        }

    def condition(self, prompts: Sequence[str]) -> Condition:
        """The conditions of some prompts."""
        return self.conditions[[self.texts[prompt] for prompt in prompts]]


def _released_pairs(policy: Policy, contexts: tuple[Context, ...]) -> tuple[Pair, ...]:
    """Every pair, repeated as often as the program draws it."""
    return tuple(
        pair
        for concept in policy.erase
        for pair in concept.pairs(contexts or RELEASED_FRAME)
        for _ in range(RELEASED_REPEATS)
    )
