"""One arm of a run of recipe rapl: an agent that learns while it acts, from a reward that needs the whole video.

RAPL's step 3 (Tian et al. 2024, arXiv 2310.07932): the reward is a function of the episode's frames, known when it is
over. The agent itself sees the environment's observations. Arms differ in the reward alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefrl.errors import DamagedFile
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.progress import progress_note
from prefrl.protocols import MakeEnv, MakeOnlineLearner
from prefrl.recipes.arms import summary
from prefrl.recipes.online_policies import POLICY, judge, keep_policy
from prefrl.recipes.rapl_rewards import LEARNED, TRANSPORTED, load_rewards
from prefrl.representation.ot_reward import OTReward
from prefrl.runs import MetricLogger, RunDirectory

__all__ = ["ARMS_OF_RAPL", "RaplArm", "RaplSettings", "run_rapl_arm"]

ARMS_OF_RAPL = LEARNED | {
    "true_reward": "the learner on the environment's own reward: what perfect preferences could give",
    "task_reward": "the learner on the task's reward, which knows no preference",
    "zero": "control: no reward anywhere",
}


@dataclass(frozen=True, kw_only=True)
class RaplSettings:
    """What an arm needs, as in configs/recipe/rapl.yaml. Picklable, because workers receive it."""

    env: MakeEnv
    online_agent: MakeOnlineLearner
    reward: Callable[..., OTReward]
    frames: int
    every: int
    steps: int
    log_every: int
    checkpoint_every: int
    episodes: int
    max_steps: int
    seed: int = 0
    threads: int = 1
    deterministic: bool = True
    tensorboard: bool = True

    def env_of(self, arm: str) -> MakeEnv:
        """Where an arm acts: with frames if its reward needs them; the task's own reward if it learns from that."""
        given: dict[str, Any] = {"frames": self.frames} if arm in LEARNED else {}
        if arm == "task_reward":
            given["reward"] = "task"
        return functools.partial(self.env, **given) if given else self.env


class RaplArm:
    """What an arm is made of while it runs; equal seeds give equal runs, interrupted or not."""

    def __init__(self, arm: str, run: RunDirectory, settings: RaplSettings) -> None:
        self.arm, self.settings, self.folder = arm, settings, run.stage(f"arms/{arm}")
        self.learner = settings.online_agent(make_env=settings.env_of(arm), seed=settings.seed)
        self.transport: OTReward | None = None  # its scale may be settled by the first episode
        self.rewarded: dict[str, Any] = {"reward": "env" if arm in ("true_reward", "task_reward") else None}
        if arm in LEARNED:
            found = load_rewards(run.path / "rewards", reward=settings.reward, every=settings.every)
            if arm in TRANSPORTED:
                self.transport = found.ot_reward(arm)
            self.rewarded = {"episode_reward": self.transport.reward if self.transport else found.per_step(arm)}
        self.saved = 0  # steps in the checkpoint
        if self.checkpoint.is_file():
            self.load(load_checkpoint(self.checkpoint))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def train(self, show: Callable[[int, str], None]) -> None:
        """From the last checkpoint to the last step; ``show(step, in words)`` at each stop."""
        settings, learner = self.settings, self.learner
        show(learner.steps, "")
        logged = learner.steps
        with MetricLogger(self.folder, resume_step=learner.steps, tensorboard=settings.tensorboard) as logger:
            try:
                while learner.steps < settings.steps:
                    stop = min(settings.steps, (learner.steps // settings.log_every + 1) * settings.log_every)
                    metrics = learner.collect(stop - learner.steps, **self.rewarded)
                    logger.log(stop, **metrics)
                    logged = stop
                    show(stop, progress_note(metrics))
                    self.save(due=stop - self.saved >= settings.checkpoint_every or stop == settings.steps)
            except KeyboardInterrupt:
                self.save(due=learner.steps == logged)
                raise

    def save(self, *, due: bool) -> None:
        """Where the environment can be kept now."""
        if due and self.learner.saveable and self.learner.steps > self.saved:
            transport = self.transport.state_dict() if self.transport else {}
            save_checkpoint(self.checkpoint, {"learner": self.learner.state_dict(), "transport": transport})
            self.saved = self.learner.steps

    def load(self, state: dict[str, Any]) -> None:
        if not {"learner", "transport"} <= state.keys():
            raise DamagedFile(
                f"{self.checkpoint} is not the checkpoint of a run of rapl. Restore it; or delete it, and the arm "
                "begins anew."
            )
        self.learner.load_state_dict(state["learner"])
        if self.transport is not None:
            self.transport.load_state_dict(state["transport"])
        self.saved = self.learner.steps


def run_rapl_arm(
    arm: str, *, path: Path, settings: RaplSettings, show: Callable[[str, int, int, str], None] | None = None
) -> None:
    """Train one arm from its last checkpoint, evaluate it on the shared seeds, and mark it as finished."""
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.set_num_threads(settings.threads)
    run = RunDirectory.open(path)
    at_work = RaplArm(arm, run, settings)
    try:
        at_work.train(lambda step, note: None if show is None else show(arm, step, settings.steps, note))
        keep_policy(at_work.folder / POLICY, at_work.learner.policy)
        judged = judge(at_work.learner.policy, settings, episodes=settings.episodes, seed=settings.seed + 1)
    finally:
        at_work.learner.close()
    run.finish(f"arms/{arm}", {**summary(judged), "preferred": judged.preferred.tolist()})
