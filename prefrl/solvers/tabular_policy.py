"""A policy of a tabular process as everything else acts: states and actions travel as float32 of size 1."""

from __future__ import annotations

import torch
from torch import Tensor

from prefrl.core import SegmentBatch
from prefrl.errors import InvalidData

__all__ = ["TabularPolicy"]


class TabularPolicy:
    """Acts by a table (S, A) of probabilities, as :func:`prefrl.solvers.greedy_policy` gives; a ``Policy``.

    ``act`` takes the likeliest action, of equally likely ones the first.

    >>> TabularPolicy(torch.tensor([[0.0, 1.0], [0.5, 0.5]])).act(torch.tensor([[1.0], [0.0]])).tolist()
    [[0.0], [1.0]]
    """

    def __init__(self, probabilities: Tensor) -> None:
        total = probabilities.sum(-1)
        if probabilities.dim() != 2 or not bool((probabilities >= 0).all() & ((total - 1).abs() <= 1e-6).all()):
            raise InvalidData(
                "TabularPolicy: probabilities must be (S, A), at least 0 and sum to 1 in every state, but have shape "
                f"{tuple(probabilities.shape)}."
            )
        self.probabilities = probabilities
        self._best = probabilities.argmax(-1).to(torch.float32)  # (S,)

    def act(self, observations: Tensor) -> Tensor:
        """(B, 1) states -> (B, 1) actions."""
        return self._best[observations.long()]

    def log_prob(self, segments: SegmentBatch) -> Tensor:
        """(B, T): log π(a_t | s_t); −∞ where the action is never taken, 0 on padding."""
        states, actions = segments.observations[:, :-1, 0].long(), segments.actions[..., 0].long()
        return self.probabilities[states, actions].log().masked_fill(~segments.mask, 0)
