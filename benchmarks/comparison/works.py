"""What is timed, in the order of the table."""

from collections.abc import Iterator
from pathlib import Path

from comparison.made_up import phrases, remember
from comparison.sides import Mace, Sides
from comparison.table import Row, measured, saved, scaled
from expunge import Concept, Edit, Model, Policy, erase
from expunge.methods.rece import RECE
from expunge.methods.uce.method import UCE
from sizes import OUTPUTS, TOKENS, WIDTH
from timing import seconds, typical

ARTISTS, CELEBRITIES, SENTENCES, MANY = 1_734, 100, 30, 1_000
ROWS, LAYERS = sum(OUTPUTS), len(OUTPUTS)
WEIGHTS = 4 * ROWS * WIDTH
"""Bytes of all keys and values."""
ENCODER = 85_054_464
"""Parameters of CLIP-L's layers."""


def one_concept(model: Model, folder: Path, runs: int) -> Iterator[Row]:
    """UCE 2023 of one concept, the empty prompt kept."""
    policy, method = Policy.of(Concept(target="santa claus")), UCE(fidelity="original")
    sides = Sides(model, policy)
    theirs, lean = typical(sides.uce, runs), typical(lambda: sides.uce(lean=True), runs)
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
        operations=operations + 4 * ROWS * WIDTH * moved,
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
    single = typical(lambda: model._encode(prompts[:1]), 5)

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
    single = typical(lambda: model._encode(["", "art"]), 5)
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
    theirs = typical(sides.uce, runs)
    weights = sides.uce()
    theirs += 3 * typical(lambda: sides.rece_epoch(weights), runs)
    epoch = 2 * WIDTH**3 / 3 + 14 * TOKENS * WIDTH**2
    yield measured(
        "RECE, UCE and 3 epochs, 1 concept",
        lambda: method.solve(model, policy, 0),
        theirs,
        2 * runs,
        operations=ROWS * WIDTH**2 + 3 * epoch,
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
