"""CPE: Concept Pinpoint Eraser (Lee et al., ICLR 2025), residual attention gates.

All weights stay. Each concept gets a small gate that sees nothing but the prompt's embedding, and
thin factors for every key and value of the cross-attention (``edits/residual_gates.py``)::

    out_l(X) = W_l X + D_l(X)        D_l(X) = g(X) E(X) D_l U_l

Training needs no UNet. In each step a target prompt t is led to where its replacement n is, and
beyond by g, while anchors a are left alone::

    L_erase  = mean_l kappa_l |W n - (W t + D(t)) + g (W n - W t)|^2
    L_anchor = mean_l kappa_l |D(a)|^2
    L        = L_erase + L_adv + pal L_anchor

Between such stages an attacker looks for shifts P of the target's embedding that bring the old
keys and values back, and ``L_adv`` is ``L_erase`` of the shifted targets::

    L_attack = mean_l kappa_l |W (t + P) + D(t + P) - W t|^2

How the losses are computed without any key or value is in ``losses.py``, what is trained on
in ``bank.py``. All concepts are trained side by side, each for itself.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from expunge.concepts import Concept, Policy
from expunge.errors import ExpungeError
from expunge.method.base import Fixed, Need, Part, Trained
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.methods.cpe.bank import (
    Bank,
    Plan,
    SentencesSetting,
    WordsSetting,
    in_sentences,
    mentions,
    nearest_names,
)
from expunge.methods.cpe.losses import Prompts, attacking, erasing
from expunge.methods.cpe.stages import Stage, lengths, restarting
from expunge.methods.cpe.student import ConceptDraws, GateSizes, GateStudent, copied
from expunge.models import Model
from expunge.seeding import generator

RELEASED_NOISE = 0.001
"""The program's noise, whatever it is told."""
TOGETHER = 16
"""Concepts whose intermediate results are in memory at the same time."""
COUNTS = ("rounds", "first_iterations", "later_iterations", "attack_iterations")
"""Settings that the stages follow from."""


