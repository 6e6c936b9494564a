"""``expunge generate``: pictures from prompts, with or without edits."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from expunge.cli import resumable
from expunge.edits.edit import Edit
from expunge.errors import ExpungeError
from expunge.generation import Sampler
from expunge.generation import generate as draw
from expunge.models import load
from expunge.progress import shown
from expunge.prompts import PromptSet

SAMPLER = Sampler()


def generate(
    *,
    output: Path,
    prompts: Path | None = None,
    prompt: tuple[str, ...] = (),
    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**64))] = 0,
    samples: Annotated[int, Parameter(validator=Number(gte=1))] = 1,
    model: str = "emoji",
    edit: tuple[Path, ...] = (),
    sampler: Annotated[Sampler, Parameter(name="*")] = SAMPLER,
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
    prompt:
        A prompt, instead of a file; repeat it for more.
    seed:
        Seed of the prompts given by --prompt.
    samples:
        Pictures per prompt.
    model:
        "emoji", a folder, or a Hugging Face id.
    edit:
        An edit file to apply; repeat it for more.
    """
    if (prompts is None) == (not prompt):
        raise ExpungeError("give the prompts either with --prompts FILE or with --prompt WORDS")
    source = PromptSet.load(prompts) if prompts else PromptSet.of(prompt, seed=seed)
    edits = [Edit.load(path) for path in edit]
    console = Console(stderr=True)
    if source.dropped:
        console.print(f"{source.dropped} rows dropped: something sexual beside words for minors")
    base = load(model)
    with ExitStack() as stack:
        stack.enter_context(resumable(f"the finished pictures in {output}"))
        for one in edits:
            stack.enter_context(one.applied(base))
        stack.enter_context(shown(console))
        manifest = draw(base, source, output, sampler, samples=samples)
    console.print(f"pictures in {output}: {len(manifest.images)}", highlight=False)
