"""What can be chosen: groups, options and their descriptions, from the configs folder and without Hydra."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from prefrl.errors import ConfigError
from prefrl.signatures import hint

__all__ = [
    "config_root", "describe", "docstring_line", "group_named", "groups", "option_values", "options",
    "read_yaml", "slots", "targets",
]  # fmt: skip

TARGET = re.compile(r"^[\s-]*_target_: *([\w.]+)", re.MULTILINE)


def config_root() -> Path:
    """The absolute path of the configs: inside the package (wheel) or beside it (checkout)."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return candidate
    raise ConfigError(f"The configs folder is missing beside {package}. Install prefrl anew.")


def groups() -> list[str]:
    """Config groups: the folders of the configs folder.

    >>> "agent" in groups()
    True
    """
    return sorted(folder.name for folder in config_root().iterdir() if folder.is_dir())


def group_named(name: str) -> str:
    """A group by its name or its plural.

    >>> group_named("queries"), group_named("agents"), group_named("env")
    ('query', 'agent', 'env')
    """
    plurals = {_plural(group): group for group in groups()}
    if name not in plurals and name not in groups():
        raise ConfigError(f"There is no group {name!r}.{hint(name, [*plurals, 'losses', 'importers', 'arms'])}")
    return plurals.get(name, name)


def _plural(name: str) -> str:
    return re.sub(r"y$", "ie", name) + ("es" if name.endswith(("ch", "s")) else "s")


def options(group: str) -> list[str]:
    """The options of a group: its YAML files."""
    return sorted(file.stem for file in (config_root() / group).glob("*.yaml"))


def read_yaml(*parts: str) -> dict[str, Any]:
    """One YAML file of the configs folder, not composed: ``read_yaml("agent", "iql")``."""
    with config_root().joinpath(*parts).with_suffix(".yaml").open(encoding="utf-8") as file:  # its name is in errors
        return yaml.safe_load(file) or {}


def option_values(group: str, option: str) -> dict[str, Any]:
    """An option's keys and values, with those that it takes over from other options of its group."""
    own = read_yaml(group, option)
    bases = [entry for entry in own.pop("defaults", []) if isinstance(entry, str) and entry in options(group)]
    inherited = [option_values(group, base) for base in bases]
    return {key: value for values in [*inherited, own] for key, value in values.items()}


def slots(command: str, chosen: Mapping[str, str] | None = None) -> dict[str, tuple[str, str | None]]:
    """Slot → (group, default option) of a command; the default ``agent@baseline: OPTION`` fills slot baseline.

    What is ``chosen`` for a slot may bring other defaults (``override /teacher@_global_.teacher: OPTION``). Of several,
    that of the slot which stands last in the command's list holds: an experiment's over a recipe's.

    >>> slots("train")["baseline"]
    ('agent', 'bc_deterministic')
    >>> slots("train", {"recipe": "cpl"})["teacher"]
    ('teacher', 'regret_scripted')
    """
    chosen = chosen or {}
    own = {_slot(name): (_group(name), option) for name, option in _choices(read_yaml(command))}
    overridden: dict[str, str | None] = {}
    for slot, (group, option) in reversed(own.items()):
        for name, value in _overrides(group, chosen.get(slot, overridden.get(slot, option))):
            overridden.setdefault(_slot(name), value)
    return {slot: (group, overridden.get(slot, option)) for slot, (group, option) in own.items()}


def _choices(values: dict[str, Any]) -> list[tuple[str, str | None]]:
    """The entries ``group@slot: option`` of a defaults list."""
    return [item for entry in values.get("defaults", []) if isinstance(entry, dict) for item in entry.items()]


def _overrides(group: str, option: str | None) -> Iterator[tuple[str, str | None]]:
    """What an option chooses for other slots, the strongest first: its last word, its own before its base's."""
    if option not in options(group):
        return
    values = read_yaml(group, str(option))
    yield from ((name, value) for name, value in reversed(_choices(values)) if name.startswith("override "))
    for base in reversed(values.get("defaults", [])):
        if isinstance(base, str):
            yield from _overrides(group, base)


def _group(name: str) -> str:
    """``optional agent@baseline`` → ``agent``."""
    return name.removeprefix("optional ").removeprefix("override ").removeprefix("/").partition("@")[0]


def _slot(name: str) -> str:
    """``agent@baseline`` → ``baseline``, and without ``@`` the group."""
    return name.partition("@")[2].removeprefix("_global_.") or _group(name)


def targets() -> set[str]:
    """Every ``_target_`` that a file of the configs folder names.

    >>> "envs.make" in targets()
    True
    """
    texts = (file.read_text(encoding="utf-8") for file in config_root().rglob("*.yaml"))
    return {target for text in texts for target in TARGET.findall(text)}


def describe(group: str, option: str) -> str:
    """One line: the file's first comment, or else the first docstring line of what its ``_target_`` names."""
    lines = (config_root() / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if not line.startswith("# @package")), "")
    if first.startswith("#"):
        return first.lstrip("# ")
    return docstring_line(str(option_values(group, option).get("_target_", "")))


def docstring_line(target: str) -> str:
    """First docstring line of ``package.module.name``, found by parsing the source: nothing is imported.

    >>> docstring_line("prefrl.errors.ConfigError")
    'An unknown, misspelt, mistyped or ineffective configuration key.'
    """
    module, _, name = target.rpartition(".")
    for file in _sources(module):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
                return (ast.get_docstring(node) or "").partition("\n")[0]
            if isinstance(node, ast.ImportFrom) and any(name in (a.asname, a.name) for a in node.names):
                return docstring_line(f"{_absolute(module, node)}.{name}")
    return ""


def _absolute(module: str, node: ast.ImportFrom) -> str:
    return ".".join(part for part in (module if node.level else "", node.module or "") if part)


def _sources(module: str) -> Iterator[Path]:
    """The file of a module, without importing its parents as ``find_spec`` of a dotted name would."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top) if top else None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        base = Path(folder, *rest)
        yield from (file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file())
