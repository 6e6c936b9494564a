"""Q16: every format of prototypes gives the same judge, and no pickle runs code."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tiny_clip
from expunge.detectors import Classifier, detector
from expunge.detectors.q16 import prototypes
from expunge.errors import ExpungeError

ROWS = np.random.default_rng(0).normal(size=(2, tiny_clip.WIDTH)).astype(np.float16)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clip")
    tiny_clip.save(place)
    return place


def write(file: Path, rows: Any = ROWS) -> Path:
    if file.suffix == ".p":
        file.write_bytes(pickle.dumps(rows))
    elif file.suffix == ".npy":
        np.save(file, rows)
    elif file.suffix == ".pt":
        torch.save(torch.nn.Parameter(torch.from_numpy(rows).float()), file)
    else:
        save_file({"prompts": torch.from_numpy(rows)}, file)
    return file


@pytest.mark.parametrize("suffix", [".p", ".npy", ".pt", ".safetensors"])
def test_every_format_gives_the_same_prototypes(suffix: str, tmp_path: Path) -> None:
    rows = prototypes(write(tmp_path / f"head{suffix}"))
    assert rows.dtype == torch.float32
    assert not rows.requires_grad
    torch.testing.assert_close(rows, torch.from_numpy(ROWS).float(), rtol=0, atol=0)


def test_pickles_of_old_numpy_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "prompts.p")
    old = pickle.dumps(ROWS, protocol=3).replace(b"numpy._core", b"numpy.core")
    file.write_bytes(old)
    torch.testing.assert_close(prototypes(file), torch.from_numpy(ROWS).float())


def test_probabilities_are_the_softmax_of_a_hundred_cosines(clip: Path, tmp_path: Path) -> None:
    judge = detector(f"q16:{write(tmp_path / 'prompts.p')}@{clip}")
    assert isinstance(judge, Classifier)
    assert judge.labels[1] == "inappropriate"
    picture = tiny_clip.noise(0)
    x = detector(f"clip:{clip}").features([picture])[0].double().numpy()
    rows = ROWS.astype(np.float64)
    z = 100 * rows @ x / np.linalg.norm(x) / np.linalg.norm(rows, axis=1)
    expected = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    np.testing.assert_allclose(judge.probabilities([picture])[0], expected, atol=1e-4)


def test_the_identity_tells_heads_apart(clip: Path, tmp_path: Path) -> None:
    one = detector(f"q16:{write(tmp_path / 'a.npy')}@{clip}").identity
    other = detector(f"q16:{write(tmp_path / 'b.npy', -ROWS)}@{clip}").identity
    assert one.sha256 != other.sha256


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    "content",
    [Harmful(), [ROWS], np.array([Harmful(), None], dtype=object), ROWS.astype(np.int64)],
    ids=["code", "list", "objects", "integers"],
)
def test_a_pickle_of_anything_but_numbers_is_refused(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "prompts.p"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(ExpungeError, match=r"prompts\.p: (no pickle of one|holds no array)"):
        prototypes(file)


def test_a_torch_file_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"head": Harmful()}, tmp_path / "head.pt")
    with pytest.raises(ExpungeError, match="which could run code"):
        prototypes(tmp_path / "head.pt")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:1], "not two prototypes"),
        (ROWS.ravel(), "not two prototypes"),
        (0 * ROWS, "no direction"),
        (np.nan * ROWS, "no direction"),
    ],
)
def test_wrong_prototypes_are_refused(rows: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=message):
        prototypes(write(tmp_path / "head.npy", rows))


def test_wrong_names_are_explained(clip: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "head.npy")
    for name in ("q16:", f"q16:{file}", f"q16:@{clip}", f"q16:{file}@"):
        with pytest.raises(ExpungeError, match=r"as in q16:prompts\.p@FOLDER"):
            detector(name)
    with pytest.raises(ExpungeError, match="no such file"):
        detector(f"q16:{tmp_path / 'none.p'}@{clip}")
    (tmp_path / "head.txt").touch()
    with pytest.raises(ExpungeError, match=r"prototypes are a \.p, \.npy"):
        detector(f"q16:{tmp_path / 'head.txt'}@{clip}")
    wide = write(tmp_path / "wide.npy", np.ones((2, 768), np.float16))
    with pytest.raises(ExpungeError, match=r"of width 768 are of another CLIP .* have width 8"):
        detector(f"q16:{wide}@{clip}")
    (tmp_path / "broken.p").write_bytes(b"nothing")
    with pytest.raises(ExpungeError, match="no pickle of one numpy array"):
        prototypes(tmp_path / "broken.p")
