"""Train the text encoder before the UNet, contrastively, as the one of Stable Diffusion was.

Captions are matched with small versions of their pictures (InfoNCE, a convolutional image tower
that is thrown away) and must also tell object, style and background. The pooled state is taken at
the end token or at one of the padding tokens after it, so all of them carry the caption's meaning.
"""

from __future__ import annotations

import torch
from captions import END, LENGTH, Captions, load_tokenizer, tokenize
from common import (
    Checkpoint,
    Drawings,
    Progress,
    autocast,
    compose,
    parser,
    settings,
    write,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

WIDTH = 256


def new_text_encoder(vocabulary: int, end: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=end,
        pad_token_id=end,
    )
    return CLIPTextModel(config).float()


class Matching(nn.Module):
    """The image tower and the heads that teach the text encoder."""

    def __init__(self, objects: int, styles: int, backgrounds: int) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2048, WIDTH),
        )
        self.text = nn.Linear(WIDTH, WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.66))
        # One class more for a style that goes unmentioned.
        self.heads = nn.ModuleList(
            [nn.Linear(WIDTH, n) for n in (objects, styles + 1, backgrounds)]
        )

    def loss(self, pooled: Tensor, images: Tensor, labels: Tensor, same: Tensor) -> Tensor:
        """pooled [n, d], images [n, 3, 32, 32], labels [n, 3], same [n, n] equal captions."""
        pictures = F.normalize(self.image(images).float(), dim=-1)
        words = F.normalize(self.text(pooled).float(), dim=-1)
        scores = pictures @ words.T * self.log_scale.exp().clamp(max=50)
        target = same / same.sum(1, keepdim=True)
        loss = F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)
        for head, label in zip(self.heads, labels.T, strict=True):
            loss = loss + F.cross_entropy(head(pooled).float(), label)
        return loss


def small_pictures(drawings: Drawings) -> Tensor:
    """Every drawing on every background at half size: [objects, styles, backgrounds, 3, 32, 32]."""
    rgba, colours = drawings.rgba.flatten(0, 1), drawings.colours()
    count = len(rgba)
    shape = (drawings.objects, drawings.styles, 3, 32, 32)
    pictures = []
    for colour in colours:
        full = compose(
            rgba, colour.expand(count, 3), torch.full((count,), 0.9), torch.zeros(count, 2)
        )
        pictures.append(F.avg_pool2d(full, 2).view(shape))
    return torch.stack(pictures, 2) * 2 - 1


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=320)
    options.add_argument("--batch", type=int, default=192)
    options.add_argument("--lr", type=float, default=1e-3)
    args = options.parse_args()
    run = settings(args)
    folder = run.folder("text_encoder")
    drawings = Drawings.load(run.work, run.without)
    tokenizer = load_tokenizer(run.work)
    end = tokenizer.convert_tokens_to_ids(END)
    captions = Captions(drawings.catalog)
    bank = small_pictures(drawings)
    model = new_text_encoder(len(tokenizer), end).to(run.device)
    matching = Matching(drawings.objects, drawings.styles, bank.shape[2]).to(run.device)
    weights = [*model.parameters(), *matching.parameters()]
    optimizer = torch.optim.AdamW(weights, args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    parts = {"model": model, "matching": matching, "optimizer": optimizer}
    checkpoint = Checkpoint(folder / "checkpoint.pt", parts)
    step = checkpoint.load()
    progress = Progress("text encoder", step, args.steps)
    generator = torch.Generator()
    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 50, 1.02 - step / args.steps)
        generator.manual_seed(run.seed * 1_000_003 + step)
        count = args.batch
        labels = torch.stack([torch.randint(n, (count,)) for n in bank.shape[:3]], 1)
        texts = [
            captions.draw(thing, style, ground, generator)
            for thing, style, ground in labels.tolist()
        ]
        images = bank[labels[:, 0], labels[:, 1], labels[:, 2]]
        images = images + 0.1 * torch.randn_like(images)
        named = [entry.name for entry in drawings.catalog.styles]
        for row, text in enumerate(texts):
            if named[int(labels[row, 1])] not in text.split():
                labels[row, 1] = drawings.styles
        same = torch.tensor([[a == b for b in texts] for a in texts]).float()
        ids = tokenize(tokenizer, texts)
        first_end = (ids == end).int().argmax(1)
        # Three batches in four are cut to the longest caption: what follows it is padding.
        length = LENGTH if step % 4 == 0 else min(LENGTH, int(first_end.max()) + 2)
        place = first_end + (torch.rand(count) * (length - first_end)).long()
        ids, place, images, labels, same = (
            value.to(run.device) for value in (ids[:, :length], place, images, labels, same)
        )
        with autocast(run.device):
            states = model(ids).last_hidden_state
            pooled = states[torch.arange(count, device=run.device), place]
            loss = matching.loss(pooled, images, labels, same)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            hits = [
                (head(pooled.float()).argmax(-1) == label).float().mean().item()
                for head, label in zip(matching.heads, labels.T, strict=True)
            ]
        progress(step, loss=loss.item(), object=hits[0], style=hits[1], background=hits[2])
        checkpoint.save(step)
    checkpoint.save(step, force=True)
    write(folder / "model", model.save_pretrained)
    print("text encoder: done")


if __name__ == "__main__":
    main()
