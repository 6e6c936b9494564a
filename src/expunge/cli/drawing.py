"""Options of commands that draw."""

from typing import Annotated

from cyclopts import Parameter

from expunge.generation.sampler import Sampler

SamplerOptions = Annotated[Sampler, Parameter(name="*")]
USUAL_SAMPLER = Sampler()
