"""Train the UNet on a bank of encoded pictures, with the frozen text encoder's captions.

Runs in one process, or in several on one machine with ``torchrun --nproc-per-node N unet.py``,
each with its own share of the batch: on a few cores that is quicker than one process with as many
threads, above all when something else uses them too.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from captions import Captions, load_tokenizer, tokenize
from common import (
    Checkpoint,
    Drawings,
    Ema,
    Progress,
    Settings,
    autocast,
    compose,
    parser,
    prepare,
    random_placement,
    settings,
    write,
)
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from muon import optimizers
from text_encoder import WIDTH
from torch import Tensor, nn
from torch import distributed as dist
from transformers import CLIPTextModel, CLIPTokenizer

# The schedule of Stable Diffusion 1 and the sampler that ships.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def new_unet() -> UNet2DConditionModel:
    """No attention at the 16x16 level: it would cost a third of the time and add little."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 208),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_bank(
    run: Settings, drawings: Drawings, autoencoder: Path, white: int, coloured: int
) -> dict[str, Tensor]:
    """Latents [m, 4, 16, 16] of every drawing: ``white`` placements on white, ``coloured`` on each
    other background; labels [m, 3] say which object, style and background."""
    vae = AutoencoderKL.from_pretrained(autoencoder, torch_dtype=torch.float32)
    vae = prepare(vae, run.device).eval()
    colours = drawings.colours()
    labels = torch.cartesian_prod(
        torch.arange(drawings.objects), torch.arange(drawings.styles), torch.arange(len(colours))
    )
    copies = torch.where(labels[:, 2] == 0, white, coloured)
    labels = labels.repeat_interleave(copies, 0)
    generator = torch.Generator().manual_seed(run.seed)
    progress = Progress("bank", 0, len(labels))
    latents = []
    for part in torch.split(labels, 64):
        rgba = drawings.rgba[part[:, 0], part[:, 1]]
        scale, shift = random_placement(len(part), generator)
        images = compose(rgba, colours[part[:, 2]], scale, shift) * 2 - 1
        images = images.to(run.device, memory_format=torch.channels_last)
        with torch.no_grad(), autocast(run.device):
            latent = vae.encode(images).latent_dist.mean
        latents.append((latent.float() * vae.config.scaling_factor).half().cpu())
        progress(sum(map(len, latents)))
    return {"latents": torch.cat(latents), "labels": labels}


def load_bank(run: Settings, drawings: Drawings, name: str, autoencoder: Path) -> dict[str, Tensor]:
    """The bank of the stage of this name, made if it isn't there."""
    path = run.folder(name) / "bank.pt"
    if not path.exists():
        made = make_bank(run, drawings, autoencoder, 8, 1)
        write(path, lambda beside: torch.save(made, beside))
    bank: dict[str, Tensor] = torch.load(path, weights_only=True)
    return bank


def draw_rows(labels: Tensor, count: int, white_share: float) -> Tensor:
    """Rows [count] of the bank, ``white_share`` of them on white."""
    white = torch.nonzero(labels[:, 2] == 0).flatten()
    other = torch.nonzero(labels[:, 2] != 0).flatten()
    from_white = white[torch.randint(len(white), (count,))]
    from_other = other[torch.randint(len(other), (count,))]
    return torch.where(torch.rand(count) < white_share, from_white, from_other)


def draw_times(count: int) -> Tensor:
    """Timesteps [count], denser where the content is decided."""
    beta = torch.distributions.Beta(torch.tensor(1.7), torch.tensor(1.2))
    return (beta.sample((count,)) * 1000).long().clamp(0, 999)


def loss_weight(alphas: Tensor) -> Tensor:
    """snr^-1/2, at most 3: between the weights of noise and of picture prediction."""
    snr = alphas / (1 - alphas)
    return snr.rsqrt().clamp(max=3)


def learning_rate(step: int, steps: int, peak: float) -> float:
    warm = min(1.0, (step + 1) / 150)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, step / steps))))


def average_gradients(model: nn.Module) -> None:
    """Replace every gradient by its mean over the processes."""
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


Part = tuple[Tensor, list[str]]
"""Latents [n, 4, h, w] and their captions."""


def with_dropped(texts: list[str], generator: torch.Generator) -> list[str]:
    """The captions, one of ten of them empty for classifier-free guidance."""
    dropped = torch.rand(len(texts), generator=generator) < 0.1
    return ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]


