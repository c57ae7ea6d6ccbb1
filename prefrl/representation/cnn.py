"""A small convolutional network for frames, about 100 000 weights: a stand-in for ResNet-18 that trains on one core."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefrl.errors import ConfigError

__all__ = ["SmallCNN", "reset_weights"]

CHANNELS = (32, 48, 64)
GRID = 4  # features are pooled to GRID × GRID places, which keeps where things are


class SmallCNN(nn.Module):
    """Pictures (N, 3, H, W) in [0, 1] -> features (N, F); H, W >= 16. Three convolutions of stride 2, then one layer.

    features: F · seed: of the initial weights (those of torch's layers).
    """

    def __init__(self, *, features: int = 64, seed: int = 0) -> None:
        super().__init__()
        if features < 1:
            raise ConfigError(f"SmallCNN: features must be at least 1, but is {features}.")
        self.convolutions = nn.ModuleList(
            nn.Conv2d(fan_in, out, 3, stride=2, padding=1)
            for fan_in, out in zip((3, *CHANNELS), CHANNELS, strict=False)
        )
        self.last = nn.Linear(CHANNELS[-1] * GRID**2, features)
        reset_weights(self, seed)

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures - 0.5
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        if x.shape[-2:] != (GRID, GRID):
            x = F.adaptive_avg_pool2d(x, GRID)
        return self.last(x.flatten(1))

    @torch.no_grad()
    def standardize(self, pictures: Tensor) -> None:
        """Shift and scale the last layer: on these pictures, each feature has mean 0 and standard deviation 1.

        Untrained, all pictures are nearly one point. Losses with a temperature need distances of about 1.
        """
        found = self(pictures)
        mean, std = found.mean(0), found.std(0).clamp_min(1e-6)
        self.last.weight.div_(std[:, None])
        self.last.bias.sub_(mean).div_(std)


@torch.no_grad()
def reset_weights(module: nn.Module, seed: int) -> None:
    """The initialization of torch's layers, uniform within 1/√fan-in, by a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            bound = layer.weight[0].numel() ** -0.5
            for weight in layer.parameters(recurse=False):
                weight.uniform_(-bound, bound, generator=generator)
