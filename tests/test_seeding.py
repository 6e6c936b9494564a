"""Seeds by name."""

import pytest

from expunge.seeding import derive


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a/b", "c"), ("a", "b/c")),
        (("a/b",), ("a", "b")),
        (("a/",), ("a", "")),
        (("/",), ("", "")),
    ],
)
def test_names_that_are_cut_elsewhere_give_another_seed(
    one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    assert derive(0, *one) != derive(0, *other)


def test_ordinary_names_keep_the_seeds_that_results_were_made_with() -> None:
    assert derive(0, "a", "b") == 6129914920959480835
    assert derive(7, "trajectory", "a dog", 3) == 4084059969422180603
