"""MACE's trained stage: a small adapter for each concept that turns attention away from its words.

Training uses pictures of the concept, noised to a timestep ``t``. ``A_l`` is the cross-attention of
a layer ``l`` (softmax over the rows of the prompt). ``S`` are the rows of the concept's words, the
end of the text and the padding, and the mask ``M`` shows where the concept is. The loss is::

    L = sum_l | A_l[:, M_l, S] |_F

The adapter adds ``up @ down`` to the refined keys and values.
"""

import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.edits.payloads import LowRank
from expunge.errors import ExpungeError
from expunge.method.student import within
from expunge.methods.mace.batches import AdapterBatch
from expunge.models import Model
from expunge.seeding import generator


class Adapter:
    """Trainable factors on refined keys and values; the model itself doesn't change."""

    def __init__(
        self, model: Model, refined: Mapping[str, Tensor], factors: Mapping[str, Tensor]
    ) -> None:
        """``factors`` has ``up:name`` ``[out, rank]`` and ``down:name`` ``[rank, in]``."""
        self.model = model
        self.refined = {name: weight.to(model.device).float() for name, weight in refined.items()}
        self.weights = {
            key: factor.to(model.device).float().clone().requires_grad_()
            for key, factor in factors.items()
        }

    @classmethod
    def fresh(
        cls, model: Model, refined: Mapping[str, Tensor], rank: int, seed: int, words: str
    ) -> "Adapter":
        """An adapter without effect: ``up`` is 0, ``down`` normal with deviation ``1 / rank``."""
        factors = {}
        for name, weight in refined.items():
            draws = generator(seed, "mace", words, name)
            factors[f"down:{name}"] = torch.randn(rank, weight.shape[1], generator=draws) / rank
            factors[f"up:{name}"] = torch.zeros(len(weight), rank)
        return cls(model, refined, factors)

    def attention(self, batch: AdapterBatch) -> dict[str, Tensor]:
        """``A_l`` by layer, in the order of the pass, ``[batch, heads, pixels, tokens]``."""
        swapped = {
            name: (weight + self.weights[f"up:{name}"] @ self.weights[f"down:{name}"]).to(
                self.model.dtype
            )
            for name, weight in self.refined.items()
        }
        model = self.model
        latents, condition = batch.latents.to(model.dtype), batch.condition.to(dtype=model.dtype)
        with model.attention_read() as maps:
            within(
                model.denoiser, swapped, lambda: model.predict(latents, batch.timestep, condition)
            )
        return dict(maps)

    @torch.no_grad()
    def low_rank(self) -> LowRank:
        """What training adds to the refined weights."""
        up, down = (
            {name: self.weights[f"{side}:{name}"].detach().clone() for name in self.refined}
            for side in ("up", "down")
        )
        return LowRank(up, down)


def layer_norms(maps: Mapping[str, Tensor], batch: AdapterBatch, *, nearest: bool) -> Tensor:
    """``| A_l[:, M_l, S] |_F`` of every layer and sample, ``[layers, batch]``.

    Masks are reduced to the size of a layer. ``nearest`` does this as the released program does,
    which can lose a small object and with it the layer. Otherwise a cell counts if any of its
    pixels does.
    """
    height, width = batch.latents.shape[2:]
    norms = []
    for attention in maps.values():
        size = _grid(attention.shape[2], height, width)
        masks = batch.masks[:, None]
        coarse = F.interpolate(masks, size) if nearest else F.adaptive_max_pool2d(masks, size)
        pixels = (coarse > 0.5).flatten(2)[..., None]
        seen = attention.float() * pixels * batch.columns[:, None, None, :]
        norms.append(torch.linalg.vector_norm(seen, dim=(1, 2, 3)))
    return torch.stack(norms)


def _grid(pixels: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a layer from its pixels; every stage of a UNet halves both."""
    while height * width > pixels:
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != pixels:
        raise ExpungeError(f"a layer has {pixels} pixels, which fits none of this UNet's sizes")
    return height, width


def suppression(
    adapter: Adapter, batch: AdapterBatch, *, squared: bool = False, nearest: bool = False
) -> Tensor:
    """The loss: norms, or their squares, summed over layers and averaged over the batch."""
    norms = layer_norms(adapter.attention(batch), batch, nearest=nearest)
    return (norms.square() if squared else norms).sum(0).mean()


def fit(
    adapter: Adapter,
    batches: Iterable[AdapterBatch],
    lr: float,
    *,
    squared: bool = False,
    nearest: bool = False,
) -> list[float]:
    """The losses of training with one step of AdamW for each batch.

    Weights decay by 0.01, gradients are clipped to norm 1.

    Raises:
        ExpungeError: a loss isn't finite.
    """
    optimizer = torch.optim.AdamW(adapter.weights.values(), lr=lr, weight_decay=0.01)
    losses = []
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        loss = suppression(adapter, batch, squared=squared, nearest=nearest)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ExpungeError(f"the loss became {losses[-1]}; use a smaller learning rate")
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(adapter.weights.values(), 1.0)
        optimizer.step()
    return losses
