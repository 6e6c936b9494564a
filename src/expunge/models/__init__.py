"""The models that Expunge edits; ``load`` finds one by name, folder, hub id or live pipeline."""

from expunge.models.stable_diffusion import Model, load

__all__ = ["Model", "load"]
