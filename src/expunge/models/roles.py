"""Roles of UNet parameters: ``cross_attention.kv`` instead of 32 names that differ by model."""

import difflib
import fnmatch
from collections.abc import Callable

from torch import nn

from expunge.errors import ExpungeError

Rule = Callable[[str, nn.Module], bool]
"""Decides on a parameter from its full name and the module that owns it."""


def _has_weights(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


ROLES: dict[str, Rule] = {
    "cross_attention.kv": lambda name, _: ".attn2.to_k." in name or ".attn2.to_v." in name,
    "cross_attention": lambda name, _: ".attn2." in name,
    "self_attention": lambda name, _: ".attn1." in name,
    "not_cross_attention": lambda name, module: ".attn2." not in name and _has_weights(module),
    "transformers": lambda name, module: (
        ".attentions." in name
        and any(part in name for part in (".transformer_blocks.", ".proj_in.", ".proj_out."))
        and name.endswith(".weight")
        and _has_weights(module)
    ),
    "all": lambda name, module: True,
}
"""``not_cross_attention`` is every linear and convolution outside cross-attention, no norm;
``transformers`` the weights of those that are part of a ``Transformer2DModel``."""


def matching(unet: nn.Module, rule: Rule) -> tuple[str, ...]:
    """Names of the parameters that ``rule`` takes, in the order of the modules."""
    owners = dict(unet.named_modules())
    return tuple(
        name for name, _ in unet.named_parameters() if rule(name, owners[name.rpartition(".")[0]])
    )


def select(unet: nn.Module, role: str) -> tuple[str, ...]:
    """Names of the parameters of a role, or of those that match a pattern such as ``*.to_q.*``.

    Raises:
        ExpungeError: the role is unknown, or nothing of this model plays it.
    """
    if any(character in role for character in "*?["):
        names = matching(unet, lambda name, _: fnmatch.fnmatchcase(name, role))
    elif role in ROLES:
        names = matching(unet, ROLES[role])
    else:
        near = difflib.get_close_matches(role, ROLES, n=3, cutoff=0.4) or list(ROLES)
        raise ExpungeError(f"unknown role {role!r}; did you mean {', '.join(near)}?")
    if not names:
        raise ExpungeError(
            f"{role!r} selects no parameter of this model; it has "
            + ", ".join(f"{known} ({len(matching(unet, ROLES[known]))})" for known in ROLES)
        )
    return names
