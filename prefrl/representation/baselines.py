"""Goal distance: minus how far a frame is from where successful demonstrations end (XIRL, arXiv 2106.03911).

Axes: V videos, T frames, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefrl.errors import ConfigError
from prefrl.representation.features import VideoFeatures

__all__ = ["goal_distance", "goal_rewards"]


def goal_rewards(features: VideoFeatures, demos: VideoFeatures, *, scale: float = 1.0) -> Tensor:
    """(V, T): −scale ‖φ(o_t) − g‖, g the mean embedding of the demos' last frames; 0 where padded.

    Both of one embedding, :meth:`VideoFeatures.embedded`, or of the backbone alone. scale: XIRL takes 1 over the
    largest distance, so that rewards are about 1.
    """
    if demos.feature_size != features.feature_size or not scale > 0:
        raise ConfigError(
            f"Goal distance: scale must be > 0, but is {scale}; videos and demos must have one embedding, but have "
            f"{features.feature_size} and {demos.feature_size} numbers."
        )
    last = demos.mask.sum(1) - 1
    goal = demos.features[torch.arange(len(demos)), last].mean(0)  # (E,)
    return -scale * torch.linalg.vector_norm(features.features - goal, dim=-1) * features.mask


def goal_distance(features: VideoFeatures, demos: VideoFeatures, *, scale: float = 1.0) -> Tensor:
    """(V,): score of each video, the sum of its :func:`goal_rewards`."""
    return goal_rewards(features, demos, scale=scale).sum(1)
