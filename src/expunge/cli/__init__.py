"""The command line: one file per command, each imported only when it is called."""

import keyword
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from expunge import __version__
from expunge.errors import CutOff, ExpungeError, Ignored, Missed

_COMMANDS = {
    "erase": "Make an edit that erases concepts from a model.",
    "generate": "Draw pictures from prompts, with or without edits.",
    "evaluate": "Measure what an edit erased and what it kept.",
    "audit": "Measure any checkpoint against a policy, with a report, a model card and limits.",
    "attack": "Try to bring back what was erased, beside the base and controls.",
    "diff": "Say how two reports differ, and why.",
    "bench": "Compare all methods on the bundled model.",
    "report": "Write the report of an evaluation.",
    "demo": "Erase a character and a style from the bundled model and show the proof.",
    "methods": "List the methods with their settings.",
    "attacks": "List the attacks, and what each must know.",
    "prompts": "List published prompt sets, or check your copy of one.",
    "protocols": "List how published numbers were made.",
    "prior": "Summarise captions that must stay, for methods that keep them.",
    "doctor": "Say what an edit would change in a model, and how it reads your words.",
    "export": "Write an edit as a LoRA of other programs, or the edited model whole.",
    "import": "Turn a published erased model into an edit.",
    "compose": "Add edits up, or take concepts out of a sum.",
    "train-classifier": "Train a classifier of pictures from folders of pictures.",
}

MAY_BE_EMPTY = {"--anchor"}
"""Options whose empty text is the empty prompt."""


def _stated(default: object) -> object:
    return default or None


def application() -> App:
    """The command line, without a single command imported."""
    app = App(
        name="expunge",
        help="Erase concepts from text-to-image diffusion models and measure what is left.",
        version=__version__,
        # Markdown would cost a third of the time that the help takes.
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(negative=(), show_default=_stated),
    )
    for order, (name, help) in enumerate(_COMMANDS.items()):
        place = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
        app.command(f"expunge.cli.{place}:{place}", name=name, help=help, sort_key=order)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    That is 0, or 1 if a model misses a policy's limits, 2 after a mistake or an error of the
    operating system, 3 after a fault of Expunge's own, 130 after an interruption, and 141 if
    whoever reads the output has gone.
    """
    tokens = [_at_home(one) for one in (sys.argv[1:] if arguments is None else arguments)]
    try:
        _check_given(tokens)
        with remarks():
            application()(
                tokens, exit_on_error=False, print_error=False, result_action="return_value"
            )
        sys.stdout.flush()
    except Missed as missed:
        print(f"missed: {_one_line(missed)}", file=sys.stderr)
        return 1
    except (ExpungeError, CycloptsError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print(f"interrupted; {interruption or 'nothing was saved'}", file=sys.stderr)
        return 130
    except SystemExit:  # rich ends a program so when its reader has gone
        return 141
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains
        return 141
    except OSError as error:
        print(f"error: {_system_error(error)}", file=sys.stderr)
        return 2
    except Exception as fault:
        print(f"fault: {_reported(fault)}", file=sys.stderr)
        return 3
    return 0


def _check_given(tokens: Sequence[str]) -> None:
    """Refuse an option without content, which a path would take for the working folder.

    Raises:
        ExpungeError: one has none, as after a variable of the shell that isn't set.
    """
    empty = [option for option, value in pairwise(tokens) if not value and option[:2] == "--"]
    joined = [one[:-1] for one in tokens if one[:2] == "--" and one[-1] == "="]
    for option in (*empty, *joined):
        if option not in MAY_BE_EMPTY:
            raise ExpungeError(f"{option}: nothing is given; leave the option out, or fill it in")


@contextmanager
def remarks() -> Iterator[None]:
    """Inside, a warning of ours is one line on the terminal."""

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, CutOff | Ignored):
            print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.showwarning = show
        warnings.simplefilter("always", CutOff)
        warnings.simplefilter("always", Ignored)
        yield


def _system_error(error: OSError) -> str:
    from expunge.files import reason  # only then, so that the help stays fast

    said = reason(error)
    named = [os.fsdecode(name) for name in (error.filename, error.filename2) if name]
    return f"{named[0]}: {said}" if named and named[0] not in said else said


def _reported(fault: Exception) -> str:
    """One line about a fault of our own, which names a file that has the traceback."""
    import tempfile
    import traceback

    line = " ".join(f"{type(fault).__name__}: {fault}".split())[:300]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="expunge-fault-", suffix=".txt", delete=False, errors="replace"
        ) as file:
            traceback.print_exception(fault, file=file)
    except OSError:
        return f"{line}\n{''.join(traceback.format_exception(fault))}"
    return f"{line}; this is a fault of Expunge's, please report it with {file.name}"


def _at_home(token: str) -> str:
    """A quoted path, or the value of an option, that starts with ``~``: the shell left it alone."""
    option, equals, value = token.partition("=")
    if token.startswith("--") and equals:
        return f"{option}={_at_home(value)}"
    return os.path.expanduser(token) if token.startswith("~/") else token


def _one_line(error: Exception) -> str:
    if isinstance(error, UnknownCommandError):  # whose own text imports every command
        return f"no such command; there are {', '.join(_COMMANDS)}"
    cause: Any = error.__cause__
    # By name: importing pydantic only to report a misspelt word would take long.
    if type(cause).__name__ == "ValidationError":
        from expunge.concepts import explain

        return explain(cause)
    return " ".join(str(error).split())


@contextmanager
def resumable(saved: str) -> Iterator[None]:
    """After an interruption, say what is saved, e.g. ``the pictures in runs/cats``."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{saved} are saved, and the same command continues there"
        ) from None
