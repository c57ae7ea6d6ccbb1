"""``prefrl bench regret``, rows H: do reward models predict people, and scripts, in continuous control?

Kim et al. 2023 (arXiv 2303.00957) collected people's preferences on Hopper, Lift and Can; Hejna and Sadigh 2023
(arXiv 2305.15363) published them as files that ``prefrl import human-control-prefs`` reads, with the task's reward as
a second rater of the same segments (``_script_`` in the place of ``_human_``). Accuracy is cross-validated over the
decided labels, with comparisons that share a segment in one fold; intervals are 95 % bootstrap intervals over
comparisons. Segments are windows of a few demonstrations, and also overlap without being equal: on Lift no split is
possible without common steps, so that accuracies are of new pairs of partly known behavior.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefrl.benchmarks.findings import Finding, Progress, at_least
from prefrl.core import Comparisons
from prefrl.data.importers import import_human_control
from prefrl.data.preferences import read_preferences
from prefrl.evaluation.intervals import mean, stratified_bootstrap, success_interval
from prefrl.train.cross_validation import cross_validated_accuracy, segment_groups

__all__ = ["measure_human", "read_human"]


def read_human(file: Path) -> Comparisons:
    """The comparisons of a file, as its importer makes them: segments of T − 1 steps with a real end state."""
    with tempfile.TemporaryDirectory() as folder:
        episodes = import_human_control(file, Path(folder) / "dataset")
        return read_preferences(Path(folder) / "dataset").comparisons(episodes)


def measure_human(
    files: Sequence[Path],
    show: Progress,
    *,
    scores: Mapping[str, Mapping[str, Callable[..., Any]]],
    folds: int,
    seeds: Sequence[int],
) -> list[Finding]:
    """Accuracy on decided labels, of people and, where there is such a file, of the script; and how often they agree.

    scores: name -> {score, fit}: ``ReturnEnsemble.for_data`` or another, and ``fit_score``, hyper-parameters bound.
    """
    found, done, total = [], 0, len(files) * len(scores)
    for file in files:
        task = file.stem.replace("_human_train", "")
        raters = {"people": read_human(file)}
        if "_human_" in file.name and script_file(file).is_file():
            raters["script"] = read_human(script_file(file))
        for name, parts in scores.items():
            for rater, comparisons in raters.items():
                id = f"H.{task}.{name}" + ("" if rater == "people" else f".{rater}")
                who = f"{task}: {name}, labels of {'people' if rater == 'people' else 'the script'}"
                found.append(_accuracy(id, who, comparisons, folds, seeds, **parts))
            done += 1
            show(done, total)
        if "script" in raters:
            found.append(_agreement(task, raters["people"], raters["script"]))
    return found


def _accuracy(
    id: str,
    who: str,
    comparisons: Comparisons,
    folds: int,
    seeds: Sequence[int],
    *,
    score: Callable[..., Any],
    fit: Callable[..., Any],
) -> Finding:
    """Each comparison's share of seeds in which it was predicted, and the mean of these."""
    has_side = comparisons.p_first != 0.5
    decided, groups = int(has_side.sum()), segment_groups(comparisons[has_side])
    what = f"{who}: {folds}-fold accuracy on {decided} decided labels"
    if decided < 2 * folds:
        return Finding(id, what, None, holds=f"skipped: {decided} decided labels are too few for {folds} folds")
    count = int(groups.group.max()) + 1
    if groups.shared:
        what += f" (segments in several comparisons: {groups.shared}; folds of whole groups of them: {count})"
    if count < folds:
        reason = f"skipped: groups that share no segment: {count}, too few for {folds} folds"
        return Finding(id, what, None, holds=reason)
    correct = [
        cross_validated_accuracy(score, comparisons, folds=folds, seed=seed, fit=fit).correct.numpy() for seed in seeds
    ]
    each, rng = np.mean(correct, axis=0), np.random.default_rng(0)  # (n,)
    if np.isin(each, (0, 1)).all():  # exact where all agree
        return at_least(id, what, success_interval(each, rng=rng), seeds=tuple(seeds))
    return at_least(id, what, stratified_bootstrap(each[:, None], mean, rng=rng), seeds=tuple(seeds))


def script_file(file: Path) -> Path:
    """Where the script's labels of the same segments are."""
    return file.with_name(file.name.replace("_human_", "_script_"))


def _agreement(task: str, people: Comparisons, script: Comparisons) -> Finding:
    """How often the script's label is people's, where both are decided."""
    decided = (people.p_first != 0.5) & (script.p_first != 0.5)
    same = (people.p_first == script.p_first)[decided].double().numpy()
    if len(same) == 0:
        return Finding(f"H.{task}.agreement", task, None, holds="skipped: no label is decided by both")
    what = f"{task}: share of {len(same)} labels decided by both on which people and script agree"
    return at_least(f"H.{task}.agreement", what, success_interval(same, rng=np.random.default_rng(0)))
