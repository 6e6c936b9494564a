"""The package versions that affect a result; every record holds them."""

from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions of the packages that affect a result."""
    return {name: version(name) for name in ("expunge", "torch", "diffusers", "transformers")}
