"""CPE: Concept Pinpoint Eraser (Lee et al., ICLR 2025), residual attention gates.

All weights stay. Each concept gets a small gate that sees only the prompt's embedding, and thin
factors for every key and value of the cross-attention (``edits/residual_gates.py``)::

    out_l(X) = W_l X + D_l(X)        D_l(X) = g(X) E(X) D_l U_l

Training needs no UNet. Each step moves a target prompt t to its replacement n, and beyond it by g,
and leaves anchors a alone::

    L_erase  = mean_l kappa_l |W n - (W t + D(t)) + g (W n - W t)|^2
    L_anchor = mean_l kappa_l |D(a)|^2
    L        = L_erase + L_adv + pal L_anchor

Between these stages, an attacker searches for shifts P of the target's embedding that bring the old
keys and values back. ``L_adv`` is ``L_erase`` of the shifted targets::

    L_attack = mean_l kappa_l |W (t + P) + D(t + P) - W t|^2

``losses.py`` computes the losses without any key or value, ``bank.py`` holds the training prompts,
``stages.py`` the order of the stages. All concepts are trained side by side and independently.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from expunge.concepts import Concept, Policy
from expunge.errors import ExpungeError
from expunge.method.base import Fixed, Need, Part, PolicyPart
from expunge.method.batch import Batch
from expunge.method.run import Run
from expunge.methods.cpe.bank import (
    Bank,
    SentencesSetting,
    TrainingPrompts,
    WordsSetting,
    in_sentences,
    mentions,
    nearest_names,
)
from expunge.methods.cpe.losses import StepEmbeddings, attacking, erasing
from expunge.methods.cpe.stages import TrainingStages
from expunge.methods.cpe.student import ConceptDraws, GateSizes, GateStudent, copied
from expunge.methods.kept import KeepsEveryday
from expunge.models import Model
from expunge.seeding import generator
from expunge.sentences import PLACE, fill

RELEASED_NOISE = 0.001
"""The noise that the released program always uses, whatever is set."""
TOGETHER = 16
"""Number of concepts whose intermediate results are in memory at the same time."""


class CPE(KeepsEveryday, TrainingStages):
    """Gates that open for the erased words, trained against adversarial embeddings."""

    name: ClassVar[str] = "cpe"
    title: ClassVar[str] = "Concept Pinpoint Eraser"
    year: ClassVar[int] = 2025
    url: ClassVar[str] = "https://arxiv.org/abs/2506.22806"
    needs: ClassVar[frozenset[Need]] = frozenset({"text", "training"})
    released: ClassVar[Mapping[str, Any]] = {"anchor_limit": None}
    released_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"keep"})
    released_fixed: ClassVar[Fixed] = {
        "noise": (RELEASED_NOISE, "the released program always uses this value"),
        "tied": (True, "the released program uses one map for queries and keys"),
    }

    guidance_scale: float = Field(0.3, ge=0)
    """g: how far the erased words are moved beyond their replacement."""
    pal: float = Field(1e5, ge=0)
    """Weight of leaving the anchors alone."""
    adv_coef: float = Field(1.0, ge=0)
    """Weight of erasing the targets that the attacks have shifted."""
    gate_rank: int = Field(16, ge=1)
    """Rank of a gate's attention."""
    adapter_rank: int = Field(1, ge=1)
    """Rank of what is added to each key and value."""
    alpha: float = Field(1.0, gt=0)
    """``alpha / adapter_rank`` scales what a gate adds."""
    tied: bool = True
    """Use one map for the queries and keys of a gate's attention, as the released program does;
    false uses two, as in the paper's figure."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of the gates and shifts."""
    shifts: int = Field(16, ge=1)
    """Number of shifted embeddings that an attack searches for, for each concept."""
    batch_size: int = Field(32, ge=1)
    """Anchors in one step."""
    noise: float = Field(RELEASED_NOISE, ge=0)
    """Noise added to the anchors' embeddings along each axis, as a share of their norm."""
    general_words: WordsSetting = ()
    """Words that stay, in the sentences of ``contexts``; or a file of them."""
    name_pool: WordsSetting = ()
    """A pool of names, or a file of them; those nearest to each concept stay."""
    nearest: int = Field(50, ge=1)
    """How many names of ``name_pool`` stay for each concept."""
    anchor_prompts: WordsSetting = ()
    """Whole prompts that stay; or a file of them."""
    anchor_limit: int | None = Field(4096, ge=1)
    """Maximum number of prompts that stay. If there are more, a random choice of this size is used;
    null uses all."""
    contexts: SentencesSetting = ()
    """Sentences with ``{}`` for the words, or a file of them; the words alone are always added.
    Default: the templates."""

    def fewest_steps(self, policy: Policy) -> int:
        """Each batch shows a wording of every concept."""
        most = max(len(concept.phrases) for concept in policy.erase)
        return -(-most // self.accumulation)

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
        """Each concept has its own random draws; the released program seeds all concepts alike."""

        def draws(purpose: str, concept: Concept) -> torch.Generator:
            owner = "" if self.fidelity == "original" else concept.target
            return generator(seed, f"cpe {purpose}", stage, owner)

        return draws

    # --- batches

    def batches(self, run: Run[GateStudent], numbers: Iterable[int]) -> Iterator[Batch]:
        bank = Bank(run, self.plan(run.model, run.policy, run.seed))
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

    def plan(self, model: Model, policy: Policy, seed: int = 0) -> TrainingPrompts:
        """All prompts that batches draw from."""
        if self.fidelity == "original":
            return self._released_plan(model, policy)
        pairs = tuple(
            tuple((p.erase, p.anchor) for p in concept.pairs_in(self.sentences(concept)))
            for concept in policy.erase
        )
        places = {words: (PLACE, *its) for words, its in policy.kept_in(self.contexts).items()}
        every = tuple(dict.fromkeys(s for concept in policy.erase for s in self.sentences(concept)))
        near = nearest_names(model, self.name_pool, policy.erase, self.nearest)
        for words in (*self.general_words, *chain(*near)):
            places.setdefault(words, every)
        stays = [prompt for words, its in places.items() for prompt in in_sentences([words], its)]
        if len(policy.erase) > 1:  # a gate leaves the prompts of other concepts alone
            stays += [pair for part in pairs for pair, _ in part]
        instead = [neutral for part in pairs for _, neutral in part]
        if not (places or self.anchor_prompts):
            stays += self.everyday_prompts(policy, seed)
        prompts = list(dict.fromkeys([*stays, *self.anchor_prompts, *instead]))
        if self.anchor_limit and len(prompts) > self.anchor_limit:
            order = torch.randperm(len(prompts), generator=generator(seed, "cpe bank"))
            prompts = [prompts[at] for at in sorted(order[: self.anchor_limit].tolist())]
        own = torch.tensor([mentions(concept, prompts) for concept in policy.erase])
        return TrainingPrompts(pairs, (tuple(prompts),), own)

    def _released_plan(self, model: Model, policy: Policy) -> TrainingPrompts:
        """Targets without synonyms, each with its own bank; a word listed twice counts twice."""
        near = nearest_names(model, self.name_pool, policy.erase, self.nearest, parts=True)
        pairs, banks = [], []
        for concept, own in zip(policy.erase, near, strict=True):
            sentences = self.sentences(concept)
            pairs.append(
                tuple((fill(s, concept.target), fill(s, concept.replacement)) for s in sentences)
            )
            words = in_sentences([*self.general_words, *own], sentences)
            banks.append((*words, *self.anchor_prompts))
        if not all(banks):
            raise ExpungeError(
                "cpe: nothing to anchor; the released program needs general_words, name_pool or "
                "anchor_prompts"
            )
        return TrainingPrompts(tuple(pairs), tuple(banks), torch.empty(0))

    def sentences(self, concept: Concept) -> tuple[str, ...]:
        """The words alone, and the sentences around them."""
        return tuple(dict.fromkeys((PLACE, *concept.sentences(self.contexts))))

    # --- losses

    def loss(self, student: GateStudent, batch: Batch) -> Mapping[str, Tensor]:
        """The sum of all concepts' losses; the logged terms are means over the concepts."""
        attack = "neutral" not in batch
        count = len(batch["target"])
        parts = [slice(at, at + TOGETHER) for at in range(0, count, TOGETHER)]
        terms = []
        for part in parts:
            if len(parts) == 1:
                terms.append(self._terms(student, batch, part))
            else:  # recomputed for the gradients, so that only one part is in memory
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
        """The loss terms of some concepts, ``[concepts]`` each."""
        surface, target = student.surface, batch["target"][part]
        if "neutral" not in batch:
            gates = student.gates(part, trained=False)
            return (attacking(gates, surface, target, student.weights["shifts"][part]),)
        anchors = batch["anchors"] if batch["anchors"].ndim == 3 else batch["anchors"][part]
        counted = batch["counted"][part] if "counted" in batch else None
        prompts = StepEmbeddings(target, batch["neutral"][part], anchors, counted)
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
