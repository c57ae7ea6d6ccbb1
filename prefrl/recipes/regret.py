"""Rewards from preferences in a tabular world, end to end, by the model of preference that the learner assumes.

Knox et al. 2022 (arXiv 2206.02231): data → comparisons → linear rewards → exact judgement → curve over the number of
labels → rollouts → report. Labels are a teacher's or people's; each learner reads the same ones, and none reads the
true reward. Every stage is finished before the next begins and can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from prefrl.core import SegmentRefs
from prefrl.data.dataset import Episodes
from prefrl.errors import ConfigError, InvalidData
from prefrl.evaluation.rollout import rollout
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.preference_models import PREFERENCE_MODELS
from prefrl.progress import Bars, progress_bars
from prefrl.protocols import MakeEnv, Query, Teacher
from prefrl.recipes.arms import summary
from prefrl.recipes.regret_learning import (
    ComparedTraces,
    Learning,
    World,
    compared_traces,
    described,
    equal_parts,
    open_world,
)
from prefrl.recipes.regret_report import OPTIMAL, report_regret, show_table, video_regret
from prefrl.recipes.stages import ask_teacher, collect_or_copy
from prefrl.runs import MetricLogger, RunDirectory
from prefrl.solvers import (
    SegmentPairs,
    TabularPolicy,
    Values,
    greedy_policy,
    recorded_trace,
    rewards,
    value_iteration,
)

__all__ = ["Regret"]

POSITIVE = ("segment_length", "curve_fits", "pool_size", "episodes", "max_steps")


@dataclass(frozen=True, kw_only=True)
class Regret:
    """The tabular recipe. Components are constructors or objects; numbers are explained in configs/recipe/regret.yaml.

    env: of a ``TabularEnv`` · data: ``data(make_env=, seed=, progress=) -> Episodes``
    dataset: a folder to use instead of collecting
    comparisons: how many to ask the teacher for; 0 uses those that the dataset already holds
    models: names in ``prefrl.preference_models.PREFERENCE_MODELS``; each is an arm of the run.
    """

    env: MakeEnv
    data: Callable[..., Episodes]
    teacher: Teacher
    query: Query
    comparisons: int
    segment_length: int
    models: Sequence[str]
    label_counts: Sequence[int]
    curve_fits: int
    gamma: float
    values: Literal["successor_features", "soft"]
    temperature: float | None
    pool_size: int
    pool_entries: Sequence[float]
    pool_without_truth: bool
    advantage_policy: Literal["greedy", "reward"]
    learning_rate: Mapping[str, float | None]
    iterations: Mapping[str, int | None]
    episodes: int
    max_steps: int
    seed: int = 0
    dataset: str | None = None
    tensorboard: bool = True

    def __post_init__(self) -> None:
        unknown = [model for model in self.models if model not in PREFERENCE_MODELS]
        if unknown or not self.models or len(set(self.models)) < len(self.models):
            wrong = f"unknown model {unknown[0]!r}" if unknown else f"no model, or one twice, in {list(self.models)}"
            raise ConfigError(f"recipe.models: {wrong}; these are there: {', '.join(PREFERENCE_MODELS)}.")
        _require("learning_rate", dict(self.learning_rate), "above 0", lambda rate: rate > 0)
        _require("iterations", dict(self.iterations), "at least 1", lambda steps: steps >= 1)
        single = {name: getattr(self, name) for name in POSITIVE}
        _require("label_counts", dict(enumerate(self.label_counts)), "at least 1", lambda count: count >= 1)
        for name, value in single.items():
            _require(name, {"": value}, "at least 1", lambda number: number >= 1)
        _require("comparisons", {"": self.comparisons}, "at least 0", lambda number: number >= 0)
        if self.comparisons == 0 and self.dataset is None:
            raise ConfigError(
                "recipe.comparisons=0 learns from the answers that a data set holds, but there is none; give "
                "dataset=FOLDER, or the number of comparisons to ask the teacher for."
            )
        _require("gamma", {"": self.gamma}, "in (0, 1]", lambda gamma: 0 < gamma <= 1)
        _require("temperature", {"": self.temperature}, "above 0", lambda temperature: temperature > 0)
        self.world()  # an environment that does not fit is an error before there is a run

    @property
    def arms(self) -> tuple[str, ...]:
        """What can be evaluated and rendered: the learner of each model."""
        return tuple(self.models)

    def ineffective(self, key: str) -> str | None:
        """Why a key that the user set cannot change anything in this run; None if it can."""
        head, _, last = key.rpartition(".")
        if self.comparisons == 0 and (key.partition(".")[0] in ("teacher", "query") or key == "recipe.segment_length"):
            return "recipe.comparisons=0 asks no teacher"
        if head in ("recipe.learning_rate", "recipe.iterations") and last not in self.models:
            return f"recipe.models has no {last}"
        if key == "recipe.advantage_policy" and "advantage" not in self.models:
            return "recipe.models has no advantage"
        if head == "recipe" and last in ("values", "temperature") and not self._reads_values:
            return "no model of recipe.models reads values"
        if head == "recipe" and last.startswith("pool_") and (self.values == "soft" or not self._reads_values):
            return "there is no pool of policies with recipe.values=soft, or where no model reads values"
        if key == "recipe.curve_fits" and not self.label_counts:
            return "recipe.label_counts=[] draws no curve"
        return None

    @property
    def _reads_values(self) -> bool:
        return bool(set(self.models) - {"partial_return", "advantage"})

    @property
    def learning(self) -> Learning:
        return Learning(**{name: getattr(self, name) for name in Learning.__dataclass_fields__})

    def world(self) -> World:
        return open_world(self.env, seed=self.seed)

    def train(self, run: RunDirectory) -> None:
        """Run every unfinished stage, print the table, leave a video and ``report.html``."""
        with run.lock(), progress_bars() as bars:
            world = self.world()
            episodes = collect_or_copy(
                run, make_env=self.env, data=self.data, dataset=self.dataset, check=lambda found: _check(found, world),
                seed=self.seed, bars=bars,
            )  # fmt: skip
            answers = ask_teacher(
                run, episodes, teacher=self.teacher, query=self.query, comparisons=self.comparisons,
                segment_length=self.segment_length, seed=self.seed,
            )  # fmt: skip
            traces = compared_traces(world.mdp, answers.comparisons(episodes).without_true_reward())
            self.learn(run, world, traces, bars)
            self.roll_out(run, world, bars)
        show_table(run, self.arms)
        video = self.render(run)
        if video is not None:
            print(f"video:  {video}")
        print(f"report: {self.report(run)}")

    def learn(self, run: RunDirectory, world: World, traces: ComparedTraces, bars: Bars) -> None:
        """One fit to all answers, and the fits of the curve, for each model."""
        n, counts = len(traces.p_first), list(dict.fromkeys(self.label_counts))
        if max(counts, default=0) > n:
            print(f"note: recipe.label_counts: only those up to {n} are drawn, as there are {n} answers")
            counts = [count for count in counts if count <= n]
        stages = [f"fit/{model}" for model in self.models]
        stages += [f"curve/{model}/{count}" for model in self.models for count in counts]
        if run.result("metrics") is not None:
            return
        values, pairs = self.learning.learner_values(world, self.models), traces.pairs()
        for done, stage in enumerate(stages):
            bars("learn", done, len(stages))
            if run.result(stage) is not None:
                continue
            _, model, *count = stage.split("/")
            if count:
                run.finish(stage, self.learn_parts(model, pairs, values[model], world, count=int(count[0])))
            else:
                run.finish(stage, self.learn_all(run, model, traces, values[model], world))
        bars("learn", len(stages), len(stages))
        for model in self.models:
            log_metrics(run, model, counts, tensorboard=self.tensorboard)
        run.finish("metrics", {"labels": counts})

    def learn_all(
        self, run: RunDirectory, model: str, traces: ComparedTraces, values: Values | None, world: World
    ) -> dict[str, Any]:
        """What one learner makes of all answers, judged; its policy is kept."""
        learning = self.learning
        weights, loss = learning.fit(model, traces.pairs(), values, world)
        judged = learning.judge(model, weights, world)
        save_checkpoint(
            run.stage(f"models/{model}") / "policy.safetensors",
            {"weights": weights, "probabilities": learning.policy(model, weights, world)},
        )
        return {
            "labels": len(traces.p_first),
            "weights": weights.tolist(),
            "cross_entropy": loss.item(),
            "scaled_return": judged.scaled.item(),
            "near_optimal": bool(judged.near_optimal),
            "agreement": learning.agreement(model, weights, values, traces, world),
            "described": described(world, traces, model, gamma=self.gamma),
        }

    def learn_parts(
        self, model: str, pairs: SegmentPairs, values: Values | None, world: World, *, count: int
    ) -> dict[str, Any]:
        """Fits to disjoint parts of ``count`` answers, the same parts for every model."""
        generator = torch.Generator().manual_seed(self.seed)
        fitted = equal_parts(pairs, count, most=self.curve_fits, generator=generator)
        weights, loss = self.learning.fit(model, fitted, values, world)
        judged = self.learning.judge(model, weights, world)
        return {
            "labels": count,
            "scaled_return": judged.scaled.tolist(),
            "near_optimal": judged.near_optimal.tolist(),
            "cross_entropy": loss.tolist(),
        }

    def roll_out(self, run: RunDirectory, world: World, bars: Bars) -> None:
        """Episodes of each learned policy, and of the optimal one for comparison, on the same seeds."""
        for done, arm in enumerate((*self.models, OPTIMAL)):
            bars("rollouts", done, len(self.models) + 1)
            if run.result(f"rollouts/{arm}") is None:
                run.finish(
                    f"rollouts/{arm}", self._rollouts(self.policy(run, arm, world), self.episodes, self.seed + 1)
                )
        bars("rollouts", len(self.models) + 1, len(self.models) + 1)

    def policy(self, run: RunDirectory, arm: str, world: World) -> TabularPolicy:
        """The learned policy of a model, or the one that is optimal under the true reward."""
        if arm == OPTIMAL:
            truth = rewards(world.mdp, world.true_weights)
            return TabularPolicy(greedy_policy(value_iteration(world.mdp, truth, gamma=self.gamma)[1]))
        if run.result(f"fit/{arm}") is None:
            raise ConfigError(f"{run.path} has no finished arm {arm!r}; finish it with `prefrl resume {run.path}`.")
        return TabularPolicy(load_checkpoint(run.path / "models" / arm / "policy.safetensors")["probabilities"])

    def _rollouts(self, policy: TabularPolicy, episodes: int, seed: int) -> dict[str, Any]:
        return summary(rollout(policy, self.env, episodes=episodes, seed=seed, max_steps=self.max_steps))

    def evaluate(self, run: RunDirectory, *, arm: str, episodes: int, seed: int) -> dict[str, Any]:
        """Roll the policy of a model's learner out on other seeds."""
        return self._rollouts(self.policy(run, arm, self.world()), episodes, seed)

    def render(self, run: RunDirectory, *, arms: Sequence[str] | None = None) -> Path | None:
        """Make the side-by-side video anew."""
        world, shown = self.world(), list(arms or self.arms)
        policies = {arm: self.policy(run, arm, world) for arm in shown}
        return video_regret(run, policies, self.env, seed=self.seed + 1, max_steps=self.max_steps)

    def report(self, run: RunDirectory) -> Path:
        """Write ``report.html`` anew."""
        world = self.world()
        learned = [arm for arm in self.arms if run.result(f"fit/{arm}") is not None]
        policies = {arm: self.policy(run, arm, world).probabilities for arm in (OPTIMAL, *learned)}
        return report_regret(run, self.arms, world, policies, gamma=self.gamma)


