"""Frozen backbones: frames to features that alignment starts from, as RAPL keeps its ResNet (arXiv 2310.07932).

A backbone is called with frames (N, H, W, 3) uint8, or (N, K) float32, and gives (N, F) float32 without gradients.
Principal components of the pixels take seconds and no download; any ``torch.nn.Module`` may come with its weights.

Axes: N frames, H and W pixels, K numbers of a vector, F features, D numbers of a flattened frame.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefrl.core import require_finite
from prefrl.data.videos import Videos
from prefrl.errors import ConfigError, InvalidData
from prefrl.representation.cnn import SmallCNN
from prefrl.representation.weights import load_weights

__all__ = ["Backbone", "IdentityBackbone", "ModuleBackbone", "PCABackbone", "load_backbone"]

Frames = np.ndarray | Tensor


class Backbone(Protocol):
    """Frames to features, without gradients."""

    def __call__(self, frames: Frames) -> Tensor:
        """(N, F) float32 of frames (N, H, W, 3) uint8 or (N, K) float32."""
        ...

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for ``prefrl.files.save_checkpoint``; :func:`load_backbone` undoes it."""
        ...


class IdentityBackbone:
    """Vectors are their own features: states in the place of images."""

    def __call__(self, frames: Frames) -> Tensor:
        vectors = torch.as_tensor(frames)
        if vectors.ndim != 2:
            raise InvalidData(
                f"IdentityBackbone takes vectors (N, K), not {tuple(vectors.shape)}. Take PCABackbone for images."
            )
        return vectors.float()

    def state(self) -> dict[str, Any]:
        return {"kind": "identity"}


class PCABackbone:
    """Principal components of frames scaled to [0, 1] (vectors: as they are): (frame − mean) · componentsᵀ.

    mean: (D,) · components: (F, D), orthonormal rows, largest variance first · image: frames are images.
    """

    def __init__(self, mean: Tensor, components: Tensor, *, image: bool) -> None:
        self.mean, self.components, self.image = mean, components, image

    @classmethod
    def fit(
        cls,
        videos: Videos,
        *,
        components: int = 128,
        sample: int = 4000,
        oversampling: int = 10,
        iterations: int = 4,
        seed: int = 0,
    ) -> PCABackbone:
        """By randomized subspace iteration (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithm 4.4).

        Args:
            components: F at most; no more than frames and numbers of a frame exist.
            sample: so many random frames at most are looked at.
            oversampling: further directions while iterating. iterations: more make the last components more exact.
        """
        if components < 1 or sample < 2:
            raise ConfigError(f"PCA: components must be >= 1 and sample >= 2, but are {components} and {sample}.")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(videos.frames), generator=generator)[:sample].sort().values
        image = videos.frames.ndim == 4
        x = _flat(videos.frames[rows.numpy()], image)  # (N, D)
        mean = x.mean(0)
        x -= mean
        size = min(components, *x.shape)
        basis = torch.randn(x.shape[1], min(size + oversampling, *x.shape), generator=generator)  # (D, F+)
        for _ in range(iterations):
            basis = torch.linalg.qr(x.T @ (x @ basis)).Q
        _, _, directions = torch.linalg.svd(x @ basis, full_matrices=False)
        found = (basis @ directions.T).T[:size]
        largest = found.gather(1, found.abs().argmax(1, keepdim=True))
        return cls(mean, (found * largest.sign()).contiguous(), image=image)  # the sign is free: largest entry above 0

    def __call__(self, frames: Frames) -> Tensor:
        x = _flat(frames, self.image)
        if x.shape[1] != len(self.mean):
            raise InvalidData(
                f"PCA was fitted to frames of {len(self.mean)} numbers, but these have {tuple(frames.shape[1:])} = "
                f"{x.shape[1]}. Render or resize them to the same size, or fit it anew."
            )
        return x.sub_(self.mean) @ self.components.T

    def state(self) -> dict[str, Any]:
        return {"kind": "pca", "mean": self.mean, "components": self.components, "image": self.image}


