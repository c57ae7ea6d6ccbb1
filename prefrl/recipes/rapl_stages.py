"""What the recipes of RAPL (arXiv 2310.07932; 2412.04835) do before anything acts: videos, rankings, rewards."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prefrl.data.collect import collect_episodes, collect_videos
from prefrl.data.dataset import Episodes
from prefrl.data.preferences import Preferences
from prefrl.data.storage import read_dataset, write_dataset
from prefrl.data.triplet_answers import triplets_of
from prefrl.data.triplets import Triplets, VideoPairs, human_judgements
from prefrl.data.videos import Videos, read_videos, write_videos
from prefrl.errors import ConfigError
from prefrl.progress import Bars
from prefrl.protocols import MakeEnv
from prefrl.recipes.rapl_report import draw_rewards
from prefrl.recipes.rapl_rewards import VideoRewards, learn_rewards, load_rewards, thinned
from prefrl.recipes.stages import data_summary
from prefrl.representation.features import VideoFeatures
from prefrl.runs import RunDirectory

NO_TRIPLETS, NO_PAIRS = Triplets([], [], [], []), VideoPairs([], [], [])  # type: ignore[arg-type]

__all__ = ["choose_demos", "collect_or_copy_videos", "filmed", "learn_or_load_rewards"]


def collect_or_copy_videos(
    run: RunDirectory,
    *,
    make_env: MakeEnv,
    data: Callable[..., Episodes],
    dataset: str | None,
    seed: int,
    bars: Bars,
    stage: str = "collect",
    folder: str = "dataset",
) -> tuple[Episodes, Videos]:
    """The stage: ``RUN/folder`` gets the episodes of ``data`` with their videos, or those of an existing dataset."""
    place = run.path / folder
    if run.result(stage) is None:
        shutil.rmtree(place, ignore_errors=True)  # left by a killed run
        if dataset is not None:
            episodes, videos = read_dataset(dataset), read_videos(dataset)
            shutil.copytree(dataset, place)
        else:
            episodes, videos = filmed(data)(make_env=make_env, seed=seed, progress=lambda n, of: bars(stage, n, of))
            write_dataset(place, episodes)
            write_videos(place, videos)
        if len(episodes) != len(videos):
            raise ConfigError(
                f"{dataset} holds {len(episodes)} episodes and {len(videos)} videos: one of each is needed."
            )
        run.finish(stage, data_summary(episodes))
    return read_dataset(place), read_videos(place)


def filmed(data: Callable[..., Episodes]) -> Callable[..., tuple[Episodes, Videos]]:
    """``collect_videos`` with what ``data``, a bound ``collect_episodes``, is bound to."""
    if not isinstance(data, functools.partial) or data.func is not collect_episodes:
        raise ConfigError("data: this recipe films behaviors; choose data of prefrl.data.collect.collect_episodes.")
    return functools.partial(collect_videos, **data.keywords)


def choose_demos(episodes: Episodes, demos: int | Sequence[int]) -> list[int]:
    """Numbers of the preferred demonstrations: those given, or so many episodes of the highest true return.

    A person shows what is wanted; the true reward stands for that, as the teacher does for answers.
    """
    E = len(episodes)
    if not isinstance(demos, int):
        if any(not 0 <= n < E for n in demos) or len(set(demos)) < max(1, len(demos)):
            raise ConfigError(f"recipe.demos: {list(demos)} must be different numbers of the {E} episodes, from 0 on.")
        return list(demos)
    if not episodes.has_true_reward:
        raise ConfigError(
            "recipe.demos: these data hold no true reward by which to choose demonstrations; name the episodes that "
            "show what is wanted, as recipe.demos=[0,4,7]."
        )
    if not 1 <= demos <= E:
        raise ConfigError(f"recipe.demos={demos} must be from 1 to the number of episodes, {E}.")
    return np.argsort(-episodes.returns(), kind="stable")[:demos].tolist()


def learn_or_load_rewards(
    run: RunDirectory,
    episodes: Episodes,
    videos: Videos,
    answers: Preferences | None,
    *,
    names: Sequence[str],
    demos: int | Sequence[int],
    backbone: Callable[..., Any],
    encoder: Callable[..., Any],
    align: Callable[..., Any],
    rlhf: Callable[..., Any],
    reward: Callable[..., Any],
    every: int,
    seed: int,
    bars: Bars,
) -> VideoRewards:
    """Stage "align": the rewards of these names, learned from all answers; then read back."""
    folder = run.path / "rewards"
    if run.result("align") is None:
        triplets, pairs = (NO_TRIPLETS, NO_PAIRS) if answers is None else triplets_of(answers)
        chosen = choose_demos(episodes, demos)
        found = learn_rewards(
            run.stage("rewards"), videos, triplets=triplets, pairs=pairs, demos=chosen, names=names, backbone=backbone,
            encoder=encoder, align=align, rlhf=rlhf, every=every, seed=seed,
            progress=lambda n, of: bars("align", n, of),
        )  # fmt: skip
        judgements = human_judgements(triplets) + human_judgements(pairs)
        rewards = load_rewards(folder, reward=reward, every=every)
        if "aligned" in names and episodes.has_true_reward:  # by which the best and the worst video are known
            draw_rewards(run, rewards, episodes, VideoFeatures.compute(rewards.backbone, thinned(videos, every)))
        run.finish("align", {"triplets": len(triplets), "judgements": judgements, "demos": chosen, **found})
    return load_rewards(folder, reward=reward, every=every)