class CPE(Trained[GateStudent]):
    """Gates that open for the erased words, trained against found embeddings."""

    name: ClassVar[str] = "cpe"
    title: ClassVar[str] = "Concept Pinpoint Eraser"
    year: ClassVar[int] = 2025
    url: ClassVar[str] = "https://arxiv.org/abs/2506.22806"
    needs: ClassVar[frozenset[Need]] = frozenset({"text", "training"})
    released: ClassVar[Mapping[str, Any]] = {"anchor_limit": None}
    released_fixed: ClassVar[Fixed] = {
        "noise": (RELEASED_NOISE, "the released program always takes the same"),
        "tied": (True, "the released program has one map for both sides"),
    }

    guidance_scale: float = Field(0.3, ge=0)
    """g: how far beyond the replacement the erased words are led."""
    pal: float = Field(1e5, ge=0)
    """Weight of leaving the anchors alone."""
    adv_coef: float = Field(1.0, ge=0)
    """Weight of erasing shifted targets."""
    gate_rank: int = Field(16, ge=1)
    """Rank of a gate's attention."""
    adapter_rank: int = Field(1, ge=1)
    """Rank of what is added to each key and value."""
    alpha: float = Field(1.0, gt=0)
    """What is added counts alpha / adapter_rank times."""
    tied: bool = True
    """One map for both sides of a gate's attention, as released; false is the paper's figure."""
    rounds: int = Field(5, ge=1)
    """Erasing stages, with an attack between each two."""
    first_iterations: int = Field(1800, ge=1)
    """Optimiser steps of the first erasing stage."""
    later_iterations: int = Field(450, ge=1)
    """Optimiser steps of each later one."""
    attack_iterations: int = Field(450, ge=0)
    """Optimiser steps of each attack; 0 for none."""
    iterations: int = Field(5400, ge=1)
    """Optimiser steps of all stages; it follows from the four settings above."""
    lr: float = Field(3e-4, gt=0)
    """Learning rate of the first erasing stage."""
    later_lr: float = Field(3e-5, gt=0)
    """Learning rate of each later one."""
    attack_lr: float = Field(0.01, gt=0)
    """Learning rate of the attacks."""
    lr_warmup: int = Field(5, ge=0)
    """Steps in which an erasing stage's learning rate rises."""
    first_cycles: int = Field(2, ge=1)
    """How often it falls to 0 in the first erasing stage."""
    cycles: int = Field(1, ge=1)
    """And in each later one."""
    attack_warmup: int = Field(5, ge=0)
    """Steps in which an attack's learning rate rises."""
    attack_cycles: int = Field(1, ge=1)
    """How often it falls to 0."""
    weight_decay: float = Field(0.01, ge=0)
    """Decay of the gates and shifts."""
    shifts: int = Field(16, ge=1)
    """Embeddings that the attacker looks for at a time, for each concept."""
    batch_size: int = Field(32, ge=1)
    """Anchors in one step."""
    noise: float = Field(RELEASED_NOISE, ge=0)
    """Noise on the anchors' embeddings, along each axis, as a share of their norm."""
    general_words: WordsSetting = ()
    """Words, or a file of them, that stay, in the sentences."""
    name_pool: WordsSetting = ()
    """A pool of names, or a file of them, of which each concept's nearest ones stay."""
    nearest: int = Field(50, ge=1)
    """How many of them."""
    anchor_prompts: WordsSetting = ()
    """Whole prompts, or a file of them, that stay."""
    anchor_limit: int | None = Field(4096, ge=1)
    """Of more prompts that stay, so many are taken at random; null for all."""
    contexts: SentencesSetting = ()
    """Sentences with ``{}``, or a file of them; by default the kind's templates. The words alone
    always count as one."""

    @model_validator(mode="before")
    @classmethod
    def _counted(cls, values: Any) -> Any:
        """The sum of the stages, which nobody needs to compute."""
        if not isinstance(values, Mapping):
            return values
        try:
            settings = {
                name: int(values.get(name, cls.model_fields[name].default)) for name in COUNTS
            }
        except (TypeError, ValueError):
            return values  # whose fault the fields' own checks name
        last = values.get("fidelity") == "original"
        total = sum(length for _, length in lengths(**settings, last=last))
        if int(values.get("iterations", total)) != total:
            raise ValueError(
                f"iterations: {values['iterations']}, but the stages have {total} steps; set "
                f"{', '.join(COUNTS)} instead"
            )
        return {**values, "iterations": max(1, total)}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Erasing, attack, erasing, ...; the released program ends with an attack."""
        made: list[Stage] = []
        start = 0
        counts = {name: getattr(self, name) for name in COUNTS}
        for number, (attack, length) in enumerate(
            lengths(**counts, last=self.fidelity == "original")
        ):
            curve = (self.later_lr, self.lr_warmup, self.cycles)
            if attack:
                curve = (self.attack_lr, self.attack_warmup, self.attack_cycles)
            elif not number:
                curve = (self.lr, self.lr_warmup, self.first_cycles)
            made.append(Stage(number, attack, start, length, *curve))
            start += length
        return tuple(made)

    def stage(self, step: int) -> int:
        return bisect_right([stage.start for stage in self.stages], step) - 1

    def pace(self, optimizer: Optimizer, steps: int) -> LambdaLR:
        """A warm-up in each stage, then ``cycles`` cosines to 0."""

        def factor(attack: bool, step: int) -> float:
            stage = self.stages[self.stage(min(step, steps - 1))]
            if stage.attack != attack:
                return 0.0
            base = self.attack_lr if attack else self.lr
            return stage.lr / base * restarting(stage, step - stage.start)

        return LambdaLR(
            optimizer,
            [
                lambda step, attack=group["attack"]: factor(attack, step)  # type: ignore[misc]
                for group in optimizer.param_groups
            ],
        )

    def groups(self, student: GateStudent) -> list[dict[str, Any]]:
        gates = [weight for name, weight in student.weights.items() if name != "shifts"]
        found = [student.weights[name] for name in ("shifts",) if name in student.weights]
        return [
            {"params": gates, "lr": self.lr, "attack": False},
            *({"params": [one], "lr": self.attack_lr, "attack": True} for one in found),
        ]

    def student(self, model: Model, policy: Policy, seed: int) -> GateStudent:
        attacked = any(stage.attack for stage in self.stages)
        sizes = GateSizes(
            gate_rank=self.gate_rank,
            adapter_rank=self.adapter_rank,
            scale=self.alpha / self.adapter_rank,
            tied=self.tied,
            shifts=self.shifts if attacked else 0,
        )
        return GateStudent(model, policy.erase, sizes, self._draws(seed))

    def enter(self, student: GateStudent, stage: int, seed: int) -> None:
        """An attack begins with small random shifts."""
        if self.stages[stage].attack:
            student.begin_attack(self._draws(seed, stage))

    def _draws(self, seed: int, stage: int = 0) -> ConceptDraws:
        """A concept's draws are its own; the released program seeds each concept alike."""

        def draws(purpose: str, concept: Concept) -> torch.Generator:
            owner = "" if self.fidelity == "original" else concept.target
            return generator(seed, f"cpe {purpose}", stage, owner)

        return draws

    # --- batches

    def batches(self, run: Run[GateStudent], numbers: Iterable[int]) -> Iterator[Batch]:
        bank = Bank(run, self.plan(run.model, run.policy))
        tokens, width = bank.rows.shape[1:]
        for number in numbers:
            stage = self.stages[self.stage(number // self.accumulation)]
            draws = generator(run.seed, "cpe batch", number)
            chosen = torch.rand(len(bank.pairs), generator=draws)
            if self.fidelity == "original":
                chosen = chosen[:1].expand(len(chosen))
            target, neutral = bank.targets(chosen)
            if stage.attack:
                yield {"target": target}
                continue
            count = self.batch_size
            anchors, counted = bank.anchors(
                torch.rand(2 * count, generator=draws),
                torch.rand(count, generator=draws),
                torch.randn(2 * count, tokens, width, generator=draws),
                self.noise,
            )
            batch = {"target": target, "neutral": neutral, "anchors": anchors}
            batch |= {} if counted is None else {"counted": counted}
            yield batch | ({"shifted": torch.tensor(True)} if stage.number else {})

    def plan(self, model: Model, policy: Policy) -> Plan:
        """Every prompt that may be drawn."""
        if self.fidelity == "original":
            return self._released_plan(model, policy)
        pairs = tuple(
            tuple((p.erase, p.anchor) for p in concept.pairs_in(self.sentences(concept)))
            for concept in policy.erase
        )
        places = {words: ("{}", *its) for words, its in policy.kept_in(self.contexts).items()}
        every = tuple(dict.fromkeys(s for concept in policy.erase for s in self.sentences(concept)))
        targets = [concept.target for concept in policy.erase]
        near = nearest_names(model, self.name_pool, targets, self.nearest)
        for words in (*self.general_words, *chain(*near)):
            places.setdefault(words, every)
        stays = [prompt for words, its in places.items() for prompt in in_sentences([words], its)]
        if len(policy.erase) > 1:  # what another concept erases is none of this one's business
            stays += [pair for part in pairs for pair, _ in part]
        instead = [neutral for part in pairs for _, neutral in part]
        prompts = list(dict.fromkeys([*stays, *self.anchor_prompts, *instead]))
        if self.anchor_limit and len(prompts) > self.anchor_limit:
            order = torch.randperm(len(prompts), generator=generator(0, "cpe bank"))
            prompts = [prompts[at] for at in sorted(order[: self.anchor_limit].tolist())]
        own = torch.tensor([mentions(concept, prompts) for concept in policy.erase])
        return Plan(pairs, (tuple(prompts),), own)

    def _released_plan(self, model: Model, policy: Policy) -> Plan:
        """Targets alone, and for each its own bank, in which words count as often as listed."""
        targets = [concept.target for concept in policy.erase]
        near = nearest_names(model, self.name_pool, targets, self.nearest)
        pairs, banks = [], []
        for concept, own in zip(policy.erase, near, strict=True):
            sentences = self.sentences(concept)
            pairs.append(
                tuple((s.format(concept.target), s.format(concept.replacement)) for s in sentences)
            )
            words = in_sentences([*self.general_words, *own], sentences)
            banks.append((*words, *self.anchor_prompts))
        if not all(banks):
            raise ExpungeError(
                "cpe: nothing to anchor; the released program needs general_words, name_pool or "
                "anchor_prompts"
            )
        return Plan(tuple(pairs), tuple(banks), torch.empty(0))

    def sentences(self, concept: Concept) -> tuple[str, ...]:
        """The words alone, and the sentences around them."""
        return tuple(dict.fromkeys(("{}", *concept.sentences(self.contexts))))

    # --- losses

    def loss(self, student: GateStudent, batch: Batch) -> Mapping[str, Tensor]:
        """The sum of all concepts' losses; the terms are logged as means over the concepts."""
        attack = "neutral" not in batch
        count = len(batch["target"])
        parts = [slice(at, at + TOGETHER) for at in range(0, count, TOGETHER)]
        terms = []
        for part in parts:
            if len(parts) == 1:
                terms.append(self._terms(student, batch, part))
            else:  # computed again when its gradients are, so that one part is in memory
                terms.append(
                    checkpoint(
                        self._terms,
                        student,
                        batch,
                        part,
                        use_reentrant=False,
                        preserve_rng_state=False,
                    )
                )
        whole = [torch.cat(column) for column in zip(*terms, strict=True)]
        if attack:
            return {"loss": whole[0].sum(), "attack": whole[0].detach().mean()}
        erase, anchor, *shifted = whole
        total = erase + self.pal * anchor
        for one in shifted:
            total = total + self.adv_coef * one
        named = zip(("erase", "anchor", "adversarial"), whole, strict=False)
        return {"loss": total.sum(), **{name: term.detach().mean() for name, term in named}}

    def _terms(self, student: GateStudent, batch: Batch, part: slice) -> tuple[Tensor, ...]:
        """The terms of some concepts, ``[concepts]`` each."""
        surface, target = student.surface, batch["target"][part]
        if "neutral" not in batch:
            gates = student.gates(part, trained=False)
            return (attacking(gates, surface, target, student.weights["shifts"][part]),)
        anchors = batch["anchors"] if batch["anchors"].ndim == 3 else batch["anchors"][part]
        counted = batch["counted"][part] if "counted" in batch else None
        prompts = Prompts(target, batch["neutral"][part], anchors, counted)
        shifts, square = None, None
        if "shifted" in batch and "shifts" in student.weights:
            shifts = student.weights["shifts"].detach()[part]
            square = student.shifts_square[part]
        gates = student.gates(part)
        losses = erasing(gates, surface, prompts, self.guidance_scale, shifts, square)
        return tuple(term for term in losses if term is not None)

    def parts(self, student: GateStudent, policy: Policy) -> Sequence[Part]:
        with torch.no_grad():
            made = [copied(student.gates(slice(at, at + 1))) for at in range(len(policy.erase))]
        return [Part((concept,), gates) for concept, gates in zip(policy.erase, made, strict=True)]
