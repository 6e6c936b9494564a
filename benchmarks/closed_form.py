"""The closed-form methods beside the published programs' way of computing, in time and memory.

    python benchmarks/closed_form.py [--only uce art rece mace thousand] [--runs 3]

Both sides get the same keys and values of Stable Diffusion 1.4's size (32 random matrices, 24,960
rows of 768) and the same made-up text embeddings with the statistics of CLIP's: rows of length 27,
one start row for all prompts, padding rows that are nearly multiples of each other. The text
encoder that is timed has the size of CLIP-L and random weights.

The other side are transcriptions of what the papers' programs compute, loop by loop: single
precision, an explicit inverse for each layer; in UCE and RECE the outputs of all layers inside of
each layer, and outer products written out before they are summed; in MACE the outputs of all
tokens stored. What would take longer than about a minute is timed in part and scaled up; the row
says so. Both sides agree on a small model before anything is timed.
"""

import argparse
import ctypes
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from expunge import Concept, Edit, Model, Policy, erase, load, testing
from expunge.algebra.ridge import gram
from expunge.edits import LowRank, Payload, SharedMatrix
from expunge.methods.mace.closed import aligned, fusion
from expunge.methods.mace.method import MACE
from expunge.methods.rece import RECE
from expunge.methods.uce.method import UCE
from expunge.prior import Metadata, Prior, moment, text_fingerprint

WIDTH, TOKENS, LAYERS, OUTPUTS = 768, 77, 32, 24_960
ARTISTS, CELEBRITIES, SENTENCES, MANY = 1_734, 100, 30, 1_000
WEIGHTS = 4 * OUTPUTS * WIDTH
"""Bytes of all keys and values."""
ENCODER = 85_054_464
"""Parameters of CLIP-L's layers."""
AGREE = 2e-3
"""Relative difference of the two sides' changes on the small model."""


# --- the other side: transcriptions


Pairs = Sequence[tuple[Tensor, Tensor]]
"""Rows to move and the rows whose outputs they get, ``[rows, width]`` each, prompt by prompt."""


@torch.no_grad()
def uce(
    weights: Sequence[Tensor],
    moved: Pairs,
    kept: Sequence[Tensor],
    preserve_scale: float,
    lamb: float,
    layers: Iterable[int] | None = None,
    lean: bool = False,
) -> list[Tensor]:
    """UCE of 2023: each layer sums up its own system and asks all layers for their outputs.

    ``lean`` asks the layer itself alone and takes products of matrices, as a careful rewrite would.
    """
    prompts = [(source, target, 1.0) for source, target in moved]
    prompts += [(rows, rows, preserve_scale) for rows in kept]
    edited = []
    for layer in range(len(weights)) if layers is None else layers:
        left = lamb * weights[layer]
        right = lamb * torch.eye(left.shape[1])
        for source, target, scale in prompts:
            if lean:
                left += scale * (target @ weights[layer].T).T @ source
                right += scale * source.T @ source
                continue
            outputs = [target @ weight.T for weight in weights]
            left += scale * (outputs[layer][:, :, None] * source[:, None, :]).sum(0)
            right += scale * (source[:, :, None] * source[:, None, :]).sum(0)
        edited.append(left @ torch.inverse(right))
    return edited


@torch.no_grad()
def uce_2025(
    weights: Sequence[Tensor], moved: Pairs, kept: Sequence[Tensor], lamb: float
) -> list[Tensor]:
    """UCE of 2025: one row ``[width]`` for each prompt."""
    edited = []
    for weight in weights:
        left, right = lamb * weight, lamb * torch.eye(weight.shape[1])
        for source, target in (*moved, *((row, row) for row in kept)):
            left += torch.outer(weight @ target, source)
            right += torch.outer(source, source)
        edited.append(left @ torch.inverse(right))
    return edited


