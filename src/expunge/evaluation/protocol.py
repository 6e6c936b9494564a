"""How the numbers of an evaluation were made; reports show it beside the numbers."""

from typing import Any

from expunge.evaluation.suite import Plan, Record
from expunge.files import digest


class Protocol(Record):
    """Everything that affects a number: prompts, seeds, sampler, judge, rules, versions."""

    plan: Plan
    model: str
    """What the user called the base model."""
    fingerprint: str
    """SHA-256 of the base model's weights."""
    sampler: dict[str, Any]
    """Scheduler, steps and guidance scale."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    device: str
    dtype: str
    judge: str
    judge_sha256: str
    decision: str
    """How the judge's probabilities become a label, with the threshold."""
    unit: str = (
        "one picture; each prompt is drawn once per seed from noise that seed and prompt decide, "
        "by the base and the edited model alike"
    )
    aggregation: str = (
        "shares over all pictures of a group with Wilson's 95 % interval; differences paired by "
        "prompt and seed with Newcombe's interval (method 10); means with a seeded bootstrap of "
        "2,000 resamples; pictures count as independent, so that intervals are somewhat narrow "
        "where several pictures share a prompt"
    )
    versions: dict[str, str]

    @property
    def id(self) -> str:
        """Twelve hex digits; two evaluations with the same id ask the same in the same way."""
        return digest(self.model_dump(mode="json"))[:12]
