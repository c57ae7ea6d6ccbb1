"""Arms: learners on different rewards, or on different answers, trained side by side in worker processes.

An arm is one answer to "does the preference matter?". Beside the aligned arm stand the controls of Li et al. 2023
(arXiv 2306.03286): offline RL can succeed on random, zero or negated rewards when the data are good, so a claim about
preferences is worth something only where these fail. Beside contrastive preference learning (Hejna et al. 2024, arXiv
2310.13639), which learns from the comparisons directly, stand its supervised baseline and the same two controls.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from prefrl.core import Comparisons
from prefrl.data.dataset import Episodes
from prefrl.data.preferences import read_preferences
from prefrl.data.storage import read_dataset
from prefrl.errors import ConfigError
from prefrl.evaluation.rollout import Rollouts, rollout
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.losses.imitation import chosen_nll
from prefrl.protocols import MakeComparisonLearner, MakeEnv, MakeLearner, Policy
from prefrl.recipes.workers import run_side_by_side
from prefrl.runs import RunDirectory, read_metrics
from prefrl.spaces import action_bounds
from prefrl.train.offline import train_offline
from prefrl.train.relabel import Normalization, normalize_rewards

__all__ = [
    "ARMS", "ARMS_OF_PEARL", "DIRECT", "FITTED", "REWARDED", "ArmSettings", "arm_comparisons", "arm_rewards",
    "box_bounds", "load_policy", "require_offline", "resemblance", "train_arms",
]  # fmt: skip

ARMS = {
    "bc": "behavior cloning of the whole mix: no reward at all",
    "sft": "behavior cloning of both segments of every pair, then of the preferred ones only",
    "cpl": "the direct learner: contrastive, on the comparisons and without a reward",
    "aligned": "the learner on the reward learned from preferences",
    "true_reward": "the learner on the environment's own reward: what perfect preferences could give",
    "random": "control: one uniform random number per transition as its reward",
    "untrained": "control: the reward ensemble before any training",
    "zero": "control: no reward anywhere",
    "negated": "control: the learned reward with its sign changed",
    "cpl_random": "control: the direct learner on answers of a fair coin",
    "cpl_negated": "control: the direct learner on the opposite answers",
}
ARMS_OF_PEARL = {
    "bc": "behavior cloning of the whole target mix: no reward at all",
    "aligned": "the learner on the reward from transferred labels",
    "oracle": "the learner on a reward from as many true labels of the target as a teacher would give",
    "few_N": "the learner on a reward from N true labels of the target",
    "spread_N": "the learner on a reward from N true labels of the target and those that they give to other windows",
    "source_reward": "control: the learner on a reward from the source's own segments, applied to the target as it is",
    "true_reward": "the learner on the target's own reward",
    "random": "control: one uniform random number per transition as its reward",
    "zero": "control: no reward anywhere",
    "negated": "control: the reward from transferred labels with its sign changed",
}
DIRECT = ("sft", "cpl", "cpl_random", "cpl_negated")  # learn from the comparisons themselves
REWARDED = tuple(arm for arm in ARMS if arm not in ("bc", *DIRECT))  # learn from rewards
FITTED = ("aligned", "negated")  # of these, from the reward that explains the answers


@dataclass(frozen=True)
class ArmSettings:
    """How every arm is trained and judged. Plain values and picklable constructors, because workers receive it.

    updates, batch_size: of gradient steps · evaluate_every: updates between the points of the learning curve
    (``curve_episodes`` each) · episodes: of the final evaluation, on seeds that all arms share · max_steps: of each.
    """

    env: MakeEnv
    agent: MakeLearner
    baseline: MakeLearner
    direct: MakeComparisonLearner
    updates: int
    baseline_updates: int
    direct_updates: int
    batch_size: int
    direct_batch_size: int
    evaluate_every: int
    curve_episodes: int
    episodes: int
    max_steps: int
    checkpoint_every: int
    seed: int
    threads: int
    deterministic: bool
    tensorboard: bool

    def learner(self, arm: str) -> Callable[..., Any]:
        """What makes an arm's learner: a ``MakeComparisonLearner`` for those in DIRECT, else a ``MakeLearner``."""
        if arm == "sft":  # the stages of arXiv 2310.13639: its learner, with another loss in the second
            return functools.partial(self.direct, loss=chosen_nll)  # type: ignore[call-arg]
        return self.baseline if arm == "bc" else self.direct if arm in DIRECT else self.agent

    def updates_of(self, arm: str) -> int:
        return self.baseline_updates if arm == "bc" else self.direct_updates if arm in DIRECT else self.updates

    def batch_size_of(self, arm: str) -> int:
        return self.direct_batch_size if arm in DIRECT else self.batch_size


