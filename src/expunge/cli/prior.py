"""``expunge prior``: a file that tells methods which ordinary captions must stay."""

from pathlib import Path

from rich.console import Console

from expunge.cli import resumable
from expunge.cli.options import ModelName
from expunge.errors import ExpungeError
from expunge.files import check_output
from expunge.models import load
from expunge.models.window import remark
from expunge.prior import Prior
from expunge.prior.legacy import imported
from expunge.progress import shown
from expunge.prompts.lists import captions


def prior(
    *,
    output: Path,
    prompts: Path | None = None,
    legacy: Path | None = None,
    model: ModelName = "emoji",
) -> None:
    """Summarise many captions as a model's text encoder reads them, for methods that keep them.

    A run that was stopped continues with the same command and ends with the same file. Give the
    file to a method with "expunge erase --set prior=FILE"; it works for every model with the same
    text encoder.

    Parameters
    ----------
    output:
        The file to write, e.g. prior.safetensors.
    prompts:
        Captions of ordinary pictures: a .txt file with one per line, or a .csv file with a column
        prompt, caption or text.
    legacy:
        Import an old cache instead: a torch file with the entries 0_for_mat1, 0_for_mat2, ...
        Then --model must be the model that it was made with.
    """
    if output.suffix != ".safetensors":
        raise ExpungeError(f"--output {output}: a prior is a .safetensors file")
    check_output(output, *filter(None, [legacy]))
    console = Console(stderr=True, markup=False)
    if prompts and not legacy:
        made = _summed(console, prompts, model, output)
    elif legacy and not prompts:
        made = imported(legacy, load(model, whole=False))
    else:
        raise ExpungeError("give the captions either with --prompts FILE or with --legacy FILE")
    made.save(output)
    _state(output).unlink(missing_ok=True)
    about = "about " if made.metadata.prompts is None else ""
    console.print(f"{output}: a prior of {about}{made.metadata.count} captions", highlight=False)


def _summed(console: Console, prompts: Path, model: str, output: Path) -> Prior:
    source = captions(prompts)
    if source.dropped:
        rows = f"{source.dropped} row{'s' * (source.dropped != 1)}"
        console.print(f"{rows} dropped: something sexual beside words for minors")
    base = load(model, whole=False)
    if cuts := base.cut(source.prompts):
        said = remark(cuts, len(source.prompts), f"{cuts[0].prompt[:40]}…", "caption")
        console.print(said, highlight=False, markup=False)
    state = _state(output)
    with resumable(f"the sums up to the last half minute in {state}"), shown(console):
        return Prior.of(base, source.prompts, checkpoint=state)


def _state(output: Path) -> Path:
    """The file of an unfinished run."""
    return output.with_suffix(".unfinished.safetensors")
