"""CiE: the concept-irrelevant erasure of SepME (Zhao et al., arXiv 2402.05947, 2024).

What a model knows of a concept ``c`` at the latents ``x`` is the difference that its words make::

    r(x, t) = f0(x, t, c) - f0(x, t, a)        frozen model, a the empty prompt
    r'(x, t) = f(x, t, c) - f(x, t, a)         trained model

Training removes the part of ``r'`` along ``r``, with little change of the weights ``W_j``::

    L = D + beta R,    D = mean(r' r),    R = mean over j of |W_j - W0_j|_1

``D`` has no lower bound, so training ends when a running mean of it, m_0 = D_0 and
m_i = 0.9 m_(i-1) + 0.1 D_i, falls below a threshold. The test starts at the twelfth step.

``corrected``, the default, measures ``D`` and ``R`` as shares of the frozen model's values, so that
one threshold suits every concept and model. Concepts take turns until each is below the threshold;
a concept whose ``D`` has reached 0 isn't pushed further. The latents and ``r`` come from
trajectories of the frozen model. A concept's replacement, if it has one, is its ``a``. The keys and
values of every ``a`` and of the prompts to keep are held. ``original`` is the released program.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from expunge.method.base import Fixed, PolicyPart
from expunge.method.student import Student
from expunge.method.training import TrainedWeights
from expunge.methods.sepme.training import RELEASED, SepME


class CiE(SepME[Student], TrainedWeights):
    """Fine-tuning until the concept's words no longer make their old difference."""

    name: ClassVar[str] = "cie"
    title: ClassVar[str] = "Concept-irrelevant erasure (SepME)"
    released: ClassVar[Mapping[str, Any]] = {"train_method": "x", **RELEASED}
    released_ignored: ClassVar[frozenset[PolicyPart]] = frozenset({"keep", "anchor"})
    released_fixed: ClassVar[Fixed] = {**TrainedWeights.released_fixed, **SepME.released_fixed}
