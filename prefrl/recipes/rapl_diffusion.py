"""RAPL for a diffusion policy: cloned from demonstrations, then aligned with rankings of its own rollouts by a reward.

Tian et al. 2024 (arXiv 2412.04835): demonstrations show several ways, so does the policy that is cloned from them. A
few rankings of videos align a representation; minus the transport distance in it ranks many rollouts of the policy,
which Diffusion-DPO learns from (Wallace et al. 2023, arXiv 2311.12908). Beside it stand rankings by the true reward, by
rewards learned otherwise, and by chance.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from prefrl.core import Comparisons, SegmentBatch, Transitions
from prefrl.data.collect import BehaviorGroup, collect_episodes
from prefrl.data.dataset import Episodes
from prefrl.data.storage import read_dataset
from prefrl.data.videos import Videos, read_videos
from prefrl.errors import ConfigError
from prefrl.evaluation.rollout import PolicyBehavior
from prefrl.progress import Bars, progress_bars
from prefrl.protocols import Query, Teacher
from prefrl.recipes.arms import require_offline, summary
from prefrl.recipes.online_policies import finish_arms, require_arms
from prefrl.recipes.rapl import ANSWERED
from prefrl.recipes.rapl import READERS as READERS_OF_RAPL
from prefrl.recipes.rapl_diffusion_arm import (
    ARMS_OF_RAPL_DIFFUSION,
    BASE,
    DiffusionSettings,
    clone,
    judge,
    load_diffusion_policy,
    make_cloner,
    make_tuner,
    orders_pairs,
    run_diffusion_arm,
)
from prefrl.recipes.rapl_diffusion_report import report_rapl_diffusion, show_table, videos_rapl_diffusion
from prefrl.recipes.rapl_rewards import LEARNED, VideoRewards, thinned
from prefrl.recipes.rapl_stages import choose_demos, collect_or_copy_videos, learn_or_load_rewards
from prefrl.recipes.stages import ask_teacher, require_fit
from prefrl.representation.features import VideoFeatures
from prefrl.runs import RunDirectory

__all__ = ["RaplDiffusion"]

LEAST = {
    **dict.fromkeys(
        ("frames", "every", "clone_updates", "clone_batch_size", "pairs", "updates", "batch_size", "checkpoint_every",
         "episodes", "max_steps"), 1,
    ),
    "rollouts": 2, "comparisons": 0, "temperature": 0,
}  # fmt: skip
FOLDERS = {"demonstrations": "dataset", "rollouts": "rollouts"}  # of a run
STAGES = {"dataset": "collect", "rollouts": "rollouts"}  # that fill them
READERS = {key: arms for key, arms in READERS_OF_RAPL.items() if key != "data"} | {"recipe.ranked": tuple(LEARNED)}


@dataclass(frozen=True, kw_only=True)
class RaplDiffusion(DiffusionSettings):
    """The recipe. Components are constructors or objects; numbers are in configs/recipe/rapl_diffusion.yaml.

    data: ``collect_episodes`` with its behaviors bound, the demonstrations · dataset: a folder with videos instead
    backbone, encoder, align, rlhf, reward: constructors and functions with their hyper-parameters bound
    ranked: of whose videos the teacher is asked · comparisons: answers, three a ranking; 0 takes those of the dataset
    arms: names in ``prefrl.recipes.rapl_diffusion_arm.ARMS_OF_RAPL_DIFFUSION``; base is trained in any case.
    """

    data: Callable[..., Episodes]
    teacher: Teacher
    query: Query
    backbone: Callable[..., Any]
    encoder: Callable[..., Any]
    align: Callable[..., Any]
    rlhf: Callable[..., Any]
    reward: Callable[..., Any]
    arms: Sequence[str]
    video_arms: Sequence[str]
    ranked: Literal["demonstrations", "rollouts"]
    comparisons: int
    demos: int | Sequence[int]
    rollouts: int
    frames: int
    every: int
    workers: int = 1
    dataset: str | None = None

    def __post_init__(self) -> None:
        require_arms(ARMS_OF_RAPL_DIFFUSION, arms=self.arms, video_arms=self.video_arms)
        if not self.tuned:
            raise ConfigError(f"recipe.arms={list(self.arms)} tunes nothing: name one beside {BASE}.")
        if self.ranked not in FOLDERS:
            raise ConfigError(f"recipe.ranked must be one of {', '.join(FOLDERS)}, but is {self.ranked!r}.")
        for name, least in LEAST.items():
            if not getattr(self, name) >= least:
                raise ConfigError(f"recipe.{name} must be >= {least}, but is {getattr(self, name)}.")
        if self.comparisons == 0 and (self.dataset is None or self.ranked == "rollouts"):
            raise ConfigError(
                "recipe.comparisons must be >= 1; 0 takes the answers of a dataset: give dataset=…, with "
                "recipe.ranked=demonstrations."
            )
        self._try_environment()
        self._try_learners()

    def _try_environment(self) -> None:
        """It knows the preference, and shows itself."""
        try:
            self.place(frames=self.frames)(seed=self.seed).close()
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"recipe.preference={self.preference} and recipe.frames do not fit this environment: {error} Give it "
                "arguments that it takes, or recipe.preference=null."
            ) from error

    def _try_learners(self) -> None:
        """Each is in a slot whose data it learns from, with options in their ranges; the policy denoises."""
        require_offline(agent=self.agent)
        missing = {"comparisons", "policy", "demonstrations"} - inspect.signature(self.direct).parameters.keys()
        if missing:
            raise ConfigError(
                f"direct: this one takes no {', '.join(sorted(missing))}; recipe=rapl_diffusion needs one that tunes a "
                "trained diffusion policy on comparisons, as direct=diffusion_preference."
            )
        env = self.place()(seed=self.seed)
        D, A = (int(np.prod(space.shape or ())) for space in (env.observation_space, env.action_space))
        env.close()
        states, actions, nothing = torch.zeros(2, D), torch.zeros(2, A), torch.zeros(2)
        policy = make_cloner(self, Transitions(states, actions, nothing, states, nothing)).policy
        if not hasattr(policy, "denoising_error"):
            raise ConfigError(
                "agent: what this one learns does not denoise; recipe=rapl_diffusion needs a diffusion policy, as "
                "agent=diffusion_bc_small."
            )
        step = SegmentBatch(states[None], actions[None, :1], torch.ones(1, 1, dtype=torch.bool))
        make_tuner(self, Comparisons(step, step, torch.ones(1)), policy=policy, demonstrations=step)

    def ineffective(self, key: str) -> str | None:
        """Why a key that the user set cannot change anything in this run; None if it can."""
        for name, readers in READERS.items():
            if f"{key}.".startswith(f"{name}.") and not set(readers) & set(self.arms):
                return f"recipe.arms has none of {', '.join(readers)}"
        if self.comparisons == 0 and key.partition(".")[0] in ("teacher", "query"):
            return "recipe.comparisons=0 asks no teacher"
        if key.removeprefix("env.") in (self.preference or {}):
            return f"recipe.preference says it; set recipe.preference.{key.removeprefix('env.')}"
        return None

    @property
    def tuned(self) -> list[str]:
        """The arms that start from base."""
        return [arm for arm in self.arms if arm != BASE]

    @property
    def settings(self) -> DiffusionSettings:
        return DiffusionSettings(**{name: getattr(self, name) for name in DiffusionSettings.__dataclass_fields__})

    def train(self, run: RunDirectory) -> None:
        """Run every unfinished stage, print the table, leave a video and ``report.html``."""
        torch.use_deterministic_algorithms(self.deterministic)
        with run.lock(), progress_bars() as bars:
            self.collect(run, bars)
            clone(run, self.settings, show=bars)
            self.roll_out(run, bars)
            self.score(run, bars)
            self.train_arms(run, bars)
        show_table(run, self.tuned)
        video = self.render(run)
        if video is not None:
            print(f"video:  {video}")
        print(f"report: {self.report(run)}")

    def collect(self, run: RunDirectory, bars: Bars) -> None:
        """Stage "collect": demonstrations with their videos, whose rewards know the preference."""
        if self.dataset is not None and run.result("collect") is None:
            self.check_data(read_dataset(self.dataset))
        episodes, _ = collect_or_copy_videos(
            run, make_env=self.place(frames=self.frames), data=self.data, dataset=self.dataset, seed=self.seed,
            bars=bars,
        )  # fmt: skip
        if self.ranked == "demonstrations" and set(self.arms) & set(LEARNED):
            choose_demos(episodes, self.demos)  # what is wrong with them shows before minutes of cloning

    def check_data(self, episodes: Episodes) -> None:
        """A dataset must fit the environment, and its rewards must be those of the preference."""
        require_fit(episodes, self.env, seed=self.seed)
        if "true_reward" in self.arms and not episodes.has_true_reward:
            raise ConfigError("recipe.arms: the data hold no true reward; leave out true_reward.")
        made = episodes.env.get("kwargs")
        for name, wanted in (self.preference or {}).items():
            if made is not None and made.get(name) != wanted:
                raise ConfigError(
                    f"dataset: its rewards are those of {name}={made.get(name)!r}, but recipe.preference.{name} is "
                    f"{wanted!r}. Make them the same, or collect anew."
                )

    def roll_out(self, run: RunDirectory, bars: Bars) -> None:
        """Stage "rollouts": what the cloned policy does by itself, with videos."""
        if run.result("rollouts") is None:
            behavior = PolicyBehavior(load_diffusion_policy(run, BASE, self))
            groups = [BehaviorGroup("cloned", self.rollouts, behavior)]
            collect_or_copy_videos(
                run, make_env=self.place(frames=self.frames), dataset=None, seed=self.seed, bars=bars,
                data=functools.partial(collect_episodes, behaviors=groups, max_steps=self.max_steps),
                stage="rollouts", folder="rollouts",
            )  # fmt: skip

    def score(self, run: RunDirectory, bars: Bars) -> None:
        """Stages "label", "align" and "scores": of every rollout and every demonstration, by every arm's reward."""
        if run.result("scores") is not None:
            return
        episodes = {folder: read_dataset(run.path / folder) for folder in STAGES}
        rewards, features = None, {}
        if set(self.arms) & set(LEARNED):
            videos = {folder: read_videos(run.path / folder) for folder in STAGES}
            rewards = self.learn(run, episodes, videos, bars)
            features = {
                folder: VideoFeatures.compute(rewards.backbone, thinned(videos[folder], self.every))
                for folder in STAGES
            }
        chance = np.random.default_rng([self.seed, 2])
        found: dict[str, Any] = {arm: {} for arm in self.tuned}
        for arm in self.tuned:
            for folder, some in episodes.items():
                if arm == "true_reward":
                    scores = some.returns()
                elif rewards is None or arm == "random":
                    scores = chance.random(len(some))
                else:
                    scores = rewards.scores(arm, features[folder])
                found[arm][folder] = scores.tolist()
            found[arm]["orders_pairs"] = orders_pairs(found[arm]["rollouts"], episodes["rollouts"].returns())
        run.finish("scores", found)

    def learn(
        self, run: RunDirectory, episodes: dict[str, Episodes], videos: dict[str, Videos], bars: Bars
    ) -> VideoRewards:
        """Stages "label" and "align", on the videos that are ranked."""
        folder = FOLDERS[self.ranked]
        shown, names = episodes[folder], [arm for arm in self.arms if arm in LEARNED]
        answers = None
        if set(names) & set(ANSWERED):
            answers = ask_teacher(
                run, shown, teacher=self.teacher, query=self.query, comparisons=self.comparisons,
                segment_length=int(shown.lengths.max()), seed=self.seed, collected=STAGES[folder], folder=folder,
            )  # fmt: skip
        return learn_or_load_rewards(
            run, shown, videos[folder], answers, names=names, demos=self.demos, backbone=self.backbone,
            encoder=self.encoder, align=self.align, rlhf=self.rlhf, reward=self.reward, every=self.every,
            seed=self.seed, bars=bars,
        )  # fmt: skip

    def train_arms(self, run: RunDirectory, bars: Bars) -> None:
        """One after the other here, or ``workers`` at a time in processes of their own."""
        work = functools.partial(run_diffusion_arm, path=run.path, settings=self.settings)
        finish_arms(run, self.tuned, work, workers=self.workers, steps=self.updates, bars=bars)

    def evaluate(self, run: RunDirectory, *, arm: str, episodes: int, seed: int) -> dict[str, Any]:
        """Roll a trained arm, or base, out on other seeds."""
        judged = judge(load_diffusion_policy(run, arm, self), self, episodes=episodes, seed=seed)
        return {**summary(judged), "preferred": judged.preferred.tolist()}

    def render(self, run: RunDirectory, *, arms: Sequence[str] | None = None) -> Path | None:
        """Make the side-by-side video anew."""
        shown = arms or [arm for arm in self.video_arms if arm in (BASE, *self.tuned)]
        return videos_rapl_diffusion(run, self.settings, list(shown))

    def report(self, run: RunDirectory) -> Path:
        """Write ``report.html`` anew."""
        return report_rapl_diffusion(run, self.tuned)
