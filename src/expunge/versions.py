"""The versions that decide a result; every record holds them."""

from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    return {name: version(name) for name in ("expunge", "torch", "diffusers", "transformers")}
