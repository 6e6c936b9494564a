"""Pictures of prompts, for benchmarks that have them judged."""

import torch
from torch import Tensor

from expunge import Model
from expunge.generation import ImageRequest, Sampler, sample


def pictures(model: Model, prompts: list[str], seed: int = 0) -> Tensor:
    """One picture of each prompt, uint8 ``[prompts, 3, height, width]``; each has its own seed."""
    requests = [
        ImageRequest(case_number=str(number), prompt=prompt, seed=seed + number)
        for number, prompt in enumerate(prompts)
    ]
    drawn = [picture for _, picture in sample(model, requests, Sampler())]
    return torch.stack(drawn).permute(0, 3, 1, 2)
