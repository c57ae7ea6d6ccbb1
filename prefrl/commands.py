"""What each command does: compose and check, build everything, then call the part that works.

torch is imported inside functions: threads must be limited before, and ``--cfg job`` must not wait for it.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prefrl.catalog import describe, group_named, groups, option_values, options
from prefrl.config import Composed, build, compose, locate
from prefrl.errors import ConfigError, RunDirectoryError
from prefrl.launch import check_query, check_teacher, limit_threads, make_recipe, try_parts
from prefrl.running import default_folder, open_run, start, work
from prefrl.signatures import check_arguments, hint

__all__ = ["call"]


def call(
    name: str, given: Sequence[str], overrides: Sequence[str], *, show_config: bool = False, multirun: bool = False
) -> int:
    """Run a command, or ``train`` many times (multirun); returns the exit code."""
    if multirun:
        from prefrl.sweeps import sweep

        return sweep(overrides)
    if show_config:
        print(compose(name, [*_named(name, given), *overrides], incomplete=True).text, end="")
        return 0
    commands: dict[str, Callable[..., int | None]] = {
        "train": train, "resume": resume, "evaluate": evaluate, "render": render, "report": report,
        "collect": collect, "label": label, "import": import_file, "list": list_options, "bench": bench,
        "completion": completion, "transfer": transfer,
    }  # fmt: skip
    return commands[name](*given, overrides=overrides) or 0


def _named(name: str, given: Sequence[str]) -> list[str]:
    return [f"bench={given[0]}"] if name == "bench" and given else []


def train(*, overrides: Sequence[str]) -> None:
    config = compose("train", overrides)
    start(config, config.settings.out or default_folder(config), words=overrides)


def resume(run: str, *, overrides: Sequence[str]) -> None:
    directory, config = open_run(run)
    work(make_recipe(config.changed(workers=compose("resume", overrides).settings.workers)), directory)


def collect(*, overrides: Sequence[str]) -> None:
    config = compose("collect", overrides)
    out = Path(config.settings.out)
    _require_free(out)
    limit_threads(1)
    parts = {slot: build(node, key=slot) for slot, node in config.components.items()}
    try_parts(parts["env"], parts["data"], seed=config.settings.seed)
    from prefrl.data.storage import write_dataset
    from prefrl.progress import progress_bars

    with progress_bars() as bars:
        episodes = parts["data"](
            make_env=parts["env"],
            seed=config.settings.seed,
            progress=lambda done, total: bars("collect", done, total),
        )
    write_dataset(out, episodes)
    print(f"dataset: {out} ({len(episodes)} episodes, {episodes.num_steps} steps)")


def _require_free(out: Path) -> None:
    """Before minutes of work: nothing is there yet, and a folder can be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunDirectoryError(f"{out} is already used. Choose another with out=PATH.")
    place = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        reason = "cannot be written to" if place.is_dir() else "is a file"
        raise RunDirectoryError(f"Cannot make {out}: {place} {reason}. Choose another place with out=PATH.")


def label(dataset: str, *, overrides: Sequence[str]) -> None:
    config = compose("label", overrides)
    _check_env_of_teacher(config)
    limit_threads(1)
    parts = {slot: build(node, key=slot) for slot, node in config.components.items()}
    check_teacher(parts["teacher"], config.overridden)
    check_query(parts["query"], config.choices["query"])
    from prefrl.data.labeling import answer_generator
    from prefrl.data.labeling import label as ask
    from prefrl.data.preferences import append_preferences, preferences_path, read_preferences
    from prefrl.data.storage import read_dataset

    settings = config.settings
    known = read_preferences(dataset) if preferences_path(dataset).is_file() else None
    answered = 0 if known is None else len(known)
    answers = ask(
        read_dataset(dataset),
        teacher=parts["teacher"],
        query=parts["query"],
        comparisons=settings.comparisons,
        segment_length=settings.segment_length,
        rng=answer_generator(settings.seed, answered),
        known=known,
    )
    append_preferences(dataset, answers)
    print(f"{dataset}: {len(answers)} answers added, {answered + len(answers)} in all")


