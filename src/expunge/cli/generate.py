"""``expunge generate``: pictures from prompts, with or without edits."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from expunge.cli import resumable
from expunge.cli.drawing import USUAL_SAMPLER, SamplerOptions
from expunge.cli.options import ModelName
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.files import check_output
from expunge.generation import generate as draw
from expunge.models import load
from expunge.models.window import remark
from expunge.progress import shown
from expunge.prompts import PromptSet
from expunge.prompts.published import published


def generate(
    *,
    output: Path,
    prompts: Path | None = None,
    prompt_set: str = "",
    prompt: tuple[str, ...] = (),
    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**64))] = 0,
    samples: Annotated[int, Parameter(validator=Number(gte=1, lte=10_000))] = 1,
    model: ModelName = "emoji",
    edit: tuple[Path, ...] = (),
    sampler: SamplerOptions = USUAL_SAMPLER,
) -> None:
    """Draw pictures from prompts, with or without edits.

    The folder gets {case_number}_{n}.png and a manifest. A run that was stopped continues with
    the same command and ends with the same pictures.

    Parameters
    ----------
    output:
        Folder for the pictures.
    prompts:
        CSV file with the columns case_number, prompt, evaluation_seed (or seed, index, ...).
    prompt_set:
        A published set, by its name in "expunge prompts". The file is checked and read as that
        set; sets that come with the package need no file.
    prompt:
        A prompt, instead of a file; repeat it for more.
    seed:
        Seed of the prompts given by --prompt.
    samples:
        Pictures per prompt.
    edit:
        An edit file to apply; repeat it for more.
    """
    console = Console(stderr=True, markup=False)
    source = _source(console, prompts, prompt_set, prompt, seed)
    edits = [Edit.load(path) for path in edit]
    check_output(output, folder=True)
    if source.dropped:
        rows = f"{source.dropped} row{'s' * (source.dropped != 1)}"
        console.print(f"{rows} dropped: something sexual beside words for minors")
    base = load(model)
    if cuts := base.cut([row.prompt for row in source]):
        first = f"case {source.rows[cuts[0].at].case_number}"
        console.print(remark(cuts, len(source), first), highlight=False, markup=False)
    with ExitStack() as stack:
        stack.enter_context(resumable(f"the finished pictures in {output}"))
        for one in edits:
            stack.enter_context(one.applied(base))
        stack.enter_context(shown(console))
        manifest = draw(base, source, output, sampler, samples=samples)
    console.print(f"pictures in {output}: {len(manifest.images)}", highlight=False)


def _source(
    console: Console, path: Path | None, prompt_set: str, words: tuple[str, ...], seed: int
) -> PromptSet:
    """The prompts: given as words, as a file, or as a published set."""
    if bool(path or prompt_set) == bool(words):
        raise ExpungeError("give the prompts either with --prompts FILE or with --prompt WORDS")
    if words:
        return PromptSet.of(words, seed=seed)
    if path and not prompt_set:
        return PromptSet.load(path)
    loaded = published(prompt_set, path)
    for note in loaded.notes:
        console.print(f"{prompt_set}: {note}", highlight=False)
    return loaded.prompts
