"""The interfaces of detectors, and the registry that finds them by name."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from expunge.registry import Registry

Images = Sequence[Image.Image]
"""RGB pictures; they may differ in size."""


class Identity(BaseModel):
    """Which network judged, with which weights; every protocol records it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    """Version of the package, or "" if the user gave a file."""
    sha256: str
    """Of the weights."""


class Detection(BaseModel):
    """One thing found in a picture."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    label: str
    score: float
    """0 to 1."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, width and height in pixels."""


class Known(Protocol):
    """A network that looks at pictures and says which weights it has."""

    @property
    def identity(self) -> Identity: ...


@runtime_checkable
class Detector(Known, Protocol):
    """Finds things of certain classes whose scores reach the network's own floor."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def floor(self) -> float:
        """Nothing that scores less is reported, whatever a protocol's threshold."""
        ...

    def detect(self, pictures: Images) -> list[tuple[Detection, ...]]:
        """Everything found in each picture, highest score first."""
        ...


@runtime_checkable
class Classifier(Known, Protocol):
    """Gives each of its labels a probability."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def probabilities(self, pictures: Images) -> Tensor:
        """``[pictures, labels]``, float32, rows that add up to 1."""
        ...


@runtime_checkable
class MultiHead(Known, Protocol):
    """Several classifiers on one network, e.g. of objects and of styles."""

    @property
    def heads(self) -> tuple[Classifier, ...]: ...


@runtime_checkable
class Extractor(Known, Protocol):
    """Features for distances between pictures or sets of them."""

    def features(self, pictures: Images) -> Tensor:
        """``[pictures, width]``, float32."""
        ...


@runtime_checkable
class ImageText(Known, Protocol):
    """How well texts fit pictures."""

    def scores(self, pictures: Images, texts: Sequence[str]) -> Tensor:
        """100 times the cosine of each picture with its own text, ``[pictures]``, unclamped."""
        ...

    def zero_shot(self, labels: Sequence[str], template: str = ...) -> Classifier:
        """A classifier that chooses among ``labels``, each put into ``template``."""
        ...


DETECTORS: Registry[Any] = Registry(
    "detector",
    {
        "alexnet": "expunge.detectors.alexnet:build",
        "classifier": "expunge.detectors.image_classifier:build",
        "clip": "expunge.detectors.clip:build",
        "efficientnet": "expunge.detectors.efficientnet:EfficientNetLite0",
        "emoji": "expunge.detectors.emoji:build",
        "faces": "expunge.detectors.faces:People",
        "inception": "expunge.detectors.inception:build",
        "nudenet": "expunge.detectors.nudenet:NudeNet",
        "opennsfw": "expunge.detectors.opennsfw:OpenNSFW",
        "q16": "expunge.detectors.q16:build",
        "trained": "expunge.detectors.trained:build",
    },
    entry_points="expunge.detectors",
)
"""Each place holds a callable ``build(weights: str) -> Detector | Classifier | ...``."""


def detector(name: str) -> Any:
    """The detector called ``name``, or ``name:weights`` with a file or folder of weights.

    Raises:
        ExpungeError: there is none of this name, its package isn't installed, or its weights
            can't be read; the message says what to install or give.
    """
    kind, _, weights = name.partition(":")
    return DETECTORS.get(kind)(weights)
