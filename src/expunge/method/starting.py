"""Starting from an edit that is there already instead of from the base."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import InstanceOf, PlainSerializer

from expunge.edits.edit import Edit
from expunge.edits.store import is_edit
from expunge.errors import ExpungeError
from expunge.files import PathLike
from expunge.formats import published
from expunge.method.base import Method
from expunge.models import Model
from expunge.settings import or_file


def _opened(path: PathLike) -> Edit | Path:
    """An edit; or the path of what can be read only beside its base, a published model."""
    if not Path(path).exists():
        raise ExpungeError(f"{path}: no such file or folder")
    return Edit.load(path) if is_edit(path) else Path(path)


def _recorded(start: Edit | Path) -> str:
    return start.id if isinstance(start, Edit) else str(start)


StartSetting = Annotated[
    InstanceOf[Edit] | InstanceOf[Path],
    or_file(_opened),
    PlainSerializer(_recorded, return_type=str),
]
"""A setting that is an ``Edit`` or a file of one; a record stores the edit's id."""


class Starting(Method):
    """The setting ``start`` of methods whose first stage any edit can replace.

    What the method adds is one part of the edit that it makes, and ``start`` the others.
    """

    start: StartSetting | None = None
    """What to start from: an edit file, or a published model as "expunge import" reads it. Default:
    the base, with this method's own first stage."""

    def settled(self, model: Model) -> Self:
        """The same settings, with ``start`` as an edit of this model.

        Raises:
            ExpungeError: it is of another model, or holds gates or guards.
        """
        settled = super().settled(model)
        if self.start is None:
            return settled
        edit = self.start if isinstance(self.start, Edit) else published.load(self.start, model)
        if edit.gated or edit.guarded:
            raise ExpungeError(
                f"start: {edit.id} holds gates or guards, and only changed weights can be continued"
            )
        edit.check_base(model)
        return settled.model_copy(update={"start": edit})

    def start_edit(self, model: Model) -> Edit | None:
        """The edit to start from, if one is given.

        Raises:
            ExpungeError: it is of another model, or holds gates or guards.
        """
        start = self.settled(model).start
        assert not isinstance(start, Path)
        return start

    def refuse_beside_start(self, *names: str) -> None:
        """Refuse settings of the stage that ``start`` replaces.

        Raises:
            ValueError: one of them was changed.
        """
        if self.start is None:
            return
        usual = type(self)(fidelity=self.fidelity)
        for name in names:
            if getattr(self, name) != getattr(usual, name):
                raise ValueError(
                    f"{name}: is of the stage that start replaces; set only one of the two"
                )
