"""``prefrl train -m``: a run for every combination of values, by Hydra's multirun, and one report on all of them.

Hydra's sweeper makes the combinations, its launcher says where they run: here, side by side (joblib) or on Slurm
(submitit). What runs is what ``prefrl train`` runs, in a run directory of its own; so a run of a sweep can be resumed,
and a sweep that is started again skips what is finished and goes on with the rest.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from prefrl import catalog
from prefrl.config import Composed, compose, first_line, in_hydra_grammar, quoted, split_words
from prefrl.errors import ConfigError, PrefrlError, RunDirectoryError, explain
from prefrl.launch import limit_threads, make_recipe
from prefrl.running import default_folder, start, work
from prefrl.signatures import hint

__all__ = ["sweep"]

EXTRAS = {  # launcher → (its module, our extra)
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}
OURS = {  # a run directory holds nothing but what prefrl puts there, and its messages are ours
    "hydra/job_logging": "disabled",
    "hydra/hydra_logging": "disabled",
    "hydra.output_subdir": "null",
}
LONGEST_NAME = 200  # [bytes] of a folder's name; file systems take 255
DONE = "sweep"  # the stage that marks a run of a sweep as finished


def sweep(overrides: Sequence[str]) -> int:
    """Run all, then write the report; returns the exit code, 1 if a run has failed."""
    of_hydra = split_words([word for word in overrides if word.startswith(("hydra/", "hydra."))])
    words = split_words([word for word in overrides if not word.startswith(("hydra/", "hydra."))])
    launcher = _launcher(of_hydra)
    if launcher == "joblib":
        words.setdefault("workers", "1")  # the runs themselves are side by side
    out = words.pop("out", None)
    texts = _texts(words)
    combinations = list(_combinations(texts, words))
    configs = [compose("train", some) for some in combinations]
    make_recipe(configs[0])  # what all of them have wrong is said before anything is made
    folder = _folder(out, configs[0])
    naming = _naming(texts, combinations)
    settings = OURS | naming | of_hydra | {"hydra.sweep.dir": quoted(str(folder))}
    print(f"sweep:  {folder} ({len(combinations)} runs)")
    again = _again(overrides, folder)
    outcomes = _multirun([*texts.values(), *(f"{key}={value}" for key, value in settings.items())], again)
    return _conclude(outcomes, folder, again)


def _launcher(of_hydra: Mapping[str, str]) -> str:
    """The chosen launcher, if it is there."""
    name = of_hydra.get("hydra/launcher", "basic")
    module, extra = EXTRAS.get(name, ("hydra", ""))
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"hydra/launcher={name} needs the extra {extra!r}: pip install -c constraints.txt -e '.[{extra}]'"
        )
    with hydra.initialize_config_dir(str(catalog.config_root()), version_base="1.3"):
        there = GlobalHydra.instance().config_loader().get_group_options("hydra/launcher")
    if name not in there:
        raise ConfigError(f"hydra/launcher={name}: there is no such launcher.{hint(name, {*there, *EXTRAS})}")
    for key in ("hydra.sweep.dir", "hydra.sweep.subdir", "hydra.run.dir"):
        if key in of_hydra:
            raise ConfigError(f"{key} cannot be set: out=FOLDER is where a sweep goes, and its runs have their names.")
    return name


def _texts(words: Mapping[str, str]) -> dict[str, str]:
    """Key → override in Hydra's grammar; a path with commas is several, as any other value."""
    available = catalog.slots("train", words)
    texts = in_hydra_grammar("train", words, available)
    for key in texts:
        if key not in available and "," in words[key]:
            texts[key] = f"{key}={words[key]}"
    return texts


