"""Composition: from ``key=value`` words and the configs folder to checked plain values and built components.

Hydra's Compose API does the work, and only this module knows it. What Hydra would notice late or never (a
wrong type, a misspelt argument below a partial, a key given twice) is an error here, before anything is
built: run-level keys are checked against a dataclass, components against the signature of their ``_target_``.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefrl.catalog import config_root, groups, options, slots, targets
from prefrl.errors import ConfigError, DamagedFile, PrefrlError
from prefrl.schemas import SCHEMAS
from prefrl.signatures import check_arguments, hint

__all__ = [
    "Composed", "build", "check", "compose", "first_line", "from_saved", "in_hydra_grammar", "locate", "quoted",
    "split_words",
]  # fmt: skip

Slots = dict[str, tuple[str, str | None]]  # slot → (group, default option)
UNREADABLE = (HydraException, OmegaConfBaseException, yaml.YAMLError)
HYDRA_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
UNPICKLERS = ("cloudpickle", "dill", "joblib", "numpy", "pandas", "torch")  # their load… can run code from a file


@dataclass(frozen=True)
class Composed:
    """A checked configuration in plain values: nothing of Hydra or OmegaConf leaves this module.

    settings: run-level keys · components: slot → node with ``_target_`` (or None) · choices: slot → option
    overridden: the keys that the user gave · text: the whole as YAML, resolved.
    """

    settings: Any
    components: dict[str, Any]
    choices: dict[str, str]
    overridden: tuple[str, ...]
    text: str

    def changed(self, **settings: Any) -> Composed:
        """The same with some run-level keys replaced."""
        return replace(self, settings=replace(self.settings, **settings))


def compose(command: str, overrides: Sequence[str] = (), *, incomplete: bool = False) -> Composed:
    """Compose configs/<command>.yaml with ``key=value`` words; an error names the nearest valid key.

    ``incomplete`` leaves what is required and not given as ``???``, to show the configuration.
    """
    words, available = split_words(overrides), slots(command)
    for slot in available.keys() & words.keys():
        _check_option(slot, available[slot][0], words[slot])
    try:
        available = slots(command, words)  # with the defaults of the chosen recipe and experiment
    except yaml.YAMLError as error:
        raise ConfigError(_said(error)) from error
    unfilled = [slot for slot, (_, option) in available.items() if incomplete and option == "???" and slot not in words]
    words |= dict.fromkeys(unfilled, "null")
    own = {f.name for f in fields(SCHEMAS[command])}
    named_as_groups = {k: v for k, v in words.items() if k in own and k in groups()}  # Hydra would seek an option
    texts = {k: text for k, text in in_hydra_grammar(command, words, available).items() if k not in named_as_groups}
    try:
        cfg = _hydra_compose(command, list(texts.values()))
    except UNREADABLE as error:
        chosen = [text for key, text in texts.items() if key in available]
        _check_keys(words, _valid_keys(command, chosen), available)
        raise ConfigError(_said(error)) from error
    for key, value in named_as_groups.items():
        cfg[key] = None if value == "null" else value.strip("'\"")
    choices = {slot: words.get(slot, option) for slot, (_, option) in available.items()}
    kept = {slot: option for slot, option in choices.items() if option not in (None, "null")}
    for key in ("dataset", "source_dataset"):
        if type(cfg.get(key)) is str:  # so that a run can be resumed from another directory
            cfg[key] = os.path.abspath(cfg[key])
    composed = _checked(command, cfg, kept, tuple(words), incomplete=incomplete)
    return replace(composed, text="".join(f"{slot}: ???\n" for slot in unfilled) + composed.text)


def in_hydra_grammar(command: str, words: Mapping[str, str], available: Slots) -> dict[str, str]:
    """Key → the override that says to Hydra what our word ``key=value`` says; none where that changes nothing."""
    effective = {k: v for k, v in words.items() if (v, available.get(k, ("", ""))[1]) != ("null", None)}
    return {key: _override(command, key, value, available) for key, value in effective.items()}


def split_words(overrides: Sequence[str]) -> dict[str, str]:
    """Key → value of ``key=value`` words; a key given twice is an error."""
    words = dict(_split(word) for word in overrides)
    if len(words) < len(overrides):
        keys = [_split(word)[0] for word in overrides]
        raise ConfigError(f"{next(k for k in keys if keys.count(k) > 1)} is given twice. Keep one of them.")
    return words


def from_saved(path: Path) -> Composed:
    """The configuration that a run directory holds.

    The directory may be foreign, so it may call only what a config of this installation names, or what is of
    a package in the environment variable ``PREFRL_TRUST`` (names with commas between them).
    """
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        cfg = OmegaConf.create(saved) if type(saved) is dict else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise DamagedFile(f"{path} is not a readable configuration: {_said(error)} Start a new run.") from error
    if cfg is None:
        raise DamagedFile(f"{path} is not a configuration: expected keys with values. Start a new run.")
    if any("${" in text for text in _texts(saved)):  # Hydra would resolve it after the targets have been judged
        raise DamagedFile(f"{path} holds ${{…}}, which a saved configuration never does. Start a new run.")
    try:
        config = _checked("train", cfg, {}, ())
    except ConfigError as error:  # written by another version, or by hand
        raise ConfigError(f"{path}: {error}") from error
    trusted, packages = targets(), os.environ.get("PREFRL_TRUST", "").split(",")
    for key, target in _named_targets(config.components):
        top = str(target).partition(".")[0]
        if str(target) not in trusted and top not in packages:
            raise ConfigError(
                f"{path}: {key}._target_ is {target!r}, which no config of this installation names, and calling "
                f"it could run foreign code. If you trust this run, set PREFRL_TRUST={top} and try again."
            )
    return config


def _texts(node: Any) -> Iterator[str]:
    if type(node) is str:
        yield node
    for child in _children(node).values():
        yield from _texts(child)


def _named_targets(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, ``_target_``) of every node, also of those among ``_args_``."""
    if type(node) is dict and "_target_" in node:
        yield key, node["_target_"]
    for name, child in _children(node).items():
        yield from _named_targets(child, f"{key}.{name}" if key else str(name))


