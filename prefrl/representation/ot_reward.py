r"""A reward from preferred demonstrations: minus the transport distance to the closest, split over the steps.

A rollout's video and a demonstration's are embedded, C_tj are the costs of their frames and P the plan; step t gets
r_t = −Σ_j P_tj C_tj, so that the rewards of a rollout sum to −⟨P, C⟩ (each frame weighs 1/T). Of several
demonstrations the one with the largest sum is followed: RAPL (arXiv 2310.07932), ROT (arXiv 2206.15469) and TemporalOT
(arXiv 2410.21795, here without its context windows). The plan needs the whole episode, so rewards come at its end.

Axes: B rollouts, V demonstrations, T frames of a rollout, M of a demonstration, F features, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from prefrl.errors import ConfigError, InvalidData
from prefrl.transport.sequences import Metric, Plan, pairwise_costs, plans

__all__ = ["PRESETS", "OTReward", "RewardOptions", "Transform"]

Transform = Literal["plain", "squared", "first_episode"]
PROBLEMS = 512  # transport problems at once


@dataclass(frozen=True)
class RewardOptions:
    """metric, plan, epsilon, relative, band: as in :func:`prefrl.transport.plans`.

    transform: ``plain`` scale · r, ``squared`` −scale · r², or ``first_episode`` c · r with the c that makes the first
    rollout's absolute sum ``scale``.
    """

    metric: Metric = "euclidean"
    plan: Plan = "entropic"
    epsilon: float = 0.1
    relative: bool = True
    band: float = 0.1
    transform: Transform = "plain"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.transform not in get_args(Transform):
            raise ConfigError(f"transform must be one of {', '.join(get_args(Transform))}, but is {self.transform!r}.")
        if not self.scale > 0:
            raise ConfigError(f"scale must be above 0, but is {self.scale}.")


PRESETS = {
    "plain": RewardOptions(),
    # RAPL's released code: nearly uniform plans of cosine costs
    "squared": RewardOptions("cosine", epsilon=1.0, relative=False, transform="squared", scale=10_000.0),
    "rot": RewardOptions("cosine", epsilon=0.01, relative=False, transform="first_episode", scale=10.0),
    "temporal_ot": RewardOptions(
        "cosine", "banded", epsilon=0.01, relative=False, band=0.1, transform="first_episode", scale=10.0
    ),
}


class OTReward:
    """Rewards of rollouts by their transport to the closest of preferred demonstrations.

    - backbone: frames (N, …) -> features (N, F) · encoder: (B, T, F) -> (B, T, E), read now for the demonstrations, so
      make a new reward when it has learned
    - demos (V, M, F) features and demo_mask (V, M) bool or None: of the frames that are compared
    - every: of a rollout's frames each such, in steps, is compared: the last of each group of steps, which share its
      reward; the demonstrations have been thinned out before
    - preset: a row of PRESETS; what else is given replaces its option of that name
    """

    def __init__(
        self,
        *,
        backbone: Callable[[Any], Tensor],
        encoder: Callable[[Tensor], Tensor],
        demos: Tensor,
        demo_mask: Tensor | None = None,
        every: int = 1,
        preset: str = "plain",
        metric: Metric | None = None,
        plan: Plan | None = None,
        epsilon: float | None = None,
        relative: bool | None = None,
        band: float | None = None,
        transform: Transform | None = None,
        scale: float | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, but is {preset!r}.")
        if every < 1:
            raise ConfigError(f"every must be at least 1 step, but is {every}.")
        if demos.ndim != 3 or 0 in demos.shape:
            raise InvalidData(f"demos must be (V, M, F), one video at least, but have shape {tuple(demos.shape)}.")
        given = locals()
        named = {field.name: given[field.name] for field in fields(RewardOptions) if given[field.name] is not None}
        self.options = replace(PRESETS[preset], **named)
        self.backbone, self.encoder, self.every = backbone, encoder, every
        self.demo_mask = torch.ones(demos.shape[:2], dtype=torch.bool) if demo_mask is None else demo_mask
        self.demo_mask = self.demo_mask.to(demos.device)
        self.demos = self._embedded(demos, self.demo_mask)
        self.first_episode: float | None = None  # absolute sum of the first rollout's rewards

    def reward(self, frames: np.ndarray) -> np.ndarray:
        """(T + 1, …) frames of one episode, that of the reset first -> (T,) float32, transformed.

        The first call settles the scale of ``first_episode`` (an episode at no distance leaves it to the next).
        """
        steps = len(frames) - 1
        if steps < 1:
            raise InvalidData(f"An episode has at least 2 frames (reset and a step), but frames has {len(frames)}.")
        ends = np.minimum(np.arange(self.every, steps + self.every, self.every), steps)  # steps done at compared frames
        features = self.backbone(np.asarray(frames)[ends])
        group = self._transformed(self.per_step(features[None])[0].double().cpu().numpy())
        sizes = np.diff(ends, prepend=0)
        return np.repeat(group / sizes, sizes).astype(np.float32)

    def scores(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, F), (B, T) -> (B,): minus the distance to the closest demonstration, to rank videos by."""
        return self.per_step(features, mask).sum(1)

    @torch.no_grad()
    def per_step(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, F), (B, T) -> (B, T): −Σ_j P_tj C_tj to the closest demonstration, untransformed; 0 on padding."""
        mask = self._mask(features, mask)
        embedded, rows = self._embedded(features, mask), max(1, PROBLEMS // len(self.demos))
        parts = zip(embedded.split(rows), mask.split(rows), strict=True)
        return torch.cat([self._closest(*part)[0] for part in parts])

    @torch.no_grad()
    def plan(self, features: Tensor) -> Tensor:
        """(T, F) of one rollout -> (T, M): the plan to its closest demonstration, padding cut off."""
        mask = self._mask(features[None], None)
        _, found, closest = self._closest(self._embedded(features[None], mask), mask)
        return found[0, int(closest[0])][:, self.demo_mask[int(closest[0])]]

    def _closest(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards (B, T) to the closest demonstration, plans (B, V, T, M) to all, and which is closest (B,)."""
        B, V, options = len(x), len(self.demos), self.options
        each = [tensor.repeat_interleave(V, 0) for tensor in (x, mask)]
        demos, demo_mask = self.demos.repeat(B, 1, 1), self.demo_mask.repeat(B, 1)
        costs = pairwise_costs(each[0], demos, options.metric)
        found = plans(
            costs, options.plan, epsilon=options.epsilon, relative=options.relative, band=options.band,
            mask_x=each[1], mask_y=demo_mask,
        )  # fmt: skip
        rewards = -(found * costs).sum(2).view(B, V, -1)
        closest = rewards.sum(2).argmax(1)
        return rewards[torch.arange(B), closest], found.view(B, V, *found.shape[1:]), closest

    def _embedded(self, features: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            embedded = self.encoder(features.masked_fill(~mask[..., None], 0.0))
        if not bool(embedded.isfinite().all()):
            raise InvalidData("A video's embedding holds NaN or an infinite value: look for it in its frames.")
        return embedded

    def _mask(self, features: Tensor, mask: Tensor | None) -> Tensor:
        return features.new_ones(features.shape[:2], dtype=torch.bool) if mask is None else mask

    def _transformed(self, rewards: np.ndarray) -> np.ndarray:
        transform, scale = self.options.transform, self.options.scale
        if transform == "squared":
            return -scale * rewards**2
        if transform == "plain":
            return scale * rewards
        if self.first_episode is None:
            total = abs(float(rewards.sum()))
            if total < 1e-9:
                return rewards
            self.first_episode = total
        return scale / self.first_episode * rewards

    def state_dict(self) -> dict[str, Any]:
        """What rewards have been scaled by; demonstrations and encoder are kept by who made them."""
        return {"first_episode": self.first_episode}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first_episode = state["first_episode"]
