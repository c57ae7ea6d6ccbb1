"""One arm of a run of recipe rapl_diffusion: a cloned diffusion policy is tuned on rankings of its own rollouts.

As in "Maximizing Alignment with Minimal Feedback" (Tian et al. 2024, arXiv 2412.04835): a reward puts pairs of rollouts
in order, and Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908) learns from them. Arms differ in the scores of
rollouts alone. The policy must not forget the demonstrations that its scores like: where it does, the arm ends.

Axes: E episodes, N pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from prefrl.core import Comparisons, SegmentBatch, SegmentRefs, Transitions
from prefrl.data.dataset import Episodes
from prefrl.data.storage import read_dataset
from prefrl.data.triplets import VideoPairs
from prefrl.errors import ConfigError, InvalidData, PrefrlError
from prefrl.evaluation.rollout import Rollouts, rollout
from prefrl.files import load_checkpoint
from prefrl.protocols import MakeEnv, MakeLearner, Policy
from prefrl.recipes.arms import box_bounds, summary
from prefrl.recipes.online_policies import POLICY, keep_policy, weights_of
from prefrl.recipes.rapl_rewards import LEARNED
from prefrl.runs import RunDirectory
from prefrl.train.offline import train_offline

__all__ = [
    "ARMS_OF_RAPL_DIFFUSION", "BASE", "DiffusionSettings", "better_half", "clone", "judge", "load_diffusion_policy",
    "make_cloner", "make_tuner", "orders_pairs", "ranked_pairs", "results", "run_diffusion_arm",
]  # fmt: skip

BASE = "base"  # what every arm starts from, and is compared with
ARMS_OF_RAPL_DIFFUSION = LEARNED | {
    BASE: "behavior cloning of all demonstrations, before any preference",
    "true_reward": "ranked by the environment's own reward: what perfect preferences could give",
    "random": "control: ranked by one random number a rollout",
}
LOG_EVERY = 25  # updates


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings:
    """What an arm needs, as in configs/recipe/rapl_diffusion.yaml. Picklable, because workers receive it.

    agent: learns from transitions · direct: from comparisons, and takes the cloned policy and demonstrations
    preference: arguments of the environment that say what the person prefers, or None.
    """

    env: MakeEnv
    agent: MakeLearner
    direct: Callable[..., Any]
    preference: Mapping[str, Any] | None
    clone_updates: int
    clone_batch_size: int
    pairs: int
    temperature: float
    updates: int
    batch_size: int
    checkpoint_every: int
    episodes: int
    max_steps: int
    seed: int = 0
    threads: int = 1
    deterministic: bool = True
    tensorboard: bool = True

    def place(self, **given: Any) -> MakeEnv:
        """The environment in which the person prefers what ``preference`` says."""
        return functools.partial(self.env, **(self.preference or {}), **given)


def make_cloner(settings: DiffusionSettings, data: Transitions) -> Any:
    """The learner that clones the demonstrations' steps."""
    low, high = box_bounds(settings.place(), settings.seed)
    return settings.agent(data=data, action_low=low, action_high=high, seed=settings.seed)


def make_tuner(
    settings: DiffusionSettings, comparisons: Comparisons, *, policy: Policy, demonstrations: SegmentBatch
) -> Any:
    """The learner that tunes a policy on comparisons of its rollouts."""
    low, high = box_bounds(settings.place(), settings.seed)
    return settings.direct(
        comparisons=comparisons, action_low=low, action_high=high, seed=settings.seed, policy=policy,
        demonstrations=demonstrations,
    )  # fmt: skip


def clone(run: RunDirectory, settings: DiffusionSettings, *, show: Callable[[str, int, int], None]) -> None:
    """Stage "arms/base": clone the demonstrations, from the last checkpoint, and judge the policy."""
    if run.result(f"arms/{BASE}") is not None:
        return
    episodes = read_dataset(run.path / "dataset")
    data = _steps(episodes)
    learner = make_cloner(settings, data)
    train_offline(
        learner,
        learner.prepare(data, episodes.lengths),
        updates=settings.clone_updates,
        batch_size=settings.clone_batch_size,
        seed=settings.seed,
        folder=run.stage(f"arms/{BASE}"),
        checkpoint_every=settings.checkpoint_every,
        tensorboard=settings.tensorboard,
        progress=lambda update: show("clone", update, settings.clone_updates),
    )
    _finish(run, BASE, learner.policy, settings, demo_error_ratio=1.0)


def run_diffusion_arm(
    arm: str, *, path: Path, settings: DiffusionSettings, show: Callable[[str, int, int], None] | None = None
) -> None:
    """Tune the cloned policy from the last checkpoint of the arm, judge it on the shared seeds, mark it as finished."""
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.set_num_threads(settings.threads)
    run = RunDirectory.open(path)
    learner, comparisons = _learner_and_comparisons(run, arm, settings)
    collapse = None
    try:
        train_offline(
            learner,
            comparisons,
            updates=settings.updates,
            batch_size=settings.batch_size,
            seed=settings.seed,
            folder=run.stage(f"arms/{arm}"),
            log_every=LOG_EVERY,
            checkpoint_every=settings.checkpoint_every,
            tensorboard=settings.tensorboard,
            progress=None if show is None else lambda update: show(arm, update, settings.updates),
        )
    except PrefrlError as error:
        if not learner.collapsed:
            raise
        collapse = str(error)  # the learner's policy has its best weights again
    _finish(
        run, arm, learner.policy, settings, demo_error_ratio=learner.demo_error_ratio, updates=learner.step,
        collapse=collapse,
    )  # fmt: skip


