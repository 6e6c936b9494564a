"""``expunge protocols``: how published numbers were made."""

import yaml

from expunge.evaluation.protocols import protocol
from expunge.evaluation.protocols import protocols as known


def protocols(name: str | None = None, /) -> None:
    """List the published protocols, or print one as YAML.

    Parameters
    ----------
    name:
        The protocol, e.g. nudity/mace; by default all of them.
    """
    if name is None:
        for each in known().values():
            print(f"{each.name}: {each.title}")
        print("\nTo see everything that decides a number: expunge protocols NAME")
        return
    values = protocol(name).model_dump(mode="json")
    print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100), end="")
