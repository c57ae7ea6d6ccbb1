"""Arms: the same learner on different rewards, trained side by side in worker processes.

An arm is one answer to "does the preference matter?". Beside the aligned arm stand the controls of Li et al. 2023
(arXiv 2306.03286): offline RL can succeed on random, zero or negated rewards when the data are good, so a claim about
preferences is worth something only where these fail.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from prefrl.core import Transitions
from prefrl.data.dataset import Episodes
from prefrl.data.storage import read_dataset
from prefrl.errors import ConfigError
from prefrl.evaluation.rollout import Rollouts, rollout
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.protocols import Learner, MakeEnv, MakeLearner
from prefrl.runs import RunDirectory, read_metrics
from prefrl.spaces import action_bounds
from prefrl.train.offline import train_offline
from prefrl.train.relabel import Normalization, normalize_rewards

__all__ = ["ARMS", "ArmSettings", "arm_rewards", "load_learner", "resemblance", "train_arms"]

ARMS = {
    "bc": "behavior cloning of the whole mix: no reward at all",
    "aligned": "the learner on the reward learned from preferences",
    "true_reward": "the learner on the environment's own reward: what perfect preferences could give",
    "random": "control: one uniform random number per transition as its reward",
    "untrained": "control: the reward ensemble before any training",
    "zero": "control: no reward anywhere",
    "negated": "control: the learned reward with its sign changed",
}


@dataclass(frozen=True)
class ArmSettings:
    """How every arm is trained and judged. Plain values and picklable constructors, because workers receive it.

    updates, batch_size: of gradient steps · evaluate_every: updates between the points of the learning curve
    (``curve_episodes`` each) · episodes: of the final evaluation, on seeds that all arms share · max_steps: of each.
    """

    env: MakeEnv
    agent: MakeLearner
    baseline: MakeLearner
    updates: int
    baseline_updates: int
    batch_size: int
    evaluate_every: int
    curve_episodes: int
    episodes: int
    max_steps: int
    checkpoint_every: int
    seed: int
    threads: int
    deterministic: bool
    tensorboard: bool

    def learner(self, arm: str) -> MakeLearner:
        return self.baseline if arm == "bc" else self.agent

    def updates_of(self, arm: str) -> int:
        return self.baseline_updates if arm == "bc" else self.updates


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
        "bc": torch.zeros_like(true),
        "zero": torch.zeros_like(true),
        "aligned": learned,
        "negated": -learned,
        "true_reward": true,
        "untrained": untrained,
        "random": torch.rand(len(true), generator=generator),
    }
    if arm not in rewards:
        raise ConfigError(f"Unknown arm {arm!r}; these are there: {', '.join(ARMS)}.")
    if arm in ("bc", "zero"):
        return rewards[arm]
    return normalize_rewards(rewards[arm], lengths, method=normalization, scale=scale)


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
            run_arm(run.path, arm, settings, show=show)
        return
    running: dict[Future[None], str] = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:  # no more: what is queued could not be taken back
                    arm = waiting.pop(0)
                    running[pool.submit(_work, run.path, arm, settings)] = arm
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for arm in running.values():
                    _show_progress(run, arm, settings, show)
                for future in done:
                    running.pop(future)
                    future.result()
        except BaseException:
            _stop(running)
            raise


def _show_progress(run: RunDirectory, arm: str, settings: ArmSettings, show: Callable[[str, int, int], None]) -> None:
    rows = read_metrics(run.path / "arms" / arm)
    if rows:
        show(arm, int(rows[-1]["step"]), settings.updates_of(arm))


def _start_worker() -> None:
    """In a new worker: Ctrl-C is for the arm in progress only, and no worker outlives its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(path: Path, arm: str, settings: ArmSettings) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_arm(path, arm, settings)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(running: dict[Future[None], str]) -> None:
    """Let every worker reach its checkpoint: a terminal's Ctrl-C reaches them all, a signal to us alone does not."""
    _, alive = wait(running, timeout=2)
    for child in multiprocessing.active_children() if alive else ():
        if child.pid is not None and child.is_alive():
            os.kill(child.pid, signal.SIGINT)
    _, alive = wait(alive, timeout=20)
    for child in multiprocessing.active_children() if alive else ():
        child.terminate()


def run_arm(
    path: Path, arm: str, settings: ArmSettings, *, show: Callable[[str, int, int], None] | None = None
) -> None:
    """Train one arm from its last checkpoint, evaluate it on the shared seeds, and mark it as finished."""
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.set_num_threads(settings.threads)
    run = RunDirectory.open(path)
    episodes = read_dataset(path / "dataset")
    data = episodes.transitions(load_checkpoint(path / "rewards" / f"{arm}.safetensors")["rewards"])
    learner = make_learner(settings.learner(arm), data, settings)
    data = learner.prepare(data, episodes.lengths)
    folder, updates = run.stage(f"arms/{arm}"), settings.updates_of(arm)

    def curve(step: int) -> dict[str, float]:
        judged = evaluate(learner, settings, episodes=settings.curve_episodes, seed=settings.seed + 2)
        return {"success": float(judged.success.mean()), "return": float(judged.returns.mean())}

    train_offline(
        learner,
        data,
        updates=updates,
        batch_size=settings.batch_size,
        seed=settings.seed,
        folder=folder,
        checkpoint_every=settings.checkpoint_every,
        evaluate=curve,
        evaluate_every=settings.evaluate_every,
        tensorboard=settings.tensorboard,
        progress=None if show is None else lambda step: show(arm, step, updates),
    )
    judged = evaluate(learner, settings, episodes=settings.episodes, seed=settings.seed + 1)
    run.finish(
        f"arms/{arm}",
        {
            **summary(judged),
            "resemblance": resemblance(episodes, judged.end_observations - judged.start_observations),
        },
    )


def make_learner(make: MakeLearner, data: Transitions, settings: ArmSettings) -> Learner:
    low, high = _action_bounds(settings.env, settings.seed)
    return make(data=data, action_low=low, action_high=high, seed=settings.seed)


def _action_bounds(make_env: MakeEnv, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The (A,) lower and upper action bounds of an environment; continuous ones, as the learners need."""
    env = make_env(seed=seed)
    space = env.action_space
    env.close()
    if not isinstance(space, gym.spaces.Box):
        raise ConfigError(f"The offline recipe needs a one-dimensional Box action space, but {env} has {space}.")
    return action_bounds(space)


def load_learner(run: RunDirectory, arm: str, settings: ArmSettings) -> Learner:
    """A trained arm's learner, from its checkpoint."""
    if run.result(f"arms/{arm}") is None:
        raise ConfigError(f"{run.path} has no finished arm {arm!r}; finish it with `prefrl resume {run.path}`.")
    episodes = read_dataset(run.path / "dataset")
    learner = make_learner(settings.learner(arm), episodes.transitions(torch.zeros(episodes.num_steps)), settings)
    learner.load_state_dict(load_checkpoint(run.path / "arms" / arm / "checkpoint.safetensors")["learner"])
    return learner


def evaluate(learner: Learner, settings: ArmSettings, *, episodes: int, seed: int) -> Rollouts:
    """Roll the learner's policy out; equal seeds give equal episodes to every arm."""
    return rollout(learner.policy, settings.env, episodes=episodes, seed=seed, max_steps=settings.max_steps)


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
