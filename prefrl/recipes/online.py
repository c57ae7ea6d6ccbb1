"""Online preference RL, end to end: an agent explores, is asked about, learns its reward and acts by it, in turns.

PEBBLE (Lee et al. 2021, arXiv 2106.05091) with SAC, and PrefPPO (B-Pref, Lee et al. 2021, arXiv 2111.03026) with PPO;
the loop itself is in ``prefrl.recipes.online_arm``. Each arm is a whole run of its own, from the same seed: beside the
learned reward stand the environment's own, which is what perfect preferences could give, and controls.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefrl.core import SegmentBatch
from prefrl.errors import ConfigError
from prefrl.progress import Bars, progress_bars
from prefrl.queries import session_sizes
from prefrl.recipes.arms import summary
from prefrl.recipes.online_arm import run_online_arm
from prefrl.recipes.online_policies import finish_arms, judge, load_arm_policy, require_arms, weights_of
from prefrl.recipes.online_report import report_online, show_table, videos_online
from prefrl.recipes.online_settings import ARMS_ONLINE, ASKING, SCORED, OnlineSettings
from prefrl.runs import RunDirectory
from prefrl.train.fit_score import fit_score, require_fit_settings

__all__ = ["Online"]

POSITIVE = (
    "steps", "explore_steps", "explore_neighbors", "sessions", "session_interval", "comparisons", "segment_length",
    "recent_episodes", "log_every", "episodes", "max_steps", "checkpoint_every",
)  # fmt: skip
EXPLORED_BY = ("neighbors", "form", "normalize")
EXPLORING = tuple(arm for arm in ARMS_ONLINE if arm != "true_reward_from_start")
READERS = {  # key → the arms that it matters to
    "teacher": ASKING,
    "query": ASKING,
    "score": SCORED,
    **dict.fromkeys((f"recipe.{name}" for name in (
        "sessions", "session_interval", "comparisons", "schedule", "first_share", "budget", "allow_variable_horizon",
        "recent_episodes", "fit", "refit", "unlabelled", "semi_supervised", "meta_every", "meta",
    )), ASKING),
    **dict.fromkeys(("recipe.segment_length", "recipe.bonus", "recipe.bonus_decay"), SCORED),
}  # fmt: skip
NO_SEGMENTS = SegmentBatch(torch.zeros(0, 2, 1), torch.zeros(0, 1, 1), torch.ones(0, 1, dtype=torch.bool))


@dataclass(frozen=True, kw_only=True)
class Online(OnlineSettings):
    """The online recipe. Components are constructors or objects; numbers are in configs/recipe/online.yaml.

    online_agent: learns while it acts · query: may be active, choosing by what the score has learned so far
    fit: ``fit_score`` with its hyper-parameters bound, called once a session
    arms: names in ``prefrl.recipes.online_settings.ARMS_ONLINE``.
    """

    asks_while_learning = True  # so that an active query has a score to choose by

    arms: Sequence[str]
    video_arms: Sequence[str]
    workers: int = 1

    def __post_init__(self) -> None:
        require_arms(ARMS_ONLINE, arms=self.arms, video_arms=self.video_arms)
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"recipe.{name} must be >= 1, but is {getattr(self, name)}.")
        last = self.settings.sessions_at()[-1]
        if last >= self.steps:
            raise ConfigError(
                f"recipe.steps={self.steps} must be more than {last}, where the last session is: recipe.explore_steps "
                "+ (recipe.sessions - 1) * recipe.session_interval."
            )
        session_sizes(self.comparisons, self.sessions, schedule=self.schedule, first_share=self.first_share)
        self._check_options()
        self._try_agent()

    def _check_options(self) -> None:
        """Those that are off by default."""
        members = getattr(self.score, "keywords", {}).get("members", 2)
        augment = getattr(self.fit, "keywords", {}).get("augment")
        allowed = {
            f"bonus must be in [0, inf), but is {self.bonus}": 0 <= self.bonus < math.inf,
            f"bonus={self.bonus} needs score.members >= 2: one alone cannot disagree": not self.bonus or members >= 2,
            f"bonus_decay must be in [0, 1), but is {self.bonus_decay}": 0 <= self.bonus_decay < 1,
            f"unlabelled must be in [0, inf), but is {self.unlabelled}": 0 <= self.unlabelled < math.inf,
            "unlabelled needs recipe.semi_supervised, and takes the place of recipe.fit.augment, which must be null":
                not self.unlabelled or (self.semi_supervised is not None and augment is None),
            "fit.augment takes pairs that nobody answered: set recipe.unlabelled and recipe.semi_supervised instead":
                not isinstance(augment, functools.partial),
            f"meta_every must be >= 0 and a multiple of recipe.log_every={self.log_every}, but is {self.meta_every}":
                self.meta_every >= 0 and self.meta_every % self.log_every == 0,
            "meta_every needs recipe.meta, which knows the critic's next update":
                self.meta is not None or self.meta_every == 0,
            f"milestones must be >= 0, but is {self.milestones}": self.milestones >= 0,
        }  # fmt: skip
        for message, holds in allowed.items():
            if not holds:
                raise ConfigError(f"recipe.{message}.")
        if self.unlabelled and self.semi_supervised is not None:
            self.semi_supervised(NO_SEGMENTS, NO_SEGMENTS)  # its own options are judged
            crop = getattr(self.semi_supervised, "keywords", {}).get("crop")
            if crop is not None and crop[0] >= self.segment_length:
                raise ConfigError(
                    f"recipe.semi_supervised.crop={list(crop)} crops nothing of recipe.segment_length="
                    f"{self.segment_length}: its first number must be smaller."
                )
        if isinstance(self.fit, functools.partial) and self.fit.func is fit_score:
            require_fit_settings(**self.fit.keywords)  # now, not after the exploration

    def _try_agent(self) -> None:
        """The learner fits the slot, the environment and the steps; segments fit into its episodes."""
        taken = inspect.signature(self.online_agent).parameters
        if "make_env" not in taken:
            raise ConfigError("online_agent: this one learns from given data; recipe=online needs one that acts.")
        learner = self.online_agent(make_env=self.env, seed=self.seed)
        learner.close()
        multiple = getattr(learner, "step_multiple", 1)
        whose, when = (
            ("rollout_steps", "between rollouts") if "rollout_steps" in taken else ("num_envs", "when all have stepped")
        )
        for name in ("steps", "explore_steps", "session_interval", "log_every"):
            if getattr(self, name) % multiple:
                raise ConfigError(
                    f"recipe.{name}={getattr(self, name)} must be a multiple of online_agent.{whose}={multiple}: this "
                    f"learner pauses {when} only."
                )
        weights_of(learner.policy)
        if self.meta_every and self.meta is not None:
            self.meta(learner)
        env = self.env(seed=self.seed)
        limit = env.spec.max_episode_steps if env.spec else None
        env.close()
        if limit is not None and self.segment_length > limit and self.ineffective("recipe.segment_length") is None:
            raise ConfigError(
                f"recipe.segment_length={self.segment_length} is longer than an episode of at most {limit} steps."
            )

    def ineffective(self, key: str) -> str | None:
        """Why a key that the user set cannot change anything in this run; None if it can."""
        for name, readers in READERS.items():
            if f"{key}.".startswith(f"{name}.") and not set(readers) & set(self.arms):
                return f"recipe.arms has none of {', '.join(readers)}"
        if key in ("recipe.session_interval", "recipe.refit") and self.sessions == 1:
            return "recipe.sessions=1 is the only one"
        random_steps = getattr(self.online_agent, "keywords", {}).get("learning_starts", 0)
        if key.removeprefix("recipe.explore_") in EXPLORED_BY and random_steps >= self.explore_steps:
            return f"online_agent.learning_starts={random_steps} are random actions, as long as it explores"
        if key == "recipe.bonus_decay" and self.bonus == 0:
            return "recipe.bonus=0 is none from the start"
        if f"{key}.".startswith("recipe.semi_supervised.") and self.unlabelled == 0:
            return "recipe.unlabelled=0 gives it no pairs"
        if f"{key}.".startswith("recipe.meta.") and self.meta_every == 0:
            return "recipe.meta_every=0 takes no such step"
        return None

    @property
    def settings(self) -> OnlineSettings:
        return OnlineSettings(**{name: getattr(self, name) for name in OnlineSettings.__dataclass_fields__})

    def train(self, run: RunDirectory) -> None:
        """Run every unfinished arm, print the table, leave a video and ``report.html``."""
        torch.use_deterministic_algorithms(self.deterministic)
        with run.lock(), progress_bars() as bars:
            self.train_arms(run, bars)
        show_table(run, self.arms)
        video = self.render(run)
        if video is not None:
            print(f"video:  {video}")
        print(f"report: {self.report(run)}")

    def train_arms(self, run: RunDirectory, bars: Bars) -> None:
        """One after the other here, or ``workers`` at a time in processes of their own."""
        work = functools.partial(run_online_arm, path=run.path, settings=self.settings)
        finish_arms(run, self.arms, work, workers=self.workers, steps=self.steps, bars=bars)

    def evaluate(self, run: RunDirectory, *, arm: str, episodes: int, seed: int) -> dict[str, Any]:
        """Roll a trained arm out on other seeds."""
        return summary(judge(load_arm_policy(run, arm, self.settings), self.settings, episodes=episodes, seed=seed))

    def render(self, run: RunDirectory, *, arms: Sequence[str] | None = None) -> Path | None:
        """Make the side-by-side video anew."""
        return videos_online(run, self.settings, list(arms or [arm for arm in self.video_arms if arm in self.arms]))

    def report(self, run: RunDirectory) -> Path:
        """Write ``report.html`` anew."""
        return report_online(run, self.arms)
