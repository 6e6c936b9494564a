"""SepCE's bases and changes at Stable Diffusion 1.4's size, in time.

    python benchmarks/separable.py [bases] [changes] [--concepts 9] [--runs 3]

``bases``: for each concept the null space of the empty prompt and all *other* concepts, 77 rows of
768 each, made up with what CLIP's have in common: one start row for all, padding rows that are
nearly multiples of each other. All of them together, beside one null space after the other, and
beside the vectors of the released construction, which are found there by symbolic elimination.

``changes``: forming the changes of all 32 keys and values from the coefficients of one concept, and
the way back to the coefficients, along the whole null space and along the reduced directions.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from expunge.algebra.null_space import leading, null_space, null_spaces, rref
from sizes import OUTPUTS, TOKENS, WIDTH
from timing import times


def prompts(count: int) -> Tensor:
    """Made-up embeddings ``[count, 77, 768]`` with rows of length 27."""
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(1, 1, WIDTH, generator=draws).expand(count, 1, WIDTH)
    words = torch.randn(count, 4, WIDTH, generator=draws)
    end = torch.randn(count, 1, WIDTH, generator=draws)
    drift = torch.randn(count, TOKENS - 5, WIDTH, generator=draws)
    rows = torch.cat([start, words, end + 0.05 * drift], 1)
    return 27 * rows / rows.norm(dim=-1, keepdim=True)


def timed(action: Callable[[], object], runs: int) -> str:
    found = times(action, runs)
    return f"{statistics.median(found):.3f} s ({min(found):.3f}-{max(found):.3f})"


def others(blocks: list[Tensor], turn: int, shared: Tensor) -> Tensor:
    rest = [block for index, block in enumerate(blocks) if index != turn]
    return torch.cat([shared, *rest])


def bases(count: int, runs: int) -> None:
    """All bases of ``count`` concepts, in three ways, and how orthogonal they are."""
    shared, *blocks = prompts(count + 1)

    def together() -> list[Tensor]:
        return null_spaces(blocks, null_space(shared))

    def one_by_one() -> list[Tensor]:
        return [null_space(others(blocks, turn, shared)) for turn in range(count)]

    def by_columns() -> list[Tensor]:
        return [rref(others(blocks, turn, shared)) for turn in range(count)]

    print(f"{count} concepts, {WIDTH} wide, {torch.get_num_threads()} threads")
    for name, way in (("together", together), ("one by one", one_by_one), ("rref", by_columns)):
        spaces = way()
        rest = max(
            float((space @ others(blocks, turn, shared).double().T).abs().max())
            for turn, space in enumerate(spaces)
        )
        sizes = {len(space) for space in spaces}
        print(f"  {name:<12} {timed(way, runs)}, {sizes} directions, |S e| <= {rest:.0e}")


def changes(runs: int) -> None:
    """Forward and back through ``C S`` for all keys and values, along many and few directions."""
    empty, own, *rest = prompts(4)
    whole = null_space(torch.cat([empty, *rest]))
    for name, space in (
        ("whole null space", whole),
        ("reduced, all", leading(own, whole)),
        ("reduced, 32", leading(own, whole, 32)),
    ):
        basis = space.float()
        coefficients = [torch.zeros(out, len(basis), requires_grad=True) for out in OUTPUTS]
        trained = sum(matrix.numel() for matrix in coefficients)
        took = timed(partial(there_and_back, coefficients, basis), runs)
        print(f"  {name:<17} {len(basis):>3} directions, {trained / 1e6:5.2f} M trained: {took}")


def there_and_back(coefficients: Iterable[Tensor], basis: Tensor) -> None:
    for matrix in coefficients:
        change = matrix @ basis
        change.backward(torch.ones_like(change))  # type: ignore[no-untyped-call]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["bases", "changes"])
    parser.add_argument("--concepts", type=int, default=9)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if "bases" in options.parts:
        bases(options.concepts, options.runs)
    if "changes" in options.parts:
        changes(options.runs)


if __name__ == "__main__":
    main()
