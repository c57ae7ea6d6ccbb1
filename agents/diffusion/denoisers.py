r"""Denoisers: networks that see noisy sequences x_t (B, T, C), the diffusion time t (B,) and a condition (B, K).

    MLPDenoiser          the whole sequence in one vector: fastest for short ones, such as action chunks
    UNetDenoiser         1-D convolutions along T at several resolutions, FiLM by time and condition
    TransformerDenoiser  a token a step of the sequence, one of the time and one of the condition

The U-Net is that of diffusion policies (Chi et al. 2023, arXiv 2303.04137, App. A; their widths are 256, 512, 1024),
as in Diffuser (Janner et al. 2022, arXiv 2205.09991); FiLM is that of Perez et al. 2018 (arXiv 1709.07871). All are
made by ``Denoiser(horizon=, channels=, condition_dim=, seed=, …)``. None has dropout or statistics of batches: a
policy and its frozen copy answer bitwise alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.networks import MLP
from prefrl.errors import ConfigError

__all__ = [
    "DENOISERS",
    "MLPDenoiser",
    "MakeDenoiser",
    "TransformerDenoiser",
    "UNetDenoiser",
    "named_denoiser",
    "time_features",
]


class MakeDenoiser(Protocol):
    """A denoiser's constructor with its options bound; the module takes x_t (B, T, C), t (B,), condition (B, K)."""

    def __call__(self, *, horizon: int, channels: int, condition_dim: int, seed: int) -> nn.Module: ...


def time_features(t: Tensor, size: int) -> Tensor:
    """(B,) → (B, size): sines and cosines of t at size/2 frequencies 1 … 10⁻⁴ (arXiv 1706.03762, §3.5).

    >>> time_features(torch.tensor([0]), 4)
    tensor([[0., 0., 1., 1.]])
    """
    frequencies = torch.exp(torch.arange(size // 2, device=t.device) * (-math.log(1e4) / max(size // 2 - 1, 1)))
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)


class MLPDenoiser(nn.Module):
    """Linear layers with ReLU on (x_t, time, condition) in one vector. hidden: widths · time_size: of t's features."""

    def __init__(
        self,
        *,
        horizon: int,
        channels: int,
        condition_dim: int,
        seed: int,
        hidden: Sequence[int] = (256, 256, 256),
        time_size: int = 32,
    ) -> None:
        super().__init__()
        self.time_size = time_size
        flat = horizon * channels
        generator = torch.Generator().manual_seed(seed)
        self.network = MLP([flat + time_size + condition_dim, *hidden, flat], generator=generator, init="uniform")

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        features = torch.cat([x.flatten(1), time_features(t, self.time_size), condition], -1)
        return self.network(features).view_as(x)


class UNetDenoiser(nn.Module):
    """Two residual blocks at each resolution, halved in between, then upwards again with what was there on the way.

    widths: channels at each resolution, from the finest; horizon must be a multiple of 2^(len(widths) − 1)
    kernel: size of the convolutions, odd · groups: of group normalization, a divisor of every width.
    """

    def __init__(
        self,
        *,
        horizon: int,
        channels: int,
        condition_dim: int,
        seed: int,
        widths: Sequence[int] = (64, 128),
        kernel: int = 5,
        groups: int = 8,
        time_size: int = 32,
    ) -> None:
        super().__init__()
        _require_halves(horizon, widths, groups)
        self.time_size = time_size
        given = time_size + condition_dim

        def block(inputs: int, outputs: int) -> _FiLMBlock:
            return _FiLMBlock(inputs, outputs, given, kernel=kernel, groups=groups)

        with _seeded(seed):
            levels = list(itertools.pairwise([channels, *widths]))
            self.down = nn.ModuleList(nn.ModuleList([block(i, o), block(o, o)]) for i, o in levels)
            self.shrink = nn.ModuleList(nn.Conv1d(width, width, 3, 2, 1) for width in widths[:-1])
            self.middle = block(widths[-1], widths[-1])
            coarser = list(itertools.pairwise(reversed(widths)))
            self.grow = nn.ModuleList(nn.ConvTranspose1d(i, o, 4, 2, 1) for i, o in coarser)
            self.up = nn.ModuleList(nn.ModuleList([block(2 * o, o), block(o, o)]) for _, o in coarser)
            self.out = nn.Conv1d(widths[0], channels, 1)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        given = torch.cat([time_features(t, self.time_size), condition], -1)
        h = x.transpose(1, 2)  # (B, C, T)
        kept: list[Tensor] = []  # the last of each resolution
        for level, blocks in enumerate(self.down):
            if level:
                h = self.shrink[level - 1](kept[-1])
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, given)
            kept.append(h)
        h = self.middle(kept.pop(), given)
        for grow, blocks in zip(self.grow, self.up, strict=True):
            h = torch.cat([grow(h), kept.pop()], 1)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, given)
        return self.out(h).transpose(1, 2)  # (B, T, C)


