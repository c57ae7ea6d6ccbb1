"""How far embedded videos are apart, by optimal transport of their frames (RAPL, arXiv 2310.07932).

Axes: B videos, M demos, n and m frames, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prefrl.representation.features import VideoFeatures
from prefrl.transport.sequences import Metric, Plan, pairwise_costs, plan_entropy, plans, transport_distance

__all__ = ["VideoDistance"]


@dataclass(frozen=True)
class VideoDistance:
    """⟨P, C⟩ of two embedded videos: C the distances of their frames, P a plan; see :mod:`prefrl.transport.sequences`.

    options: further ones of its ``plans``, such as band, relative or max_iterations; and gradient.
    """

    metric: Metric = "euclidean"
    plan: Plan = "entropic"
    epsilon: float = 0.1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x: VideoFeatures, y: VideoFeatures) -> Tensor:
        """(B,) of B embedded videos each, (B, n, E) and (B, m, E)."""
        settings = {"plan": self.plan, "epsilon": self.epsilon, **self.options}
        return transport_distance(x.features, y.features, metric=self.metric, mask_x=x.mask, mask_y=y.mask, **settings)

    @torch.no_grad()
    def entropy(self, x: VideoFeatures, y: VideoFeatures) -> Tensor:
        """(B,) of the plans; 1 is uniform: then the distance is the mean over all pairs of frames."""
        settings = {key: value for key, value in self.options.items() if key != "gradient"}
        costs = pairwise_costs(x.features, y.features, metric=self.metric)
        plan = plans(costs, plan=self.plan, epsilon=self.epsilon, mask_x=x.mask, mask_y=y.mask, **settings)
        return plan_entropy(plan, mask_x=x.mask, mask_y=y.mask)

    def to_demos(self, x: VideoFeatures, demos: VideoFeatures) -> Tensor:
        """(B, M): of each of B embedded videos to each of M."""
        B, M = len(x), len(demos)
        video, demo = torch.arange(B).repeat_interleave(M), torch.arange(M).repeat(B)
        return self(x.subset(video), demos.subset(demo)).view(B, M)
