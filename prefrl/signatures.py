"""A constructor's signature is the schema of its configuration: its names and simple types are checked."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from prefrl.errors import ConfigError

__all__ = ["annotations_of", "check_arguments", "check_value", "fits", "hint", "nearest"]


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like ``name``, or None. For dotted keys, an equal or similar last part counts too.

    >>> nearest("agent.learnig_rate", ["seed", "agent.learning_rate", "agent.tau"])
    'agent.learning_rate'
    >>> nearest("tau", ["seed", "agent.tau"])
    'agent.tau'
    """
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if close:
        return close[0]
    by_leaf = {key.rpartition(".")[2]: key for key in reversed(valid)}
    close = difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1, cutoff=0.7)
    return by_leaf[close[0]] if close else None


def hint(name: str, valid: Iterable[str]) -> str:
    """' Did you mean …?' and the valid names, to end a message with.

    >>> hint("sead", ["seed", "out"])
    " Did you mean 'seed'? Valid: out, seed."
    """
    valid = sorted(valid)
    found = nearest(name, valid)
    question = f" Did you mean {found!r}?" if found else ""
    return f"{question} Valid: {', '.join(valid)}." if valid else f"{question} There is none to choose from."


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value (from YAML) fits an annotation; one that YAML cannot express fits anything.

    >>> fits(3, float), fits(1.5, int), fits(True, int), fits("a", Literal["a", "b"])
    (True, False, False, True)
    >>> fits(None, int | None), fits("abc", float | None), fits([1, 2], tuple[int, ...])
    (True, False, True)
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if annotation in (bool, str):
        return type(value) is annotation
    if annotation is int:
        return type(value) is int
    if annotation is float:
        return type(value) in (int, float)
    if (origin or annotation) in (list, tuple, Sequence, Iterable):
        items = [one for one in inner if one is not Ellipsis]
        is_list = type(value) in (list, tuple)
        return is_list and (not items or all(any(fits(v, one) for one in items) for v in value))
    if (origin or annotation) in (dict, Mapping):
        return type(value) is dict
    return True


def check_value(key: str, value: Any, annotation: Any) -> None:
    """Raise ``ConfigError`` naming ``key`` unless ``value`` fits."""
    if not fits(value, annotation):
        text = [str(one) for one in value] if type(value) is list else str(value)
        quote = " Put text in quotes, as in '\"true\"'." if fits(text, annotation) else ""
        raise ConfigError(f"{key} must be {_spell(annotation)}, but is {value!r} ({type(value).__name__}).{quote}")


def _spell(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(one) for one in get_args(annotation))
    simple = annotation in (bool, int, float, str)
    return annotation.__name__ if simple else str(annotation).replace("typing.", "").replace("collections.abc.", "")


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Resolved annotations of the arguments; empty where they name what exists for a type checker only."""
    made_by_fields = dataclasses.is_dataclass(function)  # some maybe of a base class in another module
    try:
        return typing.get_type_hints(
            function.__init__ if inspect.isclass(function) and not made_by_fields else function
        )
    except (NameError, TypeError, AttributeError):
        return {}


def check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any], *, key: str, partial: bool = False
) -> None:
    """Check names and simple types of keyword ``arguments`` against the signature; nothing is called.

    ``key`` is where they stand in the configuration; a ``partial`` call may leave required arguments out.
    Values that are themselves to be built (dicts with ``_target_``) are checked by name only.
    """
    parameters = inspect.signature(function).parameters
    names = [p.name for p in parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    prefix = f"{key}." if key else ""
    for name in arguments:
        if name not in names and not takes_any:
            raise ConfigError(f"{prefix}{name} is not an argument of {_name(function)}.{hint(name, names)}")
    missing = [n for n in names if parameters[n].default is inspect.Parameter.empty and n not in arguments]
    if missing and not partial:
        raise ConfigError(f"{prefix}{missing[0]} is required by {_name(function)}, but is not given.")
    hints = annotations_of(function)
    for name, value in arguments.items():
        if name in hints and not (key and _is_built(value)):  # nothing is built at the run level
            check_value(f"{prefix}{name}", value, hints[name])


def _is_built(value: Any) -> bool:
    """Whether Hydra replaces the value, or a part of it, with an object."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (isinstance(value, dict) and "_target_" in value) or any(_is_built(child) for child in children)


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"