def _require(name: str, values: Mapping[Any, Any], allowed: str, holds: Callable[[Any], bool]) -> None:
    for key, value in values.items():
        if value is not None and not holds(value):
            where = f".{key}" if type(key) is str and key else ""
            raise ConfigError(f"recipe.{name}{where} must be {allowed}, but is {value}.")


def _check(episodes: Episodes, world: World) -> None:
    """The data must be of the board, if they tell one, in numbers, and do what the environment's tables allow."""
    sizes = episodes.observations.shape[1], episodes.actions.shape[1]
    if sizes != (1, 1):
        raise InvalidData(
            f"The data do not fit {world.name}: a state and an action are one number each, but have sizes {sizes}."
        )
    told, board = episodes.env.get("board"), getattr(world.env, "board", None)
    known = told is not None and board is not None
    if known and told != np.asarray(board).tolist():  # coins and mud change no step, but what it is worth
        raise InvalidData(
            f"The data are of another board than that of {world.name}: cells differ, so that features and values would "
            "be wrong. Choose the env= on whose board they were recorded."
        )
    if episodes.env.get("id") != world.name:
        print(f"note: the data are of {episodes.env.get('id')}, the policies are evaluated in {world.name}")
    whole = SegmentRefs(np.arange(len(episodes)), np.zeros(len(episodes)), episodes.lengths)
    recorded_trace(world.mdp, episodes.segments(whole).without_true_reward())


def log_metrics(run: RunDirectory, model: str, counts: Sequence[int], *, tensorboard: bool) -> None:
    """What a model's fits came to, by the number of answers, as ``models/MODEL/metrics.jsonl``."""
    with MetricLogger(run.stage(f"models/{model}"), tensorboard=tensorboard) as metrics:
        for count in sorted(counts):
            fits = run.result(f"curve/{model}/{count}")
            if fits is not None:
                columns = {
                    name: torch.tensor(fits[name], dtype=torch.float64)
                    for name in ("scaled_return", "near_optimal", "cross_entropy")
                }
                metrics.log(
                    count,
                    near_optimal=columns["near_optimal"].mean().item(),
                    median_scaled_return=columns["scaled_return"].median().item(),
                    cross_entropy=columns["cross_entropy"].mean().item(),
                )
