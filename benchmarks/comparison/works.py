"""What is timed, in the order of the table."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from comparison.made_up import phrases, remember
from comparison.sides import Mace, Sides
from comparison.table import Row, measured, saved, scaled
from expunge import Concept, Edit, Model, Policy, erase
from expunge.edits.applied import Applied
from expunge.methods.rece.method import RECE
from expunge.methods.uce.method import UCE
from sizes import Sizes
from timing import seconds, typical


class Counts(NamedTuple):
    """How much of everything is erased or kept."""

    artists: int
    celebrities: int
    sentences: int
    many: int


COUNTS = {"sd14": Counts(1_734, 100, 30, 1_000), "pico": Counts(80, 4, 4, 5)}
"""Those of the papers, and few for the small model, to see that everything runs."""


@dataclass(frozen=True)
class Setting:
    """What is timed, and how often."""

    model: Model
    folder: Path
    runs: int
    counts: Counts

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes.of(self.model)

    @cached_property
    def encoder(self) -> int:
        """Parameters of the text encoder's layers."""
        [encoder] = self.model.text_encoders
        named = encoder.network.named_parameters()
        return sum(one.numel() for name, one in named if ".layers." in name)


def one_concept(setting: Setting) -> Iterator[Row]:
    """UCE 2023 of one concept, the empty prompt kept."""
    model, folder, runs = setting.model, setting.folder, setting.runs
    width, tokens, outputs = setting.sizes
    policy, method = Policy.of(Concept(target="santa claus")), UCE(fidelity="original")
    sides = Sides(model, policy)
    theirs, lean = typical(sides.uce, runs), typical(lambda: sides.uce(lean=True), runs)
    edit = erase(model, policy, method)
    moved = len(edit.components[0].payload.moved.sources)
    count, size = moved + tokens, saved(edit, folder)
    operations, touched = 3 * count**2 * width, 4 * (count + moved) * width
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
        touched=touched + setting.sizes.weights,
        file=size,
    )
    yield measured(
        "... and merged into the weights",
        lambda: erase(model, policy, method).apply(model),
        theirs,
        runs + 1,
        operations=operations + 4 * sum(outputs) * width * moved,
        touched=touched + 2 * setting.sizes.weights,
        file=size,
        after=lambda: Edit(Applied.to(model).components).revert(model),
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


def art_policy(artists: int) -> Policy:
    """One style erased, so many names kept."""
    target, *keep = phrases(artists + 1)
    return Policy.of(Concept(target=target, kind="style", keep=keep))


def art_2025(setting: Setting) -> Iterator[Row]:
    """UCE 2025 in the art setting: a row for each name, encoded as far as that row."""
    model, folder, runs, counts = setting.model, setting.folder, setting.runs, setting.counts
    width = setting.sizes.width
    policy, method = art_policy(counts.artists), UCE(fidelity="original", variant="2025")
    prompts = [policy.erase[0].target, "art", *policy.kept]
    encoding = 2 * setting.encoder * sum(1 + model.last_token(prompt) for prompt in prompts)
    single = typical(lambda: model.encode(prompts[:1]), 5)

    def ours() -> object:
        return method.solve(model, policy, 0).factors

    with_text = measured(
        "... and its text encoding",
        ours,
        single * len(prompts),
        runs,
        operations=encoding,
        touched=4 * setting.encoder,
        part=f"1 of {len(prompts):,} prompts encoded",
    )
    sides = Sides(model, policy)  # from here on the text encoder isn't asked
    theirs = scaled(sides.uce_2025, 40, len(policy.kept) + 1, runs)
    row = measured(
        f"UCE 2025, {counts.artists:,} names kept: solve, factors",
        ours,
        theirs,
        runs,
        operations=counts.artists * width**2 + width**3 / 3,
        touched=4 * counts.artists * width,
        file=saved(erase(model, policy, method), folder),
        part=f"40 of {len(policy.kept) + 1:,} prompts",
    )
    yield row
    yield with_text._replace(
        theirs=with_text.theirs + theirs,
        file=row.file,
        operations=encoding + row.operations,
        touched=with_text.touched + row.touched,
        part=f"{row.part}, 1 encoded",
    )


def art_2023(setting: Setting) -> Iterator[Row]:
    """UCE 2023 in the art setting: all rows of each name."""
    model, folder, runs, counts = setting.model, setting.folder, setting.runs, setting.counts
    width, tokens, outputs = setting.sizes
    policy, method = art_policy(counts.artists), UCE(fidelity="original")
    prompts = len(policy.kept) + 2
    block = seconds(lambda: model.encode(list(policy.kept[:64]))) * prompts / 64
    single = typical(lambda: model.encode(["", "art"]), 5)
    sides = Sides(model, policy)
    layers = sorted({len(weight): at for at, weight in enumerate(sides.weights)}.values())
    sample = scaled(lambda count: sides.uce(count, layers), 8, prompts, runs)
    theirs = sample * len(outputs) / len(layers)
    row = measured(
        f"UCE 2023, {counts.artists:,} names kept: solve, factors",
        lambda: method.solve(model, policy, 0).factors,
        theirs,
        runs,
        operations=tokens * counts.artists * width**2 + width**3 / 3,
        touched=4 * tokens * counts.artists * width,
        file=saved(erase(model, policy, method), folder),
        part=f"8 of {prompts:,} prompts in {len(layers)} of {len(outputs)} layers",
    )
    yield row
    yield row._replace(
        work="... and its text encoding (64 prompts timed)",
        ours=row.ours + block,
        theirs=theirs + len(outputs) * prompts * single,
        operations=row.operations + 2 * setting.encoder * tokens * prompts,
        touched=row.touched + 4 * setting.encoder,
        part=f"{row.part}, 1 encoded",
    )


def rece(setting: Setting) -> Iterator[Row]:
    """UCE and three epochs of RECE for one concept."""
    model, folder, runs = setting.model, setting.folder, setting.runs
    width, tokens, outputs = setting.sizes
    policy = Policy.of(Concept(target="santa claus"))
    method = RECE(fidelity="original", epochs=3, regular_scale=0.1)
    sides = Sides(model, policy)
    theirs = typical(sides.uce, runs)
    weights = sides.uce()
    theirs += 3 * typical(lambda: sides.rece_epoch(weights), runs)
    epoch = 2 * width**3 / 3 + 14 * tokens * width**2
    yield measured(
        "RECE, UCE and 3 epochs, 1 concept",
        lambda: method.solve(model, policy, 0),
        theirs,
        2 * runs,
        operations=sum(outputs) * width**2 + 3 * epoch,
        touched=setting.sizes.weights,
        file=saved(erase(model, policy, method), folder),
        part="UCE and 1 of 3 epochs",
    )


def mace(setting: Setting) -> Iterator[Row]:
    """Refinement and fusion of many concepts in many sentences, without training the adapters."""
    model, runs, counts = setting.model, setting.runs, setting.counts
    width, tokens, outputs = setting.sizes
    sides = Mace(model, counts.celebrities, counts.sentences)
    rows = tokens * counts.celebrities * counts.sentences
    yield measured(
        f"MACE, refinement and fusion, {counts.celebrities} concepts",
        sides.ours,
        scaled(sides.theirs, 1, counts.celebrities, runs),
        runs,
        operations=2 * rows * width**2
        + 2 * width**3 / 3
        + 2 * counts.celebrities * len(outputs) * width**2,
        touched=4 * rows * width,
        file=sum(one.numel() * one.element_size() for one in sides.ours().tensors().values()),
        part=f"1 of {counts.celebrities} concepts",
    )
    yield measured(
        "... of which the refinement's statistics",
        lambda: sides.method.solve(model, sides.policy, 0),
        None,
        runs,
        operations=rows * width**2,
        touched=4 * rows * width,
    )


def thousand(setting: Setting) -> Iterator[Row]:
    """A thousand concepts at once, and then one more."""
    model, folder, runs, counts = setting.model, setting.folder, setting.runs, setting.counts
    width, tokens = setting.sizes.width, setting.sizes.tokens
    concepts = [Concept(target=words) for words in phrases(counts.many)]
    policy = Policy.of(concepts)
    remember(model, ["", *(one.target for one in concepts)])
    for variant, rows in (("2023", tokens), ("2025", 1)):
        method = UCE(fidelity="original", variant=variant)
        yield measured(
            f"UCE {variant}, {counts.many:,} concepts: solve, factors",
            lambda method=method: method.solve(model, policy, 0).factors,
            None,
            runs,
            operations=3 * rows * counts.many * width**2 + width**3,
            touched=8 * rows * counts.many * width,
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
        operations=tokens * width**2 + width**3,
        touched=8 * tokens * width,
    )


WORKS: Mapping[str, Callable[[Setting], Iterator[Row]]] = {
    "uce": one_concept,
    "art-2025": art_2025,
    "art-2023": art_2023,
    "rece": rece,
    "mace": mace,
    "thousand": thousand,
}
