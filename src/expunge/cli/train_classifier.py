"""``expunge train-classifier``: a classifier of pictures from folders of pictures."""

from pathlib import Path

from rich.console import Console

from expunge.detectors.trained import SUFFIX
from expunge.detectors.training import PENALTY, Labelled, train
from expunge.errors import ExpungeError
from expunge.files import check_output
from expunge.progress import shown


def train_classifier(
    folder: Path,
    /,
    *,
    output: Path,
    backbone: str = "efficientnet",
    penalty: float = PENALTY,
    seed: int = 0,
) -> None:
    """Train a classifier from a folder that holds a folder of pictures for each class.

    It learns from four fifths of the pictures. How many of the last fifth it recognises is printed
    and recorded in the file. Duplicate pictures count once. The same pictures and seed give the
    same classifier. Use it as trained:FILE.

    Parameters
    ----------
    folder:
        Holds a folder for each class, with the name of the class.
    output:
        The file to write, e.g. artists.safetensors.
    backbone:
        The network whose features it uses: "efficientnet" (comes with expunge[eval]), or "clip:"
        and a folder or hub id.
    penalty:
        Penalty on the squared weights; a larger one prevents overfitting to few pictures.
    seed:
        Decides which pictures are held out.
    """
    if output.suffix != SUFFIX:
        raise ExpungeError(f"--output {output}: a classifier is a {SUFFIX} file")
    check_output(output)
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    labelled = Labelled.load(folder)
    with shown(console):
        classifier = train(labelled, backbone, penalty=penalty, seed=seed)
    classifier.save(output)
    record = classifier.record
    for name, rate in zip(record.classes, record.held_out, strict=True):
        console.print(f"{name}: knew {rate}")
    learnt = sum(record.learnt_from)
    console.print(f"{output}: learnt from {learnt} pictures; of others it knew {record.accuracy}")