@dataclass
class Denoising:
    """The network that learns, and what tells it how much noise there is and what is shown."""

    run: Settings
    model: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    def __post_init__(self) -> None:
        device = self.run.device
        self.alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(device)
        self.text_encoder = self.text_encoder.to(device).eval().requires_grad_(False)
        self.model = prepare(self.model, device).train()
        # On a CPU the fused attention's backward pass takes a quarter of the whole step.
        if device == "cpu":
            self.model.set_attn_processor(AttnProcessor())

    def loss(self, parts: Sequence[Part]) -> Tensor:
        """The mean over all pictures of all parts."""
        errors = torch.cat([self._errors(latents, texts) for latents, texts in parts])
        return errors.mean()

    def _errors(self, latents: Tensor, texts: list[str]) -> Tensor:
        """Weighted errors [n] of the noise that is predicted."""
        clean = latents.float().to(self.run.device)
        times = draw_times(len(clean)).to(self.run.device)
        noise = torch.randn_like(clean)
        alpha = self.alphas[times][:, None, None, None]
        noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        with autocast(self.run.device):
            with torch.no_grad():
                ids = tokenize(self.tokenizer, texts).to(self.run.device)
                states = self.text_encoder(ids).last_hidden_state
            predicted = self.model(noisy, times, states).sample
        errors = (predicted.float() - noise).square().mean((1, 2, 3))
        return loss_weight(self.alphas[times]) * errors


def train(
    name: str,
    task: Denoising,
    draw: Callable[[int, torch.Generator], Sequence[Part]],
    args: argparse.Namespace,
) -> None:
    """Train to ``args.steps`` from the stage's checkpoint; ``draw`` gives a process's pictures."""
    run, model = task.run, task.model
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("nccl" if run.device == "cuda" else "gloo")
    matrices, vectors = optimizers(model, args.lr)
    ema = Ema(model, 0.998)
    parts = {"model": model, "matrices": matrices, "vectors": vectors, "ema": ema}
    checkpoint = Checkpoint(run.folder(name) / "checkpoint.pt", parts, every=180)
    step = checkpoint.load()
    progress = Progress(name, step, args.steps, every=60)
    generator = torch.Generator()
    average, first = 0.0, step
    while step < args.steps:
        for group in (*matrices.param_groups, *vectors.param_groups):
            group["lr"] = learning_rate(step, args.steps, args.lr)
        # Seeded by step and process: a run that was stopped draws what it would have drawn.
        torch.manual_seed((run.seed * 1_000_003 + step) * 64 + rank)
        generator.manual_seed(int(torch.randint(2**62, ())))
        loss = task.loss(draw(args.batch // world, generator))
        model.zero_grad(set_to_none=True)
        loss.backward()
        if world > 1:
            average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        matrices.step()
        vectors.step()
        step += 1
        average += (loss.item() - average) / min(step - first, 100)
        if rank == 0:
            ema.update(model, step)
            progress(step, loss=average)
            checkpoint.save(step)
    if rank == 0:
        checkpoint.save(step, force=True)
        print(f"{name}: done")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=4000)
    options.add_argument("--batch", type=int, default=64, help="of all processes together")
    options.add_argument("--lr", type=float, default=1.5e-3)
    options.add_argument("--white", type=float, default=0.65, help="share of white backgrounds")
    args = options.parse_args()
    run = settings(args)
    drawings = Drawings.load(run.work, run.without)
    bank = load_bank(run, drawings, "unet", run.work / "autoencoder" / "model")
    captions = Captions(drawings.catalog)
    text_encoder = CLIPTextModel.from_pretrained(
        run.work / "text_encoder" / "model", dtype=torch.float32
    )
    task = Denoising(run, new_unet(), text_encoder, load_tokenizer(run.work))

    def draw(count: int, generator: torch.Generator) -> list[Part]:
        rows = draw_rows(bank["labels"], count, args.white)
        return [single_pictures(bank, rows, captions, generator)]

    train("unet", task, draw, args)


def single_pictures(
    bank: dict[str, Tensor], rows: Tensor, captions: Captions, generator: torch.Generator
) -> Part:
    """The pictures [n] of these rows of the bank with captions."""
    texts = [captions.draw(*label, generator) for label in bank["labels"][rows].tolist()]
    return bank["latents"][rows], with_dropped(texts, generator)


if __name__ == "__main__":
    main()
