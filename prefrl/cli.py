"""``prefrl COMMAND [key=value …]``: reads words, calls ``commands.py``, turns errors into one clear message.

Nothing heavy is imported before it is needed: ``prefrl --help`` needs neither Hydra nor torch, and
``prefrl train --cfg job`` no torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from typing import NoReturn

from prefrl.errors import ConfigError, PrefrlError, explain
from prefrl.schemas import COMMANDS, KEY_VALUE, Command
from prefrl.signatures import hint

__all__ = ["main"]


EPILOG = """examples:
  prefrl train                                      the default recipe
  prefrl train --cfg job                            every key with its value
  prefrl train experiment=point recipe.comparisons=50 seed=3 out=runs/mine
  eval "$(prefrl completion bash)"                  keys and options by TAB

one run for each value, and one report on all of them:
  -m:  prefrl train -m seed=0,1,2 experiment=point  (in parallel, on Slurm, again: prefrl train --help)
"""
MULTIRUN = """prefrl train -m key=a,b key=range(0,3) runs every combination by Hydra's multirun, one after the other,
each in a folder named by its words, and writes one report on all of them. out=FOLDER is where; given again, finished
runs are skipped and the others continued. In parallel: hydra/launcher=joblib hydra.launcher.n_jobs=4 (the extra
"sweep"), with one process a run; on Slurm: hydra/launcher=submitit_slurm hydra.launcher.partition=NAME (the extra
"slurm")."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        return run([word for word in words if word != "--debug"])
    except BrokenPipeError:  # `prefrl list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (PrefrlError, OSError, BrokenExecutor, ModuleNotFoundError) as error:
        if debug:
            traceback.print_exc()
        print(f"prefrl: {explain(error)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt as stopped:
        again = f"; continue with `{stopped}`" if str(stopped) else ""
        print(f"\nprefrl: stopped{again}", file=sys.stderr)
        return 130


def run(words: Sequence[str]) -> int:
    """Parse and call one command."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from prefrl import __version__

        print(f"prefrl {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        raise ConfigError(f"Unknown command {name!r}.{hint(name, COMMANDS)}")
    if words[1:2] == ["--candidates"] and name == "completion":
        from prefrl.completion import candidates

        print("\n".join(candidates(words[2] if len(words) > 2 else "")))
        return 0
    given, overrides, show_config = parse(name, words[1:])
    multirun = name == "train" and not {"-m", "--multirun"}.isdisjoint(words)
    if multirun and show_config:
        raise ConfigError("--cfg job shows the configuration of one run: leave out -m.")
    if name == "doctor" and not show_config:
        from prefrl.doctor import doctor

        return doctor(overrides)
    from prefrl import commands  # only now: it imports Hydra

    return commands.call(name, given, overrides, show_config=show_config, multirun=multirun)


def overview() -> str:
    lines = [f"  {name:<12}{command.summary}" for name, command in COMMANDS.items()]
    usage = "usage: prefrl COMMAND [key=value …] [--cfg job] [--debug]"
    return "\n".join([usage, "", "Aligns policies with preferences.", "", "commands:", *lines, "", EPILOG])


def parse(name: str, words: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """(words that name things, ``key=value`` words, whether to print the configuration only).

    >>> parse("evaluate", ["runs/a", "arm=bc"])
    (['runs/a'], ['arm=bc'], False)
    """
    command = COMMANDS[name]
    shape = " ".join([*command.arguments, *(["[key=value …]"] if command.configured else [])])
    usage = f"prefrl {name} {'[-m] ' * (name == 'train')}{shape}"
    epilog = MULTIRUN if name == "train" else None
    parser = Parser(prog=f"prefrl {name}", usage=usage, description=command.summary, epilog=epilog, allow_abbrev=False)
    if name == "train":
        parser.add_argument("-m", "--multirun", action="store_true", help="a run for each value, as in seed=0,1,2")
    if command.configured:
        parser.add_argument("--cfg", choices=["job"], help="print every key with its value, and do nothing")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    found = parser.parse_intermixed_args(list(words))
    of_hydra = ("hydra/",) if name == "train" and found.multirun else ()  # as in hydra/launcher=joblib
    overrides = [w for w in found.words if command.configured and (KEY_VALUE.match(w) or w.startswith(of_hydra))]
    given = [word for word in found.words if word not in overrides]
    show_config = command.configured and found.cfg is not None
    if not show_config or given:
        _check_arguments(name, command, given)
    return given, overrides, show_config


def _check_arguments(name: str, command: Command, given: Sequence[str]) -> None:
    required = [argument for argument in command.arguments if not argument.startswith("[")]
    if len(given) < len(required):
        usage = f"prefrl {name} {' '.join(command.arguments)} [key=value …]"
        raise ConfigError(f"{required[len(given)]} is missing: {usage}")
    repeated = bool(command.arguments) and command.arguments[-1].endswith("…]")
    if len(given) > len(command.arguments) and not repeated:
        extra = given[len(command.arguments)]
        raise ConfigError(f"Cannot read {extra!r}: expected key=value. See `prefrl {name} --help`.")
