r"""Samplers of diffusion models: DDPM's ancestral one (arXiv 2006.11239) and DDIM (Song et al. 2021, arXiv 2010.02502).

From noise to data in n of the S steps: at each, the prediction gives x̂_0, and x at the next, smaller time is drawn.
DDIM with η = 0 draws nothing after the start, so the sample is a function of the start; with η = 1 and all steps it is
the ancestral sampler. The last time is one with nothing but data (ᾱ = 1).

Noise comes from a function ``draw``, so that whoever calls decides whose random numbers a row gets.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from agents.diffusion.schedules import to_noise, to_x0
from prefrl.errors import ConfigError

__all__ = ["ddim_step", "ddpm_step", "sample", "sampling_times"]

Predict = Callable[[Tensor, Tensor], Tensor]  # x_t (B, T, C), t (B,) -> prediction (B, T, C)
Step = Callable[[Tensor, Tensor, float, float], tuple[Tensor, float]]  # x_t, x_0, ᾱ now and next -> mean, std


def sampling_times(train_steps: int, steps: int) -> list[int]:
    """``steps`` of the times 0 … S − 1, falling, evenly spaced, the first always S − 1.

    It begins at pure noise, as it must (Lin et al. 2024, arXiv 2305.08891: "trailing" times).

    >>> sampling_times(100, 4)
    [99, 74, 49, 24]
    """
    if not 1 <= steps <= train_steps:
        raise ConfigError(f"sampling_steps must be in 1 … {train_steps}, the steps trained with, but is {steps}.")
    return [round(train_steps * (1 - i / steps)) - 1 for i in range(steps)]


def ddpm_step(x_t: Tensor, x_0: Tensor, bar: float, bar_next: float) -> tuple[Tensor, float]:
    """Mean, of x_t's shape, and std of q(x_next | x_t, x_0) (arXiv 2006.11239, eqs. 6 and 7).

    bar, bar_next: ᾱ now and at the next time, bar < bar_next ≤ 1.
    """
    kept = bar / bar_next  # α, of one step or of several at once
    mean = math.sqrt(bar_next) * (1 - kept) / (1 - bar) * x_0 + math.sqrt(kept) * (1 - bar_next) / (1 - bar) * x_t
    return mean, math.sqrt((1 - kept) * (1 - bar_next) / (1 - bar))


def ddim_step(x_t: Tensor, x_0: Tensor, bar: float, bar_next: float, eta: float = 0.0) -> tuple[Tensor, float]:
    """Mean and std of the next x (arXiv 2010.02502, eqs. 12 and 16); η in [0, 1] is the share of noise drawn anew."""
    std = eta * math.sqrt((1 - bar_next) / (1 - bar) * (1 - bar / bar_next))
    along = math.sqrt(max(0.0, 1 - bar_next - std**2))
    return math.sqrt(bar_next) * x_0 + along * to_noise(x_0, x_t, bar), std


def sample(
    predict: Predict,
    draw: Callable[[], Tensor],
    *,
    alpha_bar: Tensor,
    steps: int,
    parametrization: str,
    sampler: str = "ddim",
    eta: float = 0.0,
    clip: float | None = None,
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Samples (B, T, C) of a diffusion model.

    - predict: the network, x_t (B, T, C) and t (B,) int64 → (B, T, C) · parametrization: what it predicts
    - draw: standard normal noise (B, T, C), called at the start, and at every step that draws
    - alpha_bar: (S,) of all times · steps: how many of them are used · eta: of DDIM, in [0, 1]
    - clip: x̂_0 is kept in [−clip, clip] at every step, which data in [−1, 1] want; None leaves it
    - known: (bool mask, values), (B, T, C) each or broadcastable: what is known of the sample is put in its place
      before every step and at the end, as Diffuser does with the first state of a plan (arXiv 2205.09991)
    """
    if sampler not in ("ddim", "ddpm") or not 0 <= eta <= 1:
        raise ConfigError(f"sampler must be 'ddim' or 'ddpm', with eta in [0, 1], but is {sampler!r} with {eta}.")
    step: Step = ddpm_step if sampler == "ddpm" else functools.partial(ddim_step, eta=eta)
    bars, times = alpha_bar.tolist(), sampling_times(len(alpha_bar), steps)
    x = draw()
    for t, following in zip(times, [*times[1:], None], strict=True):
        x = x if known is None else torch.where(*known, x)
        prediction = predict(x, torch.full((len(x),), t, device=x.device))
        x_0 = to_x0(prediction, x, bars[t], parametrization)
        x_0 = x_0 if clip is None else x_0.clamp(-clip, clip)
        if following is None:
            x = x_0
            break
        x, std = step(x, x_0, bars[t], bars[following])
        x = x + std * draw() if std > 0 else x
    return x if known is None else torch.where(*known, x)