def require_offline(**learners: Callable[..., Any]) -> None:
    """Raise ``ConfigError`` for a slot whose learner is not one of given transitions."""
    for slot, make in learners.items():
        taken = inspect.signature(make).parameters
        if "data" not in taken:
            what = "comparisons" if "comparisons" in taken else "what it does itself"
            raise ConfigError(f"{slot}: this one learns from {what}; this recipe needs one of given transitions.")


def arm_rewards(
    arm: str,
    *,
    learned: Tensor,
    untrained: Tensor,
    true: Tensor,
    lengths: np.ndarray,
    normalization: Normalization,
    scale: float,
    seed: int,
) -> Tensor:
    """(N,) normalized rewards of an arm, from the (N,) learned, untrained and true ones; ``lengths`` (E,)."""
    generator = torch.Generator().manual_seed(seed)
    rewards = {
        "zero": torch.zeros_like(true),
        "aligned": learned,
        "negated": -learned,
        "true_reward": true,
        "untrained": untrained,
        "random": torch.rand(len(true), generator=generator),
    }
    if arm not in rewards:
        raise ConfigError(f"The arm {arm!r} learns from no rewards; these do: {', '.join(REWARDED)}.")
    if arm == "zero":
        return rewards[arm]
    return normalize_rewards(rewards[arm], lengths, method=normalization, scale=scale)


def arm_comparisons(arm: str, comparisons: Comparisons, *, seed: int) -> Comparisons:
    """What an arm in DIRECT learns from: the answers as they are, their opposites, or one coin toss for each."""
    p_first = comparisons.p_first
    coins = torch.randint(2, p_first.shape, generator=torch.Generator().manual_seed(seed)).to(p_first)
    answers = {"sft": p_first, "cpl": p_first, "cpl_negated": 1 - p_first, "cpl_random": coins}
    if arm not in answers:
        raise ConfigError(f"The arm {arm!r} learns from no comparisons; these do: {', '.join(DIRECT)}.")
    return replace(comparisons, p_first=answers[arm])


def train_arms(
    run: RunDirectory,
    arms: Sequence[str],
    settings: ArmSettings,
    *,
    workers: int,
    show: Callable[[str, int, int], None],
) -> None:
    """Train and evaluate every unfinished arm, ``workers`` at a time; ``show(arm, done, total)`` draws progress."""
    waiting = [arm for arm in arms if run.result(f"arms/{arm}") is None]
    if workers == 1 or len(waiting) <= 1:
        for arm in waiting:
            run_arm(arm, path=run.path, settings=settings, show=show)
        return
    work = functools.partial(run_arm, path=run.path, settings=settings)

    def watch(arm: str) -> None:
        rows = read_metrics(run.path / "arms" / arm)
        if rows:
            show(arm, int(rows[-1]["step"]), settings.updates_of(arm))

    run_side_by_side(waiting, work, workers=workers, watch=watch)


def run_arm(
    arm: str, *, path: Path, settings: ArmSettings, show: Callable[[str, int, int], None] | None = None
) -> None:
    """Train one arm from its last checkpoint, evaluate it on the shared seeds, and mark it as finished."""
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.set_num_threads(settings.threads)
    run, episodes = RunDirectory.open(path), read_dataset(path / "dataset")
    learner, data = learner_and_data(run, arm, episodes, settings)
    folder, updates = run.stage(f"arms/{arm}"), settings.updates_of(arm)

    def curve(step: int) -> dict[str, float]:
        judged = evaluate(learner.policy, settings, episodes=settings.curve_episodes, seed=settings.seed + 2)
        return {"success": float(judged.success.mean()), "return": float(judged.returns.mean())}

    train_offline(
        learner,
        data,
        updates=updates,
        batch_size=settings.batch_size_of(arm),
        seed=settings.seed,
        folder=folder,
        checkpoint_every=settings.checkpoint_every,
        evaluate=curve,
        evaluate_every=settings.evaluate_every,
        tensorboard=settings.tensorboard,
        progress=None if show is None else lambda step: show(arm, step, updates),
    )
    judged = evaluate(learner.policy, settings, episodes=settings.episodes, seed=settings.seed + 1)
    run.finish(
        f"arms/{arm}",
        {
            **summary(judged),
            "resemblance": resemblance(episodes, judged.end_observations - judged.start_observations),
        },
    )


