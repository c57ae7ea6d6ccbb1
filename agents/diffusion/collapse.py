r"""Collapse of a diffusion policy under preference learning: it forgets its data, and the margins look perfect.

Margins can be widened by raising both errors of a pair, the rejected one more; then samples leave the data, while loss
and accuracy on pairs are better than ever (see :mod:`prefrl.losses.denoising`). What shows it is the error on
demonstrations that a good policy should still explain. It is taken at fixed chunks, times and noise, so that only the
policy changes it: at the start the ratio is 1 exactly.
"""

from __future__ import annotations

import torch

from agents.diffusion.chunks import chunks_of
from agents.diffusion.policy import DiffusionPolicy
from prefrl.core import SegmentBatch
from prefrl.errors import ConfigError, InvalidData, PrefrlError

__all__ = ["CollapseDetected", "DemonstrationError", "describe_collapse"]


class CollapseDetected(PrefrlError):
    """The error on demonstrations rose above its limit; the best weights before that are in the learner's policy."""


class DemonstrationError:
    """A policy's denoising error on demonstrations, relative to that at the start.

    demonstrations: N segments, held out, of what the policy should go on doing. Where preferences reject a part of
    what was demonstrated, leave that out: its error rises on purpose, which is no collapse.
    chunks: how many are drawn from them, at times spread evenly over all · limit: the rise that is a collapse, .2 for
    20 %.
    """

    def __init__(
        self, policy: DiffusionPolicy, demonstrations: SegmentBatch, *, chunks: int, limit: float, seed: int
    ) -> None:
        if len(demonstrations) == 0:
            raise InvalidData("demonstrations is empty; at least one segment is needed to notice a collapse.")
        if chunks < 1 or not limit > 0:
            raise ConfigError(f"demo_chunks must be >= 1 and collapse_limit > 0, but are {chunks} and {limit}.")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(demonstrations), (chunks,), generator=generator)
        lengths = demonstrations.lengths.cpu()[rows]
        starts = (torch.rand(chunks, generator=generator) * lengths).long()[:, None]  # (M, 1)
        drawn = demonstrations[rows]
        device = policy.mean.device
        self._chunks = chunks_of(drawn.to(device), starts.to(device), n_obs=policy.n_obs, horizon=policy.horizon)
        self._t = (torch.arange(chunks, device=device) * policy.train_steps) // chunks  # (M,)
        self._noise = torch.randn(self._chunks.actions.shape, generator=generator).to(device)
        self.limit = limit
        self.start = self.error(policy)

    @torch.no_grad()
    def error(self, policy: DiffusionPolicy) -> float:
        """Mean squared error on the fixed draws."""
        return policy.chunk_error(self._chunks, self._noise, self._t).double().mean().item()

    def ratio(self, policy: DiffusionPolicy) -> float:
        """Error relative to that at the start; NaN counts as infinite."""
        found = self.error(policy) / self.start
        return found if found == found else float("inf")

    def collapsed(self, ratio: float) -> bool:
        """Whether a ratio is above the limit."""
        return ratio > 1 + self.limit


def describe_collapse(ratio: float, step: int, limit: float, best_step: int) -> str:
    """What happened, and what to do."""
    return (
        f"At update {step} the denoising error on demonstrations is {ratio:.2f} times that at the start (limit "
        f"{1 + limit:g}): the policy leaves its data. Its weights are those of update {best_step} again. Give a larger "
        "anchor, a larger beta, a smaller lr, or fewer updates."
    )
