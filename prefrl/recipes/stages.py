"""Stages that recipes share: episodes are collected or taken over, and a teacher compares pairs of their segments.

The first two steps of Christiano et al. 2017 (arXiv 1706.03741). Each is done once; a finished stage is read back.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from prefrl.data.dataset import Episodes
from prefrl.data.labeling import label
from prefrl.data.preferences import Preferences, append_preferences, preferences_path, read_preferences
from prefrl.data.storage import read_dataset, write_dataset
from prefrl.progress import Bars
from prefrl.protocols import MakeEnv, Query, Teacher
from prefrl.runs import RunDirectory

__all__ = ["ask_teacher", "collect_or_copy"]


def collect_or_copy(
    run: RunDirectory,
    *,
    make_env: MakeEnv,
    data: Callable[..., Episodes],
    dataset: str | None,
    check: Callable[[Episodes], None],
    seed: int,
    bars: Bars,
) -> Episodes:
    """Stage "collect": the episodes of ``data``, or of an existing ``dataset`` that passes ``check``."""
    folder = run.path / "dataset"
    if run.result("collect") is None:
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
        if dataset is not None:
            episodes = read_dataset(dataset)
            check(episodes)
            shutil.copytree(dataset, folder)
        else:
            episodes = data(make_env=make_env, seed=seed, progress=lambda done, total: bars("collect", done, total))
            write_dataset(folder, episodes)
        run.finish("collect", data_summary(episodes))
    return read_dataset(folder)


def ask_teacher(
    run: RunDirectory,
    episodes: Episodes,
    *,
    teacher: Teacher,
    query: Query,
    comparisons: int,
    segment_length: int,
    seed: int,
) -> Preferences:
    """Stage "label": ``comparisons`` answers, which join the dataset as references; 0 takes those that it holds."""
    folder = run.path / "dataset"
    if run.result("label") is None:
        if comparisons > 0:
            preferences_path(folder).unlink(missing_ok=True)  # left by a killed run, or replaced
            answers = label(
                episodes,
                teacher=teacher,
                query=query,
                comparisons=comparisons,
                segment_length=segment_length,
                rng=np.random.default_rng(seed),
            )
            append_preferences(folder, answers)
        answers = read_preferences(folder)
        run.finish("label", {"comparisons": len(answers), "teachers": sorted(set(answers.teacher))})
    return read_preferences(folder)


def data_summary(episodes: Episodes) -> dict[str, Any]:
    """What the data are: per behavior the number of episodes, success and mean return; and per-episode results."""
    behavior = np.asarray(episodes.behavior)
    succeeded = episodes.succeeded()
    returns = episodes.returns() if episodes.has_true_reward else np.zeros(len(episodes))
    groups = {
        name: {
            "episodes": int((behavior == name).sum()),
            "success": float(succeeded[behavior == name].mean()),
            "return": float(returns[behavior == name].mean()),
        }
        for name in dict.fromkeys(episodes.behavior)
    }
    return {
        "episodes": len(episodes),
        "steps": episodes.num_steps,
        "behaviors": groups,
        "behavior": list(episodes.behavior),
        "success": succeeded.tolist(),
        "returns": returns.tolist(),
        "lengths": episodes.lengths.tolist(),
    }
