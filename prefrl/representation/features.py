"""Features of whole videos, computed once: the backbone is frozen, so alignment only trains the head on them.

Axes: V videos, T frames of the longest video, F features, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefrl.core import require_finite
from prefrl.data.videos import Videos
from prefrl.errors import InvalidData
from prefrl.representation.backbones import Backbone

__all__ = ["VideoFeatures"]


@dataclass(frozen=True)
class VideoFeatures:
    """features: (V, T, F) float32, zero where padded · mask: (V, T) bool, True on frames that are there (a prefix)."""

    features: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 3 or self.mask.shape != self.features.shape[:2] or self.mask.dtype != torch.bool:
            raise InvalidData(
                f"VideoFeatures: features must be (V, T, F) and mask (V, T) bool, but are {tuple(self.features.shape)} "
                f"and {self.mask.dtype} {tuple(self.mask.shape)}."
            )
        if len(self) == 0 or not bool(self.mask[:, 0].all()) or bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any()):
            raise InvalidData("VideoFeatures: there must be a video, and each mask must be True on a prefix of it.")
        require_finite("VideoFeatures: features", self.features)

    @staticmethod
    def compute(backbone: Backbone, videos: Videos, *, batch_size: int = 2048) -> VideoFeatures:
        """By the backbone, ``batch_size`` frames at once."""
        starts = range(0, len(videos.frames), batch_size)
        flat = torch.cat([backbone(videos.frames[start : start + batch_size]) for start in starts])  # (sum of T, F)
        lengths = torch.from_numpy(videos.lengths)
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        features = flat.new_zeros(*mask.shape, flat.shape[1])
        features[mask.to(flat.device)] = flat
        return VideoFeatures(features, mask.to(flat.device))

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def feature_size(self) -> int:
        """F."""
        return self.features.shape[-1]

    def subset(self, index: Any) -> VideoFeatures:
        """The videos at an index array, a boolean mask or a slice."""
        rows = torch.arange(len(self))[index]
        return VideoFeatures(self.features[rows], self.mask[rows])

    @torch.no_grad()
    def embedded(self, encoder: nn.Module) -> VideoFeatures:
        """(V, T, E): embeddings in the place of features."""
        return VideoFeatures(encoder(self.features) * self.mask[..., None], self.mask)
