"""What the reward of an online run may be beside what its answers say: options of PEBBLE's loop, each from its paper.

- a bonus where the members disagree (RUNE, Liang et al. 2022, arXiv 2205.12401)
- pairs that nobody answered (SURF, Park et al. 2022, arXiv 2203.10050)
- a step of the reward through the critic's own update (MRN, Liu et al. 2022, arXiv 2211.07241)

The replay holds the bonus with β of the step when a reward was written or relabelled; each sampled batch is rewarded
anew, with β of the present step. RUNE's code stores mean and std and multiplies by β in the update, which is the same,
because members change in sessions only, which relabel.

All are off by default. What is drawn here is a function of seeds and of what a checkpoint holds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefrl.core import Comparisons, SegmentBatch
from prefrl.data.dataset import Episodes
from prefrl.data.query import UniformQuery
from prefrl.recipes.online_answers import Recent
from prefrl.train.exploration import disagreement_bonus
from prefrl.train.meta_reward import meta_reward_loss

__all__ = ["meta_step", "optimistic", "unlabelled_pairs"]

CHUNK = 1024  # steps that are computed at a time, as in prefrl.train.relabel
UNLABELLED = 1  # a stream of random numbers of its own


def optimistic(
    score: Any, observations: Tensor, actions: Tensor, *, sign: int, step: int, beta: float, decay: float
) -> Tensor:
    """(B,) sign · mean of the members + β (1 − ρ)^t · their std, at environment step t."""
    with torch.no_grad():
        parts = zip(observations.split(CHUNK), actions.split(CHUNK), strict=True)
        members = torch.cat([score.reward(o, a) for o, a in parts], 1)  # (N, B)
        return sign * members.mean(0) + disagreement_bonus(members, step=step, beta=beta, decay=decay)


def unlabelled_pairs(
    episodes: Episodes, n: int, *, segment_length: int, recent_episodes: int, seed: int, session: int
) -> tuple[SegmentBatch, SegmentBatch]:
    """n uniform pairs of segments of the recent episodes, without rewards: nobody is asked about them."""
    rng = np.random.default_rng([seed, session, UNLABELLED])
    refs = Recent(UniformQuery(), last=recent_episodes)(episodes.lengths, n, segment_length, rng)
    first, second = (episodes.segments(side).without_true_reward() for side in refs)
    return first, second


def meta_step(
    score: Any, optimizer: torch.optim.Optimizer, answers: Comparisons, update: dict[str, Any], *, sign: int
) -> float:
    """One step of the score, so that the critic explains the answers better after its next update; the loss before.

    update: what that update is of, as ``meta_reward_loss`` takes it: q, batch, next_values, gamma, learning_rate.
    """
    if sign < 0:  # who learns from the negative reward values what answers reject
        answers = replace(answers, p_first=1 - answers.p_first)
    loss = meta_reward_loss(
        reward=lambda observations, actions: sign * score.reward(observations, actions).mean(0),
        comparisons=answers,
        **update,
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