class ModuleBackbone:
    """Any module that maps pictures (N, 3, H, W) in float32 to features (N, F), frozen: a copy in evaluation mode.

    For a classifier of torchvision or timm, put ``nn.Identity()`` in the place of its last layer first.

    Args:
        module: with its weights. image_size: (H, W) that frames are resized to (bilinear); None: as they are.
        mean, std: of each color, of pixels in [0, 1] (ImageNet: .485 .456 .406 and .229 .224 .225); RAPL's own ResNet
            takes pixels as they are. batch_size: frames at once.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        image_size: tuple[int, int] | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        batch_size: int = 256,
    ) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(f"ModuleBackbone: mean and std are one for each color, std > 0, but are {mean}, {std}.")
        if image_size is not None and (len(image_size) != 2 or min(image_size) < 1):
            raise ConfigError(f"ModuleBackbone: image_size must be (height, width) or None, but is {image_size}.")
        if batch_size < 1:
            raise ConfigError(f"ModuleBackbone: batch_size must be at least 1, but is {batch_size}.")
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.image_size, self.batch_size = image_size, batch_size
        self.mean, self.std = tuple(mean), tuple(std)

    @classmethod
    def from_file(
        cls, module: nn.Module, path: Path | str, *, ignore: Sequence[str] = (), **options: Any
    ) -> ModuleBackbone:
        """With the weights of a local .safetensors, .pt or .pth file; see :func:`load_weights`."""
        module = copy.deepcopy(module)
        load_weights(module, path, ignore=ignore)
        return cls(module, **options)

    @torch.no_grad()
    def __call__(self, frames: Frames) -> Tensor:
        weight = next(self.module.parameters(), torch.zeros(()))
        features = [self._features(part.to(weight.device)) for part in torch.as_tensor(frames).split(self.batch_size)]
        return torch.cat(features)

    def _features(self, frames: Tensor) -> Tensor:
        mean, std = (torch.tensor(x, device=frames.device)[:, None, None] for x in (self.mean, self.std))
        pictures = pixels(frames)
        if self.image_size is not None and tuple(pictures.shape[2:]) != tuple(self.image_size):
            pictures = F.interpolate(pictures, size=self.image_size, mode="bilinear", antialias=True)
        features = self.module((pictures - mean) / std)
        if not torch.is_tensor(features) or features.ndim != 2 or len(features) != len(frames):
            found = tuple(features.shape) if torch.is_tensor(features) else type(features).__name__
            raise InvalidData(
                f"ModuleBackbone: {type(self.module).__name__} must give features ({len(frames)}, F), but gave "
                f"{found}. Pool over height and width, or wrap it in a module that returns its features."
            )
        require_finite(f"ModuleBackbone: features of {type(self.module).__name__}", features)
        return features.float()

    def state(self) -> dict[str, Any]:
        small = isinstance(self.module, SmallCNN)
        return {
            "kind": "small_cnn" if small else "module",
            "weights": dict(self.module.state_dict()),
            "options": {"image_size": None if self.image_size is None else list(self.image_size),
                        "mean": list(self.mean), "std": list(self.std), "batch_size": self.batch_size},
        }  # fmt: skip


def load_backbone(state: dict[str, Any], *, module: nn.Module | None = None) -> Backbone:
    """The backbone of a ``state()``; one made of a user's module needs that ``module`` (its weights are replaced)."""
    kind = state.get("kind")
    if kind == "identity":
        return IdentityBackbone()
    if kind == "pca":
        return PCABackbone(state["mean"], state["components"], image=state["image"])
    if kind not in ("small_cnn", "module"):
        raise InvalidData(f"There is no backbone of kind {kind!r}; known: identity, pca, small_cnn, module.")
    if kind == "small_cnn":
        module = SmallCNN(features=len(state["weights"]["last.bias"]))
    if module is None:
        raise ConfigError("This backbone was made of a module of its user: give it again, module=….")
    module = copy.deepcopy(module)
    load_weights(module, state["weights"])
    return ModuleBackbone(module, **state["options"])


def pixels(frames: Frames) -> Tensor:
    """(N, 3, H, W) float32 in [0, 1] of images (N, H, W, 3) uint8.

    >>> pixels(np.full((1, 2, 2, 3), 255, np.uint8)).shape
    torch.Size([1, 3, 2, 2])
    """
    images = torch.as_tensor(frames)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != torch.uint8:
        raise InvalidData(
            f"A picture backbone takes images (N, H, W, 3) uint8, not {images.dtype} {tuple(images.shape)}. Take "
            "IdentityBackbone or PCABackbone for vectors."
        )
    return images.permute(0, 3, 1, 2).float() / 255


def _flat(frames: Frames, image: bool) -> Tensor:
    """(N, D) float32 of its own memory."""
    if image:
        return pixels(frames).flatten(1)
    vectors = torch.as_tensor(frames)
    if vectors.ndim != 2:
        raise InvalidData(f"PCA was fitted to vectors (N, K), but these frames are {tuple(vectors.shape)}.")
    return vectors.float().clone()