def _check_env_of_teacher(config: Composed) -> None:
    """A teacher that asks an environment has one; another is given none in vain."""
    teacher, env = config.choices.get("teacher"), config.components.get("env")
    asked = [oracle for oracle in config.components["teacher"].values() if type(oracle) is dict and "env" in oracle]
    if asked and env is None:
        valid = hint("", options("env"))
        raise ConfigError(f"env is required: teacher {teacher!r} asks the environment of the data.{valid}")
    if env is not None and not any(oracle["env"] for oracle in asked):
        raise ConfigError(f"env has no effect: teacher {teacher!r} asks no environment. Leave it out.")


def transfer(source: str, target: str | None = None, *, overrides: Sequence[str]) -> None:
    """What was measured is printed before a refusal is raised, so that its reasons can be read."""
    target = source if target is None else target
    config, within = compose("transfer", overrides), Path(target).resolve() == Path(source).resolve()
    for key in config.overridden:
        if idle := config.settings.ineffective(key, within=within):
            raise ConfigError(f"{key} has no effect with {idle}.")
    limit_threads(1)
    from prefrl.data.labeling import answer_generator
    from prefrl.data.preferences import append_preferences, preferences_path, read_preferences
    from prefrl.data.storage import read_dataset
    from prefrl.transfer.datasets import carry, not_transferred
    from prefrl.transfer.judging import in_words, judgement
    from prefrl.transfer.propagation import propagate

    datasets = (read_dataset(source),) if within else (read_dataset(source), read_dataset(target))
    answers = read_preferences(source)
    known = read_preferences(target) if preferences_path(target).is_file() else None
    if "features" not in config.components:
        chosen = _features_of(*datasets)
        print(f"features: {chosen}{' (knows nothing of the task; see prefrl list features)' * (chosen == 'motion')}")
        config = compose("transfer", [*overrides, f"features={chosen}"])
    settings = config.settings
    taken = inspect.signature(propagate if within else carry).parameters
    values = {key: value for key, value in vars(settings).items() if key in taken and value is not None}
    shared: dict[str, Any] = {
        "features": build(config.components["features"], key="features"), "known": known,
        "rng": answer_generator(settings.seed, 0 if known is None else len(known)),
        "provenance": {"source": source, "features": config.choices["features"], "seed": settings.seed},
        "say": lambda transferred: print("\n".join(in_words(transferred))), **values,
    }  # fmt: skip
    if within:
        new = propagate(datasets[0], answers, **shared)
    else:
        own = not_transferred(known) if known is not None and settings.target_labels else None
        new = carry((datasets[0], datasets[-1]), answers, target_answers=own, **shared)
    append_preferences(target, new)
    print("\n".join(judgement(new, datasets[-1])))
    print(f"{target}: {len(new)} answers added, {(0 if known is None else len(known)) + len(new)} in all")


def _features_of(*datasets: Any) -> str:
    """The option of group ``features`` that is made for observations of the size that both datasets have, or motion."""
    sizes = {episodes.observations.shape[1] for episodes in datasets}
    made = {name: option_values("features", name).get("observations") for name in options("features")}
    return next((name for name, size in made.items() if {size} == sizes), "motion")


def evaluate(run: str, *, overrides: Sequence[str]) -> None:
    settings = compose("evaluate", overrides).settings
    directory, config = open_run(run)
    recipe = make_recipe(config)
    _check_arms(recipe, [settings.arm], key="arm")
    result = recipe.evaluate(directory, arm=settings.arm, episodes=settings.episodes, seed=settings.seed)
    from prefrl.files import write_json

    name = f"{settings.arm}-seed{settings.seed}-episodes{settings.episodes}.json"
    file = directory.stage("evaluations") / name
    write_json(file, result)
    Console().print(evaluation_table(settings.arm, result))
    print(f"results: {file}")


def _check_arms(recipe: Any, wanted: Iterable[str], *, key: str) -> None:
    from prefrl.recipes.arms import ARMS

    valid = getattr(recipe, "arms", ARMS)
    for arm in wanted:
        if arm not in valid:
            raise ConfigError(f"{key}: this run has no arm {arm!r}.{hint(arm, valid)}")


