"""Accelerate's object for a training, with the experiment tracker that the user chose."""

from typing import TYPE_CHECKING

from expunge.errors import ExpungeError
from expunge.files import PathLike
from expunge.models import Model

if TYPE_CHECKING:
    from accelerate import Accelerator


def accelerator_for(model: Model, folder: PathLike | None, tracker: str | None) -> "Accelerator":
    """An accelerator on the model's kind of device.

    Args:
        model: what is trained.
        folder: where trackers write their files.
        tracker: the tracker's name, e.g. tensorboard.

    Raises:
        ExpungeError: the tracker can't be used (see ``check_tracker``).
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    if tracker:
        check_tracker(tracker, folder)
    cpu = model.device.type == "cpu"
    known = PartialState._shared_state.get("device")
    if known is not None and known.type != model.device.type:  # of a training before this one
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=cpu, log_with=tracker, project_dir=folder and str(folder))
    if tracker:
        accelerator.init_trackers("expunge")
    return accelerator


def check_tracker(name: str, folder: PathLike | None) -> None:
    """Refuse an experiment tracker that would silently log nothing.

    Raises:
        ExpungeError: the tracker is unknown or not installed, or it writes files and there is no
            folder.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join(LOGGER_TYPE_TO_CLASS)
        raise ExpungeError(f"unknown tracker {name!r}; accelerate knows {known}")
    own = name in LoggerType.list()
    if own and LoggerType(name) not in get_available_trackers():
        package = name.replace("_", "-")
        raise ExpungeError(f"tracker {name!r} isn't installed; pip install {package}")
    if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory and not folder:
        raise ExpungeError(f"tracker {name!r} writes files; name a folder for checkpoints")
