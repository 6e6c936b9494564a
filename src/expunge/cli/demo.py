"""``expunge demo``: erase a character and a style from the bundled model and show the proof."""

from pathlib import Path

from rich.console import Console

from expunge.cli import resumable
from expunge.cli.evaluate import show_headline
from expunge.concepts import Concept
from expunge.edits.edit import Edit
from expunge.evaluation.bench import presets
from expunge.evaluation.evaluate import evaluate
from expunge.files import check_output, replacing
from expunge.method.base import Trained
from expunge.methods import erase, settings
from expunge.models import Model, load
from expunge.progress import shown
from expunge.report.html import FILE, write_html
from expunge.report.pictures import before_after

ERASURES = (
    ("uce", Concept(target="santa claus", synonyms=("santa",), kind="character", anchor="robot")),
    ("esd", Concept(target="ink", kind="style", anchor="noto")),
)
PICTURE = "before-after.png"


def demo(*, output: Path = Path("runs/demo")) -> None:
    """Erase a character with UCE and a style with ESD from the bundled model; show the proof.

    It takes two to four minutes on two cores. A demo that was stopped continues with the same
    command.

    Parameters
    ----------
    output:
        Folder for the edits, the pictures and the report.
    """
    console = Console(highlight=False, markup=False)
    check_output(output, folder=True)
    with resumable(f"the finished pictures and training steps in {output}"), shown():
        model = load("emoji")
        first, second = (
            evaluate(model, _edit(model, method, concept, output), folder=output)
            for method, concept in ERASURES
        )
    report = first + second
    report.save(output)
    page = write_html(report, output / FILE)
    with replacing(output / PICTURE) as temporary:
        before_after(report).save(temporary, format="PNG")
    for evaluation in report.evaluations:
        show_headline(console, evaluation)
    console.print(f"\nReport: {page}\nBefore and after: {output / PICTURE}")


def _edit(model: Model, method: str, concept: Concept, output: Path) -> Edit:
    """The edit of an earlier run for this very model, or a new one."""
    name = f"{concept.target.replace(' ', '-')}-{method}-{model.fingerprint()[:8]}"
    path = output / "edits" / f"{name}.safetensors"
    if path.exists():
        return Edit.load(path)
    trained = issubclass(settings(method), Trained)
    edit = erase(
        model,
        presets.policy(concept),
        method,
        checkpoints=output / "checkpoints" / name if trained else None,
        **presets.settings(method, concept),
    )
    edit.save(path)
    return edit
