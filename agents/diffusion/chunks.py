r"""Chunks: at each step, what a diffusion policy has seen and the actions that it should say next (arXiv 2303.04137).

The chunk of step s has the last n_obs observations up to s, and the H actions s, s + 1, … s + H − 1. At the ends of
an episode or segment both are padded by what stands there: the history by the first observation, the actions by the
last one. The mask is true on the actions that are there. (The authors' chunk begins n_obs − 1 steps earlier, with
actions that are never executed.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefrl.core import SegmentBatch, Transitions

__all__ = ["Chunks", "chunk_transitions", "chunks_of"]


class Chunks(NamedTuple):
    """M chunks: history (M, n_obs, D), actions (M, H, A), mask (M, H) bool."""

    history: Tensor
    actions: Tensor
    mask: Tensor


def chunks_of(segments: SegmentBatch, starts: Tensor, *, n_obs: int, horizon: int) -> Chunks:
    """The chunks at steps ``starts`` (B, n) of B segments, as M = B · n rows, those of one segment in a row.

    A start after the segment's end (of a padded step) is taken for its last step.
    """
    last = (segments.lengths - 1)[:, None]  # (B, 1)
    history, chunk, mask = _indices(torch.minimum(starts, last), torch.zeros_like(last), last, n_obs, horizon)
    rows = torch.arange(len(segments), device=starts.device)[:, None, None]
    return Chunks(
        segments.observations[rows, history].flatten(0, 1),
        segments.actions[rows, chunk].flatten(0, 1),
        mask.flatten(0, 1),
    )


def chunk_transitions(data: Transitions, lengths: np.ndarray, *, n_obs: int, horizon: int) -> Transitions:
    """All steps of episodes with ``lengths`` (E,), in order: observations (N, n_obs · D), actions (N, H · A).

    Padding counts as data: an episode goes on as it ended. All else is left as it is.

    >>> x = torch.arange(3.0)[:, None]
    >>> made = chunk_transitions(Transitions(x, x, x[:, 0], x, x[:, 0]), np.array([2, 1]), n_obs=2, horizon=2)
    >>> made.observations.tolist(), made.actions.tolist()
    ([[0.0, 0.0], [0.0, 1.0], [2.0, 2.0]], [[0.0, 1.0], [1.0, 1.0], [2.0, 2.0]])
    """
    ends = torch.from_numpy(np.cumsum(lengths))
    count = torch.as_tensor(lengths)
    first = (ends - count).repeat_interleave(count)[:, None]  # (N, 1)
    last = (ends - 1).repeat_interleave(count)[:, None]
    history, chunk, _ = _indices(torch.arange(len(data))[:, None], first, last, n_obs, horizon)
    return Transitions(
        data.observations[history[:, 0]].flatten(1),
        data.actions[chunk[:, 0]].flatten(1),
        data.rewards,
        data.next_observations,
        data.terminated,
        data.steps,
    )


def _indices(at: Tensor, first: Tensor, last: Tensor, n_obs: int, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps at (B, n), first and last of theirs (B, 1) → history (B, n, n_obs), chunk (B, n, H) and its mask."""
    history = at[..., None] + torch.arange(1 - n_obs, 1, device=at.device)
    chunk = at[..., None] + torch.arange(horizon, device=at.device)
    return torch.maximum(history, first[..., None]), torch.minimum(chunk, last[..., None]), chunk <= last[..., None]
