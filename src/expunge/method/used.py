"""What a run makes of a policy: an edit records what was used, and no more."""

import warnings

from expunge.concepts import Concept, Policy
from expunge.errors import ExpungeError, Ignored
from expunge.method.base import Method, Trained


def used(method: Method, policy: Policy) -> Policy:
    """The policy without what the method ignores, so that no record claims it.

    Warns once of what was given in vain (``Ignored``).
    """
    keeps, anchors = "keep" not in method.ignored, "anchor" not in method.ignored
    given = [f"keep ({', '.join(policy.kept)})"] if policy.kept and not keeps else []
    if not anchors and (named := [one.anchor for one in policy.erase if one.anchor is not None]):
        given.append(f"anchor ({', '.join(map(repr, named))})")
    if not given:
        return policy
    told = f"{method.name} has no use for {' and '.join(given)} with these settings"
    warnings.warn(f"{told}; the edit doesn't record it", Ignored, stacklevel=3)

    def without(concept: Concept) -> Concept:
        return concept.model_copy(
            update={
                "keep": concept.keep if keeps else (),
                "anchor": concept.anchor if anchors else None,
            }
        )

    erase = tuple(map(without, policy.erase))
    return policy.model_copy(update={"erase": erase, "keep": policy.keep if keeps else ()})


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
