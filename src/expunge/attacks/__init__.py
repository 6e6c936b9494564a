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
        "average": "expunge.attacks.tampering:Average",
        "closed-form": "expunge.attacks.closed_form:ClosedForm",
        "completion": "expunge.attacks.probes:Completion",
        "concept-inversion": "expunge.attacks.concept_inversion:ConceptInversion",
        "end-to-end": "expunge.attacks.end_to_end:EndToEnd",
        "evade": "expunge.attacks.evade:Evade",
        "mma": "expunge.attacks.mma:MMA",
        "noise-probe": "expunge.attacks.probes:NoiseProbe",
        "other-lora": "expunge.attacks.relearning:OtherLora",
        "p4d": "expunge.attacks.p4d:P4D",
        "prune": "expunge.attacks.tampering:Prune",
        "quantise": "expunge.attacks.tampering:Quantise",
        "random-tokens": "expunge.attacks.random_tokens:RandomTokens",
        "relearning": "expunge.attacks.relearning:Relearning",
        "ring-a-bell": "expunge.attacks.ring_a_bell:RingABell",
        "ring-a-bell-rows": "expunge.attacks.ring_a_bell_rows:RingABellRows",
        "rows": "expunge.attacks.rows:Rows",
        "unlearn-diff-atk": "expunge.attacks.unlearn_diff_atk:UnlearnDiffAtk",
        "words": "expunge.attacks.words:Words",
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
