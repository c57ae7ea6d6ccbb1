"""Shell completion: candidates for the last word of a line, from the configs folder and without Hydra."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from prefrl.catalog import groups, option_values, options, read_yaml, slots
from prefrl.schemas import COMMANDS, KEY_VALUE

__all__ = ["SCRIPTS", "candidates"]

SCRIPTS = {
    # bash splits words at '=', so what stands before the last one is cut off again
    "bash": """_prefrl() {
  local line="${COMP_LINE:0:$COMP_POINT}" word
  word="${line##* }"
  local prefix=""
  [[ "$word" == *=* ]] && prefix="${word%=*}="
  local IFS=$'\\n'
  COMPREPLY=($(prefrl completion --candidates "$line" 2>/dev/null))
  COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
  [[ "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace
}
complete -o default -F _prefrl prefrl""",
    "zsh": """#compdef prefrl
_prefrl() {
  local -a found
  found=("${(@f)$(prefrl completion --candidates "${LBUFFER}" 2>/dev/null)}")
  [[ -n "${found[1]}" ]] && compadd -S '' -- "${found[@]}" || _files
}
compdef _prefrl prefrl""",
    "fish": """function __prefrl
  prefrl completion --candidates (commandline -cp | string collect --no-trim-newlines) 2>/dev/null
end
complete -c prefrl -a '(__prefrl)'""",
}


def candidates(line: str) -> list[str]:
    """Words that the last word of ``line`` (up to the cursor) may become.

    >>> candidates("prefrl trai")
    ['train']
    >>> "agent=iql" in candidates("prefrl train agent=")
    True
    """
    words = line.split(" ")
    last = words[-1]
    if len(words) <= 2:
        return [name for name in COMMANDS if name.startswith(last)]
    command = words[1]
    given = [word for word in words[2:-1] if word]
    return sorted(word for word in _possible(command, given, last) if word.startswith(last))


LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")  # Hydra's own, and those of the extras


def _possible(command: str, given: list[str], last: str) -> Iterator[str]:
    if command == "completion":
        yield from SCRIPTS
    elif command == "list":
        yield from [*groups(), "arms", "importers", "losses"]
    elif command == "bench" and not [word for word in given if not KEY_VALUE.match(word)]:
        yield from options("bench")
    elif command in COMMANDS and COMMANDS[command].configured:
        yield from _keys(command, given, last)
    if last.startswith("-"):
        yield from ("--cfg", "--debug", "--help", *(["--multirun", "-m"] if command == "train" else []))


def _keys(command: str, given: list[str], last: str) -> Iterator[str]:
    """After ``slot=`` its options, after ``slot.`` the keys of that option, else slots and keys."""
    used = {key: value for key, _, value in (word.partition("=") for word in given)}
    found = slots(command, used)
    key, equals, value = last.partition("=")
    multirun = not {"-m", "--multirun"}.isdisjoint(given)
    if multirun and last.startswith("hydra"):
        yield from (f"hydra/launcher={name}" for name in LAUNCHERS)
        return
    if equals:
        if key in found:
            before = value[: value.rfind(",") + 1] if multirun else ""  # of a sweep, what stands before the last comma
            yield from (f"{key}={before}{option}" for option in options(found[key][0]))
        elif key in ("out", "dataset"):
            yield from (f"{key}={path}" for path in _folders(value))
        return
    slot, dot, _ = last.partition(".")
    if dot and slot in found:
        option = used.get(slot, found[slot][1])
        if option in options(found[slot][0]):
            yield from (f"{full}=" for full in _leaves(option_values(found[slot][0], option), f"{slot}."))
        return
    own = [name for name in read_yaml(command) if name not in ("defaults", *found)]
    yield from (f"{name}=" for name in [*found, *own] if name not in used)
    yield from (f"{name}." for name in found)
    yield from ["hydra/launcher="] if multirun else []


def _leaves(node: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _folders(start: str) -> list[str]:
    parent = os.path.dirname(start)
    try:
        paths = [os.path.join(parent, name) for name in os.listdir(parent or ".")]
        return [path for path in paths if os.path.isdir(path)]
    except OSError:
        return []
