"""RAPL, end to end: videos are ranked, a representation is aligned, transport in it rewards an agent that acts.

Tian et al. 2024, arXiv 2310.07932. A person ranks videos of rollouts by three; an encoder of frames learns from that
which videos are alike; minus the optimal-transport distance to the closest preferred demonstration is the reward of an
agent that sees states and is judged by its video. Beside it stand rewards learned from the same answers or from none,
and the environment's own with and without the preference.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prefrl.data.dataset import Episodes
from prefrl.errors import ConfigError
from prefrl.progress import Bars, progress_bars
from prefrl.protocols import Query, Teacher
from prefrl.recipes.arms import summary
from prefrl.recipes.online_policies import finish_arms, judge, load_arm_policy, require_arms, weights_of
from prefrl.recipes.rapl_arm import ARMS_OF_RAPL, RaplSettings, run_rapl_arm
from prefrl.recipes.rapl_report import report_rapl, show_table, videos_rapl
from prefrl.recipes.rapl_rewards import LEARNED, TRANSPORTED
from prefrl.recipes.rapl_stages import collect_or_copy_videos, learn_or_load_rewards
from prefrl.recipes.stages import ask_teacher, require_fit
from prefrl.runs import RunDirectory

__all__ = ["ANSWERED", "READERS", "Rapl"]

POSITIVE = ("frames", "every", "steps", "log_every", "checkpoint_every", "episodes", "max_steps")
ANSWERED = ("aligned", "rlhf")  # arms whose reward learns from answers
READERS = {  # key → the arms that it matters to
    **dict.fromkeys(("data", "recipe.frames", "recipe.every", "recipe.demos", "recipe.backbone"), tuple(LEARNED)),
    **dict.fromkeys(("teacher", "query", "recipe.comparisons"), ANSWERED),
    **dict.fromkeys(("recipe.encoder", "recipe.align"), ("aligned",)),
    "recipe.reward": TRANSPORTED,
    "recipe.rlhf": ("rlhf",),
}


@dataclass(frozen=True, kw_only=True)
class Rapl(RaplSettings):
    """The recipe. Components are constructors or objects; numbers are in configs/recipe/rapl.yaml.

    data: ``collect_episodes`` with its behaviors bound, which are filmed · dataset: a folder with videos instead
    backbone, encoder, align, rlhf, reward: constructors and functions with their hyper-parameters bound
    comparisons: answers, three a ranking; 0 takes those of the dataset · demos: how many, or which episodes
    arms: names in ``prefrl.recipes.rapl_arm.ARMS_OF_RAPL``.
    """

    data: Callable[..., Episodes]
    teacher: Teacher
    query: Query
    backbone: Callable[..., Any]
    encoder: Callable[..., Any]
    align: Callable[..., Any]
    rlhf: Callable[..., Any]
    arms: Sequence[str]
    video_arms: Sequence[str]
    comparisons: int
    demos: int | Sequence[int]
    workers: int = 1
    dataset: str | None = None

    def __post_init__(self) -> None:
        require_arms(ARMS_OF_RAPL, arms=self.arms, video_arms=self.video_arms)
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"recipe.{name} must be >= 1, but is {getattr(self, name)}.")
        if self.comparisons < 0 or (self.comparisons == 0 and self.dataset is None):
            raise ConfigError("recipe.comparisons must be >= 1; 0 takes the answers of a dataset: give dataset=…")
        self._try_agent()

    def _try_agent(self) -> None:
        """The learner fits the slot; every arm's environment can be made, and shows itself where that is needed."""
        if "make_env" not in inspect.signature(self.online_agent).parameters:
            raise ConfigError("online_agent: this one learns from given data; recipe=rapl needs one that acts.")
        for arm in self.arms:
            try:
                env = self.env_of(arm)(seed=self.seed)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"recipe.arms: {arm} cannot act in this environment: {error}") from error
            env.close()
        learner = self.online_agent(make_env=self.env, seed=self.seed)
        learner.close()
        weights_of(learner.policy)

    def ineffective(self, key: str) -> str | None:
        """Why a key that the user set cannot change anything in this run; None if it can."""
        for name, readers in READERS.items():
            if f"{key}.".startswith(f"{name}.") and not set(readers) & set(self.arms):
                return f"recipe.arms has none of {', '.join(readers)}"
        return None

    @property
    def settings(self) -> RaplSettings:
        return RaplSettings(**{name: getattr(self, name) for name in RaplSettings.__dataclass_fields__})

    def train(self, run: RunDirectory) -> None:
        """Run every unfinished stage, print the table, leave a video and ``report.html``."""
        torch.use_deterministic_algorithms(self.deterministic)
        with run.lock(), progress_bars() as bars:
            learned = [arm for arm in self.arms if arm in LEARNED]
            if learned:
                self.learn(run, learned, bars)
            self.train_arms(run, bars)
        show_table(run, self.arms)
        video = self.render(run)
        if video is not None:
            print(f"video:  {video}")
        print(f"report: {self.report(run)}")

    def learn(self, run: RunDirectory, names: Sequence[str], bars: Bars) -> None:
        """Stages "collect", "label" and "align"."""
        episodes, videos = collect_or_copy_videos(
            run, make_env=self.env_of("aligned"), data=self.data, dataset=self.dataset, seed=self.seed, bars=bars,
        )  # fmt: skip
        require_fit(episodes, self.env, seed=self.seed)
        answers = None
        if set(names) & set(ANSWERED):
            answers = ask_teacher(
                run, episodes, teacher=self.teacher, query=self.query, comparisons=self.comparisons,
                segment_length=int(episodes.lengths.max()), seed=self.seed,
            )  # fmt: skip
        learn_or_load_rewards(
            run, episodes, videos, answers, names=names, demos=self.demos, backbone=self.backbone, encoder=self.encoder,
            align=self.align, rlhf=self.rlhf, reward=self.reward, every=self.every, seed=self.seed, bars=bars,
        )  # fmt: skip

    def train_arms(self, run: RunDirectory, bars: Bars) -> None:
        """One after the other here, or ``workers`` at a time in processes of their own."""
        work = functools.partial(run_rapl_arm, path=run.path, settings=self.settings)
        finish_arms(run, self.arms, work, workers=self.workers, steps=self.steps, bars=bars)

    def evaluate(self, run: RunDirectory, *, arm: str, episodes: int, seed: int) -> dict[str, Any]:
        """Roll a trained arm out on other seeds."""
        judged = judge(load_arm_policy(run, arm, self.settings), self.settings, episodes=episodes, seed=seed)
        return {**summary(judged), "preferred": judged.preferred.tolist()}

    def render(self, run: RunDirectory, *, arms: Sequence[str] | None = None) -> Path | None:
        """Make the side-by-side video anew."""
        return videos_rapl(run, self.settings, list(arms or [arm for arm in self.video_arms if arm in self.arms]))

    def report(self, run: RunDirectory) -> Path:
        """Write ``report.html`` anew."""
        return report_rapl(run, self.arms)
