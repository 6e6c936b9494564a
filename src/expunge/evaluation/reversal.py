"""Whether an edit can be reverted exactly, and whether the order of its parts matters.

Both are checked on the weights, without a picture; ``restoration`` draws what comes back.
"""

from expunge.edits.edit import Edit
from expunge.evaluation.records import Reversal
from expunge.evaluation.restoration import weight_bits
from expunge.models import Model


def reversal(model: Model, edit: Edit) -> Reversal:
    """Apply an edit, take it out, and apply its parts in the opposite order.

    The model, which has no edit applied, is unchanged afterwards.

    Raises:
        ExpungeError: the edit isn't for this model.
    """
    before = weight_bits(model)
    with edit.applied(model):
        forward = {
            name: model.denoiser.get_parameter(name).detach().clone() for name in edit.changed
        }
    restored = weight_bits(model) == before
    if len(edit.components) == 1:
        return Reversal(restores_base=restored, order=None)
    with Edit(edit.components[::-1]).applied(model):
        differences = [
            (model.denoiser.get_parameter(name).detach().double() - weight.double())
            .abs()
            .max()
            .item()
            for name, weight in forward.items()
        ]
    return Reversal(restores_base=restored, order=max(differences, default=0.0))
