"""What scores of observations and actions share: standardized inputs, and one forward pass for all members.

Inputs are standardized by (x − mean) / max(std, std_floor) with statistics of the data (Meta-World's states are
positions that vary by centimeters: without it networks see constants).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from prefrl.core import SegmentBatch, require_finite
from prefrl.errors import ConfigError, InvalidData

__all__ = ["StandardizedScore"]


class StandardizedScore(nn.Module):
    """N members that score segments by their (observation, action) pairs; what they do with them is left open.

    Args:
        input_size: D + A. members: N >= 1.
        normalize: standardize inputs. std_floor: smallest divisor, so that constant inputs do not explode.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, input_size: int, members: int, normalize: bool, std_floor: float) -> None:
        super().__init__()
        if members < 1:
            raise ConfigError(f"score: members must be >= 1, but is {members}.")
        if not std_floor > 0:
            raise ConfigError(f"score: std_floor must be > 0, but is {std_floor}.")
        self.members, self.normalize, self.std_floor = members, normalize, std_floor
        self.register_buffer("mean", torch.zeros(input_size))
        self.register_buffer("std", torch.ones(input_size))

    def forward(self, segments: SegmentBatch) -> Tensor:
        """(N, B): score of each segment under each member."""
        encoded = self.encode(segments)  # (B, T, D + A)
        return self.score_encoded(encoded.expand(self.members, *encoded.shape), segments.mask)

    def fit_normalization(self, observations: Tensor, actions: Tensor) -> None:
        """Take input statistics from steps (..., D), (..., A); nothing happens with ``normalize=False``."""
        if not self.normalize:
            return
        inputs = torch.cat([observations, actions], dim=-1).flatten(0, -2).to(self.mean.dtype)
        require_finite("observations and actions", inputs)
        if len(inputs) < 2:
            raise InvalidData(f"Input statistics need at least 2 steps, but there are {len(inputs)}.")
        self.mean.copy_(inputs.mean(0))
        self.std.copy_(inputs.std(0).clamp_min(self.std_floor))

    def encode(self, segments: SegmentBatch) -> Tensor:
        """(B, T, D + A): the part of the score without parameters; a training loop computes it once."""
        return self.standardize(segments.observations[:, :-1], segments.actions)

    def standardize(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(..., D + A): what the networks see of (..., D), (..., A)."""
        inputs = torch.cat([observations, actions], dim=-1)
        return inputs.sub_(self.mean).div_(self.std) if self.normalize else inputs

    @abstractmethod
    def reward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(N, B): each member's reward of (B, D), (B, A)."""

    @abstractmethod
    def score_encoded(self, encoded: Tensor, mask: Tensor | None) -> Tensor:
        """(N, B): scores of encoded segments (N, B, T, D + A), where each member may see other segments.

        mask: (N, B, T) or (B, T) bool, True on real steps; None if there is no padding.
        """
