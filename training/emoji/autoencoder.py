"""Train the autoencoder: 64x64 pictures to 16x16x4 latents and back.

Run it once for both halves, then once with ``--decoder-only``, which sharpens pictures without
touching the latents, so it can come after (or beside) the training of the UNet.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import (
    SIZE,
    Checkpoint,
    Drawings,
    Ema,
    Progress,
    autocast,
    compose,
    parser,
    prepare,
    settings,
    write,
)
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def pictures(drawings: Drawings, count: int) -> Tensor:
    """Random drawings [count, 3, 64, 64] in -1..1, placed a little more freely than in captions."""
    rows = torch.randint(drawings.objects * drawings.styles, (count,))
    colours = drawings.colours()
    colour = colours[torch.randint(len(colours), (count,))]
    scale = 0.84 + 0.14 * torch.rand(count)
    shift = 6 * torch.rand(count, 2) - 3
    return compose(drawings.rgba.flatten(0, 1)[rows], colour, scale, shift) * 2 - 1


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def chroma(x: Tensor) -> Tensor:
    return x - x.roll(1, 1)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 on pixels, on hues and on differences at two scales: blur is paid for."""
    loss = F.l1_loss(output, target)
    coarse, aim = F.avg_pool2d(output, 4), F.avg_pool2d(target, 4)
    loss = loss + F.l1_loss(chroma(coarse), chroma(aim)) + F.mse_loss(coarse, aim)
    for weight in (1.0, 0.5):
        for a, b in zip(edges(output), edges(target), strict=True):
            loss = loss + weight * F.l1_loss(a, b)
        output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
    return loss


def decay_at_the_end(step: int, steps: int) -> float:
    """Constant, then linear to a twentieth over the last third."""
    return min(1.0, max(0.05, 3 * (1 - step / steps)))


@torch.no_grad()
def normalise(model: AutoencoderKL, images: Tensor) -> None:
    """Fold a mean of 0 and a deviation of 1 per latent channel into the two 1x1 convolutions, so
    that the diffusion model meets channels of one size and the scaling factor is 1."""
    latents = model.encode(images).latent_dist.mean
    mean, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    outward, inward = model.quant_conv, model.post_quant_conv
    outward.weight[:4] /= scale[:, None, None, None]
    outward.bias[:4] = (outward.bias[:4] - mean) / scale
    outward.bias[4:] -= 2 * scale.log()
    inward.bias += inward.weight[:, :, 0, 0] @ mean
    inward.weight *= scale[:, None, None]
    model.register_to_config(scaling_factor=1.0)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=5000)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--lr", type=float, default=8e-4)
    options.add_argument("--start", type=Path, help="an autoencoder to begin from")
    options.add_argument("--decoder-only", action="store_true")
    args = options.parse_args()
    run = settings(args)
    if args.start and run.without:
        options.error(f"--start may have seen what is left out ({run.without}): begin from nothing")
    name = "decoder" if args.decoder_only else "autoencoder"
    folder = run.folder(name)
    start = run.work / "autoencoder" / "model" if args.decoder_only else args.start
    model = AutoencoderKL.from_pretrained(start, torch_dtype=torch.float32) if start else None
    model = prepare(model or new_autoencoder(), run.device).train()
    if args.decoder_only:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    drawings = Drawings.load(run.work, run.without)
    # Colours must be readable from the latents by a linear map. Without this short path to the
    # encoder, hues (green above all) are missing for thousands of steps.
    hue = torch.nn.Conv2d(4, 3, 1).to(run.device)
    trained = [value for value in [*model.parameters(), *hue.parameters()] if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = Ema(model, 0.998)
    checkpoint = Checkpoint(
        folder / "checkpoint.pt", {"model": model, "hue": hue, "optimizer": optimizer, "ema": ema}
    )
    step = checkpoint.load()
    progress = Progress(name, step, args.steps)
    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * decay_at_the_end(step, args.steps)
        images = pictures(drawings, args.batch).to(run.device, memory_format=torch.channels_last)
        with autocast(run.device):
            with torch.set_grad_enabled(not args.decoder_only):
                posterior = model.encode(images).latent_dist
                latents = posterior.sample()
            if args.decoder_only:  # a diffusion model's latents are never quite right
                level = 0.15 * torch.rand(args.batch, 1, 1, 1, device=run.device)
                latents = posterior.mean + level * torch.randn_like(latents)
            output = model.decode(latents).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(output.float(), images)
        if args.decoder_only:
            total = loss
        else:
            colours = F.avg_pool2d(images, 4)
            total = loss + 1e-5 * kl + 2 * F.mse_loss(hue(posterior.mean.float()), colours)
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        ema.update(model, step)
        progress(step, loss=loss.item(), kl=kl.item())
        checkpoint.save(step)
    checkpoint.save(step, force=True)
    ema.copy_to(model)
    if not args.decoder_only:
        normalise(model.eval(), pictures(drawings, 512).to(run.device))
    write(folder / "model", model.save_pretrained)
    print(f"{name}: done")


if __name__ == "__main__":
    main()
