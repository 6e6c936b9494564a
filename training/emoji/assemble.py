"""Put the trained parts together as one pipeline folder of fp16 safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from captions import load_tokenizer
from common import Ema, Settings, parser, settings, write, write_json
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from left_out import RECORD, TRAINED
from transformers import CLIPTextModel
from unet import SCHEDULE, new_unet


def averaged_unet(work: Path, stage: str) -> UNet2DConditionModel:
    """The UNet with its averaged weights, from the latest checkpoint of a stage."""
    model = new_unet()
    state = torch.load(work / stage / "checkpoint.pt", map_location="cpu", weights_only=True)
    ema = Ema(model, 0)
    ema.load_state_dict(state["parts"]["ema"])
    ema.copy_to(model)
    print(f"UNet at step {state['step']}")
    return model


def assemble(work: Path) -> StableDiffusionPipeline:
    decoder = work / "decoder" / "model"
    vae = decoder if decoder.exists() else work / "autoencoder" / "model"
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32),
        text_encoder=CLIPTextModel.from_pretrained(
            work / "text_encoder" / "model", dtype=torch.float32
        ),
        tokenizer=load_tokenizer(work),
        unet=averaged_unet(work, "unet"),
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def with_pairs(work: Path, base: Path) -> StableDiffusionPipeline:
    """The model that ``pairs.py`` began with, with the UNet that it made."""
    pipe = StableDiffusionPipeline.from_pretrained(
        base, torch_dtype=torch.float32, safety_checker=None
    )
    pipe.register_modules(unet=averaged_unet(work, "pairs"))
    return pipe


def recipe(run: Settings, base: Path | None) -> dict[str, object]:
    """What is left out, and the steps that each part was trained for."""
    steps: dict[str, int] = {}
    if base and (base / RECORD).exists():
        steps |= json.loads((base / RECORD).read_text(encoding="utf-8"))["steps"]
    for name in ("pairs",) if base else TRAINED[:-1]:
        path = run.work / name / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            steps[name] = int(state["step"])
    return {**run.without.record(), "steps": steps}


def without_paths(folder: Path) -> None:
    """Drop the note in each config of where its part came from."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--into", type=Path, required=True)
    options.add_argument("--base", type=Path, help="the model that pairs.py has taught pairs")
    args = options.parse_args()
    run = settings(args)
    pipe = with_pairs(run.work, args.base) if args.base else assemble(run.work)
    pipe = pipe.to(torch.float16)

    def save(path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        pipe.save_pretrained(path, safe_serialization=True)
        without_paths(path)
        write_json(path / RECORD, recipe(run, args.base))

    args.into.parent.mkdir(parents=True, exist_ok=True)
    write(args.into, save)
    size = sum(path.stat().st_size for path in args.into.rglob("*") if path.is_file())
    print(f"{args.into}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
