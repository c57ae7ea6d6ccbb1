"""Preferences carried to a new task, end to end: PEARL (Liu et al. 2024, arXiv 2306.03615) in the offline pipeline.

Two tasks are collected, a teacher compares segments of the source only, its answers are carried to the target by
optimal transport, a reward learns from them by a loss that bears wrong labels, and offline RL learns from that reward.
Beside it stand what the labels are worth (the same pipeline on true labels of the target, many and few) and the
controls of Li et al. 2023 (arXiv 2306.03286). The target's true reward judges, and answers for oracle and few_N only.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefrl.data.dataset import Episodes
from prefrl.data.labeling import label
from prefrl.data.preferences import Preferences, append_preferences, preferences_path, read_preferences
from prefrl.data.query import UniformQuery
from prefrl.data.storage import read_dataset, write_dataset
from prefrl.errors import ConfigError
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.progress import Bars, progress_bars
from prefrl.protocols import MakeEnv, MakeLearner, Query, Teacher
from prefrl.recipes.arms import ArmSettings, arm_rewards, evaluate, load_policy, save_rewards, summary, train_arms
from prefrl.recipes.offline_report import videos_offline
from prefrl.recipes.pearl_report import ALIGNED, report_pearl, show_table, transfer_summary
from prefrl.recipes.stages import collect_or_copy, data_summary
from prefrl.runs import RunDirectory
from prefrl.train.relabel import Normalization, relabel
from prefrl.transfer.datasets import Transfer, in_words, window_returns
from prefrl.transfer.features import Features

__all__ = ["Pearl"]

NAMED = ("bc", *ALIGNED, "oracle", "true_reward", "random", "zero")
FILMED = ("bc", *ALIGNED, "true_reward", "random")
FEW = re.compile(r"few_([1-9][0-9]*)")
POSITIVE = (
    "comparisons", "oracle_comparisons", "segment_length", "reward_updates", "reward_batch_size", "updates",
    "baseline_updates", "batch_size", "curve_episodes", "episodes", "max_steps", "checkpoint_every",
)  # fmt: skip
JUDGED = 2000  # pairs of target windows by which every learned reward is judged


@dataclass(frozen=True, kw_only=True)
class Pearl:
    """The recipe. Components are constructors or objects; numbers are in configs/recipe/pearl.yaml.

    source_env, source_data: the task that is labelled · env, data: the target, where policies act
    transfer: ``prefrl.transfer.datasets.carry`` with its keys bound · fit: ``fit_score`` with its hyper-parameters
    arms: bc, aligned (the transferred labels), negated, oracle, few_N, true_reward, random, zero.
    """

    env: MakeEnv
    data: Callable[..., Episodes]
    source_env: MakeEnv
    source_data: Callable[..., Episodes]
    teacher: Teacher
    query: Query
    features: Features
    score: Callable[..., Any]
    agent: MakeLearner
    baseline: MakeLearner
    transfer: Callable[..., Preferences]
    fit: Callable[..., Any]
    arms: Sequence[str]
    video_arms: Sequence[str]
    comparisons: int
    oracle_comparisons: int
    segment_length: int
    reward_updates: int
    reward_batch_size: int
    reward_normalization: Normalization
    reward_scale: float
    updates: int
    baseline_updates: int
    batch_size: int
    evaluate_every: int
    curve_episodes: int
    episodes: int
    max_steps: int
    checkpoint_every: int
    seed: int = 0
    workers: int = 1
    threads: int = 1
    deterministic: bool = True
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name, given, allowed in (("arms", self.arms, NAMED), ("video_arms", self.video_arms, FILMED)):
            wrong = [arm for arm in given if arm not in allowed and (name == "video_arms" or not FEW.fullmatch(arm))]
            if wrong or len(set(given)) < len(given):
                said = f"unknown arm {wrong[0]!r}" if wrong else f"an arm twice in {list(given)}"
                few = ", few_N" if name == "arms" else ""
                raise ConfigError(f"recipe.{name}: {said}; these are there: {', '.join(allowed)}{few}.")
        for name, least in (dict.fromkeys(POSITIVE, 1) | {"evaluate_every": 0}).items():
            if getattr(self, name) < least:
                raise ConfigError(f"recipe.{name} must be >= {least}, but is {getattr(self, name)}.")
        most = max(self.label_counts().values(), default=0)
        if most > self.oracle_comparisons:
            raise ConfigError(
                f"recipe.arms: few_{most} needs recipe.oracle_comparisons >= {most}: {self.oracle_comparisons}."
            )

    def label_counts(self) -> dict[str, int]:
        """Arms that learn from the first N of the target's own labels → N."""
        few = {arm: int(match[1]) for arm in self.arms if (match := FEW.fullmatch(arm))}
        return few | ({"oracle": self.oracle_comparisons} if "oracle" in self.arms else {})

    def ineffective(self, key: str) -> str | None:
        """Why a key that the user set cannot change anything in this run; None if it can."""
        if key == "recipe.oracle_comparisons" and not self.label_counts():
            return "recipe.arms has neither oracle nor few_N"
        if key == "recipe.curve_episodes" and self.evaluate_every == 0:
            return "recipe.evaluate_every=0 draws no learning curve"
        learns = set(self.arms) - {"bc"}
        if key.split(".")[0] == "agent" and not learns:
            return "recipe.arms has no arm that learns from a reward"
        return None

    @property
    def settings(self) -> ArmSettings:
        own = {name: getattr(self, name) for name in ArmSettings.__dataclass_fields__ if hasattr(self, name)}
        return ArmSettings(**own, direct=_nothing_direct, direct_updates=1, direct_batch_size=1)

    @property
    def sources(self) -> list[str]:
        """The labels that a reward learns from in this run."""
        return [*(["aligned"] if set(ALIGNED) & set(self.arms) else []), *self.label_counts()]

    def train(self, run: RunDirectory) -> None:
        """Run every unfinished stage, print the table, leave a video and ``report.html``."""
        torch.use_deterministic_algorithms(self.deterministic)
        with run.lock(), progress_bars() as bars:
            source = self.label_source(run, bars)
            target = collect_or_copy(
                run, make_env=self.env, data=self.data, dataset=None, check=lambda found: None, seed=self.seed,
                bars=bars,
            )  # fmt: skip
            if "aligned" in self.sources:
                self.carry(run, source, target)
            self.relabel(run, target, {name: self.learn(run, name, target, bars) for name in self.sources})
            train_arms(run, self.arms, self.settings, workers=self.workers, show=bars)
        show_table(run, self.arms)
        video = self.render(run)
        if video is not None:
            print(f"video:  {video}")
        print(f"report: {self.report(run)}")

    def label_source(self, run: RunDirectory, bars: Bars) -> Episodes:
        """Stage "source": episodes of the other task, with the teacher's answers."""
        folder = run.path / "source"
        if run.result("source") is None:
            shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
            episodes = self.source_data(
                make_env=self.source_env, seed=self.seed + 3, progress=lambda n, of: bars("collect source", n, of)
            )
            write_dataset(folder, episodes)
            append_preferences(folder, self.ask(episodes, self.comparisons, seed=self.seed))
            run.finish("source", data_summary(episodes) | {"comparisons": self.comparisons, "env": episodes.env})
        return read_dataset(folder)

    def ask(self, episodes: Episodes, comparisons: int, *, seed: int) -> Preferences:
        return label(
            episodes, teacher=self.teacher, query=self.query, comparisons=comparisons,
            segment_length=self.segment_length, rng=np.random.default_rng(seed),
        )  # fmt: skip

    def carry(self, run: RunDirectory, source: Episodes, target: Episodes) -> None:
        """Stage "transfer": the source's answers join the target, or the run ends with the reasons why not."""
        if run.result("transfer") is not None:
            return
        folder, seen = run.path / "dataset", list[Transfer]()
        preferences_path(folder).unlink(missing_ok=True)  # left by a killed run
        try:
            answers = self.transfer(
                (source, target), read_preferences(run.path / "source"), features=self.features, say=seen.append,
                provenance={"source": source.env.get("id")}, rng=np.random.default_rng(self.seed),
            )  # fmt: skip
        finally:
            print("\n".join(line for transfer in seen for line in in_words(transfer)))
        append_preferences(folder, answers)
        run.finish("transfer", transfer_summary(seen[0], answers, source, target))

    def learn(self, run: RunDirectory, name: str, target: Episodes, bars: Bars) -> Tensor:
        """Stage "scores/NAME": a reward that explains transferred labels, or true ones; (N,) rewards of all steps."""
        data = target.transitions(torch.zeros(target.num_steps))
        score = self.score(observations=data.observations, actions=data.actions, seed=self.seed)
        stage, final = f"scores/{name}", run.path / "scores" / name / "final.safetensors"
        if run.result(stage) is None:
            answers = self.labels_of(run, name, target)
            batch = min(self.reward_batch_size, len(answers))
            report = self.fit(
                score, answers.comparisons(target).without_true_reward(), seed=self.seed, folder=run.stage(stage),
                epochs=-(-self.reward_updates // -(-len(answers) // batch)), batch_size=batch,
                tensorboard=self.tensorboard, progress=lambda n, of: bars(f"reward from {name} labels", n, of),
            )  # fmt: skip
            save_checkpoint(final, score.state_dict())
            rewards = relabel(score, data.observations, data.actions)
            accuracy = pair_accuracy(rewards, target, self.segment_length, seed=self.seed)
            run.finish(stage, {"labels": len(answers), "accuracy": accuracy, **report.as_dict()})
        score.load_state_dict(load_checkpoint(final))
        return relabel(score, data.observations, data.actions)

    def labels_of(self, run: RunDirectory, name: str, target: Episodes) -> Preferences:
        if name == "aligned":
            return read_preferences(run.path / "dataset")
        return self.ask(target, self.oracle_comparisons, seed=self.seed + 4)[: self.label_counts()[name]]

    def relabel(self, run: RunDirectory, target: Episodes, learned: dict[str, Tensor]) -> None:
        """Stage "rewards": every step of the target gets the reward of each arm that learns from one."""
        if run.result("rewards") is not None:
            return
        true = torch.as_tensor(target.true_reward)
        for arm in (arm for arm in self.arms if arm != "bc"):
            own = learned.get(arm, learned.get("aligned", true))
            rewards = arm_rewards(
                "aligned" if arm in learned else arm, learned=own, untrained=own, true=true, lengths=target.lengths,
                normalization=self.reward_normalization, scale=self.reward_scale, seed=self.seed,
            )  # fmt: skip
            save_rewards(run, arm, rewards)
        run.finish("rewards", {})

    def evaluate(self, run: RunDirectory, *, arm: str, episodes: int, seed: int) -> dict[str, Any]:
        """Roll a trained arm out on other seeds."""
        return summary(evaluate(load_policy(run, arm, self.settings), self.settings, episodes=episodes, seed=seed))

    def render(self, run: RunDirectory, *, arms: Sequence[str] | None = None) -> Path | None:
        """Make the side-by-side video anew."""
        shown = list(arms or [arm for arm in self.video_arms if arm in self.arms])
        if unable := [arm for arm in shown if arm not in FILMED]:
            raise ConfigError(f"arms: {unable[0]!r} cannot be filmed; these can: {', '.join(FILMED)}.")
        return videos_offline(run, self.settings, shown)

    def report(self, run: RunDirectory) -> Path:
        """Write ``report.html`` anew."""
        return report_pearl(run, self.arms)


def _nothing_direct(**ignored: Any) -> Any:
    """No arm of this recipe learns from comparisons without a reward."""
    raise ConfigError("recipe=pearl has no arm that learns from comparisons directly.")


def pair_accuracy(rewards: Tensor, episodes: Episodes, segment_length: int, *, seed: int) -> float | None:
    """Share of random pairs of windows that rewards (N,) order as the true ones do; None where those are unknown."""
    if not episodes.has_true_reward:
        return None
    rng = np.random.default_rng([seed, 1])
    first, second = UniformQuery()(episodes.lengths, JUDGED, segment_length, rng)
    true = window_returns(episodes, first) - window_returns(episodes, second)
    ours = window_returns(episodes, first, rewards.numpy()) - window_returns(episodes, second, rewards.numpy())
    right = 0.5 + 0.5 * np.sign(true) * np.sign(ours)
    return float(right[true != 0].mean()) if (true != 0).any() else None
