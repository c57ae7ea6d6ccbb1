"""The reward that RAPL is compared with: learned from the same labels as a return, all pairs of each ranking counting.

RLHF on videos (Christiano et al. 2017, arXiv 1706.03741; the baseline of arXiv 2310.07932): a head gives each frame a
reward, a video's score is their sum, and −log P(better one) is minimized, by :func:`prefrl.train.fit_score.fit_score`.

Axes: V videos, T frames of the longest video, F features.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from prefrl.core import Comparisons, SegmentBatch
from prefrl.data.triplets import Triplets, VideoPairs
from prefrl.errors import ConfigError
from prefrl.representation.features import VideoFeatures
from prefrl.scores.return_ensemble import ReturnEnsemble
from prefrl.train.fit_score import FitReport, fit_score

__all__ = ["as_segments", "fit_rlhf", "load_return", "return_scores", "return_state"]

HEADS: dict[str, tuple[int, ...]] = {"linear": (), "mlp": (64, 64)}


def as_segments(features: VideoFeatures) -> SegmentBatch:
    """Videos as segments without actions: a frame in the place of each step's observation, padding repeats the last."""
    V, T = features.mask.shape
    last = features.mask.sum(1, keepdim=True) - 1
    rows = torch.minimum(torch.arange(T + 1), last)  # (V, T+1); no end state is known: the last frame again
    observations = features.features[torch.arange(V)[:, None], rows]
    return SegmentBatch(observations, observations.new_zeros(V, T, 0), features.mask)


def fit_rlhf(
    features: VideoFeatures,
    labels: Triplets | VideoPairs,
    *,
    head: Literal["linear", "mlp"] = "linear",
    epochs: int = 100,
    patience: int | None = 20,
    holdout: float = 0.2,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    normalize: bool = False,
    members: int = 1,
    seed: int,
    **options: Any,
) -> tuple[ReturnEnsemble, FitReport]:
    """A return of frames, from all three pairs of each triplet (equal ones are ties), or from pairs.

    Args:
        head: one layer, or two hidden ones of 64. holdout: share of the pairs in [0, 1) that only tells when to stop.
        normalize: standardize each feature; principal components lose their order of size by it.
        options: further ones of :func:`fit_score`.
    """
    if head not in HEADS:
        raise ConfigError(f"fit_rlhf: head must be one of {', '.join(HEADS)}, but is {head!r}.")
    labels.require_videos(len(features))
    pairs = labels.pairs() if isinstance(labels, Triplets) else labels
    segments = as_segments(features)
    comparisons = Comparisons(
        segments[pairs.first], segments[pairs.second], torch.from_numpy(pairs.p_first).to(torch.float32)
    )
    score = ReturnEnsemble.for_data(
        observations=features.features[features.mask],
        actions=features.features.new_zeros(int(features.mask.sum()), 0),
        members=members,
        hidden=HEADS[head],
        output="linear",
        normalize=normalize,
        seed=seed,
    )
    report = fit_score(
        score, comparisons, epochs=epochs, patience=patience if holdout else None, holdout=holdout,
        batch_size=batch_size, learning_rate=learning_rate, weight_decay=weight_decay, seed=seed, **options,
    )  # fmt: skip
    return score, report


@torch.no_grad()
def return_scores(score: ReturnEnsemble, features: VideoFeatures) -> Tensor:
    """(V,): the return of each video, the mean of the members."""
    return score(as_segments(features)).mean(0)


def return_state(score: ReturnEnsemble) -> dict[str, Any]:
    """For ``prefrl.files.save_checkpoint``; :func:`load_return` makes it again."""
    return {
        "observation_size": score.weights[0].shape[2], "members": score.members,
        "hidden": [weight.shape[1] for weight in score.weights[:-1]], "weights": dict(score.state_dict()),
    }  # fmt: skip


def load_return(state: dict[str, Any]) -> ReturnEnsemble:
    """The return that :func:`return_state` describes."""
    score = ReturnEnsemble(
        observation_size=state["observation_size"], action_size=0, members=state["members"], hidden=state["hidden"],
        output="linear", seed=0,
    )  # fmt: skip
    score.load_state_dict(state["weights"])
    return score
