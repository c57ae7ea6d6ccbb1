"""Train a small network on videos without labels: by cycles in time, or by giving frames back.

Temporal cycle consistency (Dwibedi et al. 2019, arXiv 1904.07846): a frame's soft nearest neighbor in another video
must have that frame as its own nearest neighbor. As XIRL does it (arXiv 2106.03911 and its released configuration):
regression_mse, squared distance per channel, temperature 1, Adam with learning rate 1e-5 and weight decay 1e-4.

Axes: B videos, n and m frames, E embedding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefrl.data.videos import Videos
from prefrl.errors import ConfigError, InvalidData
from prefrl.representation.backbones import ModuleBackbone, pixels
from prefrl.representation.cnn import SmallCNN, reset_weights

__all__ = ["cycle_back_loss", "pretrain_by_cycles", "pretrain_by_reconstruction"]

Progress = Callable[[int, int], None]


def cycle_back_loss(x: Tensor, y: Tensor, *, temperature: float = 1.0, variance_weight: float | None = None) -> Tensor:
    """How far from each frame of x (n, E) its cycle through y (m, E) ends, in shares of the video; (n,).

    Of frame i, ỹ_i = Σ_j softmax_j(−‖x_i − y_j‖² / (E τ)) y_j and β_i = softmax_k(−‖ỹ_i − x_k‖² / (E τ)); with times
    t_k = k / n, μ_i = Σ_k β_ik t_k, the loss is (t_i − μ_i)² (regression_mse). ``variance_weight`` λ, .001 in the
    paper, makes it (t_i − μ_i)² / σ_i² + λ log σ_i² with the variance σ_i² of β_i over times (regression_mse_var).

    >>> x = torch.arange(4.0)[:, None]
    >>> bool(cycle_back_loss(x, x + 0.1, temperature=1e-3).max() < 1e-6)
    True
    """
    scale = x.shape[1] * temperature
    near = torch.softmax(-_squared_distances(x, y) / scale, 1)  # (n, m)
    back = torch.softmax(-_squared_distances(near @ y, x) / scale, 1)  # (n, n)
    time = torch.arange(len(x), device=x.device, dtype=x.dtype) / len(x)
    mean = back @ time
    error = (time - mean) ** 2
    if variance_weight is None:
        return error
    log_variance = (back * (time - mean[:, None]) ** 2).sum(1).clamp_min(1e-12).log()
    return error * torch.exp(-log_variance) + variance_weight * log_variance


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return ((x[:, None] - y[None]) ** 2).sum(-1)


def pretrain_by_cycles(
    videos: Videos,
    *,
    features: int = 32,
    network: nn.Module | None = None,
    steps: int = 500,
    batch_size: int = 4,
    frames: int = 15,
    temperature: float = 1.0,
    variance_weight: float | None = None,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
    progress: Progress | None = None,
) -> ModuleBackbone:
    """A network trained so that all pairs of a batch of videos are consistent in time; frozen.

    Args:
        features: of the :class:`SmallCNN`, unless a ``network`` of pictures (N, 3, H, W) is given, which is copied.
        steps: updates (XIRL: 4000). batch_size: videos at once. frames: drawn of each video, in order (TCC: 20, XIRL:
            15); all of a shorter one. learning_rate: XIRL has 1e-5 for a ResNet that knows ImageNet.
    """
    if len(videos) < 2 or batch_size < 2:
        raise InvalidData(f"Cycles need two videos at once, but there are {len(videos)}, batch_size {batch_size}.")
    if not temperature > 0 or frames < 2:
        raise ConfigError(f"Cycles: temperature must be > 0 and frames >= 2, but are {temperature} and {frames}.")
    rng = np.random.default_rng(seed)
    if network is None:
        network = small = SmallCNN(features=features, seed=seed)
        small.standardize(pixels(videos.frames[rng.integers(len(videos.frames), size=256)]))
    network = copy.deepcopy(network)

    def loss() -> Tensor:
        chosen = rng.choice(len(videos), size=min(batch_size, len(videos)), replace=False)
        rows = [_in_order(int(videos.offsets[v]), int(videos.lengths[v]), frames, rng) for v in chosen]
        embedded = network(pixels(videos.frames[np.concatenate(rows)])).split([len(r) for r in rows])
        cycles = [
            cycle_back_loss(x, y, temperature=temperature, variance_weight=variance_weight)
            for x in embedded
            for y in embedded
            if x is not y
        ]
        return torch.cat(cycles).mean()

    _train(network, loss, steps, learning_rate, weight_decay, progress)
    return ModuleBackbone(network)


def _in_order(start: int, length: int, n: int, rng: np.random.Generator) -> np.ndarray:
    return start + (np.arange(length) if length <= n else np.sort(rng.choice(length, size=n, replace=False)))


def pretrain_by_reconstruction(
    videos: Videos,
    *,
    features: int = 64,
    network: nn.Module | None = None,
    steps: int = 500,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> ModuleBackbone:
    """A network from whose features a decoder gives each frame back, at half its size (squared error); frozen.

    features, network: as in :func:`pretrain_by_cycles` · steps: updates · batch_size: frames at once.
    """
    network = SmallCNN(features=features, seed=seed) if network is None else copy.deepcopy(network)
    some = pixels(videos.frames[:1])
    shape = (3, math.ceil(some.shape[2] / 2), math.ceil(some.shape[3] / 2))
    with torch.no_grad():
        size = network(some).shape[1]
    decoder = nn.Sequential(nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, math.prod(shape)))
    reset_weights(decoder, seed + 1)
    rng = np.random.default_rng(seed)

    def loss() -> Tensor:
        pictures = pixels(videos.frames[rng.integers(len(videos.frames), size=batch_size)])
        target = F.interpolate(pictures, size=shape[1:], mode="area")
        return F.mse_loss(decoder(network(pictures)).view_as(target), target)

    _train(nn.ModuleList([network, decoder]), loss, steps, learning_rate, weight_decay, progress)
    return ModuleBackbone(network)


def _train(
    module: nn.Module,
    loss: Callable[[], Tensor],
    steps: int,
    learning_rate: float,
    weight_decay: float,
    progress: Progress | None,
) -> None:
    if steps < 1 or not learning_rate > 0:
        raise ConfigError(f"Pretraining: steps and learning_rate must be > 0, but are {steps} and {learning_rate}.")
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
    module.train()
    for step in range(1, steps + 1):
        value = loss()
        if not bool(value.isfinite()):
            raise InvalidData(f"Pretraining: the loss became {value.item()} in step {step}. Lower learning_rate.")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if progress is not None:
            progress(step, steps)