def evaluation_table(arm: str, result: Mapping[str, Any]) -> Table:
    """One row a quantity, with its bootstrap interval over episodes."""
    import numpy as np

    from prefrl.evaluation.intervals import iqm, mean, stratified_bootstrap, success_interval

    rng, table = np.random.default_rng(0), Table("quantity", "value", "95 % interval")
    table.title = f"{arm}: {len(result['success'])} episodes"
    success = success_interval(np.array(result["success"]), rng=rng)
    table.add_row("success", f"{success.value:.3f}", f"{success.low:.3f} … {success.high:.3f}")
    for what, name, statistic in (
        ("return, mean", "returns", mean),
        ("return, interquartile mean", "returns", iqm),
        ("length, mean", "lengths", mean),
    ):
        found = stratified_bootstrap(np.array(result[name], dtype=float)[:, None], statistic, rng=rng)
        table.add_row(what, f"{found.value:.2f}", f"{found.low:.2f} … {found.high:.2f}")
    for name, share in result.get("resemblance", {}).items():
        table.add_row(f"ends like: {name}", f"{share:.3f}", "")
    return table


def render(run: str, *, overrides: Sequence[str]) -> int:
    settings = compose("render", overrides).settings
    suffix = Path(settings.out).suffix.lower() if settings.out is not None else ".mp4"
    if suffix not in (".mp4", ".gif"):
        raise ConfigError(f"out={settings.out}: a video's name ends with .mp4 or .gif.")
    directory, config = open_run(run)
    recipe = make_recipe(config)
    _check_arms(recipe, settings.arms or (), key="arms")
    video = recipe.render(directory, arms=settings.arms)
    if video is None:
        print("prefrl: no video could be made; `prefrl doctor` says why.", file=sys.stderr)
        return 1
    if settings.out is not None:
        from prefrl.files import atomic_path

        with atomic_path(settings.out) as temporary:
            shutil.copyfile(video.with_suffix(suffix), temporary)
        video = settings.out
    print(f"video: {video}")
    return 0


def report(*runs: str, overrides: Sequence[str]) -> None:
    out = getattr(compose("report", overrides).settings, "out", None)
    if len(runs) == 1 and (not Path(runs[0]).is_dir() or (Path(runs[0]) / "config.yaml").is_file()):
        if out is not None:
            raise ConfigError(f"out has no effect with one run: its report is {Path(runs[0], 'report.html')}.")
        directory, config = open_run(runs[0])
        print(f"report: {make_recipe(config).report(directory)}")
        return
    limit_threads(1)
    from prefrl.evaluation.seeds_report import report_seeds

    print(f"report: {report_seeds(runs, out)}")


def import_file(name: str, file: str, *, overrides: Sequence[str]) -> None:
    config = compose("import", overrides)
    out, given = Path(config.settings.out), config.components["options"]
    from prefrl.data.importers import IMPORTERS

    if name not in IMPORTERS:
        raise ConfigError(f"There is no importer {name!r}.{hint(name, IMPORTERS)}")
    importer, _ = IMPORTERS[name]
    taken = inspect.signature(importer).parameters
    for key in given:
        if key not in taken and any(word in ("options", f"options.{key}") for word in config.overridden):
            raise ConfigError(f"options.{key} has no effect in importer {name!r}.")
    arguments = {key: value for key, value in given.items() if key in taken and value is not None}
    check_arguments(importer, arguments, key="options", partial=True)
    _require_free(out)
    episodes = importer(file, out, **arguments)
    print(f"dataset: {out} ({len(episodes)} episodes, {episodes.num_steps} steps)")
    if cut := sum(episodes.env.get("segments_cut", {}).values()):
        print(f"segments cut at a terminal state, because they went on behind it: {cut}")