def ranked_pairs(scores: ArrayLike, n: int, rng: np.random.Generator, *, temperature: float = 0.0) -> VideoPairs:
    """n random pairs of different rollouts, that of the higher score (E,) first.

    temperature: 0: the first is better for sure, equal scores are a tie. Above 0: with probability
    σ(gap / temperature), the gap in standard deviations of all scores (Bradley-Terry).

    >>> ranked_pairs([0.0, 1.0], 2, np.random.default_rng(0)).first
    array([1, 1])
    """
    score = np.asarray(scores, dtype=np.float64)
    E = len(score)
    if E < 2 or n < 1:
        raise InvalidData(f"Pairs of rollouts need 2 rollouts and n >= 1, but there are {E} and n is {n}.")
    one = rng.integers(E, size=n)
    other = (one + rng.integers(1, E, size=n)) % E
    better = score[one] >= score[other]
    first, second = np.where(better, one, other), np.where(better, other, one)
    gap = score[first] - score[second]
    if temperature == 0:
        return VideoPairs(first, second, np.where(gap > 0, 1.0, 0.5))
    spread = max(float(score.std()), 1e-12)  # where all are equal, all pairs are ties
    return VideoPairs(first, second, 1 / (1 + np.exp(-gap / (temperature * spread))))


def better_half(scores: ArrayLike) -> np.ndarray:
    """Numbers of the half with the higher scores (E,), the best first; E/2 rounded up.

    >>> better_half([0.5, 3.0, 1.0])
    array([1, 2])
    """
    return np.argsort(-np.asarray(scores), kind="stable")[: -(-len(np.asarray(scores)) // 2)]


def orders_pairs(scores: ArrayLike, true: ArrayLike) -> float | None:
    """Share of all pairs that scores (E,) put in the order of the true returns (E,); ties count half.

    None where the true ones are all equal.

    >>> orders_pairs([1.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    0.8333333333333334
    """
    i, j = np.triu_indices(len(np.asarray(scores)), k=1)
    ours, theirs = (np.sign(np.asarray(values)[i] - np.asarray(values)[j]) for values in (scores, true))
    return float((0.5 + 0.5 * ours * theirs)[theirs != 0].mean()) if (theirs != 0).any() else None


def judge(policy: Policy, settings: DiffusionSettings, *, episodes: int, seed: int) -> Rollouts:
    """Roll a policy out; equal seeds give equal episodes, and equal noise of the sampler, to every arm."""
    return rollout(policy, settings.place(), episodes=episodes, seed=seed, max_steps=settings.max_steps)


def load_diffusion_policy(run: RunDirectory, arm: str, settings: DiffusionSettings) -> Policy:
    """What a trained arm acts by."""
    if run.result(f"arms/{arm}") is None:
        raise ConfigError(f"{run.path} has no finished arm {arm!r}; finish it with `prefrl resume {run.path}`.")
    policy: Policy = make_cloner(settings, _steps(read_dataset(run.path / "dataset"))).policy
    weights_of(policy).load_state_dict(load_checkpoint(run.path / "arms" / arm / POLICY)["policy"])
    return policy


def results(run: RunDirectory, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What finished arms were judged by."""
    return {arm: result for arm in arms if (result := run.result(f"arms/{arm}")) is not None}


def _learner_and_comparisons(run: RunDirectory, arm: str, settings: DiffusionSettings) -> tuple[Any, Comparisons]:
    demonstrations, rollouts = (read_dataset(run.path / folder) for folder in ("dataset", "rollouts"))
    scores = (run.result("scores") or {})[arm]
    rng = np.random.default_rng([settings.seed, 1])  # the same pairs in every arm, but for their order
    pairs = ranked_pairs(scores["rollouts"], settings.pairs, rng, temperature=settings.temperature)
    comparisons = Comparisons(
        _whole(rollouts, pairs.first), _whole(rollouts, pairs.second), torch.from_numpy(pairs.p_first).float()
    )
    kept = _whole(demonstrations, better_half(scores["dataset"]))
    base = load_diffusion_policy(run, BASE, settings)
    return make_tuner(settings, comparisons, policy=base, demonstrations=kept), comparisons


def _whole(episodes: Episodes, index: np.ndarray) -> SegmentBatch:
    """The episodes of these numbers, from the first step to the last."""
    return episodes.segments(SegmentRefs(index, np.zeros_like(index), episodes.lengths[index])).without_true_reward()


def _steps(episodes: Episodes) -> Transitions:
    return episodes.transitions(torch.zeros(episodes.num_steps))


def _finish(run: RunDirectory, arm: str, policy: Policy, settings: DiffusionSettings, **more: Any) -> None:
    """Keep what the arm acts by, and what it was judged by."""
    keep_policy(run.stage(f"arms/{arm}") / POLICY, policy)
    judged = judge(policy, settings, episodes=settings.episodes, seed=settings.seed + 1)
    run.finish(f"arms/{arm}", {**summary(judged), "preferred": judged.preferred.tolist(), **more})
