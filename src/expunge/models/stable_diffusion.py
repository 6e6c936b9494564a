"""A thin view of a diffusers ``StableDiffusionPipeline`` (Stable Diffusion 1.x and 2.x)."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError, Unsupported
from expunge.models.roles import select

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from expunge.edits.component import Component


class Removable(Protocol):
    """Something at work in a model until it is removed."""

    def remove(self) -> None: ...


class Model:
    """What the methods need of a pipeline: encode, predict, decode, and parameters by role.

    The pipeline stays the user's own; an applied edit shows in it at once. Several edits can be
    applied: each weight is then its base value plus the sum of their changes, so that any of
    them can be taken out again and the last one leaves the base bit for bit.
    """

    def __init__(self, pipe: "StableDiffusionPipeline", name: str = "") -> None:
        self.pipe = pipe
        self.name = name or type(pipe).__name__
        self.components: tuple[Component, ...] = ()
        """The parts of the edits applied now, in order."""
        self._base: dict[str, Tensor] = {}
        self.embeddings: dict[str, Tensor] = {}
        """What ``remember`` was given, by prompt; each ``[tokens, width]``."""
        self.gates: Removable | None = None
        """What the edits applied now add to the outputs of modules."""

    @property
    def unet(self) -> nn.Module:
        unet: nn.Module = self.pipe.unet
        return unet

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents at the model's own picture size."""
        config = self.pipe.unet.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the model's own pictures."""
        _, height, width = self.latent_shape
        return height * self.pipe.vae_scale_factor, width * self.pipe.vae_scale_factor

    @property
    def text_width(self) -> int:
        """Width of one row of the prompt embedding."""
        return int(self.pipe.unet.config.cross_attention_dim)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The networks beside the UNet."""
        return self.pipe.text_encoder, self.pipe.vae

    # --- text

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Text-encoder output of each prompt, ``[prompts, tokens, width]``, cut to the window."""
        known = {p: self.embeddings[p] for p in prompts if p in self.embeddings}
        unknown = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        for start in range(0, len(unknown), 64):
            batch = unknown[start : start + 64]
            known.update(zip(batch, self._encode(batch), strict=True))
        return torch.stack([known[prompt] for prompt in prompts])

    def encode_rows(self, prompts: Sequence[str], positions: Sequence[int]) -> Tensor:
        """One row of each prompt's embedding, ``[prompts, width]``.

        A row of CLIP's text encoder doesn't depend on what follows it, so nothing after the row
        is computed: for a few words that is a tenth of the work.
        """
        wanted = list(zip(prompts, positions, strict=True))
        known = {(p, at): self.embeddings[p][at] for p, at in wanted if p in self.embeddings}
        unknown = sorted({*wanted} - known.keys(), key=lambda pair: (pair[1], pair[0]))
        for start in range(0, len(unknown), 64):
            batch = unknown[start : start + 64]
            encoded = self._encode([prompt for prompt, _ in batch], batch[-1][1] + 1)
            known.update((pair, rows[pair[1]]) for pair, rows in zip(batch, encoded, strict=True))
        return torch.stack([known[pair] for pair in wanted])

    @torch.no_grad()
    def _encode(self, prompts: list[str], length: int | None = None) -> Tensor:
        """Embeddings ``[prompts, tokens, width]``; at least the first ``length`` rows."""
        from transformers import CLIPTextModel

        tokens = self._tokenize(prompts, padding="max_length", return_tensors="pt")
        encoder = self.pipe.text_encoder
        end = length if isinstance(encoder, CLIPTextModel) else None
        masked = getattr(encoder.config, "use_attention_mask", False)
        output = encoder(
            tokens.input_ids[:, :end].to(encoder.device),
            attention_mask=tokens.attention_mask[:, :end].to(encoder.device) if masked else None,
        )
        rows: Tensor = output.last_hidden_state.to(self.device)
        return rows

    def _tokenize(self, prompts: list[str], **options: Any) -> Any:
        tokenizer = self.pipe.tokenizer
        return tokenizer(prompts, truncation=True, max_length=tokenizer.model_max_length, **options)

    def remember(self, embeddings: Mapping[str, Tensor]) -> None:
        """Use these embeddings (each ``[tokens, width]``) for these prompts from now on."""
        self.embeddings.update(
            {prompt: rows.to(self.device) for prompt, rows in embeddings.items()}
        )

    def tokens(self, prompt: str) -> list[int]:
        """Token ids of a prompt without its start and end."""
        return self.tokenized([prompt])[0]

    def tokenized(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt without its start and end."""
        if not prompts:
            return []
        return [ids[1:-1] for ids in self._tokenize(list(prompts))["input_ids"]]

    def last_token(self, prompt: str) -> int:
        """Row of a prompt's last word piece; 0, the start row, for an empty prompt."""
        return len(self.tokens(prompt))

    # --- pictures

    def condition(self, prompts: Sequence[str]) -> Tensor:
        """What the noise is predicted from for each prompt, ``[prompts, rows, width]``."""
        return self.encode(prompts)

    def unconditional(self) -> Tensor:
        """What guidance leads away from when drawing, ``[1, rows, width]``."""
        return self.condition([""])

    def predict_noise(self, latents: Tensor, timestep: Tensor | int, embeddings: Tensor) -> Tensor:
        """The UNet's noise prediction, shaped like ``latents`` ``[batch, channels, h, w]``.

        ``embeddings`` are conditions, ``[batch, rows, width]``.
        """
        noise: Tensor = self.unet(latents, timestep, encoder_hidden_states=embeddings).sample
        return noise

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures as bytes ``[batch, height, width, 3]`` on the CPU, rounded as the field does."""
        vae = self.pipe.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor
        pictures = vae.decode(scaled, return_dict=False)[0].float()
        levels = (pictures / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        rows: Tensor = levels.permute(0, 2, 3, 1).contiguous().cpu()
        return rows

    # --- weights

    def select(self, role: str) -> tuple[str, ...]:
        """Names of the UNet parameters of a role (see ``models.roles``)."""
        return select(self.unet, role)

    def base_weight(self, name: str) -> Tensor:
        """A UNet parameter as it is without any edit."""
        return self._base[name] if name in self._base else self.unet.get_parameter(name).detach()

    @torch.no_grad()
    def write(self, weights: Mapping[str, Tensor | None]) -> None:
        """Replace UNet parameters in place; ``None`` puts the base value back, bit for bit."""
        for name, weight in weights.items():
            parameter = self.unet.get_parameter(name)
            if weight is None:
                parameter.copy_(self._base.pop(name))
            else:
                self._base.setdefault(name, parameter.detach().clone())
                parameter.copy_(weight)

    def fingerprint(self, names: Iterable[str] | None = None) -> str:
        """SHA-256 of base weights, after rounding to half precision.

        Rounded, the half-precision and the full-precision file of one model agree. ``names``
        are UNet parameters; without them the other networks count too.
        """
        digest = hashlib.sha256()
        if names is None:
            for part in self.parts:
                for name, value in sorted(part.state_dict().items()):
                    _update(digest, name, value)
            names = [name for name, _ in self.unet.named_parameters()]
        for name in sorted(names):
            _update(digest, name, self.base_weight(name))
        return digest.hexdigest()


def _update(digest: "hashlib._Hash", name: str, value: Tensor) -> None:
    digest.update(f"{name}{tuple(value.shape)}".encode())
    digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())


def load(
    source: "str | os.PathLike[str] | StableDiffusionPipeline" = "emoji",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "auto",
) -> Model:
    """A model from ``"emoji"`` (the bundled one), a folder, a hub id, or a live pipeline.

    Args:
        source: a live pipeline is taken as it is, without a change of ``dtype`` or ``device``.
        dtype: precision of the weights.
        device: ``"auto"`` takes a GPU when there is one; each of several launched processes
            takes its own.

    Raises:
        ExpungeError: nothing loadable is there, it is no Stable Diffusion 1.x/2.x pipeline, or
            there are fewer GPUs than processes.
    """
    if not isinstance(source, str | os.PathLike):
        return Model(_supported(source, type(source).__name__))
    from diffusers import DiffusionPipeline

    place = str(source)
    if place == "emoji":
        from expunge.models.emoji import pipeline_path

        folder = str(pipeline_path())
    else:
        folder = place
    local = Path(folder).is_dir()
    if not local and (Path(folder).exists() or folder.startswith((".", "/")) or "/" not in folder):
        raise ExpungeError(
            f"no model at {place!r}; give 'emoji', a folder with a model_index.json, or a hub id"
        )
    try:
        with quietly():
            pipe = DiffusionPipeline.from_pretrained(
                folder, dtype=dtype, local_files_only=local, safety_checker=None
            )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExpungeError(f"can't load the model {place!r}: {reason}") from error
    pipe.set_progress_bar_config(disable=True)
    where = _own_device() if device == "auto" else device
    return Model(_supported(pipe, place).to(where), name=place)


def _own_device() -> str:
    """The CPU, or the GPU of this process, which launchers count in ``LOCAL_RANK``."""
    if not torch.cuda.is_available():
        return "cpu"
    number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= count:
        raise ExpungeError(f"process {number + 1} has no GPU, there are {count}; launch fewer")
    return f"cuda:{number}"


@contextmanager
def quietly() -> Iterator[None]:
    """Keep loading bars and remarks about unused image processors off the user's screen."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar()


def _supported(pipe: Any, name: str) -> "StableDiffusionPipeline":
    from diffusers import StableDiffusionPipeline

    if not isinstance(pipe, StableDiffusionPipeline):
        raise Unsupported(
            f"{name!r} is a {type(pipe).__name__}; only StableDiffusionPipeline (1.x, 2.x) is "
            "supported so far"
        )
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval()
    return pipe
