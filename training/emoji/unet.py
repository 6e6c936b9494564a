"""Train the UNet on a bank of encoded pictures, with the frozen text encoder's captions.

Runs in one process, or in several on one machine with ``torchrun --nproc-per-node N unet.py``,
each with its own share of the batch: on a few cores that is quicker than one process with as many
threads, above all when something else uses them too.
"""

from __future__ import annotations

import math
import os

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
from transformers import CLIPTextModel

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


def make_bank(run: Settings, drawings: Drawings, white: int, coloured: int) -> dict[str, Tensor]:
    """Latents [m, 4, 16, 16] of every drawing: ``white`` placements on white, ``coloured`` on each
    other background; labels [m, 3] say which object, style and background."""
    vae = AutoencoderKL.from_pretrained(
        run.work / "autoencoder" / "model", torch_dtype=torch.float32
    )
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


def load_bank(run: Settings, drawings: Drawings) -> dict[str, Tensor]:
    path = run.folder("unet") / "bank.pt"
    if not path.exists():
        made = make_bank(run, drawings, 8, 1)
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


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=4000)
    options.add_argument("--batch", type=int, default=64, help="of all processes together")
    options.add_argument("--lr", type=float, default=1.5e-3)
    options.add_argument("--white", type=float, default=0.65, help="share of white backgrounds")
    args = options.parse_args()
    run = settings(args)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    folder = run.folder("unet")
    drawings = Drawings.load(run.work, run.without)
    bank = load_bank(run, drawings)
    if world > 1:
        dist.init_process_group("nccl" if run.device == "cuda" else "gloo")
    captions = Captions(drawings.catalog)
    tokenizer = load_tokenizer(run.work)
    text_encoder = CLIPTextModel.from_pretrained(
        run.work / "text_encoder" / "model", dtype=torch.float32
    )
    text_encoder = text_encoder.to(run.device).eval().requires_grad_(False)
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod.to(run.device)
    model = prepare(new_unet(), run.device).train()
    # On a CPU the fused attention's backward pass takes a quarter of the whole step.
    if run.device == "cpu":
        model.set_attn_processor(AttnProcessor())
    matrices, vectors = optimizers(model, args.lr)
    ema = Ema(model, 0.998)
    parts = {"model": model, "matrices": matrices, "vectors": vectors, "ema": ema}
    checkpoint = Checkpoint(folder / "checkpoint.pt", parts, every=180)
    step = checkpoint.load()
    progress = Progress("unet", step, args.steps, every=60)
    generator = torch.Generator()
    average, first, count = 0.0, step, args.batch // world
    while step < args.steps:
        for optimizer in (matrices, vectors):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr)
        # Seeded by step and process: a run that was stopped draws what it would have drawn.
        torch.manual_seed((run.seed * 1_000_003 + step) * 64 + rank)
        generator.manual_seed(int(torch.randint(2**62, ())))
        rows = draw_rows(bank["labels"], count, args.white)
        texts = [
            captions.draw(thing, style, ground, generator)
            for thing, style, ground in bank["labels"][rows].tolist()
        ]
        dropped = torch.rand(count, generator=generator) < 0.1
        texts = ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]
        clean = bank["latents"][rows].float().to(run.device)
        times = draw_times(count).to(run.device)
        noise = torch.randn_like(clean)
        alpha = alphas[times][:, None, None, None]
        noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        with autocast(run.device):
            with torch.no_grad():
                states = text_encoder(tokenize(tokenizer, texts).to(run.device)).last_hidden_state
            predicted = model(noisy, times, states).sample
        errors = (predicted.float() - noise).square().mean((1, 2, 3))
        loss = (loss_weight(alphas[times]) * errors).mean()
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
        print("unet: done")


if __name__ == "__main__":
    main()
