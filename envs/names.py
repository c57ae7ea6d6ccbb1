"""Names that a user may misspell: the error says which valid name is the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["UnknownName", "check_name"]


class UnknownName(ValueError):
    """A task, environment id, camera or argument that does not exist."""


def check_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``valid``, else raise :class:`UnknownName` naming the nearest.

    >>> check_name("task", "reach", ["reach", "push"])
    'reach'
    >>> check_name("task", "raech", ["reach", "push"])
    Traceback (most recent call last):
    envs.names.UnknownName: unknown task 'raech'; did you mean 'reach'? (2 valid names)
    """
    names = sorted(valid)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if len(names) <= 8:
        advice = "use one of " + ", ".join(map(repr, names))
    else:
        advice = f"{len(names)} names are valid, for example {names[0]!r}"
    if near:
        advice = f"did you mean {' or '.join(map(repr, near))}? ({len(names)} valid names)"
    raise UnknownName(f"unknown {kind} {name!r}; {advice}")
