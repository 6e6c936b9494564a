"""The model that another one is compared with."""

from collections.abc import Callable
from dataclasses import dataclass, field

from expunge.errors import ExpungeError
from expunge.evaluation.records import ComparedModel
from expunge.generation import Sampler
from expunge.generation.sampler import native_scheduler
from expunge.models import Model


@dataclass
class Base:
    """The model to compare with."""

    load: Callable[[], Model]
    """Called once; the model is freed when its pictures are drawn."""
    model: Model | None = field(default=None, init=False)
    """From before the first picture until its own are drawn."""
    source: ComparedModel | None = field(default=None, init=False)

    def loaded(self, beside: Model, sampler: Sampler) -> Model:
        """The model to compare with ``beside``.

        Raises:
            ExpungeError: their pictures can't be compared one by one.
        """
        other = self.load()
        if other.image_size != beside.image_size:
            raise ExpungeError(
                f"{other.name!r} draws {other.image_size[0]}×{other.image_size[1]} pictures, "
                f"{beside.name!r} {beside.image_size[0]}×{beside.image_size[1]}; they can't be "
                "compared one by one"
            )
        own, its = (native_scheduler(one, Sampler.of(beside, sampler)) for one in (beside, other))
        if own != its:
            raise ExpungeError(
                f"{other.name!r} has another scheduler of its own ({its}) than {beside.name!r} "
                f"({own}), so their pictures would differ whatever was erased; name one for both, "
                "e.g. --scheduler ddim"
            )
        self.model = other
        self.source = ComparedModel(name=other.name, fingerprint=other.fingerprint())
        return other