def _combinations(texts: Mapping[str, str], words: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """The words of every run."""
    with hydra.initialize_config_dir(str(catalog.config_root()), version_base="1.3"):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        choices: list[list[str]] = []
        for key, text in texts.items():
            try:
                parsed = parser.parse_override(text)
                several = list(parsed.sweep_string_iterator()) if parsed.is_discrete_sweep() else [words[key]]
            except HydraException as error:
                raise ConfigError(f"Cannot read {text!r}: quote special characters, as in key='\"a, b\"'.") from error
            if parsed.is_sweep_override() and not parsed.is_discrete_sweep():
                raise ConfigError(f"{text}: a sweep needs values, as in {key}=a,b or {key}=range(0,3).")
            choices.append([f"{key}={value}" for value in several])
    if all(len(some) == 1 for some in choices):
        raise ConfigError("-m needs a key with several values, as in seed=0,1,2.")
    twice = next((some for some in choices if len(set(some)) < len(some)), None)
    if twice:
        raise ConfigError(f"A value of {twice[0].partition('=')[0]} is there twice: {', '.join(twice)}.")
    return itertools.product(*choices)


def _naming(texts: Mapping[str, str], combinations: Sequence[Sequence[str]]) -> dict[str, str]:
    """Runs are named by the words in which they differ; by numbers where that would be no good name of a folder."""
    columns = list(zip(*combinations, strict=True))  # one a key
    varied = [len(set(column)) > 1 for column in columns]
    names = [",".join(itertools.compress(some, varied)) for some in combinations]
    fixed, swept = (
        {text.lstrip("~").partition("=")[0].partition("@")[0] for text, vary in zip(texts.values(), varied, strict=True)
         if vary is wanted}
        for wanted in (False, True)
    )  # fmt: skip
    if fixed & swept or any("/" in name or len(name.encode()) > LONGEST_NAME for name in names):
        return {"hydra.sweep.subdir": "${hydra.job.num}"}
    return {
        "hydra.sweep.subdir": "${hydra.job.override_dirname}",
        "hydra.job.config.override_dirname.exclude_keys": f"[{','.join(sorted(fixed))}]",
    }


def _folder(out: str | None, config: Composed) -> Path:
    """Where the runs go; a run is no place for others."""
    if out is None:
        single = default_folder(config)
        return single.with_name(f"sweep-{single.name}")
    folder = Path(out.strip("'\""))
    if "," in folder.name:
        raise ConfigError(f"out={out}: one folder takes all runs of a sweep; its name has no comma.")
    if (folder / "config.yaml").exists():
        raise RunDirectoryError(f"{folder} is a run, not a folder for the runs of a sweep. Choose another out=FOLDER.")
    return folder


def _again(overrides: Sequence[str], folder: Path) -> str:
    """The command that continues this sweep."""
    words = [word for word in overrides if not word.startswith("out=")]
    return shlex.join(["prefrl", "train", "-m", *words, f"out={folder}"])


def _multirun(overrides: list[str], again: str) -> list[dict[str, str | None]]:
    """Let Hydra run them all; returns each one's outcome."""
    with hydra.initialize_config_dir(str(catalog.config_root()), job_name="prefrl", version_base="1.3"):
        made = GlobalHydra.instance().hydra
    assert made is not None
    try:  # outside, because each run composes a configuration by itself
        batches = made.multirun("train", functools.partial(_job, launched_by=os.getpid()), overrides)
    except HydraException as error:
        raise ConfigError(first_line(error)) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(again) from None
    except (PrefrlError, OSError):
        raise
    except Exception as error:  # a launcher's own, of which there are many
        said = f"{type(error).__name__}: {first_line(error)}"
        raise PrefrlError(f"The launcher stopped: {said}. Continue with `{again}`.") from error
    return [done.return_value for batch in batches for done in batch]


def _job(_: Any, *, launched_by: int) -> dict[str, str | None]:
    """One run, in the process that Hydra's launcher chose; what fails is told and does not stop the others."""
    chosen = HydraConfig.get()
    folder = Path(chosen.sweep.dir, str(chosen.sweep.subdir))
    words = [_own_word(text) for text in chosen.overrides.task]
    with contextlib.ExitStack() as stack:
        if os.getpid() != launched_by:  # several at once would write over each other on the terminal
            log = stack.enter_context(folder.with_name(f"{folder.name}.log").open("a", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(log))
            stack.enter_context(contextlib.redirect_stderr(log))
        try:
            _start_or_continue([*words, f"out={folder}"], folder)
        except Exception as error:  # noqa: BLE001  (whatever it is, the other runs are not concerned)
            if isinstance(error, (PrefrlError, OSError)):
                return {"folder": str(folder), "error": explain(error)}
            traceback.print_exc()
            return {"folder": str(folder), "error": f"{type(error).__name__}: {error}"}
    return {"folder": str(folder), "error": None}


def _own_word(text: str) -> str:
    """The word of ours that an override of Hydra's came from.

    >>> _own_word("agent@baseline=iql"), _own_word("~features="), _own_word("seed=1")
    ('baseline=iql', 'features=null', 'seed=1')
    """
    name, _, value = text.partition("=")
    slot = name.lstrip("~").rpartition("@")[2]
    return f"{slot}=null" if name.startswith("~") else f"{slot}={value}"


def _start_or_continue(words: Sequence[str], folder: Path) -> None:
    """A new run, or the one that is there, if it is of the same configuration."""
    config = compose("train", words)
    if not (folder / "config.yaml").is_file():
        start(config, folder, words=words).finish(DONE, {})
        return
    limit_threads(config.settings.threads)
    from prefrl.evaluation.seeds_runs import changed_keys
    from prefrl.runs import RunDirectory

    run = RunDirectory.open(folder)
    if changed := changed_keys((folder / "config.yaml").read_text(encoding="utf-8"), config.text):
        raise RunDirectoryError(f"{folder} holds a run with another {changed[0]}. Choose another out=FOLDER.")
    if run.result(DONE) is not None:
        print(f"run:    {folder} is finished")
        return
    work(make_recipe(config), run)
    run.finish(DONE, {})


def _conclude(outcomes: Sequence[Mapping[str, str | None]], folder: Path, again: str) -> int:
    """The report on what is there, and what has failed."""
    from prefrl.evaluation.seeds_report import find_runs, report_seeds
    from prefrl.evaluation.seeds_runs import is_run

    failed = [one for one in outcomes if one["error"] is not None]
    if any(is_run(Path(str(one["folder"]))) for one in outcomes):
        print(f"report: {report_seeds(find_runs([folder]), str(folder))}")  # earlier runs of this sweep too
    for one in failed:
        print(f"prefrl: {one['folder']} failed: {one['error']}", file=sys.stderr)
    if failed:
        print(f"prefrl: {len(failed)} of {len(outcomes)} runs failed; `{again}` goes on with them", file=sys.stderr)
    return 1 if failed else 0
