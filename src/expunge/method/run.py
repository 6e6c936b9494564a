"""What one training is about, and which part of it this process does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from torch import Tensor
from typing_extensions import TypeVar

from expunge.concepts import Policy
from expunge.method.student import Student
from expunge.models import Model

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")
Learns = TypeVar("Learns", bound=Student, default=Student, covariant=True)


@dataclass(frozen=True)
class Run(Generic[Learns]):
    """One training: of what, on what, with which seed, on which processes."""

    student: Learns
    policy: Policy
    seed: int
    folder: Path | None = None
    """Where what took long to make is kept for a resumed run."""
    accelerator: "Accelerator | None" = None
    """The processes that share the work; without it there is one."""

    @property
    def model(self) -> Model:
        return self.student.model

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def process(self) -> int:
        """Which of the processes this is, from 0; the first one writes the files."""
        return self.accelerator.process_index if self.accelerator else 0

    def own(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of some work."""
        return items[self.process :: self.processes]

    def gathered(self, own: Mapping[int, list[Tensor]]) -> dict[int, list[Tensor]]:
        """All processes' parts of numbered work, on all of them."""
        from accelerate.utils import gather_object

        if self.processes == 1:
            return dict(own)
        parts = gather_object([(n, [t.cpu() for t in row]) for n, row in own.items()])
        return {number: [t.to(self.model.device) for t in row] for number, row in parts}

    def agreed(self, values: Mapping[str, float]) -> dict[str, float]:
        """The first process's values, on all of them."""
        from accelerate.utils import broadcast_object_list

        shared = [dict(values)]
        if self.processes > 1:
            broadcast_object_list(shared)
        return shared[0]
