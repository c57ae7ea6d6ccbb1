"""Rows queries of ``prefrl bench online``: what a reward learns from as many answers, by how they were asked for.

Active learning on a pool, apart from the loop that would else make another pool for every strategy: episodes of an
agent that was learning (the pools of rows learning) or of scripts are given; a teacher is asked in sessions, the first
of them uniform, and the same ensemble goes on learning after each, as in B-Pref (Lee et al. 2021, arXiv 2111.03026). It
is judged by the order of random pairs of windows of episodes that nobody was asked about.

Axes: R seeds, S sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from prefrl.benchmarks.findings import Finding, Progress, at_least
from prefrl.data.dataset import Episodes
from prefrl.data.labeling import answer_generator, label
from prefrl.data.preferences import Preferences
from prefrl.data.storage import read_dataset
from prefrl.evaluation.intervals import paired_difference
from prefrl.evaluation.pair_accuracy import pair_accuracy
from prefrl.queries import Questions
from prefrl.train.fit_score import score_optimizer
from prefrl.train.relabel import relabel

__all__ = ["Asking", "Pool", "accuracies", "gains", "query_findings"]


class Pool(NamedTuple):
    """Episodes that are asked about. dataset: a folder · seed: of the draw of both halves, questions and networks."""

    task: str
    seed: int
    dataset: Path


@dataclass(frozen=True, kw_only=True)
class Asking:
    """answers: of all sessions together · teacher, score, fit: as in recipe=online."""

    answers: int
    sessions: int
    segment_length: int
    teacher: Any
    score: Callable[..., Any]
    fit: Callable[..., Any]


def accuracies(pool: Pool, *, query: Any, asking: Asking) -> list[float]:
    """(S,): share of pairs that the reward orders rightly after each session; equal seeds, equal numbers.

    Every other episode is asked about, the rest only measured.
    """
    torch.set_num_threads(1)
    episodes = read_dataset(pool.dataset)
    order = np.random.default_rng([pool.seed, 2]).permutation(len(episodes))
    asked, unseen = (episodes.select(np.sort(order[half::2])) for half in (0, 1))
    score = _score(asking, asked, pool.seed)
    optimizer, questions, answers = score_optimizer(score), Questions(query), None
    T, found = asking.segment_length, []
    for session in range(asking.sessions):
        due = asking.answers * (session + 1) // asking.sessions - (0 if answers is None else len(answers))
        new = label(
            asked, teacher=asking.teacher, comparisons=due, segment_length=T, known=answers, session=session,
            query=questions.about(asked, score) if session else questions.about(),
            rng=answer_generator(pool.seed, len(questions)),
        )  # fmt: skip
        answers = new if answers is None else Preferences.concat([answers, new])
        asking.fit(score, answers.comparisons(asked).without_true_reward(), seed=pool.seed + session,
                   split_seed=pool.seed, optimizer=optimizer)  # fmt: skip
        inputs = unseen.transitions(torch.zeros(unseen.num_steps))
        rewards = relabel(score, inputs.observations, inputs.actions)
        right = pair_accuracy(rewards, unseen, T, seed=pool.seed)
        found.append(np.nan if right is None else right)
    return found


def query_findings(
    show: Progress,
    *,
    pools: Sequence[Pool],
    queries: Mapping[str, Any],
    asking: Mapping[str, Asking],
    bars: Mapping[str, Sequence[str]],
    workers: int,
) -> list[Finding]:
    """What all strategies teach on all pools.

    queries: name → query; one is "uniform" · asking: task → how it is asked · bars: strategy → tasks on which it shall
    be no worse than uniform
    """
    cells = [(pool, name) for pool in pools for name in queries]
    curves = _measured(cells, show, queries=queries, asking=asking, workers=workers)
    answers = {task: asking[task].answers for task in dict.fromkeys(pool.task for pool in pools)}
    return gains(curves, answers=answers, bars=bars)


def gains(
    curves: Mapping[tuple[Pool, str], Sequence[float]], *, answers: Mapping[str, int], bars: Mapping[str, Sequence[str]]
) -> list[Finding]:
    """Mean accuracy over sessions of every strategy, and its gain over uniform questions, task by task.

    curves: (pool, strategy) → (S,) accuracies; one strategy is "uniform" · answers: of each task, all in all
    """
    rng, findings, queries = np.random.default_rng(0), list[Finding](), list(dict.fromkeys(name for _, name in curves))
    for task, n in answers.items():
        own = [pool for pool, name in curves if pool.task == task and name == "uniform"]
        seeds = tuple(pool.seed for pool in own)
        mean = {name: np.array([np.mean(curves[pool, name]) for pool in own]) for name in queries}  # (R,)
        last = {name: np.array([curves[pool, name][-1] for pool in own]) for name in queries}
        for name in queries:
            what = f"{task}: pairs ordered rightly, mean over sessions of {n} answers, {name}"
            findings.append(at_least(f"queries.{task}.{name}", what, float(mean[name].mean()), seeds=seeds))
            what = f"{task}: the same after all {n} answers, {name}"
            findings.append(at_least(f"queries.{task}.{name}.last", what, float(last[name].mean()), seeds=seeds))
            if name != "uniform":
                gain = paired_difference(mean[name], mean["uniform"], rng=rng)
                bar = 0.0 if task in bars.get(name, ()) else None
                what = f"{task}: {name} minus uniform, mean over sessions"
                findings.append(at_least(f"queries.{task}.{name}-uniform", what, gain, bar, seeds=seeds))
    return findings


def _measured(
    cells: Sequence[tuple[Pool, str]],
    show: Progress,
    *,
    queries: Mapping[str, Any],
    asking: Mapping[str, Asking],
    workers: int,
) -> dict[tuple[Pool, str], list[float]]:
    """(S,) accuracies of every cell."""
    found: dict[tuple[Pool, str], list[float]] = {}
    show(0, len(cells))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        futures = {
            processes.submit(accuracies, pool, query=queries[name], asking=asking[pool.task]): (pool, name)
            for pool, name in cells
        }
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            show(len(found), len(cells))
    return found


def _score(asking: Asking, episodes: Episodes, seed: int) -> Any:
    data = episodes.transitions(torch.zeros(episodes.num_steps))
    return asking.score(observations=data.observations, actions=data.actions, seed=seed)