def _children(node: Any) -> dict[Any, Any]:
    return node if type(node) is dict else dict(enumerate(node)) if type(node) is list else {}


def _split(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals or not key or key[0] in "+~":
        raise ConfigError(f"Cannot read {word!r}: expected key=value, with a key that `--cfg job` shows.")
    return key, value


def _check_option(slot: str, group: str, option: str) -> None:
    if option != "null" and option not in options(group):
        raise ConfigError(f"{slot}={option}: there is no such {group}.{hint(option, options(group))}")


def _override(command: str, key: str, value: str, available: Slots) -> str:
    """The word as Hydra's grammar wants it: paths quoted, a slot by its full name."""
    if key in available:
        group = available[key][0]
        name = f"{group}@{key}" if group != key else key
        return f"~{name}" if value == "null" else f"{name}={value}"
    text_keys = [f.name for f in fields(SCHEMAS[command]) if f.type in ("str", "str | None")]
    if key in text_keys and value != "null" and value[:1] not in "'\"":
        value = quoted(value)
    return f"{key}={value}"


def quoted(text: str) -> str:
    """A text as Hydra's grammar takes any.

    >>> quoted("a, b")
    "'a, b'"
    """
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _hydra_compose(command: str, overrides: Sequence[str]) -> DictConfig:
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise ConfigError(f"Cannot read {text!r}: quote special characters, as in key='\"a, b\"'.") from error
        if parsed.is_sweep_override():
            key = text.partition("=")[0]
            each = f" To run each of them: prefrl train -m {text} …" if command == "train" else ""
            raise ConfigError(f"{text}: several values for one key; write a list as {key}=[a,b].{each}")
    with hydra.initialize_config_dir(str(config_root()), version_base="1.3"):
        return hydra.compose(command, list(overrides))


def _checked(
    command: str, cfg: DictConfig, choices: dict[str, str], overridden: tuple[str, ...], *, incomplete: bool = False
) -> Composed:
    """Resolve, find what is missing, and check the run-level keys against the command's dataclass."""
    missing = OmegaConf.missing_keys(cfg)
    if missing and not incomplete:
        key = min(missing)
        raise ConfigError(f"{key} is required: give {key}=…")
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error
    plain: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    schema = SCHEMAS[command]
    names = {f.name for f in fields(schema)}
    components = {key: node for key, node in plain.items() if key not in names and type(node) is dict}
    values = {key: value for key, value in plain.items() if key not in components}
    check_arguments(schema, values, key="")
    return Composed(schema(**values), components, choices, overridden, OmegaConf.to_yaml(cfg))


def _valid_keys(command: str, chosen: Sequence[str]) -> list[str]:
    try:
        return _keys(_hydra_compose(command, chosen))
    except UNREADABLE as error:
        raise ConfigError(_said(error)) from error


def _keys(node: Any, prefix: str = "") -> list[str]:
    if not OmegaConf.is_dict(node):
        return []
    names = [(f"{prefix}{key}", key) for key in node if key not in HYDRA_KEYS]
    below = [_keys(node._get_node(key), f"{full}.") for full, key in names]
    return [full for full, _ in names] + [key for keys in below for key in keys]


def _check_keys(words: dict[str, str], valid: list[str], available: Slots) -> None:
    everything = [*valid, *(slot for slot in available if slot not in valid)]
    for key in words:
        if key not in everything:
            parent = key.rpartition(".")[0]
            siblings = [name for name in everything if name.rpartition(".")[0] == parent]
            siblings = siblings or [name for name in everything if "." not in name]
            near = hint(key, everything).partition(" Valid:")[0]
            raise ConfigError(f"Unknown key {key!r}.{near} Valid here: {', '.join(sorted(siblings))}.")


def _said(error: BaseException) -> str:
    """In one line: of a YAML error all of it, because the file's name comes last."""
    return " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else first_line(error)


def first_line(error: BaseException) -> str:
    """What an error says, without what Hydra adds below."""
    return str(error).strip().partition("\n")[0]


def locate(target: str, *, key: str) -> Any:
    """The function or class that a ``_target_`` names.

    The standard library and what unpickles are refused, by any name: ``os.system`` and ``torch.load`` are no
    components.
    """
    if type(target) is not str:
        raise ConfigError(f"{key}._target_ must be the dotted name of a function or class, but is {target!r}.")
    _refuse_dangerous(target, f"{key}._target_: {target!r}")
    try:
        found = get_object(target)
    except (ImportError, AttributeError, ValueError) as error:
        reason = first_line(error.__cause__ or error)
        raise ConfigError(f"{key}._target_: cannot find {target!r} ({reason}).") from error
    if not callable(found):
        raise ConfigError(f"{key}._target_: {target!r} is not a function or class.")
    if inspect.isroutine(found) or inspect.isclass(found):
        _refuse_dangerous(f"{found.__module__}.{found.__qualname__}", f"{key}._target_: {target!r}")
    return found


def _refuse_dangerous(name: str, which: str) -> None:
    top, last = name.partition(".")[0], name.rpartition(".")[2]
    if top in sys.stdlib_module_names:
        raise ConfigError(f"{which} is of the standard library; a component must be of a package.")
    if top in UNPICKLERS and last.startswith(("load", "read_pickle")):
        raise ConfigError(f"{which} may unpickle, which can run code from the file; it cannot be a component.")


def check(node: Any, *, key: str) -> None:
    """Check every ``_target_`` below ``node``: it exists, and takes these arguments with these types."""
    if type(node) is list:
        for index, child in enumerate(node):
            check(child, key=f"{key}[{index}]")
    elif type(node) is dict:
        arguments = {name: child for name, child in node.items() if name not in HYDRA_KEYS}
        if "_target_" in node:
            partial = bool(node.get("_partial_"))
            check_arguments(locate(node["_target_"], key=key), arguments, key=key, partial=partial)
        for name, child in node.items():  # also _args_, which Hydra builds too
            check(child, key=f"{key}.{name}")


def build(node: Any, *, key: str) -> Any:
    """Check a component and make it; an error names its key."""
    if node is None:
        return None
    if "_target_" not in node:
        raise ConfigError(f"{key} has no _target_, so nothing can be built from it.")
    check(node, key=key)
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        kind = type(cause) if isinstance(cause, PrefrlError) else ConfigError
        raise kind(f"{key}: {first_line(cause)}") from error
