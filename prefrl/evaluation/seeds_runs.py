"""A run as one of many: its configuration without what cannot change a number, and what its arms have reached."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prefrl.errors import DamagedFile
from prefrl.runs import RunDirectory, read_metrics

__all__ = ["SeedRun", "changed_keys", "differing_keys", "flattened", "is_run", "read_run"]

NO_NUMBER = ("out", "workers", "tensorboard")  # of the configuration: they change no result
STAGES = ("arms", "rollouts")  # under which recipes keep what an arm has reached


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """config: of the run, as YAML · flat: without the seed, by dotted keys · words: that it was started with.

    task: the recipe and the environment · results: of its finished arms · missing: what is not finished, in words.
    """

    path: Path
    config: str
    seed: int
    task: str
    flat: dict[str, Any]
    words: dict[str, str]
    arms: tuple[str, ...]
    results: dict[str, dict[str, Any]]
    missing: tuple[str, ...]

    @property
    def settings(self) -> str:
        """Equal for runs that differ in the seed alone."""
        return json.dumps(self.flat, sort_keys=True)

    def curve(self, arm: str, metric: str) -> dict[int, float]:
        """Step → value, as logged."""
        return {int(row["step"]): row[metric] for row in read_metrics(self.path / "arms" / arm) if metric in row}


def is_run(path: Path) -> bool:
    """Whether a folder holds a run; ``RunDirectory.open`` says what may be wrong with it."""
    return (path / "config.yaml").is_file() and (path / "versions.json").is_file()


def read_run(path: Path) -> SeedRun:
    """Read a run; what is unfinished is said, not an error."""
    run = RunDirectory.open(path)
    text = (path / "config.yaml").read_text(encoding="utf-8")
    config = _plain(path / "config.yaml", text)
    flat = flattened(config)
    results = {
        arm: result
        for arm, stage in _finished(path)
        if (result := run.result(f"{stage}/{arm}")) and result.get("returns") and result.get("success")
    }
    recipe = config.get("recipe")
    arms = recipe.get("arms") if isinstance(recipe, dict) else None
    asked = [str(arm) for arm in arms] if isinstance(arms, list) else list(results)
    missing = [f"{path}: the arm {arm!r} is not finished" for arm in asked if arm not in results]
    if not asked:
        missing = [f"{path}: no arm is finished"]
    return SeedRun(
        path=path,
        config=text,
        seed=int(config.get("seed", 0)),
        task=_task(config),
        flat={key: value for key, value in flat.items() if key != "seed"},
        words=_words(text),
        arms=tuple(asked),
        results={arm: results[arm] for arm in asked if arm in results},
        missing=tuple(f"{said}; continue with `prefrl resume {shlex.quote(str(path))}`." for said in missing),
    )


def _plain(file: Path, text: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DamagedFile(f"{file} is not readable: {' '.join(str(error).split())} Leave this run out.") from error
    if type(config) is not dict or type(config.get("seed", 0)) is not int:
        raise DamagedFile(f"{file} is not a configuration with a seed. Leave this run out.")
    return config


def _finished(path: Path) -> list[tuple[str, str]]:
    """(arm, stage) of the results that are there."""
    files = [(stage, file) for stage in STAGES for file in sorted((path / "stages").glob(f"{stage}.*.json"))]
    return [(file.stem.removeprefix(f"{stage}."), stage) for stage, file in files]


def _task(config: Mapping[str, Any]) -> str:
    """``recipe in environment``: returns of different ones are not compared.

    >>> _task({"recipe": {"_target_": "prefrl.recipes.online.Online"}, "env": {"id": "Hopper-v5"}})
    'online in Hopper-v5'
    """
    recipe, env = config.get("recipe"), config.get("env")
    name = str(recipe.get("_target_", "run")).rpartition(".")[2].lower() if isinstance(recipe, dict) else "run"
    where = env.get("id", env.get("_target_", "")) if isinstance(env, dict) else ""
    return f"{name} in {where}" if where else name


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key → value, without the keys that change no result; lists stay whole.

    >>> flattened({"agent": {"lr": 0.1, "hidden": [8]}, "out": "runs/a", "seed": 1})
    {'agent.lr': 0.1, 'agent.hidden': [8], 'seed': 1}
    """
    return {key: value for name, node in config.items() if name not in NO_NUMBER for key, value in _leaves(name, node)}


def _leaves(key: str, node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        return [leaf for name, child in node.items() for leaf in _leaves(f"{key}.{name}", child)]
    return [(key, node)]


def differing_keys(some: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all.

    >>> differing_keys([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1}])
    ['b']
    """
    keys = list(dict.fromkeys(key for one in some for key in one))
    return [
        key for key in keys if any(one.get(key) != some[0].get(key) or (key in one) != (key in some[0]) for one in some)
    ]


def changed_keys(saved: str, wanted: str) -> list[str]:
    """Keys in which two configurations (YAML) differ, of those that change results."""
    return differing_keys([flattened(yaml.safe_load(text) or {}) for text in (saved, wanted)])


def _words(text: str) -> dict[str, str]:
    """The ``key=value`` words in the first line of config.yaml.

    >>> _words("# prefrl train experiment=point 'out=my run' seed=1\\nseed: 1\\n")
    {'experiment': 'point'}
    """
    first = text.partition("\n")[0]
    try:
        words = shlex.split(first.removeprefix("# prefrl train")) if first.startswith("# prefrl train") else []
    except ValueError:  # written by hand
        return {}
    pairs = (word.partition("=")[::2] for word in words)
    return {key: value for key, value in pairs if key not in (*NO_NUMBER, "seed")}
