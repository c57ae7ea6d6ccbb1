"""n-step transitions: rewards summed over the next n steps, so that values travel n steps in one update.

R_t = Σ_{k<m} γ^k r_{t+k} and the next observation is that of step t + m, where m = min(n, steps left in the episode).
Uncorrected, as in Peng's and Rainbow's returns (Hessel et al. 2018, arXiv 1710.02298 §3): it evaluates the behavior for
n steps, which suits offline data whose episodes differ as wholes. n = 1 changes nothing.
"""

from __future__ import annotations

import numpy as np
import torch

from prefrl.core import Transitions

__all__ = ["n_step_returns"]


def n_step_returns(data: Transitions, lengths: np.ndarray, *, n: int, gamma: float) -> Transitions:
    """The n-step form of all transitions of episodes with ``lengths`` (E,) steps, in order.

    >>> x = torch.arange(3.0)[:, None]
    >>> one = Transitions(x, x, torch.ones(3), x + 1, torch.zeros(3))
    >>> two = n_step_returns(one, np.array([3]), n=2, gamma=0.5)
    >>> two.rewards, two.steps, two.next_observations[:, 0]
    (tensor([1.5000, 1.5000, 1.0000]), tensor([2., 2., 1.]), tensor([2., 3., 3.]))
    """
    if n < 1:
        raise ValueError(f"n_step must be >= 1, but is {n}.")
    if n == 1:
        return data
    N = len(data)
    last = np.repeat(np.cumsum(lengths), lengths) - 1  # (N,): index of the last step of each step's episode
    at = np.arange(N)
    rewards = torch.zeros(N, dtype=torch.float64)
    for k in range(n):
        inside = torch.from_numpy(at + k <= last)
        step = torch.from_numpy(np.minimum(at + k, last))
        rewards += torch.where(inside, gamma**k * data.rewards[step].to(torch.float64), 0.0)
    end = torch.from_numpy(np.minimum(at + n - 1, last))
    return Transitions(
        observations=data.observations,
        actions=data.actions,
        rewards=rewards.to(data.rewards.dtype),
        next_observations=data.next_observations[end],
        terminated=data.terminated[end],
        steps=(end - torch.from_numpy(at) + 1).to(data.terminated.dtype),
    )
