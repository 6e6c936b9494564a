"""What a run makes of a policy: an edit records what was used, and no more."""

from collections.abc import Sequence

from expunge.concepts import Concept, Policy
from expunge.errors import ExpungeError, Ignored, warn
from expunge.method.base import Method, Trained

SHOWN = 3
"""Names that a warning lists."""


def used(method: Method, policy: Policy) -> Policy:
    """The policy without what the method ignores, so that no record claims it.

    Warns once of what was given in vain (``Ignored``).
    """
    keeps, anchors = "keep" not in method.ignored, "anchor" not in method.ignored
    given = [f"keep ({_few(policy.kept)})"] if policy.kept and not keeps else []
    if not anchors and (named := [one.anchor for one in policy.erase if one.anchor is not None]):
        given.append(f"anchor ({_few([repr(one) for one in named])})")
    if not given:
        return policy
    told = f"{method.name} has no use for {' and '.join(given)} with these settings"
    warn(f"{told}; the edit doesn't record it", Ignored)

    def without(concept: Concept) -> Concept:
        return concept.model_copy(
            update={
                "keep": concept.keep if keeps else (),
                "anchor": concept.anchor if anchors else None,
            }
        )

    erase = tuple(map(without, policy.erase))
    return policy.model_copy(update={"erase": erase, "keep": policy.keep if keeps else ()})


def _few(names: Sequence[str]) -> str:
    """The first names, and how many more."""
    shown, more = names[:SHOWN], len(names) - SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def check_turns(method: Method, policy: Policy) -> None:
    """Check that a training is long enough for every wording of what is erased.

    Raises:
        ExpungeError: it ends before each has had a turn, and yet all would be recorded.
    """
    if isinstance(method, Trained) and method.iterations < (fewest := method.fewest_steps(policy)):
        raise ExpungeError(
            f"iterations: {method.iterations} steps end before every wording of what is erased has "
            f"had a turn; raise it to {fewest} or more"
        )
