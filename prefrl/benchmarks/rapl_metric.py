"""Rows metric of ``prefrl bench rapl``: how well a reward from few rankings of videos orders others, and other robots.

As in table 1 of RAPL (Tian et al. 2024, arXiv 2412.04835), but of whole videos: rewards are learned from N random
rankings of three videos of one robot, and judged by how they order videos that nobody ranked, of this robot and of
another one. Beside RAPL stand a return learned from the same rankings (all three pairs, −log p, stopped on held-out
pairs), transport without any label, and other plans in the place of the entropic one.

Axes: V videos, R seeds of labels.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from prefrl.benchmarks.findings import Progress
from prefrl.data.dataset import Episodes
from prefrl.data.triplets import simulated_triplets
from prefrl.data.videos import Videos
from prefrl.protocols import MakeEnv
from prefrl.recipes.rapl_stages import filmed
from prefrl.representation.backbones import PCABackbone
from prefrl.representation.baselines import goal_distance
from prefrl.representation.encoder import Encoder
from prefrl.representation.features import VideoFeatures
from prefrl.representation.ot_reward import OTReward
from prefrl.train.align import align
from prefrl.train.align_metrics import ordering
from prefrl.train.align_rlhf import fit_rlhf, return_scores

__all__ = ["Family", "Method", "Outcome", "Pool", "collect_pools", "order_videos"]

OF_DISTANCE = ("metric", "plan", "epsilon", "band", "relative")
DATA_SEED = {"train": 0, "same": 1, "cross": 2}  # of the pools; labels have their own


@dataclass(frozen=True, kw_only=True)
class Family:
    """One task in two bodies. collect: ``prefrl.data.collect.collect_episodes`` with behaviors bound, which are filmed.

    train, same, cross: numbers of videos, one of each behavior: to rank, to judge by, and of the other body
    gap: of two videos' true returns, from which on their order counts · frames: [pixels] of a side
    every: [steps] between compared frames · late: compared frames at most by which a video may begin late
    """

    env: MakeEnv
    other: MakeEnv
    collect: Callable[..., Episodes]
    train: Sequence[int]
    same: Sequence[int]
    cross: Sequence[int]
    gap: float
    frames: int = 32
    demos: int = 6
    components: int = 128
    every: int = 3
    late: int = 3

    def videos(self, pool: str) -> tuple[Episodes, Videos]:
        """The episodes and videos of a pool; equal at every call."""
        make_env = self.other if pool == "cross" else self.env
        episodes = [int(n) for n in getattr(self, pool)]
        return filmed(self.collect)(
            make_env=functools.partial(make_env, frames=self.frames),  # type: ignore[call-arg]
            seed=DATA_SEED[pool], episodes=episodes,
            every=self.every,
        )  # fmt: skip


class Pool(NamedTuple):
    """Features of V videos, and their true returns (V,)."""

    features: VideoFeatures
    returns: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a reward comes from N rankings. learn: rapl | rlhf | goal; the rest is of it, by name.

    labels: the numbers of rankings N at which it is measured; 0: without an encoder
    """

    learn: str
    labels: Sequence[int]
    options: Mapping[str, Any]
    flip: float = 0.0
    late: bool = False


class Outcome(NamedTuple):
    """Pair accuracy and Spearman's ρ on unseen videos of the same body and of the other one; seconds of learning."""

    same: float
    same_rho: float
    cross: float
    cross_rho: float
    seconds: float


def collect_pools(family: Family, *, show: Progress) -> dict[str, Pool]:
    """Every pool's features, by principal components of the training videos' frames; and the judged begun late."""
    found: dict[str, tuple[Episodes, Videos]] = {}
    for done, name in enumerate(DATA_SEED):
        show(done, len(DATA_SEED))
        found[name] = family.videos(name)
    show(len(DATA_SEED), len(DATA_SEED))
    backbone = PCABackbone.fit(found["train"][1], components=family.components)
    pools = {
        name: Pool(VideoFeatures.compute(backbone, videos), episodes.returns())
        for name, (episodes, videos) in found.items()
    }
    rng = np.random.default_rng(0)
    late = {f"{name}_late": _begun_late(pools[name], family.late, rng) for name in ("same", "cross")}
    return pools | late


