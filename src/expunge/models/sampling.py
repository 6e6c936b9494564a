"""How a model is usually drawn."""

import hashlib
from typing import Any, NamedTuple


class Sampling(NamedTuple):
    """Everything that turns noise and a prompt into a picture, besides the model."""

    scheduler: str
    """A name that ``Process.scheduler`` knows; ``native`` is the pipeline's own."""
    steps: int
    """Denoising steps."""
    guidance_scale: float
    """Of classifier-free guidance; 1 is none."""


USUAL = Sampling("native", 50, 7.5)
"""How the field draws with Stable Diffusion 1 and 2."""
USUAL_XL = Sampling("native", 50, 5.0)
"""How diffusers' own pipeline draws with SDXL."""
BUNDLED = Sampling("ddim", 20, 4.0)
"""What suits the bundled model."""


def scheduler_name(scheduler: Any) -> str:
    """A diffusers scheduler's class and a digest of its configuration."""
    settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    key = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:8]
    return f"{type(scheduler).__name__} {key}"
