"""What methods, edits and measurements need of a text-to-image pipeline, whatever its family."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from expunge.errors import Unsupported
from expunge.models import roles
from expunge.models.attention import Look, Projections
from expunge.models.condition import Condition
from expunge.models.process import Process
from expunge.models.text import TextEncoder, TextInput
from expunge.models.weights import Lock, Weights

BLOCK = 64
"""Prompts that are encoded side by side."""

Answer = Callable[[Tensor, Tensor, Condition], Tensor]
"""What a denoiser answers: of latents ``[batch, ...]``, time ``[batch]`` and condition, shaped like
the latents."""

Hear = Callable[[Tensor, Tensor], None]
"""Called with rows ``[batch, tokens, width]`` and the token ids ``[batch, tokens]`` that they are
of, where -1 is a token that has no id."""


class Listening:
    """Somebody who is told of every text that is encoded, until ``remove``."""

    def __init__(self, all_hearing: list[Hear], hear: Hear, network: nn.Module) -> None:
        self.all_hearing = all_hearing
        self.hear = hear
        self.handle = network.register_forward_hook(self._listen, with_kwargs=True)
        all_hearing.append(hear)

    def _listen(
        self, network: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> None:
        self.hear(output[0].detach(), args[0] if args else options["input_ids"])

    def remove(self) -> None:
        self.all_hearing.remove(self.hear)
        self.handle.remove()


class DenoiserCall(Protocol):
    """A call of the denoiser, by a pipeline or by ``Model.predict``, in the seam's own terms."""

    @property
    def latents(self) -> Tensor: ...
    @property
    def time(self) -> Tensor: ...
    @property
    def condition(self) -> Condition: ...

    def run(
        self, forward: Callable[..., Any], latents: Tensor, time: Tensor, condition: Condition
    ) -> Tensor:
        """What ``forward`` answers to this call with other latents, time and condition."""
        ...

    def result(self, answer: Tensor) -> Any:
        """An answer in the form that the caller expects."""
        ...


Call = Callable[[Sequence[Any], Mapping[str, Any]], DenoiserCall]
"""A call of the denoiser from its arguments."""


