"""What every stage shares: the work folder, checkpoints, progress, autocast and the drawings."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from left_out import NOTHING, RECORD, LeftOut, remembered
from torch import Tensor, nn

from expunge.models.emoji.vocabulary import Catalog

HERE = Path(__file__).parent
PACKAGE = HERE.parent.parent / "src" / "expunge" / "models" / "emoji"
SIZE = 64


@dataclass
class Settings:
    """The options every stage takes."""

    work: Path
    device: str
    threads: int
    seed: int
    without: LeftOut = NOTHING

    def folder(self, name: str) -> Path:
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with the options of :class:`Settings`."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--work", type=Path, default=HERE / "work")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options.add_argument("--seed", type=int, default=0)
    unseen = "that the model never sees; the work folder remembers them"
    options.add_argument(
        "--without", nargs="+", default=[], metavar="NAME", help=f"objects {unseen}"
    )
    options.add_argument(
        "--without-style", nargs="+", default=[], metavar="NAME", help=f"styles {unseen}"
    )
    return options


def settings(args: argparse.Namespace) -> Settings:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    asked = LeftOut(frozenset(args.without), frozenset(args.without_style))
    without = remembered(args.work, asked)
    if without and not (args.work / RECORD).exists():
        args.work.mkdir(parents=True, exist_ok=True)
        write_json(args.work / RECORD, without.record())
    return Settings(args.work, args.device, args.threads, args.seed, without)


def precision(device: str | torch.device) -> torch.dtype:
    """bf16 on both kinds of device (fp16 would need loss scaling), float32 on older CPUs: without
    AVX-512 they take 30 times as long in bf16."""
    slow = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return torch.float32 if torch.device(device).type == "cpu" and slow else torch.bfloat16


def autocast(device: str) -> AbstractContextManager[None]:
    dtype = precision(device)
    enabled = dtype is not torch.float32
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=enabled)


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Let ``save`` write beside ``path``, then rename: a reader never meets half a file."""
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    save(beside)
    for written in (beside, *beside.rglob("*")):  # safetensors writes files only the owner reads
        written.chmod(0o755 if written.is_dir() else 0o644)
    if path.is_dir():  # a folder can't be renamed over one with content
        shutil.rmtree(path)
    os.replace(beside, path)


def write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=1)
    write(path, lambda beside: beside.write_text(text + "\n", encoding="utf-8"))


Network = TypeVar("Network", bound=nn.Module)


def prepare(network: Network, device: str) -> Network:
    """On the device, channels last: convolutions on a CPU are several times slower without."""
    network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


@dataclass
class Checkpoint:
    """State that survives ``kill -9``: ``parts`` are anything with a state dict."""

    path: Path
    parts: dict[str, Any]
    every: float = 120.0
    saved: float = field(default_factory=time.monotonic)

    def load(self) -> int:
        """The step to continue from, 0 when there is nothing yet."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        torch.set_rng_state(state["rng"])
        return int(state["step"])

    def save(self, step: int, force: bool = False) -> None:
        if not force and time.monotonic() - self.saved < self.every:
            return
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        state = {"step": step, "rng": torch.get_rng_state(), "parts": parts}
        write(self.path, lambda path: torch.save(state, path))
        self.saved = time.monotonic()


class Ema:
    """An exponential moving average of a module's weights, with the usual warm-up."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {name: value.detach().clone() for name, value in self._items(module)}

    @staticmethod
    def _items(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        yield from module.named_parameters()

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        names, values = zip(*self._items(module), strict=True)
        torch._foreach_lerp_([self.average[name] for name in names], values, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            self.average[name].copy_(value)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, value in self._items(module):
            value.copy_(self.average[name])


class Progress:
    """A line now and then: step, loss, time left."""

    def __init__(self, name: str, start: int, end: int, every: float = 20.0) -> None:
        self.name, self.start, self.end, self.every = name, start, end, every
        self.began = self.printed = time.monotonic()

    def __call__(self, step: int, **numbers: float) -> None:
        now = time.monotonic()
        if now - self.printed < self.every and step != self.end:
            return
        self.printed = now
        rate = (now - self.began) / max(step - self.start, 1)
        left = rate * (self.end - step)
        shown = "  ".join(f"{key} {value:.4f}" for key, value in numbers.items())
        print(
            f"{self.name} {step}/{self.end}  {shown}  {rate:.2f} s/step, {left / 60:.1f} min left",
            flush=True,
        )


@dataclass
class Drawings:
    """The drawings of a catalogue: ``rgba`` is [objects, styles, R, R, 4] uint8."""

    rgba: Tensor
    catalog: Catalog

    @classmethod
    def load(cls, work: Path, without: LeftOut = NOTHING) -> Drawings:
        """All that are not left out, with the catalogue of these."""
        path = work / "drawings.npz"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run render.py first")
        rgba = torch.from_numpy(np.load(path)["rgba"])
        return cls(rgba[without.kept_objects][:, without.kept_styles], without.catalog())

    @property
    def objects(self) -> int:
        return self.rgba.shape[0]

    @property
    def styles(self) -> int:
        return self.rgba.shape[1]

    def colours(self) -> Tensor:
        """Background colours [backgrounds, 3] in 0..1."""
        return torch.tensor([entry.rgb for entry in self.catalog.backgrounds]) / 255


def compose(
    rgba: Tensor, colour: Tensor, scale: Tensor, shift: Tensor, angle: Tensor | None = None
) -> Tensor:
    """Drawings on backgrounds.

    rgba [n, R, R, 4] uint8, colour [n, 3] in 0..1, scale [n] (1 fills the picture), shift [n, 2]
    in pixels, angle [n] in radians -> [n, 3, 64, 64] in 0..1.
    """
    layers = rgba.permute(0, 3, 1, 2).float() / 255
    alpha = layers[:, 3:]
    layers = torch.cat([layers[:, :3] * alpha, alpha], 1)  # premultiplied: no dark fringes
    angle = torch.zeros_like(scale) if angle is None else angle
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    offset = -shift * 2 / SIZE
    x = cos * offset[:, 0] - sin * offset[:, 1]
    y = sin * offset[:, 0] + cos * offset[:, 1]
    theta = torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)
    # Sampled at twice the size and averaged, so that thin lines don't alias.
    grid = nn.functional.affine_grid(theta, [len(layers), 4, 2 * SIZE, 2 * SIZE], False)
    big = nn.functional.grid_sample(layers, grid, "bilinear", "zeros", False)
    small = nn.functional.avg_pool2d(big, 2)
    return small[:, :3] + (1 - small[:, 3:]) * colour[:, :, None, None]


def random_placement(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The small variety the generator is trained on: scale [n] and shift [n, 2]."""
    scale = 0.87 + 0.06 * torch.rand(count, generator=generator)
    shift = 3 * torch.rand(count, 2, generator=generator) - 1.5
    return scale, shift
