"""What methods, edits and measurements need of a text-to-image pipeline, whatever its family."""

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.errors import Unsupported
from expunge.models import roles
from expunge.models.attention import Look, Projections
from expunge.models.calls import Answer, Call, DenoiserCall
from expunge.models.condition import Condition
from expunge.models.frozen import Freezer
from expunge.models.hashing import Each, Roundings, digest
from expunge.models.on_disk import Skeleton
from expunge.models.passes import Pass
from expunge.models.process import Process
from expunge.models.prompting import Prompting
from expunge.models.sampling import USUAL, Sampling
from expunge.models.skips import Reroute
from expunge.models.weights import Lock, Weights


class Model(Prompting):
    """A thin view of a diffusers pipeline: encode, predict, decode, and parameters by role.

    The pipeline stays the user's own; an applied edit shows in it at once. Other layers see a
    pipeline through this class alone. A family of pipelines is a subclass, registered by the
    name of the pipeline's class (``expunge.models.FAMILIES``).

    ``lock`` is held by whoever changes the model, and lent to each batch that is drawn with it.
    """

    family: ClassVar[str]
    """What the family is called, e.g. ``sd``."""
    roles: ClassVar[roles.Roles]
    """The selection of each role's parameters."""

    def __init__(self, pipe: Any, name: str = "") -> None:
        super().__init__()
        self.pipe = pipe
        self.name = name or type(pipe).__name__
        self.lock = Lock()
        self.weights = Weights(self.denoiser)
        self._freezer = Freezer()
        self.attached: dict[type, Any] = {}
        """What upper layers keep with the model, by its class; a copy of the model has its own."""

    # --- the parts of a family

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The network whose answers draw pictures; its parameters are what edits change."""

    @property
    @abstractmethod
    def decoder(self) -> nn.Module:
        """The autoencoder between pictures and latents."""

    @property
    @abstractmethod
    def process(self) -> Process:
        """Its noise."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents at the model's own picture size."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the model's own pictures."""

    @property
    @abstractmethod
    def text_width(self) -> int:
        """Width of one row of a condition."""

    @abstractmethod
    def predict(self, latents: Tensor, time: Tensor | int, condition: Condition) -> Tensor:
        """The denoiser's answer, shaped like ``latents`` ``[batch, channels, height, width]``.

        It is noise or a velocity, as ``process.prediction`` says; ``time`` is a number, or one a
        row.
        """

    @staticmethod
    @abstractmethod
    def call(args: Sequence[Any], options: Mapping[str, Any]) -> DenoiserCall:
        """A call of the denoiser from its arguments."""

    @abstractmethod
    def posterior(self, colours: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the latents of pictures, ``[pictures, channels, h, w]`` float32.

        ``colours`` are ``[pictures, 3, height, width]`` in -1..1.
        """

    @abstractmethod
    def colours(self, latents: Tensor) -> Tensor:
        """Colours ``[batch, 3, height, width]`` float32, about -1..1, with gradients."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures as bytes ``[batch, height, width, 3]`` on the CPU, rounded as the field does."""

    # --- how it is used

    @property
    def whole(self) -> bool:
        """Whether it can draw; if not, its denoiser is on disk (``load(..., whole=False)``)."""
        return not isinstance(self.denoiser, Skeleton)

    @property
    def bundled(self) -> bool:
        """Whether it is the model that comes with the package, edited or not."""
        return False

    @property
    def usual_sampling(self) -> Sampling:
        """How pictures are drawn with it where nothing else is said."""
        return USUAL

    # --- where it is

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        device = next(self.denoiser.parameters()).device
        return self.pipe._execution_device if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's precision."""
        return next(self.denoiser.parameters()).dtype

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All networks of the pipeline, by the names that it gives them."""
        parts: dict[str, Any] = self.pipe.components
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    @property
    def classes(self) -> dict[str, str]:
        """The names of their classes."""
        return {
            name: str(getattr(network, "stands_for", type(network).__name__))
            for name, network in self.networks.items()
        }

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The networks beside the denoiser."""
        return (*(encoder.network for encoder in self.text_encoders), self.decoder)

    @property
    def source(self) -> Path:
        """The folder that the denoiser was loaded from; the working folder if it doesn't say."""
        return Path(str(self.denoiser.config.get("_name_or_path") or ""))  # type: ignore[operator,union-attr]

    def frozen(self) -> AbstractContextManager[None]:
        """Inside, its networks are in evaluation mode and no parameter wants gradients.

        After the last thread has left, each has the flags that it had. Drawing, reading prompts
        and making edits happen inside.
        """
        return self._freezer(lambda: (self.denoiser, *self.parts) if self.whole else ())

    def cast(self, dtype: torch.dtype) -> None:
        """Change the precision of the whole pipeline, in place."""
        self.pipe.to(dtype=dtype)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the pipeline as it is now, as a diffusers folder."""
        self.pipe.save_pretrained(folder, safe_serialization=True)

    def check_draws(self) -> None:
        """Check that it can draw, or learn from what it draws, before either begins.

        Raises:
            Unsupported: it needs more than latents, a time and a prompt.
        """

    # --- attention

    def attention_read(self, read: Callable[[Look], Tensor] | None = None) -> Any:
        """Inside this context, collect what ``read`` makes of every look at the prompt.

        ``with model.attention_read(read) as seen:`` gives tensors by layer, in the order of the
        pass; by default the attention ``[batch, heads, pixels, tokens]``.

        Raises:
            Unsupported: the family has no attention to the prompt alone.
        """
        raise Unsupported(f"{self.name!r} has no attention to the prompt alone that could be read")

    def projections_changed(self, change: Callable[[Tensor], Tensor]) -> Any:
        """Inside this context, ``change`` is applied to all keys and values of the prompts.

        Raises:
            Unsupported: the family has no keys and values of the prompt alone.
        """
        raise Unsupported(f"{self.name!r} has no keys and values of the prompt alone")

    def projections_beside(self, name: str) -> Projections:
        """The matrices of the attention that a key or value projection ``name`` belongs to.

        Raises:
            Unsupported: the family has no keys and values of the prompt alone.
        """
        raise Unsupported(f"{self.name!r} has no keys and values of the prompt alone")

    def values_then_keys(self) -> tuple[str, ...]:
        """Value projections of the prompt, then its key projections, in the order of old files.

        Raises:
            Unsupported: the family has no keys and values of the prompt alone.
        """
        raise Unsupported(f"{self.name!r} has no keys and values of the prompt alone")

    def skips_changed(self, reroute: Callable[[], Reroute | None]) -> list[Pass]:
        """Passes of the denoiser's upper blocks that hand on what ``reroute()`` makes of skips.

        Raises:
            Unsupported: the family's denoiser is no UNet.
        """
        raise Unsupported(f"the denoiser of {self.name!r} is no UNet and has no skip features")

    # --- weights

    def select(self, selection: str) -> tuple[str, ...]:
        """Names of the parameters of a role, or of a selection (see ``models.roles``).

        Raises:
            ExpungeError: nothing is selected, or what is couldn't be edited.
        """
        self.weights.check()
        return roles.select(self.denoiser, self.roles, selection)

    def parameters(self, selection: str) -> tuple[str, ...]:
        """Names of the parameters of a selection, perhaps none."""
        return roles.parameters(self.denoiser, self.roles, selection)

    @property
    def members(self) -> dict[str, tuple[str, ...]]:
        """The parameters of every role that any plays, and of ``all``."""
        return roles.members(self.denoiser, self.roles)

    def base_weight(self, name: str) -> Tensor:
        """A parameter of the denoiser as it is without any edit."""
        return self.weights.base(name)

    def fingerprint(self, names: Iterable[str] | None = None) -> str:
        """SHA-256 of base weights, after rounding to half precision.

        Rounded, the half-precision and the full-precision file of one model agree. ``names``
        are parameters of the denoiser; without them the other networks count too.
        """
        if names is not None:
            return digest(self._base_weights(names))
        beside = [pair for part in self.parts for pair in sorted(part.state_dict().items())]
        entries = self._base_weights(roles.names(self.denoiser)).entries
        return digest(Each([*((name, value.detach) for name, value in beside), *entries]))

    def roundings(self, names: Iterable[str]) -> Roundings:
        """What tells base weights of the denoiser in bfloat16 from those of another model."""
        return Roundings.of(self._base_weights(names))

    def _base_weights(self, names: Iterable[str]) -> Each:
        entries = [(name, partial(self.base_weight, name)) for name in sorted(names)]
        return Each(entries, self.weights.stamp)

    @contextmanager
    def answered_by(self, answer: Answer) -> Iterator[None]:
        """Inside, ``answer`` answers where the denoiser would; it never runs."""
        standing_in = _Answered(self.denoiser, self.call, answer)
        try:
            yield
        finally:
            standing_in.remove()


class _Answered(Pass):
    """The denoiser's forward pass with answers from elsewhere."""

    def __init__(self, denoiser: nn.Module, call: Call, answer: Answer) -> None:
        super().__init__(denoiser)
        self.call = call
        self.answer = answer

    def __call__(self, *args: Any, **options: Any) -> Any:
        call = self.call(args, options)
        return call.result(self.answer(call.latents, call.time, call.condition))
