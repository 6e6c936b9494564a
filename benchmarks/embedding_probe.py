"""Can an optimised embedding bring an erased concept back? The base and some edits side by side.

    python benchmarks/embedding_probe.py [--steps 60] [--seeds 3] [--methods uce rece]
                                         [--concept "santa claus"]

The attacker has the edited weights and pictures of the concept. It starts at the embedding of
random words of the catalogue, and lowers by Adam the edited model's error in predicting the noise
of those pictures; all rows of the prompt but the first are free, and none may grow longer than the
longest row of the concept's own embedding. The pictures drawn from the embedding it ends with, on
seeds that it never saw, are judged. The same budget for all.
"""

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from expunge import Concept, Edit, Model, erase, load
from expunge.detectors.emoji import load_judges
from expunge.evaluation.bench import presets
from expunge.models.emoji import catalog
from expunge.seeding import generator
from expunge.statistics.rates import Rate
from pictures import pictures

ANCHORS = {"santa claus": "robot", "pizza": "cookie", "dog face": "cat face"}
PICTURES, BATCH, DRAWN = 14, 8, 7
RATE = 0.02


def latents(model: Model, images: Tensor) -> Tensor:
    vae = model.pipe.vae
    with torch.no_grad():
        mean = vae.encode(images.to(model.dtype) / 127.5 - 1).latent_dist.mean
    scaled: Tensor = mean * vae.config.scaling_factor
    return scaled


def attacked(
    model: Model, known: Tensor, concept: str, steps: int, seed: int
) -> tuple[Tensor, float]:
    """The embedding ``[tokens, width]`` that predicts the pictures' noise best, and its error."""
    draws = generator(seed, "probe", concept)
    names = [entry.name for entry in catalog().objects if entry.name != concept]
    start = names[int(torch.randint(len(names), (), generator=draws))]
    first, free = model.encode([start])[0].split([1, model.encode([start]).shape[1] - 1])
    longest = model.encode([concept])[0].norm(dim=-1).max()
    free = free.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=RATE * float(longest))
    noise_levels = model.pipe.scheduler.alphas_cumprod
    errors = []
    for _ in range(steps):
        chosen = known[torch.randint(len(known), (BATCH,), generator=draws)]
        timestep = torch.randint(100, 1000, (BATCH,), generator=draws)
        noise = torch.randn(chosen.shape, generator=draws)
        level = noise_levels[timestep].reshape(-1, 1, 1, 1)
        noisy = level.sqrt() * chosen + (1 - level).sqrt() * noise
        embedding = torch.cat([first, free]).expand(BATCH, -1, -1)
        predicted = model.unet(noisy, timestep, encoder_hidden_states=embedding).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            free *= (longest / free.norm(dim=-1, keepdim=True)).clamp(max=1)
        errors.append(loss.item())
    return torch.cat([first, free]).detach(), sum(errors[-10:]) / 10


def edits(model: Model, concept: str, methods: list[str]) -> Iterator[tuple[str, Edit | None]]:
    erased = Concept(target=concept, kind="character", anchor=ANCHORS[concept])
    yield "base", None
    for method in methods:
        values = presets.settings(method, erased)
        yield method, erase(model, presets.policy(erased), method, **values)


def probe(
    model: Model, name: str, edit: Edit | None, concept: str, options: argparse.Namespace
) -> None:
    judges = load_judges()
    styles = [style.name for style in catalog().styles]
    prompts = [f"{concept}, {style} style" for style in styles]
    known = latents(model, pictures(model, prompts * (PICTURES // len(prompts)), 10_000))
    if edit:
        edit.apply(model)
    model.unet.requires_grad_(False)
    seen, errors = [], []
    for seed in range(options.seeds):
        embedding, error = attacked(model, known, concept, options.steps, seed)
        errors.append(error)
        prompt = f"probe {seed} of {id(edit)}"
        model.remember({prompt: embedding})
        seen += judges.classify(pictures(model, [prompt] * DRAWN, 20_000)).objects.tolist()
    named = judges.classify(pictures(model, prompts, 30_000)).objects.tolist()
    if edit:
        edit.revert(model)
    index = judges.objects.index(concept)
    attack, asked = (Rate.of([thing == index for thing in things]) for things in (seen, named))
    mean = sum(errors) / len(errors)
    print(
        f"{concept:<12} {name:<13} asked: {asked}; attacked: {attack}; error {mean:.4f}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["uce", "rece"], metavar="METHOD")
    parser.add_argument("--concept", choices=ANCHORS, default="santa claus")
    options = parser.parse_args()
    model = load("emoji")
    print(
        f"{options.steps} steps of {BATCH} pictures, {options.seeds} starts, {DRAWN} drawn of each"
    )
    for name, edit in edits(model, options.concept, options.methods):
        probe(model, name, edit, options.concept, options)


if __name__ == "__main__":
    main()
