"""Settings with one prompt for each concept, or one for all of them."""

from collections.abc import Sequence

from expunge.concepts import Concept
from expunge.errors import ExpungeError


def one_each(setting: str, prompts: Sequence[str], concepts: Sequence[Concept]) -> tuple[str, ...]:
    """The prompt of each concept; "" for all of them if none is given.

    Raises:
        ExpungeError: there are several prompts, but not one for each concept.
    """
    given = tuple(prompts) or ("",)
    if len(given) not in (1, len(concepts)):
        raise ExpungeError(
            f"{setting}: {len(given)} prompts for {len(concepts)} concepts; give one for all of "
            "them or one for each"
        )
    return given * len(concepts) if len(given) == 1 else given
