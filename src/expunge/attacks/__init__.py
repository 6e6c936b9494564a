"""All attacks by name."""

from typing import Any

from pydantic import ValidationError

from expunge.attacks.base import Attack
from expunge.concepts import explain
from expunge.errors import ExpungeError
from expunge.registry import Registry

ATTACKS: Registry[type[Attack]] = Registry(
    "attack",
    {
        "closed-form": "expunge.attacks.closed_form:ClosedForm",
        "end-to-end": "expunge.attacks.end_to_end:EndToEnd",
        "evade": "expunge.attacks.evade:Evade",
        "rows": "expunge.attacks.rows:Rows",
    },
    entry_points="expunge.attacks",
)


def configured(name: str, **values: Any) -> Attack:
    """An attack with these settings.

    Raises:
        ExpungeError: the attack or a setting is unknown, or a value is out of range.
    """
    kind = ATTACKS.get(name)
    try:
        return kind(**values)
    except ValidationError as error:
        fields = ", ".join(kind.model_fields) or "none"
        raise ExpungeError(f"{name}: {explain(error)} (settings: {fields})") from None
