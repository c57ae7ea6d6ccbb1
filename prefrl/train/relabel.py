"""Give every step of a dataset the reward of a score, on the scale that a learner expects."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from prefrl.core import require_finite
from prefrl.errors import ConfigError, InvalidData
from prefrl.protocols import Score

__all__ = ["Normalization", "Reduction", "normalize_rewards", "relabel"]

Reduction = Literal["mean", "min", "pessimistic"]
REDUCTIONS = get_args(Reduction)
Normalization = Literal["none", "std", "return_range"]
METHODS = get_args(Normalization)


def relabel(
    score: Score,
    observations: Tensor,
    actions: Tensor,
    *,
    batch_size: int = 8192,
    reduce: Reduction = "mean",
    pessimism: float = 1.0,
) -> Tensor:
    """(N,) rewards of steps (N, D), (N, A): over the members, their mean, their minimum, or mean − pessimism · std.

    The std is that of the mixture of all members, √(mean σ_i² + var μ_i) (Lakshminarayanan et al. 2017, arXiv
    1612.01474, §2.4), with σ_i of a score that has an ``uncertainty``, and 0 of one that has none. ``pessimism`` k >= 0
    is read by "pessimistic" only. ``batch_size`` steps are computed at a time (the default is enough for narrow
    networks to be quick, and not too many for wide ones); it changes no more than the last digits.
    """
    if reduce not in REDUCTIONS:
        raise ConfigError(f"reduce must be one of {', '.join(REDUCTIONS)}, but is {reduce!r}.")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be >= 1, but is {batch_size}.")
    if not 0 <= pessimism < math.inf:
        raise ConfigError(f"pessimism must be in [0, inf), but is {pessimism}.")
    if len(observations) != len(actions):
        raise InvalidData(f"relabel: {len(observations)} observations, but {len(actions)} actions.")
    rewards = []
    with torch.no_grad():
        for o, a in zip(observations.split(batch_size), actions.split(batch_size), strict=True):
            members = score.reward(o, a)  # (members, b)
            if reduce == "pessimistic":
                rewards.append(members.mean(0) - pessimism * _mixture_std(score, members, o, a))
            else:
                rewards.append(members.mean(0) if reduce == "mean" else members.amin(0))
    relabeled = torch.cat(rewards)
    require_finite("learned rewards", relabeled)
    return relabeled


def _mixture_std(score: Any, members: Tensor, observations: Tensor, actions: Tensor) -> Tensor:
    """(b,): standard deviation of the equal mixture of the members, whose means are (members, b)."""
    spread = members.var(0, correction=0)
    if hasattr(score, "uncertainty"):
        return (spread + score.uncertainty(observations, actions).square().mean(0)).sqrt()
    if len(members) == 1:
        raise ConfigError("reduce='pessimistic' needs 2 members or more, or a score with an uncertainty.")
    return spread.sqrt()


def normalize_rewards(
    rewards: Tensor,
    lengths: np.ndarray,
    *,
    method: Normalization = "none",
    scale: float = 1.0,
) -> Tensor:
    r"""(N,) rewards of the steps of episodes with ``lengths`` (E,), brought to a scale and times ``scale``.

    - none: as they are · std: (r − mean) / standard deviation over all steps
    - return_range: 1000 r / (best − worst episode return), as IQL for locomotion (arXiv 2110.06169, §5).

    Rewards that are zero everywhere stay zero; others without any spread raise ``InvalidData``.

    >>> normalize_rewards(torch.tensor([1.0, 3.0]), np.array([1, 1]), method="return_range")
    tensor([ 500., 1500.])
    """
    if method not in METHODS:
        raise ConfigError(f"Reward normalization must be one of {', '.join(METHODS)}, but is {method!r}.")
    if len(rewards) == 0 or int(np.sum(lengths)) != len(rewards):
        raise InvalidData(
            f"normalize_rewards: {len(rewards)} rewards do not fit episodes of {int(np.sum(lengths))} steps."
        )
    require_finite("rewards", rewards)
    if method == "none" or not bool(rewards.any()):
        return rewards * scale
    values = rewards.double()
    if method == "std":
        centre, spread = values.mean(), values.std(correction=0)
    else:
        centre, spread = torch.zeros((), dtype=values.dtype), _return_range(values, lengths) / 1000
    if not float(spread) > 1e-6 * float(values.abs().max()):
        raise InvalidData(
            f"Rewards have no spread to normalize by (method {method!r}, spread {float(spread):g}): "
            "they are a constant. Fit the score to more comparisons, or use method 'none'."
        )
    return ((values - centre) / spread * scale).to(rewards.dtype)


def _return_range(rewards: Tensor, lengths: np.ndarray) -> Tensor:
    returns = torch.stack([episode.sum() for episode in rewards.split([int(n) for n in lengths])])
    return returns.max() - returns.min()