class _FiLMBlock(nn.Module):
    """Two convolutions with group normalization and Mish, scaled and shifted between them by what is given."""

    def __init__(self, inputs: int, outputs: int, given: int, *, kernel: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), nn.Mish()
        )
        self.film = nn.Linear(given, 2 * outputs)
        self.second = nn.Sequential(
            nn.Conv1d(outputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), nn.Mish()
        )
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        scale, shift = self.film(given)[..., None].chunk(2, 1)  # (B, C, 1) each
        return self.second(self.first(x) * (1 + scale) + shift) + self.skip(x)


class TransformerDenoiser(nn.Module):
    """Pre-norm layers of attention over time, condition and T steps. width: of tokens, a multiple of heads."""

    def __init__(
        self,
        *,
        horizon: int,
        channels: int,
        condition_dim: int,
        seed: int,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if width % (2 * heads) or layers < 1:
            raise ConfigError(
                f"width must be a multiple of 2 · heads, layers >= 1, but are {width}, {heads}, {layers}."
            )
        self.width = width
        with _seeded(seed):
            self.embed, self.given = nn.Linear(channels, width), nn.Linear(condition_dim, width)
            self.positions = nn.Parameter(0.02 * torch.randn(horizon + 2, width))
            self.layers = nn.ModuleList(_AttentionLayer(width, heads) for _ in range(layers))
            self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        first = torch.stack([time_features(t, self.width), self.given(condition)], 1)  # (B, 2, width)
        h = torch.cat([first, self.embed(x)], 1) + self.positions  # (B, T + 2, width)
        for layer in self.layers:
            h = layer(h)
        return self.out(h[:, 2:])


class _AttentionLayer(nn.Module):
    """Self-attention and a layer of four times the width, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.attend, self.join = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, h: Tensor) -> Tensor:
        B, L, width = h.shape
        q, k, v = self.attend(self.norm(h)).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, heads, L, …)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, width)
        h = h + self.join(attended)
        return h + self.wide(h)


DENOISERS: dict[str, MakeDenoiser] = {"mlp": MLPDenoiser, "unet": UNetDenoiser, "transformer": TransformerDenoiser}


def named_denoiser(kind: str | MakeDenoiser) -> MakeDenoiser:
    """The constructor of a denoiser by its name, or as it is given."""
    if not isinstance(kind, str):
        return kind
    if kind not in DENOISERS:
        raise ConfigError(f"denoiser must be one of {', '.join(DENOISERS)}, or a constructor, but is {kind!r}.")
    return DENOISERS[kind]


def _require_halves(horizon: int, widths: Sequence[int], groups: int) -> None:
    factor = 2 ** (len(widths) - 1)
    if not widths or horizon % factor or any(width % groups for width in widths):
        raise ConfigError(
            f"UNetDenoiser: horizon must be a multiple of {factor} for {len(widths)} widths, and each of these of "
            f"groups, but they are {horizon}, {list(widths)} and {groups}."
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The layers' usual initial weights from a seed; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
