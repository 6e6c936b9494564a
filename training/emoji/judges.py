"""Train the judges on real drawings: the classifier first, then the image-text model from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from augment import UNSEEN, damage, degrade, nothing, place, unseen
from captions import Captions, load_tokenizer
from common import (
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
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.detectors.emoji import ClassifierNetwork, ImageTextNetwork, load_judges, tokenize
from expunge.models.emoji.vocabulary import catalog

WIDTHS = [32, 64, 128, 192]
LENGTH = 32


def halves(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.half().contiguous() for key, value in model.state_dict().items()}


def rate(step: int, steps: int, peak: float) -> float:
    """Linear rise over 100 steps, then linear fall."""
    return peak * min(1.0, (step + 1) / 100, 1.02 - step / steps)


def classifier_batch(
    drawings: Drawings, count: int, change: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Images in -1..1, object (the last is nothing), style (-100 for nothing)."""
    rows = torch.randint(drawings.objects * drawings.styles, (count,))
    images = place(drawings, rows)
    empty = max(1, count // 12)
    images[:empty] = nothing(images[:empty], drawings.colours())
    things, styles = rows // drawings.styles, rows % drawings.styles
    things[:empty], styles[:empty] = drawings.objects, -100
    return change(images) * 2 - 1, things, styles


def train_classifier(args: Any, drawings: Drawings) -> ClassifierNetwork:
    """Two rounds of ``args.steps``: first on clean drawings, then on damaged ones."""
    run = settings(args)
    model = ClassifierNetwork(WIDTHS, drawings.objects, drawings.styles)
    prepare(model, run.device)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    ema = Ema(model, 0.99)
    parts = {"model": model, "optimizer": optimizer, "ema": ema}
    checkpoint = Checkpoint(run.folder("judges") / "classifier.pt", parts)
    step = checkpoint.load()
    progress = Progress("classifier", step, 2 * args.steps)
    while step < 2 * args.steps:
        for group in optimizer.param_groups:
            group["lr"] = rate(step % args.steps, args.steps, 2e-3)
        change = degrade if step < args.steps else damage
        images, things, styles = (
            value.to(run.device) for value in classifier_batch(drawings, args.batch, change)
        )
        with autocast(run.device):
            thing, style = model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(thing.float(), things, label_smoothing=0.05)
        loss = loss + F.cross_entropy(style.float(), styles, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        ema.update(model, step)
        hit = (thing.argmax(-1) == things).float().mean()
        progress(step, loss=loss.item(), objects=hit.item())
        checkpoint.save(step)
    checkpoint.save(step, force=True)
    ema.copy_to(model)
    model.cpu().eval()
    return model


def train_image_text(
    args: Any, drawings: Drawings, classifier: ClassifierNetwork
) -> ImageTextNetwork:
    run = settings(args)
    tokenizer = load_tokenizer(run.work)
    captions = Captions(drawings.catalog)
    backend = text_tokenizer(run.work)
    model = ImageTextNetwork(WIDTHS, len(tokenizer), LENGTH, 128, 2, 128)
    model.trunk.load_state_dict(classifier.trunk.state_dict())
    prepare(model, run.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.02)
    ema = Ema(model, 0.99)
    parts = {"model": model, "optimizer": optimizer, "ema": ema}
    checkpoint = Checkpoint(run.folder("judges") / "image_text.pt", parts)
    step = checkpoint.load()
    progress = Progress("image_text", step, args.clip_steps)
    colours = drawings.colours()
    generator = torch.Generator()
    while step < args.clip_steps:
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.clip_steps, 1e-3)
        generator.manual_seed(run.seed * 1_000_003 + step)
        rows = torch.randint(drawings.objects * drawings.styles, (args.batch,))
        grounds = torch.randint(len(colours), (args.batch,))
        count = len(rows)
        scale, shift = 0.75 + 0.28 * torch.rand(count), 8 * torch.rand(count, 2) - 4
        images = compose(drawings.rgba.flatten(0, 1)[rows], colours[grounds], scale, shift)
        images = (damage(images) * 2 - 1).to(run.device, memory_format=torch.channels_last)
        texts = [
            captions.draw(row // drawings.styles, row % drawings.styles, ground, generator)
            for row, ground in zip(rows.tolist(), grounds.tolist(), strict=True)
        ]
        ids, mask = (value.to(run.device) for value in tokenize(backend, texts))
        with autocast(run.device):
            pictures, words = model.image(images), model.text(ids, mask)
        scores = pictures.float() @ words.float().T * model.log_scale.exp().clamp(max=50)
        # Two pictures of one caption both fit it.
        same = torch.tensor([[a == b for b in texts] for a in texts], device=run.device).float()
        target = same / same.sum(1, keepdim=True)
        loss = F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        ema.update(model, step)
        hit = (scores.argmax(-1) == scores.diagonal().new_tensor(range(count)).long()).float()
        progress(step, loss=loss.item(), top1=hit.mean().item())
        checkpoint.save(step)
    checkpoint.save(step, force=True)
    ema.copy_to(model)
    model.cpu().eval()
    return model


def text_tokenizer(work: Any) -> Any:
    """The caption tokenizer set to cut and pad as the image-text model wants it."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    backend.enable_truncation(LENGTH)
    backend.enable_padding(length=LENGTH, pad_id=0)
    return backend


def ship(args: Any, classifier: ClassifierNetwork, image_text: ImageTextNetwork | None) -> None:
    folder = settings(args).folder("judges") / "ship"
    folder.mkdir(exist_ok=True)
    names = catalog()
    config: dict[str, Any] = {
        "objects": [entry.name for entry in names.objects],
        "styles": [entry.name for entry in names.styles],
        "classifier": {"widths": WIDTHS},
    }
    write(folder / "classifier.safetensors", lambda path: save_file(halves(classifier), path))
    backend = text_tokenizer(args.work)
    write(folder / "tokenizer.json", lambda path: backend.save(str(path)))
    config["image_text"] = {
        "widths": WIDTHS,
        "vocabulary": backend.get_vocab_size(),
        "length": LENGTH,
        "width": 128,
        "layers": 2,
        "dim": 128,
    }
    image_text = image_text or ImageTextNetwork(**config["image_text"])
    write(folder / "image_text.safetensors", lambda path: save_file(halves(image_text), path))
    text = json.dumps(config, indent=1)
    write(folder / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
    if args.into:
        args.into.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            write(args.into / path.name, partial(shutil.copy, path))


@torch.inference_mode()
def measure(args: Any, drawings: Drawings, rounds: int = 8) -> dict[str, float]:
    """Accuracy of the shipped judges under augmentation that training didn't use."""
    judges = load_judges(args.work / "judges" / "ship")
    torch.manual_seed(987654321)
    every = torch.arange(drawings.objects * drawings.styles)
    colours = drawings.colours()
    captions = Captions(drawings.catalog)
    sums: dict[str, list[Tensor]] = {}

    def note(name: str, value: Tensor) -> None:
        sums.setdefault(name, []).append(value.float().flatten())

    def classify(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = (images * 255).round().byte()
        seen = judges.classify(pixels)
        note("object_confidence", seen.object_probabilities.max(-1).values)
        things, styles = every // drawings.styles, every % drawings.styles
        return pixels, {"object": seen.objects == things, "style": seen.styles == styles}

    for number in range(rounds):
        _, hits = classify(place(drawings, every))
        for attribute, hit in hits.items():
            note(f"{attribute}_accuracy_placement", hit)
        images, hits = classify(unseen(place(drawings, every)))
        for index, kind in enumerate(UNSEEN):
            for attribute, hit in hits.items():
                note(f"{attribute}_accuracy_{kind}", hit[index :: len(UNSEEN)])
        empty = nothing(place(drawings, every[torch.randperm(len(every))[:100]]), colours)
        note("nothing_recall", judges.classify((empty * 255).byte()).objects == -1)
        generator = torch.Generator().manual_seed(number)
        texts = [
            captions.draw(row // drawings.styles, row % drawings.styles, 0, generator)
            for row in every.tolist()
        ]
        note("clip_score_true", judges.clip_score(images, texts))
        other = every[torch.randperm(len(every))].tolist()
        note("clip_score_random", judges.clip_score(images, [texts[row] for row in other]))
    return {name: torch.cat(values).mean().item() for name, values in sums.items()}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=3000)
    options.add_argument("--clip-steps", type=int, default=900)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--into", type=Path, help="a folder to put the judges into")
    args = options.parse_args()
    drawings = Drawings.load(args.work)
    classifier = train_classifier(args, drawings)
    ship(args, classifier, None)
    image_text = train_image_text(args, drawings, classifier)
    ship(args, classifier, image_text)
    numbers = measure(args, drawings)
    text = json.dumps(numbers, indent=1)
    write(args.work / "judges" / "measured.json", lambda path: path.write_text(text))
    print(text)


if __name__ == "__main__":
    main()
