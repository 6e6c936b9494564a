"""Pictures from prompts: the same request gives the same bytes, whatever else is drawn."""

from expunge.generation.records import ImageRecord
from expunge.generation.sampler import Sampler
from expunge.generation.sampling import ImageRequest, requests, sample
from expunge.generation.store import Manifest, generate

__all__ = [
    "ImageRecord",
    "ImageRequest",
    "Manifest",
    "Sampler",
    "generate",
    "requests",
    "sample",
]
