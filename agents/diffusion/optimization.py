r"""How diffusion policies are optimized: AdamW, a learning rate with warm-up and cosine, a moving average of weights.

Settings are those of diffusion policies (Chi et al. 2023, arXiv 2303.04137, and their code): betas .95 and .999, weight
decay 10⁻⁶, 500 warm-up updates, and a policy that is the moving average of the weights with a rate that falls with the
updates, so that it forgets its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from prefrl.errors import ConfigError

__all__ = ["average_rate", "make_optimizer", "rate_share", "require_schedule"]


def make_optimizer(parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW with betas .95 and .999."""
    trained = [p for p in parameters if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, betas=(0.95, 0.999), weight_decay=weight_decay, fused=True)


def rate_share(step: int, *, warmup_steps: int, decay_steps: int | None) -> float:
    """Share of the learning rate in update ``step`` = 0, 1, …: a linear rise, then a cosine from 1 to 0, or constant.

    decay_steps: the update at which it reaches 0, warm-up included; None is constant after the rise.

    >>> [round(rate_share(step, warmup_steps=2, decay_steps=6), 2) for step in range(7)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay_steps is None:
        return 1.0
    done = (step - warmup_steps) / max(decay_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def average_rate(step: int, power: float) -> float:
    """Share of the new weights in the moving average after update ``step`` = 1, 2, …: step^(−power), at least 10⁻⁴.

    The authors' 1 − (1 − (1 + n)^(−power)) with n = step − 1; power .75: .18 after 10 updates, .0056 after 1000.

    >>> average_rate(1, 0.75), average_rate(16, 0.75)
    (1.0, 0.125)
    """
    return max(step**-power, 1e-4)


def require_schedule(name: str, *, lr: float, warmup_steps: int, decay_steps: int | None, weight_decay: float) -> None:
    """Raise ``ConfigError`` for what no optimizer can use."""
    allowed = {
        f"lr must be > 0, but is {lr}": lr > 0,
        f"weight_decay must be >= 0, but is {weight_decay}": weight_decay >= 0,
        f"warmup_steps must be >= 0, but is {warmup_steps}": warmup_steps >= 0,
        f"decay_steps must be > warmup_steps={warmup_steps} or null, but is {decay_steps}": decay_steps is None
        or decay_steps > warmup_steps,
    }
    for message, holds in allowed.items():
        if not holds:
            raise ConfigError(f"{name}: {message}.")
