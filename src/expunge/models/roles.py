"""Roles of parameters: ``cross_attention.kv`` instead of 32 names that differ by model.

A *selection* joins roles, and patterns such as ``*.to_q.*``, from left to right::

    self_attention | cross_attention.q       of either
    layers - cross_attention                 of the first, without the second
    cross_attention & *.weight               of both

Every model has the roles ``all`` and ``layers``, the linear layers and convolutions. Its family
says by selections what else there is (``Roles``).
"""

import difflib
import fnmatch
from collections.abc import Mapping, Sequence

from torch import nn

from expunge.errors import ExpungeError

Roles = Mapping[str, str]
"""A family's selection for each role."""

LEFT_OVER = {"to_qkv", "to_kv", "to_added_qkv"}
"""Modules that diffusers makes to fuse projections; while they are in use, edits are refused."""


def parameters(denoiser: nn.Module, roles: Roles, selection: str) -> tuple[str, ...]:
    """Names of the parameters of a selection, in the order of the modules; perhaps none.

    Raises:
        ExpungeError: a role is unknown, or the selection isn't written as one.
    """
    listed = names(denoiser)
    chosen = _chosen(denoiser, listed, roles, selection)
    return tuple(name for name in listed if name in chosen)


def members(denoiser: nn.Module, roles: Roles) -> dict[str, tuple[str, ...]]:
    """The parameters of every role that any plays, and of ``all``."""
    listed = names(denoiser)
    chosen = {role: _chosen(denoiser, listed, roles, role) for role in (*roles, "all")}
    ordered = {role: tuple(name for name in listed if name in own) for role, own in chosen.items()}
    return {role: own for role, own in ordered.items() if own}


def names(denoiser: nn.Module) -> tuple[str, ...]:
    """Names of all parameters that it computes with, in the order of the modules.

    Unfusing an attention's projections leaves the fused ones in place, unused.
    """
    listed = (name for name, _ in denoiser.named_parameters())
    return tuple(name for name in listed if LEFT_OVER.isdisjoint(name.split(".")))


def select(denoiser: nn.Module, roles: Roles, selection: str) -> tuple[str, ...]:
    """The same, of at least one parameter.

    Raises:
        ExpungeError: also if nothing of this model is selected.
    """
    selected = parameters(denoiser, roles, selection)
    if not selected:
        every = (*roles, "all")
        counts = (f"{role} ({len(parameters(denoiser, roles, role))})" for role in every)
        raise ExpungeError(
            f"{selection!r} selects no parameter of this model; it has {', '.join(counts)}"
        )
    return selected


def _chosen(denoiser: nn.Module, listed: Sequence[str], roles: Roles, selection: str) -> set[str]:
    first, *rest = selection.split() or [""]
    if len(rest) % 2 or any(sign not in ("|", "&", "-") for sign in rest[::2]):
        raise ExpungeError(f"{selection!r}: put |, & or - between roles, with spaces around it")
    chosen = _members(denoiser, listed, roles, first)
    for sign, role in zip(rest[::2], rest[1::2], strict=True):
        others = _members(denoiser, listed, roles, role)
        chosen = {"|": chosen | others, "&": chosen & others, "-": chosen - others}[sign]
    return chosen


def _members(denoiser: nn.Module, listed: Sequence[str], roles: Roles, role: str) -> set[str]:
    if role in roles:
        return _chosen(denoiser, listed, roles, roles[role])
    if role == "all":
        return set(listed)
    if role == "layers":
        owners = dict(denoiser.named_modules())
        kinds = nn.Linear | nn.Conv2d
        return {name for name in listed if isinstance(owners[name.rpartition(".")[0]], kinds)}
    if any(character in role for character in "*?["):
        return set(fnmatch.filter(listed, role))
    known = (*roles, "all", "layers")
    near = difflib.get_close_matches(role, known, n=3, cutoff=0.4) or known
    raise ExpungeError(f"unknown role {role!r}; did you mean {', '.join(near)}?")
