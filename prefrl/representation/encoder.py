"""The trainable head over frozen features: one linear layer to 32 numbers, not normalized (RAPL, arXiv 2310.07932)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from prefrl.errors import ConfigError
from prefrl.representation.cnn import reset_weights

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Features (..., F) -> embeddings (..., E), frame by frame.

    Args:
        feature_size: F. size: E. hidden: widths of hidden layers with ReLU; none: a linear head. seed: of the weights.
    """

    def __init__(self, feature_size: int, *, size: int = 32, hidden: Sequence[int] = (), seed: int = 0) -> None:
        super().__init__()
        sizes = [feature_size, *hidden, size]
        if min(sizes) < 1:
            raise ConfigError(f"Encoder: feature_size, hidden and size must be at least 1, but are {sizes}.")
        layers: list[nn.Module] = []
        for fan_in, out in pairwise(sizes):
            layers += [nn.Linear(fan_in, out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.sizes = tuple(sizes)
        reset_weights(self, seed)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)

    def state(self) -> dict[str, Any]:
        """For ``prefrl.files.save_checkpoint``."""
        return {"sizes": list(self.sizes), "weights": dict(self.state_dict())}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Encoder:
        first, *hidden, size = state["sizes"]
        encoder = cls(first, size=size, hidden=hidden)
        encoder.load_state_dict(state["weights"])
        return encoder