def _begun_late(pool: Pool, most: int, rng: np.random.Generator) -> Pool:
    """Each video stands still at its first frame for 0 to ``most`` more frames, and is cut where it ended before."""
    features, mask = pool.features.features, pool.features.mask
    delay = torch.from_numpy(rng.integers(most + 1, size=len(mask)))
    rows = (torch.arange(mask.shape[1]) - delay[:, None]).clamp(min=0)  # (V, T)
    shifted = features[torch.arange(len(mask))[:, None], rows] * mask[..., None]
    return Pool(VideoFeatures(shifted, mask), pool.returns)


def order_videos(
    show: Progress,
    pools: Mapping[str, Pool],
    methods: Mapping[str, Method],
    *,
    gap: float,
    demos: int,
    seeds: Sequence[int],
    workers: int,
) -> dict[tuple[str, int, int], Outcome]:
    """(method, N, seed) → its outcome; N = 0 has one seed, because nothing is drawn. gap, demos: of the family."""
    cells = [
        (name, n, seed) for name, method in methods.items() for n in method.labels for seed in (seeds if n else (0,))
    ]
    found: dict[tuple[str, int, int], Outcome] = {}
    show(0, len(cells))
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_prepare, initargs=(dict(pools), gap, demos)
    ) as processes:
        futures = {processes.submit(_outcome, methods[name], n, seed): (name, n, seed) for name, n, seed in cells}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            show(len(found), len(cells))
    return found


_SHARED: dict[str, Any] = {}  # in each worker process: what it was sent once


def _prepare(pools: dict[str, Pool], gap: float, demos: int) -> None:
    torch.set_num_threads(1)
    _SHARED.update(pools=pools, gap=gap, demos=demos)


def _outcome(method: Method, n: int, seed: int) -> Outcome:
    pools: dict[str, Pool] = _SHARED["pools"]
    train, suffix = pools["train"], "_late" if method.late else ""
    demos = train.features.subset(np.argsort(-train.returns, kind="stable")[: _SHARED["demos"]].copy())
    begin = time.process_time()
    score = _learned(method, n, seed, train, demos)
    seconds = time.process_time() - begin
    values: list[float] = []
    for body in ("same", "cross"):
        pool = pools[body + suffix]
        found = ordering(score(pool.features), pool.returns, threshold=_SHARED["gap"])
        values += [np.nan if value is None else value for value in (found.accuracy, found.spearman)]
    return Outcome(values[0], values[1], values[2], values[3], seconds)


def _learned(
    method: Method, n: int, seed: int, train: Pool, demos: VideoFeatures
) -> Callable[[VideoFeatures], np.ndarray]:
    """What scores videos after learning from n rankings."""
    options = dict(method.options)
    labels = None
    if n:
        labels = simulated_triplets(train.returns, n, np.random.default_rng([seed, n]), flip=method.flip)
    if method.learn == "goal":
        return lambda features: goal_distance(features, demos).numpy()
    if method.learn == "rlhf":
        assert labels is not None
        fitted, _ = fit_rlhf(train.features, labels, seed=seed, **options)
        return lambda features: return_scores(fitted, features).numpy()
    encoder: nn.Module = nn.Identity()
    if labels is not None:
        encoder = Encoder(train.features.feature_size, seed=seed)
        align(encoder, train.features, labels, seed=seed, **options)
    reward = OTReward(
        backbone=_no_frames, encoder=encoder, demos=demos.features, demo_mask=demos.mask,
        **{key: value for key, value in options.items() if key in OF_DISTANCE},
    )  # fmt: skip
    return lambda features: reward.scores(features.features, features.mask).numpy()


def _no_frames(frames: Any) -> Any:
    """Videos are features already."""
    raise NotImplementedError
