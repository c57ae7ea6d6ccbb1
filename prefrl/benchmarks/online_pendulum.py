"""Our side of the race on the pendulum: one arm of ``recipe=online`` with PPO, from the first step to its last.

Timed, by the processor, is what imitation's side is timed at: making the environment, acting, asking, fitting,
learning; and, as the recipe does, writing every answer and checkpoint, without the wait for the disk. Neither imports
nor the evaluation count on either side.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prefrl.evaluation.rollout import episode_seeds
from prefrl.recipes.online_arm import OnlineArm
from prefrl.recipes.online_policies import judge
from prefrl.recipes.online_settings import OnlineSettings

__all__ = ["Pendulum"]

EVALUATION_SEED = 1_000_000  # of the episodes that judge both sides' policies


@dataclass(frozen=True)
class Pendulum:
    """settings: of the arm; numbers that both sides share are read from there, and given to imitation

    documented: total_timesteps, num_iterations and rollout of imitation as in its tutorial · equal: those with which
    its PPO learns from as many steps as ours.
    """

    settings: OnlineSettings
    documented: Mapping[str, int]
    equal: Mapping[str, int]

    @property
    def what(self) -> str:
        s = self.settings
        return f"preference comparisons on Pendulum, {s.steps} steps of PPO, {s.comparisons} answers"

    def arguments(self, *, documented: bool) -> tuple[str, ...]:
        """Of the peer's script."""
        settings, own = self.settings, self.documented if documented else self.equal
        seeds = episode_seeds(EVALUATION_SEED, settings.episodes)
        return (
            "pendulum", f"--pairs={settings.comparisons}", f"--segment={settings.segment_length}",
            f"--episodes={settings.episodes}", *(f"--{name}={value}" for name, value in own.items()),
            "--hidden", *map(str, _numbers(settings.score)["hidden"]), "--eval_seeds", *map(str, seeds),
        )  # fmt: skip

    def measure(self, seed: int) -> dict[str, Any]:
        """seconds of the processor, the mean true return, the environment's steps, and the work."""
        settings = replace(self.settings, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            _warm_up()
            begin = time.process_time()
            arm = OnlineArm("aligned", Path(folder), settings)
            arm.train(lambda *_: None)
            seconds = time.process_time() - begin
            steps, answered = arm.learner.steps, arm.book.answered(settings.sessions)
            judged = judge(arm.learner.policy, settings, episodes=settings.episodes, seed=EVALUATION_SEED)
            arm.learner.close()
        agent, score = _numbers(settings.online_agent), _numbers(settings.score)
        work = {
            "comparisons": answered, "segment": settings.segment_length, "steps": steps,
            "rollout": agent["rollout_steps"], "reward_hidden": list(score["hidden"]),
            "policy_hidden": list(agent["hidden"]), "evaluated": len(judged),
            "epochs": agent["epochs"], "batch": agent["batch_size"],
        }  # fmt: skip
        return {"seconds": seconds, "return": float(judged.returns.mean()), "stepped": steps, "work": work}


def _numbers(constructor: Any) -> dict[str, Any]:
    """What a constructor of the configuration is bound to."""
    return dict(constructor.keywords)


def _warm_up() -> None:
    """What torch imports at the first step of an optimizer is not timed, here as there."""
    number = torch.zeros(1, requires_grad=True)
    number.sum().backward()
    torch.optim.Adam([number]).step()
