"""Fixtures for every test: small random models, and the reference data where it is at hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.models import Model, load

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, so that no worker ends with one while the others idle."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("EXPUNGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def pico_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline with 16-row prompts of width 32 and 16-pixel pictures."""
    from expunge import testing

    folder = tmp_path_factory.mktemp("pico")
    testing.pipeline(folder).save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.fixture
def pico(pico_folder: Path) -> Model:
    """A fresh pico model."""
    return load(pico_folder, device="cpu")


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose prompts have 16 rows of width 128: room for a few concepts."""
    from expunge import testing

    folder = tmp_path_factory.mktemp("wide")
    testing.pipeline(folder, width=128).save_pretrained(folder / "pipe")
    return folder / "pipe"


@pytest.fixture
def wide(wide_folder: Path) -> Model:
    return load(wide_folder, device="cpu")


@pytest.fixture(scope="session")
def full_reference() -> Path:
    """The folder of reference cases beside the repository."""
    folder = ROOT.parent / "shared" / "reference"
    if not (folder / "cases").is_dir():
        pytest.skip("the full set of reference cases isn't here; the small set is in tests/data")
    return folder
