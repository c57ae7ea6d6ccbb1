r"""Noise schedules and parametrizations of denoising diffusion (DDPM: Ho, Jain and Abbeel 2020, arXiv 2006.11239).

S diffusion steps t = 0 … S − 1 add noise to clean data x_0, little at first, until nothing else is left:

    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,   ε ~ N(0, I),   ᾱ_t = Π_{i ≤ t} (1 − β_i)

A network sees x_t and t. Whether it predicts the noise ε, the clean x_0, or v = √ᾱ ε − √(1 − ᾱ) x_0 (Salimans and Ho
2022, arXiv 2202.00512), the other two follow from it and x_t. They differ in what an error of 1 means: that of ε
hardly counts what is decided at high noise, such as which of two modes a sample goes to; those of x_0 and v do.

Everything here is for tensors of any shape (B, T, C): action chunks, plans of states, points.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from prefrl.errors import ConfigError

__all__ = ["PARAMETRIZATIONS", "Parametrization", "alpha_bars", "betas", "noised", "to_noise", "to_target", "to_x0"]

Parametrization: TypeAlias = Literal["epsilon", "x0", "v"]
PARAMETRIZATIONS = ("epsilon", "x0", "v")


def betas(schedule: str, steps: int) -> Tensor:
    """(S,) float64, the variances β_t that the steps add, in (0, 1).

    - ``linear``: from 10⁻⁴ to 0.02 for 1000 steps (arXiv 2006.11239, §4), times 1000/S for S, so that the last is
      noise for every S > 20
    - ``squared_cosine``: ᾱ(u) ∝ cos²((u + .008)/1.008 · π/2), β at most .999 (Nichol and Dhariwal 2021,
      arXiv 2102.09672, eq. 17); that of diffusion policies (Chi et al. 2023, arXiv 2303.04137)

    >>> betas("linear", 1000)[[0, -1]]
    tensor([0.0001, 0.0200], dtype=torch.float64)
    """
    if schedule == "linear":
        if steps <= 20:
            raise ConfigError(f"steps of the linear schedule must be > 20, but is {steps}; squared_cosine takes less.")
        return torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * (1000 / steps)
    if schedule != "squared_cosine":
        raise ConfigError(f"schedule must be 'linear' or 'squared_cosine', but is {schedule!r}.")
    if steps < 1:
        raise ConfigError(f"steps of the squared_cosine schedule must be >= 1, but is {steps}.")
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    wave = torch.cos((u + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - wave[1:] / wave[:-1]).clamp(max=0.999)


def alpha_bars(schedule: str, steps: int) -> Tensor:
    """(S,) float64, falling: ᾱ_t, the share of the data's variance that is left after step t.

    >>> bool((alpha_bars("squared_cosine", 100).diff() < 0).all())
    True
    """
    return torch.cumprod(1 - betas(schedule, steps), 0)


def noised(x_0: Tensor, noise: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """x_t = √ᾱ x_0 + √(1 − ᾱ) ε; (B, …), with ᾱ (B,) or one number.

    >>> noised(torch.tensor([[1.0]]), torch.tensor([[2.0]]), 0.36)
    tensor([[2.2000]])
    """
    signal, spread = _scales(alpha_bar, x_0)
    return signal * x_0 + spread * noise


def to_target(x_0: Tensor, noise: Tensor, alpha_bar: Tensor | float, parametrization: str) -> Tensor:
    """What a network of this parametrization should predict; (B, …), as in :func:`noised`."""
    if parametrization == "epsilon":
        return noise
    if parametrization == "x0":
        return x_0
    signal, spread = _scales(alpha_bar, x_0)
    return signal * noise - spread * x_0


def to_x0(prediction: Tensor, x_t: Tensor, alpha_bar: Tensor | float, parametrization: str) -> Tensor:
    """The clean x_0 that a prediction means; (B, …). Of ε it is unsure where ᾱ is near 0: it is divided by √ᾱ.

    >>> to_x0(torch.tensor([[2.0]]), torch.tensor([[2.2]]), 0.36, "epsilon")
    tensor([[1.]])
    """
    if parametrization == "x0":
        return prediction
    signal, spread = _scales(alpha_bar, x_t)
    return (x_t - spread * prediction) / signal if parametrization == "epsilon" else signal * x_t - spread * prediction


def to_noise(x_0: Tensor, x_t: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """The noise that makes x_t of x_0; (B, …).

    >>> to_noise(torch.tensor([[1.0]]), torch.tensor([[2.2]]), 0.36)
    tensor([[2.]])
    """
    signal, spread = _scales(alpha_bar, x_t)
    return (x_t - signal * x_0) / spread


def _scales(alpha_bar: Tensor | float, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """√ᾱ and √(1 − ᾱ): numbers, or (B, 1, …) for ᾱ (B,)."""
    if not isinstance(alpha_bar, Tensor):
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    bar = alpha_bar.reshape(-1, *[1] * (like.ndim - 1)) if alpha_bar.ndim else alpha_bar
    return bar.sqrt().to(like.dtype), (1 - bar).sqrt().to(like.dtype)
