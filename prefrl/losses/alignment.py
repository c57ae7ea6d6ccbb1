r"""Losses that align a metric with preferences: distances between videos are to order them as people do.

Of a triplet (anchor, positive, negative), ranked, the positive is to be nearer to the anchor: p = e^{−d_pos} /
(e^{−d_pos} + e^{−d_neg}) = σ(d_neg − d_pos), Bradley–Terry with minus the distance for a score. RAPL: arXiv 2310.07932
and 2412.04835 describe the likelihood; the code released by its first author minimizes 1 − p on ranked triplets and
(p − ½)² on triplets of equal rank. There the anchor of the ranking good > middling > bad is the good video, the
positive the middling one.

They take distances, where less is better, so they stand outside the table of losses; all are (B,), per item, and half
precision is widened.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefrl.losses.choice import preference_nll
from prefrl.losses.inputs import check, wide

__all__ = ["demo_pair_nll", "equal_triplet", "triplet_error", "triplet_nll"]


def triplet_nll(positive: Tensor, negative: Tensor) -> Tensor:
    """−log p = −log σ(d_neg − d_pos): the likelihood of a ranked triplet; (B,).

    arXiv 2310.07932 and 2412.04835 (equation numbers unverified). positive, negative: (B,) distances to the anchor.
    log 2 where both are equal; d_pos − d_neg where the triplet is far in the wrong order, with gradient 1.

    >>> triplet_nll(torch.tensor([1.0, 30.0]), torch.tensor([1.0, 0.0]))
    tensor([ 0.6931, 30.0000])
    """
    margin = _margin(positive, negative)
    return preference_nll(margin, torch.ones_like(margin))


def triplet_error(positive: Tensor, negative: Tensor) -> Tensor:
    """1 − p = σ(d_pos − d_neg), the probability of the wrong order: what RAPL's released code minimizes; (B,).

    The mean absolute error of Bradley–Terry (:func:`prefrl.losses.reward_mae` of −d): bounded by 1, so it bears wrong
    labels, and a triplet that is far in the wrong order has no gradient. positive, negative: as in triplet_nll.

    >>> triplet_error(torch.tensor([1.0, 30.0]), torch.tensor([1.0, 0.0]))
    tensor([0.5000, 1.0000])
    """
    return torch.sigmoid(-_margin(positive, negative))


def equal_triplet(first: Tensor, second: Tensor) -> Tensor:
    """(p − ½)² with p = σ(d_second − d_first), for three videos of equal rank: both are equally far from one; (B,).

    The second term of RAPL's released code. first, second: (B,) distances to the anchor. In [0, ¼], 0 where equal.

    >>> equal_triplet(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 30.0]))
    tensor([0.0000, 0.2500])
    """
    return (torch.sigmoid(_margin(first, second)) - 0.5) ** 2


def demo_pair_nll(first: Tensor, second: Tensor, p_first: Tensor) -> Tensor:
    """Likelihood of ordinary comparisons, scored by minus the distance to a set of preferred demonstrations; (B,).

    −p log σ(d₂ − d₁) − (1 − p) log σ(d₁ − d₂): Bradley–Terry of the reward that RAPL learns with, −min_k d(video,
    demo_k) (arXiv 2310.07932; the pair form is ours). first, second: (B,) distances of the videos to the set ·
    p_first: (B,) in [0, 1], a tie is ½. One-hot labels with an anchor for the set: :func:`triplet_nll`.

    >>> demo_pair_nll(torch.tensor([0.0]), torch.tensor([2.0]), torch.tensor([1.0]))
    tensor([0.1269])
    """
    return preference_nll(_margin(first, second), p_first)


def _margin(first: Tensor, second: Tensor) -> Tensor:
    """By how much the first is nearer."""
    check(
        first.shape == second.shape,
        "the second distances",
        f"of shape {tuple(second.shape)}",
        f"of {tuple(first.shape)}",
    )
    return wide(second) - wide(first)