@torch.no_grad()
def rece_epoch(
    base: Sequence[Tensor],
    weights: Sequence[Tensor],
    rows: Tensor,
    anchor: Tensor,
    kept: Sequence[Tensor],
    regular_scale: float,
    lamb: float,
) -> list[Tensor]:
    """An epoch of RECE for one concept: its adversarial rows, and UCE's edit of them."""
    identity = torch.eye(rows.shape[1])
    inner, outer = torch.zeros_like(identity), torch.zeros_like(identity)
    for now, before in zip(weights, base, strict=True):
        inner += now.T @ now
        outer += now.T @ before
    found = rows @ (torch.inverse(regular_scale * identity + inner) @ outer).T
    return uce(weights, [(found, anchor)], kept, 0.1, lamb)


@torch.no_grad()
def mace_refinement(
    weights: Sequence[Tensor], prompts: Pairs, captions: Tensor, mu: float, lamb: float
) -> list[Tensor]:
    """MACE's first stage: outputs of all rows in all layers are stored, then summed up."""
    cached = [(weight @ captions, captions.clone()) for weight in weights]
    stored = [[target @ weight.T for weight in weights] for _, target in prompts]
    edited = []
    for layer, (weight, (outputs, inputs)) in enumerate(zip(weights, cached, strict=True)):
        left = lamb * weight + mu * outputs
        right = lamb * torch.eye(weight.shape[1]) + mu * inputs
        for (source, _), values in zip(prompts, stored, strict=True):
            left += values[layer].T @ source
            right += source.T @ source
        edited.append(left @ torch.inverse(right))
    return edited


@torch.no_grad()
def mace_fusion(
    weights: Sequence[Tensor],
    refined: Sequence[Tensor],
    concepts: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
    captions: Tensor,
    scale: float,
    lamb: float,
) -> list[Tensor]:
    """MACE's last stage: each adapter is put into the weights and asked for all its outputs.

    Each of ``concepts`` is the rows of its prompts and its adapter's change of each weight.
    """
    cached = [(weight @ captions, captions.clone()) for weight in weights]
    stored = []
    for prompts, changes in concepts:
        own = [weight + change for weight, change in zip(refined, changes, strict=True)]
        stored += [(rows, [rows @ weight.T for weight in own]) for rows in prompts]
    fused = []
    for layer, (weight, (outputs, inputs)) in enumerate(zip(refined, cached, strict=True)):
        left = lamb * weight + scale * outputs
        right = lamb * torch.eye(weight.shape[1]) + scale * inputs
        for rows, values in stored:
            left += values[layer].T @ rows
            right += rows.T @ rows
        fused.append(left @ torch.inverse(right))
    return fused


# --- what both sides get


