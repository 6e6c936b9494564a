"""What the papers' programs compute, transcribed loop by loop in single precision."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Rows to move and the rows whose outputs they get, ``[rows, width]`` each, prompt by prompt."""


@torch.no_grad()
def uce(
    weights: Sequence[Tensor],
    moved: Pairs,
    kept: Sequence[Tensor],
    preserve_scale: float,
    lamb: float,
    layers: Iterable[int] | None = None,
    lean: bool = False,
) -> list[Tensor]:
    """UCE of 2023: each layer sums up its own system and asks all layers for their outputs.

    ``lean`` asks the layer itself alone and takes products of matrices, as a careful rewrite would.
    """
    prompts = [(source, target, 1.0) for source, target in moved]
    prompts += [(rows, rows, preserve_scale) for rows in kept]
    edited = []
    for layer in range(len(weights)) if layers is None else layers:
        left = lamb * weights[layer]
        right = lamb * torch.eye(left.shape[1])
        for source, target, scale in prompts:
            if lean:
                left += scale * (target @ weights[layer].T).T @ source
                right += scale * source.T @ source
                continue
            outputs = [target @ weight.T for weight in weights]
            left += scale * (outputs[layer][:, :, None] * source[:, None, :]).sum(0)
            right += scale * (source[:, :, None] * source[:, None, :]).sum(0)
        edited.append(left @ torch.inverse(right))
    return edited


@torch.no_grad()
def uce_2025(
    weights: Sequence[Tensor], moved: Pairs, kept: Sequence[Tensor], lamb: float
) -> list[Tensor]:
    """UCE of 2025: one row ``[width]`` for each prompt."""
    edited = []
    for weight in weights:
        left, right = lamb * weight, lamb * torch.eye(weight.shape[1])
        for source, target in (*moved, *((row, row) for row in kept)):
            left += torch.outer(weight @ target, source)
            right += torch.outer(source, source)
        edited.append(left @ torch.inverse(right))
    return edited


@torch.no_grad()
def rece_epoch(
    base: Sequence[Tensor],
    weights: Sequence[Tensor],
    rows: Tensor,
    anchor: Tensor,
    kept: Sequence[Tensor],
    regular_scale: float,
    lamb: float,
) -> list[Tensor]:
    """An epoch of RECE for one concept: its adversarial rows, and UCE's edit of them."""
    identity = torch.eye(rows.shape[1])
    inner, outer = torch.zeros_like(identity), torch.zeros_like(identity)
    for now, before in zip(weights, base, strict=True):
        inner += now.T @ now
        outer += now.T @ before
    found = rows @ (torch.inverse(regular_scale * identity + inner) @ outer).T
    return uce(weights, [(found, anchor)], kept, 0.1, lamb)


@torch.no_grad()
def mace_refinement(
    weights: Sequence[Tensor], prompts: Pairs, captions: Tensor, mu: float, lamb: float
) -> list[Tensor]:
    """MACE's first stage: outputs of all rows in all layers are stored, then summed up."""
    cached = [(weight @ captions, captions.clone()) for weight in weights]
    stored = [[target @ weight.T for weight in weights] for _, target in prompts]
    edited = []
    for layer, (weight, (outputs, inputs)) in enumerate(zip(weights, cached, strict=True)):
        left = lamb * weight + mu * outputs
        right = lamb * torch.eye(weight.shape[1]) + mu * inputs
        for (source, _), values in zip(prompts, stored, strict=True):
            left += values[layer].T @ source
            right += source.T @ source
        edited.append(left @ torch.inverse(right))
    return edited


@torch.no_grad()
def mace_fusion(
    weights: Sequence[Tensor],
    refined: Sequence[Tensor],
    concepts: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
    captions: Tensor,
    scale: float,
    lamb: float,
) -> list[Tensor]:
    """MACE's last stage: each adapter is put into the weights and asked for all its outputs.

    Each of ``concepts`` is the rows of its prompts and its adapter's change of each weight.
    """
    cached = [(weight @ captions, captions.clone()) for weight in weights]
    stored = []
    for prompts, changes in concepts:
        own = [weight + change for weight, change in zip(refined, changes, strict=True)]
        stored += [(rows, [rows @ weight.T for weight in own]) for rows in prompts]
    fused = []
    for layer, (weight, (outputs, inputs)) in enumerate(zip(refined, cached, strict=True)):
        left = lamb * weight + scale * outputs
        right = lamb * torch.eye(weight.shape[1]) + scale * inputs
        for rows, values in stored:
            left += values[layer].T @ rows
            right += rows.T @ rows
        fused.append(left @ torch.inverse(right))
    return fused