def learner_and_data(run: RunDirectory, arm: str, episodes: Episodes, settings: ArmSettings) -> tuple[Any, Any]:
    """An arm's untrained learner, and the Transitions or Comparisons that it learns from."""
    low, high = box_bounds(settings.env, settings.seed)
    make = functools.partial(settings.learner(arm), action_low=low, action_high=high, seed=settings.seed)
    if arm in DIRECT:
        comparisons = read_preferences(run.path / "dataset").comparisons(episodes).without_true_reward()
        return make(comparisons=comparisons), arm_comparisons(arm, comparisons, seed=settings.seed)
    data = episodes.transitions(torch.zeros(episodes.num_steps) if arm == "bc" else _saved_rewards(run, arm))
    learner = make(data=data)
    return learner, learner.prepare(data, episodes.lengths)


def box_bounds(make_env: MakeEnv, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The (A,) lower and upper action bounds of an environment; continuous ones, as the learners need."""
    env = make_env(seed=seed)
    space = env.action_space
    env.close()
    if not isinstance(space, gym.spaces.Box):
        raise ConfigError(
            f"This recipe needs a one-dimensional Box action space, but {env} has {space}. "
            "recipe=regret is for grid worlds."
        )
    return action_bounds(space)


def load_policy(run: RunDirectory, arm: str, settings: ArmSettings) -> Policy:
    """What a trained arm acts by, from its checkpoint."""
    if run.result(f"arms/{arm}") is None:
        raise ConfigError(f"{run.path} has no finished arm {arm!r}; finish it with `prefrl resume {run.path}`.")
    learner, _ = learner_and_data(run, arm, read_dataset(run.path / "dataset"), settings)
    learner.load_state_dict(load_checkpoint(run.path / "arms" / arm / "checkpoint.safetensors")["learner"])
    policy: Policy = learner.policy
    return policy


def evaluate(policy: Policy, settings: ArmSettings, *, episodes: int, seed: int) -> Rollouts:
    """Roll a policy out; equal seeds give equal episodes to every arm."""
    return rollout(policy, settings.env, episodes=episodes, seed=seed, max_steps=settings.max_steps)


def summary(judged: Rollouts) -> dict[str, Any]:
    """Per-episode results as JSON."""
    return {
        "success": judged.success.tolist(),
        "returns": judged.returns.tolist(),
        "lengths": judged.lengths.tolist(),
        "seeds": judged.seeds.tolist(),
    }


def resemblance(episodes: Episodes, change: np.ndarray) -> dict[str, float]:
    """Share of rollouts whose ``change`` (B, D), end minus start observation, is nearest to a behavior's mean change.

    Each dimension is divided by its spread within behaviors, so that what tells them apart counts most (diagonal
    discriminant analysis). It says *what* a policy does when it does not do what was asked.
    """
    offsets, behavior = episodes.observation_offsets, np.asarray(episodes.behavior)
    changes = episodes.observations[offsets[1:] - 1] - episodes.observations[offsets[:-1]]  # (E, D)
    names = list(dict.fromkeys(episodes.behavior))
    means = np.stack([changes[behavior == name].mean(0) for name in names])  # (behaviors, D)
    within = changes - means[[names.index(name) for name in episodes.behavior]]
    spread = np.sqrt((within**2).mean(0)) + 1e-2
    nearest = np.linalg.norm((change[:, None] - means) / spread, axis=-1).argmin(1)  # (B,)
    return {name: float((nearest == i).mean()) for i, name in enumerate(names)}


def save_rewards(run: RunDirectory, arm: str, rewards: Tensor) -> None:
    save_checkpoint(run.stage("rewards") / f"{arm}.safetensors", {"rewards": rewards})


def _saved_rewards(run: RunDirectory, arm: str) -> Tensor:
    rewards: Tensor = load_checkpoint(run.path / "rewards" / f"{arm}.safetensors")["rewards"]
    return rewards