def sd14(folder: Path) -> Model:
    """Stable Diffusion 1.4's size, of which only the keys, values and text encoder have numbers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**testing.SD14)
    unet.to_empty(device="cpu")
    pipe = testing.pipeline(folder, unet, width=WIDTH, length=TOKENS)
    layers = {"intermediate_size": 4 * WIDTH, "num_hidden_layers": 12, "num_attention_heads": 12}
    pipe.text_encoder = CLIPTextModel(CLIPTextConfig(**pipe.text_encoder.config.to_dict() | layers))
    model = load(pipe)
    draws = torch.Generator().manual_seed(0)
    for weight in weights_of(model):
        weight.normal_(std=0.02, generator=draws)
    return model


def weights_of(model: Model) -> list[Tensor]:
    """All keys and values, ``[out, width]`` each."""
    return [model.base_weight(name) for name in model.select("cross_attention.kv")]


def phrases(count: int) -> list[str]:
    """So many different phrases of two to six words, as long in tokens as names of artists."""
    draws, words, found = random.Random(0), sorted(set(testing.WORDS)), dict[str, None]()
    while len(found) < count:
        found[" ".join(draws.choices(words, k=draws.randint(2, 6)))] = None
    return list(found)


def remember(model: Model, prompts: Iterable[str]) -> None:
    """Give a model made-up embeddings; a row depends on its token and the mean of what is before.

    Padding rows depend on the whole prompt and a little on their place.
    """
    draws = torch.Generator().manual_seed(1)
    tokenizer, width = model.pipe.tokenizer, model.text_width
    own, mean = torch.randn(2, len(tokenizer), width, generator=draws)
    place = 0.2 * torch.randn(tokenizer.model_max_length, width, generator=draws)
    at = torch.arange(len(place))
    for prompt in dict.fromkeys(prompts):
        words = [tokenizer.bos_token_id, *model.tokens(prompt)]
        ids = torch.tensor(words + [tokenizer.eos_token_id] * (len(place) - len(words)))
        means = mean[ids].cumsum(0) / (at[:, None] + 1)
        last = len(words) - 1
        context = torch.where(at[:, None] > last, 3 * means[last], means)
        rows = own[ids] + context + place + 0.2 * torch.randn(place.shape, generator=draws)
        rows[0] = own[ids[0]]
        model.remember({prompt: 27 * rows / rows.norm(dim=1, keepdim=True)})


def prior(model: Model) -> Prior:
    """A second moment of as many directions as a row is wide."""
    rows = torch.randn(4 * model.text_width, model.text_width, generator=torch.Generator())
    metadata = Metadata(
        text_encoder=text_fingerprint(model), prompts=None, count=64, positions=64, versions={}
    )
    return Prior(gram(rows), metadata)


# --- both sides on one policy


class Sides:
    """One model and policy, and what each transcription needs of them."""

    def __init__(self, model: Model, policy: Policy) -> None:
        self.model, self.policy = model, policy
        self.weights = weights_of(model)
        self.kept = ["", *policy.kept]
        listed = [text for one in policy.erase for text in (one.target, one.replacement)]
        remember(model, [*listed, *self.kept])

    def rows(self, prompt: str) -> Tensor:
        return self.model.encode([prompt])[0]

    def row(self, prompt: str) -> Tensor:
        return self.rows(prompt)[self.model.last_token(prompt)]

    def uce_pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Rows from the last word on, paired by position."""
        pairs = []
        for one in self.policy.erase:
            first, second = map(self.model.last_token, (one.target, one.replacement))
            old, new = self.rows(one.target), self.rows(one.replacement)
            count = len(old) - max(first, second)
            pairs.append((old[first : first + count], new[second : second + count]))
        return pairs

    def uce(
        self,
        prompts: int | None = None,
        layers: Iterable[int] | None = None,
        lean: bool = False,
    ) -> list[Tensor]:
        """All of it, or so many kept prompts and nothing to erase."""
        scale = max(0.1, 1 / len(self.kept))
        moved = self.uce_pairs() if prompts is None else []
        kept = [self.rows(prompt) for prompt in self.kept[:prompts]]
        return uce(self.weights, moved, kept, scale, 0.5, layers, lean)

    def uce_2025(self, prompts: int | None = None) -> list[Tensor]:
        """All of it, or so many kept prompts and nothing to erase."""
        erased = self.policy.erase if prompts is None else ()
        moved = [(self.row(one.target), self.row(one.replacement)) for one in erased]
        kept = [self.row(prompt) for prompt in self.policy.kept[:prompts]]
        return uce_2025(self.weights, moved, kept, 0.5)

    def rece_epoch(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """One more epoch for the first concept."""
        one = self.policy.erase[0]
        pair = self.rows(one.target), self.rows(one.replacement)
        kept = [self.rows(prompt) for prompt in self.kept]
        return rece_epoch(self.weights, weights, *pair, kept, 0.1, 0.1)


class Mace:
    """The refinement and fusion of several concepts whose adapters are random."""

    scale, lamb = 1e-2, 0.5

    def __init__(self, model: Model, concepts: int, sentences: int) -> None:
        self.model = model
        words = phrases(concepts + sentences)
        self.policy = Policy.of(
            Concept(target=target, anchor="a person", kind="character")
            for target in words[:concepts]
        )
        self.captions = prior(model)
        self.method = MACE(
            fidelity="original",
            rank=0,
            contexts=tuple(f"{text} {{}} photo" for text in words[concepts:]),
            lamb=self.lamb,
            prior=self.captions,
            train_preserve_scale=self.scale,
        )
        pairs = [pair for one in self.policy.erase for pair in one.pairs(self.method.contexts)]
        remember(model, [prompt for pair in pairs for prompt in (pair.erase, pair.anchor)])
        draws = torch.Generator().manual_seed(2)
        self.adapters = [
            LowRank(
                {name: torch.randn(len(weight), 1, generator=draws) for name, weight in self.base},
                {
                    name: 1e-3 * torch.randn(1, weight.shape[1], generator=draws)
                    for name, weight in self.base
                },
            )
            for _ in self.policy.erase
        ]

    @property
    def base(self) -> list[tuple[str, Tensor]]:
        names = self.model.select("cross_attention.kv")
        return [(name, self.model.base_weight(name)) for name in names]

    def ours(self) -> Payload:
        refinement = self.method.solve(self.model, self.policy, 0)
        own = (
            moment(self.model, [prompt for prompt, _ in self.method.prompts(concept)])
            for concept in self.policy.erase
        )
        shared = SharedMatrix(refinement.names, *refinement.factors)
        kept = self.scale * self.captions.gram
        return fusion(shared, self.adapters, own, kept, self.lamb)

    def theirs(self, concepts: int | None = None) -> list[Tensor]:
        """All of it, or so many concepts."""
        weights = [weight for _, weight in self.base]
        moved, own = [], []
        for concept, adapter in zip(self.policy.erase[:concepts], self.adapters, strict=False):
            prompts = []
            for pair in concept.pairs(self.method.contexts):
                old, new = self.model.encode(pair[:2])
                ids = self.model.tokens(pair.erase), self.model.tokens(pair.anchor)
                first, second = aligned(*ids, len(old))
                moved.append((old[first], new[second]))
                prompts.append(old)
            own.append((prompts, [adapter.up[name] @ adapter.down[name] for name, _ in self.base]))
        captions = self.captions.gram.float()
        refined = mace_refinement(weights, moved, captions, self.scale**2, self.lamb)
        return mace_fusion(weights, refined, own, captions, self.scale, self.lamb)


def check(folder: Path) -> None:
    """See on a small model that both sides compute the same.

    Raises:
        SystemExit: they don't.
    """
    model = load(testing.pipeline(folder))
    one, *kept = phrases(4)
    policy = Policy.of(Concept(target=one, kind="style", keep=kept))
    sides, mace = Sides(model, policy), Mace(model, 3, 4)
    original = {"fidelity": "original"}
    for work, payload, theirs in (
        ("UCE 2023", UCE(**original).solve(model, policy, 0), sides.uce()),
        ("UCE 2025", UCE(**original, variant="2025").solve(model, policy, 0), sides.uce_2025()),
        (
            "RECE",
            RECE(**original, epochs=2, regular_scale=0.1).solve(model, policy, 0),
            sides.rece_epoch(sides.rece_epoch(sides.uce())),
        ),
        ("MACE", mace.ours(), mace.theirs()),
    ):
        names = model.select("cross_attention.kv")
        change = torch.cat([payload.change(name, model.base_weight(name)) for name in names])
        difference = change - (torch.cat(theirs) - torch.cat(sides.weights))
        relative = float(difference.norm() / change.norm())
        print(f"{work}: the changes of both sides differ by {relative:.0e}")
        if not relative < AGREE:
            sys.exit(f"{work}: the transcription computes something else")


# --- time and memory


class Row(NamedTuple):
    """One line of the table: seconds, bytes, and operations."""

    work: str
    ours: float
    theirs: float | None
    memory: int
    """What ours needed at most beyond what was there before."""
    file: int
    operations: float
    """What the work needs at least, with a symmetric product counted half."""
    touched: float
    """Bytes that have to be read or written."""
    part: str
    """What was timed of the other side."""

    def __str__(self) -> str:
        columns = (
            f"{self.work:<44}",
            f"{duration(self.ours):>8}",
            f"{duration(self.theirs) if self.theirs else '':>8}",
            f"{self.theirs / self.ours:,.0f} x" if self.theirs else "",
            f"{self.memory / 1e6:,.0f} MB",
            f"{self.file / 1e6:.2f} MB" if self.file else "",
            f"{self.operations / 1e9:,.3g} GFLOP",
            f"{self.touched / 1e6:,.3g} MB",
        )
        return "  ".join((*columns[:3], *(f"{text:>11}" for text in columns[3:]), self.part))


HEADER = f"{'':<44}      ours    theirs" + "".join(
    f"{text:>13}" for text in ("ratio", "peak memory", "file", "least work", "least bytes")
)


def duration(value: float) -> str:
    """Seconds in the unit in which they are read most easily."""
    units = (("ms", 1e-3, 1), ("s", 1, 100), ("min", 60, 6000), ("h", 3600, float("inf")))
    return next(f"{value / size:.3g} {unit}" for unit, size, limit in units if value < limit)


def measured(
    work: str,
    ours: Callable[[], object],
    theirs: float | None,
    runs: int,
    *,
    operations: float,
    touched: float,
    file: int = 0,
    part: str = "all",
    after: Callable[[], object] = lambda: None,
) -> Row:
    """The median of so many calls of ``ours``, and its memory; ``after`` follows each call."""
    time = seconds(ours, runs, after)
    memory = peak(ours)
    after()
    return Row(work, time, theirs, memory, file, operations, touched, part if theirs else "")


def seconds(
    action: Callable[[], object], runs: int = 1, after: Callable[[], object] = lambda: None
) -> float:
    """Median time of so many calls; ``after`` follows each and isn't counted."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
        after()
    return statistics.median(times)


def scaled(action: Callable[[int], object], sample: int, total: int, runs: int) -> float:
    """Seconds that ``action(total)`` would take, from medians of none and of a sample."""
    nothing = seconds(lambda: action(0), runs)
    return nothing + (seconds(lambda: action(sample), runs) - nothing) * total / sample


def peak(action: Callable[[], object]) -> int:
    """Bytes in memory at most during a call, less those before it; Linux only."""
    libc, mmap_threshold, trim_threshold = ctypes.CDLL("libc.so.6"), -3, -1
    libc.mallopt(mmap_threshold, 1 << 18)  # what is freed goes back at once and isn't counted
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest value so far
    before = memory_of("VmRSS")
    action()
    highest = memory_of("VmHWM")
    libc.mallopt(mmap_threshold, 1 << 25)
    libc.mallopt(trim_threshold, 1 << 26)
    return highest - before


def memory_of(field: str) -> int:
    """Bytes of this process."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])


def saved(edit: Edit, folder: Path) -> int:
    """Bytes of its file."""
    edit.save(folder / "edit.safetensors")
    return (folder / "edit.safetensors").stat().st_size


# --- what is timed


def one_concept(model: Model, folder: Path, runs: int) -> Iterator[Row]:
    """UCE 2023 of one concept, the empty prompt kept."""
    policy, method = Policy.of(Concept(target="santa claus")), UCE(fidelity="original")
    sides = Sides(model, policy)
    theirs, lean = seconds(sides.uce, runs), seconds(lambda: sides.uce(lean=True), runs)
    edit = erase(model, policy, method)
    moved = len(edit.components[0].payload.moved.sources)
    count, size = moved + TOKENS, saved(edit, folder)
    operations, touched = 3 * count**2 * WIDTH, 4 * (count + moved) * WIDTH
    yield measured(
        "UCE 2023, 1 concept: solve, factors",
        lambda: method.solve(model, policy, 0).factors,
        theirs,
        5 * runs,
        operations=operations,
        touched=touched,
        file=size,
    )
    yield measured(
        "... as an edit that knows its base",
        lambda: erase(model, policy, method),
        theirs,
        5 * runs,
        operations=operations,
        touched=touched + WEIGHTS,
        file=size,
    )
    yield measured(
        "... and merged into the weights",
        lambda: erase(model, policy, method).apply(model),
        theirs,
        runs + 1,
        operations=operations + 4 * OUTPUTS * WIDTH * moved,
        touched=touched + 2 * WEIGHTS,
        file=size,
        after=lambda: Edit(model.components).revert(model),
    )
    yield measured(
        "... beside a lean rewrite of the original",
        lambda: method.solve(model, policy, 0).factors,
        lean,
        5 * runs,
        operations=operations,
        touched=touched,
        file=size,
        part="all, products for sums of outer products",
    )


def art_policy() -> Policy:
    """One style erased, 1,734 names kept."""
    target, *keep = phrases(ARTISTS + 1)
    return Policy.of(Concept(target=target, kind="style", keep=keep))


def art_2025(model: Model, folder: Path, runs: int) -> Iterator[Row]:
    """UCE 2025 in the art setting: a row for each name, encoded as far as that row."""
    policy, method = art_policy(), UCE(fidelity="original", variant="2025")
    prompts = [policy.erase[0].target, "art", *policy.kept]
    encoding = 2 * ENCODER * sum(1 + model.last_token(prompt) for prompt in prompts)
    single = seconds(lambda: model._encode(prompts[:1]), 5)

    def ours() -> object:
        return method.solve(model, policy, 0).factors

    with_text = measured(
        "... and its text encoding",
        ours,
        single * len(prompts),
        runs,
        operations=encoding,
        touched=4 * ENCODER,
        part="1 of 1,736 prompts encoded",
    )
    sides = Sides(model, policy)  # from here on the text encoder isn't asked
    theirs = scaled(sides.uce_2025, 40, len(policy.kept) + 1, runs)
    row = measured(
        "UCE 2025, 1,734 names kept: solve, factors",
        ours,
        theirs,
        runs,
        operations=ARTISTS * WIDTH**2 + WIDTH**3 / 3,
        touched=4 * ARTISTS * WIDTH,
        file=saved(erase(model, policy, method), folder),
        part="40 of 1,735 prompts",
    )
    yield row
    yield with_text._replace(
        theirs=with_text.theirs + theirs,
        file=row.file,
        operations=encoding + row.operations,
        touched=with_text.touched + row.touched,
        part=f"{row.part}, 1 encoded",
    )


def art_2023(model: Model, folder: Path, runs: int) -> Iterator[Row]:
    """UCE 2023 in the art setting: all rows of each name."""
    policy, method = art_policy(), UCE(fidelity="original")
    prompts = len(policy.kept) + 2
    block = seconds(lambda: model._encode(list(policy.kept[:64]))) * prompts / 64
    single = seconds(lambda: model._encode(["", "art"]), 5)
    sides = Sides(model, policy)
    layers = sorted({len(weight): at for at, weight in enumerate(sides.weights)}.values())
    sample = scaled(lambda count: sides.uce(count, layers), 8, prompts, runs)
    theirs = sample * LAYERS / len(layers)
    row = measured(
        "UCE 2023, 1,734 names kept: solve, factors",
        lambda: method.solve(model, policy, 0).factors,
        theirs,
        runs,
        operations=TOKENS * ARTISTS * WIDTH**2 + WIDTH**3 / 3,
        touched=4 * TOKENS * ARTISTS * WIDTH,
        file=saved(erase(model, policy, method), folder),
        part=f"8 of 1,736 prompts in {len(layers)} of {LAYERS} layers",
    )
    yield row
    yield row._replace(
        work="... and its text encoding (64 prompts timed)",
        ours=row.ours + block,
        theirs=theirs + LAYERS * prompts * single,
        operations=row.operations + 2 * ENCODER * TOKENS * prompts,
        touched=row.touched + 4 * ENCODER,
        part=f"{row.part}, 1 encoded",
    )


def rece(model: Model, folder: Path, runs: int) -> Iterator[Row]:
    """UCE and three epochs of RECE for one concept."""
    policy = Policy.of(Concept(target="santa claus"))
    method = RECE(fidelity="original", epochs=3, regular_scale=0.1)
    sides = Sides(model, policy)
    theirs = seconds(sides.uce, runs)
    weights = sides.uce()
    theirs += 3 * seconds(lambda: sides.rece_epoch(weights), runs)
    epoch = 2 * WIDTH**3 / 3 + 14 * TOKENS * WIDTH**2
    yield measured(
        "RECE, UCE and 3 epochs, 1 concept",
        lambda: method.solve(model, policy, 0),
        theirs,
        2 * runs,
        operations=OUTPUTS * WIDTH**2 + 3 * epoch,
        touched=WEIGHTS,
        file=saved(erase(model, policy, method), folder),
        part="UCE and 1 of 3 epochs",
    )


def mace(model: Model, folder: Path, runs: int) -> Iterator[Row]:
    """Refinement and fusion of 100 concepts, 30 sentences each, without training the adapters."""
    sides = Mace(model, CELEBRITIES, SENTENCES)
    rows = TOKENS * CELEBRITIES * SENTENCES
    yield measured(
        "MACE, refinement and fusion, 100 concepts",
        sides.ours,
        scaled(sides.theirs, 1, CELEBRITIES, runs),
        runs,
        operations=2 * rows * WIDTH**2 + 2 * WIDTH**3 / 3 + 2 * CELEBRITIES * LAYERS * WIDTH**2,
        touched=4 * rows * WIDTH,
        file=sum(one.numel() * one.element_size() for one in sides.ours().tensors().values()),
        part="1 of 100 concepts",
    )
    yield measured(
        "... of which the refinement's statistics",
        lambda: sides.method.solve(model, sides.policy, 0),
        None,
        runs,
        operations=rows * WIDTH**2,
        touched=4 * rows * WIDTH,
    )


def thousand(model: Model, folder: Path, runs: int) -> Iterator[Row]:
    """A thousand concepts at once."""
    concepts = [Concept(target=words) for words in phrases(MANY)]
    policy = Policy.of(concepts)
    remember(model, ["", *(one.target for one in concepts)])
    for variant, rows in (("2023", TOKENS), ("2025", 1)):
        method = UCE(fidelity="original", variant=variant)
        yield measured(
            f"UCE {variant}, 1,000 concepts: solve, factors",
            lambda method=method: method.solve(model, policy, 0).factors,
            None,
            runs,
            operations=3 * rows * MANY * WIDTH**2 + WIDTH**3,
            touched=8 * rows * MANY * WIDTH,
            file=saved(erase(model, policy, method), folder),
        )
    method, one = (
        UCE(fidelity="corrected", preserve=("",)),
        Policy.of(Concept(target="santa claus")),
    )
    remember(model, ["santa claus", *method.kept(one)])
    many = erase(model, policy, method)
    yield measured(
        "... one more concept joins them",
        lambda: (many + erase(model, one, method)).components[0].payload.factors,
        None,
        runs,
        operations=TOKENS * WIDTH**2 + WIDTH**3,
        touched=8 * TOKENS * WIDTH,
    )


WORKS = {
    "uce": one_concept,
    "art-2025": art_2025,
    "art-2023": art_2023,
    "rece": rece,
    "mace": mace,
    "thousand": thousand,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), metavar="NAME")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        check(folder)
        print(f"{torch.get_num_threads()} threads: {rate(torch.float32):.0f} GFLOP/s in single and "
              f"{rate(torch.float64):.0f} in double precision\n\n{HEADER}")  # fmt: skip
        for name in arguments.only:
            model = sd14(folder)
            for row in WORKS[name](model, folder, arguments.runs):
                print(row, flush=True)


def rate(dtype: torch.dtype) -> float:
    """Billions of operations a second in a product of large matrices."""
    rows = torch.ones(OUTPUTS // 8, WIDTH, dtype=dtype)
    return len(rows) * 2 * WIDTH**2 / seconds(lambda: rows.T @ rows, 9) / 1e9


if __name__ == "__main__":
    main()