def list_options(group: str | None = None, *, overrides: Sequence[str]) -> None:
    from prefrl.data.importers import IMPORTERS
    from prefrl.recipes.arms import ARMS, ARMS_OF_PEARL
    from prefrl.recipes.online_settings import ARMS_ONLINE
    from prefrl.recipes.rapl_arm import ARMS_OF_RAPL
    from prefrl.recipes.rapl_diffusion_arm import ARMS_OF_RAPL_DIFFUSION

    if group == "losses":
        found = _losses()
    elif group == "arms":
        of = {
            "pearl": ARMS_OF_PEARL, "online": ARMS_ONLINE, "rapl": ARMS_OF_RAPL,
            "rapl_diffusion": ARMS_OF_RAPL_DIFFUSION,
        }  # fmt: skip
        found = {"arms": dict(ARMS)} | {f"arms of recipe={name}": dict(arms) for name, arms in of.items()}
    elif group == "importers":
        found = {group: {name: line for name, (_, line) in IMPORTERS.items()}}
    else:
        chosen = [group_named(group)] if group else groups()
        found = {one: {option: describe(one, option) for option in options(one)} for one in chosen}
    console = Console(soft_wrap=True, highlight=False)
    for title, rows in found.items():
        console.print(f"[bold]{title}[/]")
        width = max(map(len, rows), default=0)
        for name, line in rows.items():
            console.print(f"  {name:<{width}}  {line}", markup=False)


def _losses() -> dict[str, dict[str, str]]:
    """Family → loss → what it takes and needs, its options with their defaults, its source."""
    from prefrl.losses import LOSSES

    found: dict[str, dict[str, str]] = {}
    for row in LOSSES.values():
        needs = f" with {', '.join(row.needs)}" if row.needs else ""
        options = ", ".join(f"{name}={value}" for name, value in row.defaults.items())
        line = " · ".join(filter(None, [f"{row.takes}{needs}", options, row.paper]))
        found.setdefault(row.family, {})[row.name] = line
    return dict(sorted(found.items()))


def bench(name: str, *, overrides: Sequence[str]) -> None:
    config = compose("bench", [f"bench={name}", *overrides])
    settings, node = config.settings, config.components["bench"]
    wanted = None if settings.rows is None else [str(row) for row in settings.rows]  # rows=[6] is a number in YAML
    _check_rows(name, node.get("rows"), wanted)
    function = locate(node["_target_"], key="bench")
    taken = inspect.signature(function).parameters
    values = {key: getattr(settings, key) for key in ("pairs", "seeds", "fresh", "make_sides", "data")}
    values["rows"] = wanted
    for key in config.overridden:
        if key in values and key not in taken:
            raise ConfigError(f"{key} has no effect in bench {name!r}.")
    given = {key: value for key, value in values.items() if key in taken and value is not None}
    limit_threads(1)
    measure = build({**node, "_partial_": True}, key="bench")
    rows = measure(**given)
    from prefrl.files import write_json

    out = Path(settings.out or Path("bench", f"{name}.json"))
    write_json(out, rows)
    Console().print(bench_table(name, rows))
    failed = [row["id"] for row in rows if row.get("holds") is False]
    print(f"does not hold: {', '.join(failed)}" if failed else "every bar that could be measured holds")
    print(f"results: {out}")


def _check_rows(name: str, valid: Sequence[str] | None, wanted: Sequence[str] | None) -> None:
    for row in wanted or ():
        if valid is not None and row not in valid:
            raise ConfigError(f"bench {name} has no row {row!r}.{hint(row, valid)}")


def bench_table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of {id, what, value, low, high, bar, holds, seeds, seconds}; ``holds`` may be a reason to skip."""
    table = Table("id", "what", "value", "interval", "bar", "holds", "seconds", title=f"bench {name}")
    for row in rows:
        interval = "" if row.get("low") is None else f"{row['low']:.3g} … {row['high']:.3g}"
        numbers = [row.get(key) for key in ("value", "bar", "seconds")]
        value, bar, seconds = ("" if number is None else f"{number:.4g}" for number in numbers)
        holds = {True: "yes", False: "no", None: ""}.get(row.get("holds"), str(row.get("holds")))
        table.add_row(str(row["id"]), str(row["what"]), value, interval, bar, holds, seconds)
    return table


def completion(shell: str, *, overrides: Sequence[str]) -> None:
    from prefrl.completion import SCRIPTS

    if shell not in SCRIPTS:
        raise ConfigError(f"There is no completion for {shell!r}.{hint(shell, SCRIPTS)}")
    print(SCRIPTS[shell])