class Model(ABC):
    """A thin view of a diffusers pipeline: encode, predict, decode, and parameters by role.

    The pipeline stays the user's own; an applied edit shows in it at once. Other layers see a
    pipeline through this class alone. A family of pipelines is a subclass, registered by the
    name of the pipeline's class (``expunge.models.FAMILIES``).

    ``lock`` is held by whoever changes the model or draws with it.
    """

    family: ClassVar[str]
    """What the family is called, e.g. ``sd``."""
    roles: ClassVar[roles.Roles]
    """The selection of each role's parameters."""

    def __init__(self, pipe: Any, name: str = "") -> None:
        self.pipe = pipe
        self.name = name or type(pipe).__name__
        self.lock = Lock()
        self.weights = Weights(self.denoiser)
        self.attached: dict[type, Any] = {}
        """What upper layers keep with the model, by its class; a copy of the model has its own."""
        self.remembered: dict[str, Condition] = {}
        """What ``remember`` was given, by prompt."""
        self._hearing: list[Hear] = []

    # --- the parts of a family

    @property
    @abstractmethod
    def denoiser(self) -> nn.Module:
        """The network whose answers draw pictures; its parameters are what edits change."""

    @property
    @abstractmethod
    def text_encoders(self) -> tuple[TextEncoder, ...]:
        """In the order of ``embed``'s arguments."""

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
    def embed(self, *texts: TextInput) -> Condition:
        """The condition of a batch of texts, one input for each text encoder.

        Gradients reach the inputs' ``rows`` and the text encoders' parameters that want them, from
        the denoiser and through gates. Gates are told the token ids, but for replaced ones.
        """

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
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures as bytes ``[batch, height, width, 3]`` on the CPU, rounded as the field does."""

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
    def parts(self) -> tuple[nn.Module, ...]:
        """The networks beside the denoiser."""
        return (*(encoder.network for encoder in self.text_encoders), self.decoder)

    @property
    def source(self) -> Path:
        """The folder that the denoiser was loaded from; the working folder if it doesn't say."""
        return Path(str(self.denoiser.config.get("_name_or_path") or ""))  # type: ignore[operator,union-attr]

    def cast(self, dtype: torch.dtype) -> None:
        """Change the precision of the whole pipeline, in place."""
        self.pipe.to(dtype=dtype)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the pipeline as it is now, as a diffusers folder."""
        self.pipe.save_pretrained(folder, safe_serialization=True)

    # --- text

    @property
    def window(self) -> int:
        """Tokens of a prompt at most, with start and end, in the first text encoder."""
        return self.text_encoders[0].window

    def read(self, prompts: Sequence[str]) -> tuple[TextInput, ...]:
        """Prompts as ``embed`` takes them."""
        return tuple(encoder.read(prompts) for encoder in self.text_encoders)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """What the denoiser is told of each prompt, cut to the window; without gradients."""
        known = {p: self.remembered[p] for p in prompts if p in self.remembered}
        unknown = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        for start in range(0, len(unknown), BLOCK):
            batch = unknown[start : start + BLOCK]
            with torch.no_grad():
                made = self.embed(*self.read(batch))
            known.update((prompt, made[at : at + 1]) for at, prompt in enumerate(batch))
        return Condition.cat([known[prompt] for prompt in prompts])

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """The rows of each prompt's condition, ``[prompts, tokens, width]``."""
        return self.condition(prompts).rows

    def encode_rows(self, prompts: Sequence[str], positions: Sequence[int]) -> Tensor:
        """One row of each prompt's condition, ``[prompts, width]``.

        Where a row doesn't depend on what follows it, as in CLIP, nothing after it is computed: for
        a few words that is a tenth of the work.
        """
        wanted = list(zip(prompts, positions, strict=True))
        known = {
            (p, at): self.remembered[p].rows[0, at] for p, at in wanted if p in self.remembered
        }
        unknown = sorted({*wanted} - known.keys(), key=lambda pair: (pair[1], pair[0]))
        for start in range(0, len(unknown), BLOCK):
            batch = unknown[start : start + BLOCK]
            encoded = self._first_rows([prompt for prompt, _ in batch], batch[-1][1] + 1)
            known.update((pair, rows[pair[1]]) for pair, rows in zip(batch, encoded, strict=True))
        return torch.stack([known[pair] for pair in wanted])

    def _first_rows(self, prompts: Sequence[str], count: int) -> Tensor:
        """At least the first ``count`` rows of each prompt, ``[prompts, rows, width]``."""
        return self.encode(prompts)

    def unconditional(self) -> Condition:
        """What guidance leads away from when drawing: a condition of one prompt."""
        return self.condition([""])

    def remember(self, conditions: Mapping[str, Condition]) -> None:
        """Use these conditions, of one prompt each, for these prompts from now on."""
        self.remembered.update({prompt: one.to(self.device) for prompt, one in conditions.items()})

    def tokens(self, prompt: str) -> list[int]:
        """Token ids of a prompt without its start and end, in the first text encoder."""
        return self.tokenized([prompt])[0]

    def tokenized(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt without its start and end, in the first text encoder."""
        if not prompts:
            return []
        ids = self.text_encoders[0].tokenize(prompts)["input_ids"]
        return [row[1:-1] for row in ids]

    def last_token(self, prompt: str) -> int:
        """Row of a prompt's last word piece; 0, the start row, for an empty prompt."""
        return len(self.tokens(prompt))

    def text_fingerprint(self) -> str:
        """SHA-256 of the text encoders' weights in their order, rounded to half precision.

        Without their names, which differ between versions of transformers.
        """
        total = hashlib.sha256()
        for encoder in self.text_encoders:
            for value in encoder.network.parameters():
                _update(total, "", value)
        return total.hexdigest()

    def listen(self, hear: Hear) -> "Listening":
        """Tell ``hear`` of every text that is encoded from now on, by the pipeline too.

        Raises:
            Unsupported: rows come from several text encoders.
        """
        if len(self.text_encoders) > 1:
            raise Unsupported(
                f"{self.name!r} has {len(self.text_encoders)} text encoders; following tokens "
                "through them isn't there yet"
            )
        return Listening(self._hearing, hear, self.text_encoders[0].network)

    def _tell_replaced(self, rows: Tensor, text: TextInput) -> None:
        """Correct what was heard of a text: a replaced token has no id."""
        if text.at is None:
            return
        ids = text.ids.clone()
        ids[torch.arange(len(ids))[:, None], text.at.to(ids.device)] = -1
        for hear in self._hearing:
            hear(rows.detach(), ids)

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
        found = {role: self.parameters(role) for role in (*self.roles, "all")}
        return {role: names for role, names in found.items() if names}

    def base_weight(self, name: str) -> Tensor:
        """A parameter of the denoiser as it is without any edit."""
        return self.weights.base(name)

    def fingerprint(self, names: Iterable[str] | None = None) -> str:
        """SHA-256 of base weights, after rounding to half precision.

        Rounded, the half-precision and the full-precision file of one model agree. ``names``
        are parameters of the denoiser; without them the other networks count too.
        """
        total = hashlib.sha256()
        if names is None:
            for part in self.parts:
                for name, value in sorted(part.state_dict().items()):
                    _update(total, name, value)
            names = [name for name, _ in self.denoiser.named_parameters()]
        for name in sorted(names):
            _update(total, name, self.base_weight(name))
        return total.hexdigest()

    @contextmanager
    def answered_by(self, answer: Answer) -> Iterator[None]:
        """Inside, ``answer`` answers where the denoiser would; it never runs."""
        own = vars(self.denoiser)
        before = own.get("forward")  # where offloading has put its own

        def forward(*args: Any, **options: Any) -> Any:
            call = self.call(args, options)
            return call.result(answer(call.latents, call.time, call.condition))

        own["forward"] = forward
        try:
            yield
        finally:
            del own["forward"]
            if before:
                own["forward"] = before


def _update(total: "hashlib._Hash", name: str, value: Tensor) -> None:
    total.update(f"{name}{tuple(value.shape)}".encode())
    total.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
