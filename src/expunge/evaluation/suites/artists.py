"""The suite for artists and styles, judged by a classifier that you give or train.

``expunge train-classifier`` makes one from folders of pictures; ``clip:`` chooses among the names.
"""

from collections.abc import Sequence
from functools import partial

from expunge.errors import ExpungeError
from expunge.evaluation.panel import Panel
from expunge.evaluation.suite import Options, Plan, Suite
from expunge.evaluation.suites.objects import told_apart
from expunge.evaluation.suites.worded import Wording, worded

WORDING = Wording(
    "artists",
    "artist",
    (
        "a painting in the style of {}",
        "a landscape in the style of {}",
        "a portrait in the style of {}",
        "a still life in the style of {}",
        "a drawing in the style of {}",
    ),
    (),
    "artists",
)


plan = partial(worded, WORDING)
"""The prompts for one artist; the artists to keep are the policy's ``keep``."""


def judge(options: Options, plans: Sequence[Plan]) -> Panel:
    """The classifier that was named.

    Raises:
        ExpungeError: none was named, or it doesn't know an artist.
    """
    if not options.judge:
        raise ExpungeError(
            "who tells artists apart? Give --judge trained:FILE (see expunge train-classifier), "
            "classifier:FOLDER or clip:FOLDER"
        )
    return told_apart(options.judge, options, plans)


SUITE = Suite(plan=plan, judge=judge)
