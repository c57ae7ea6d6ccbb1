"""How well a score predicts answers that it has not seen: k-fold cross-validated accuracy (Stone 1974, JRSS B 36).

For data sets of a hundred comparisons, where a held-out tenth says little: every comparison is judged once. Where some
share a segment, folds are of whole groups of them (Roberts et al. 2017, Ecography 40: dependence makes random folds
optimistic).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from prefrl.core import Comparisons, SegmentBatch
from prefrl.errors import ConfigError, InvalidData

__all__ = ["CrossValidation", "SegmentGroups", "cross_validated_accuracy", "segment_groups"]


class CrossValidation(NamedTuple):
    """Which of n decided comparisons a score predicted that was trained without their fold.

    correct: (n,) float64, 1 predicted, 0 not, 0.5 where both sides scored the same · accuracy: its mean
    fold: (n,) int64, in which each was held out · rows: (n,) int64, where each stands among all comparisons.
    """

    correct: Tensor
    accuracy: float
    fold: Tensor
    rows: Tensor


class SegmentGroups(NamedTuple):
    """Which of n comparisons hang together.

    group: (n,) int64 from 0, equal where a chain of comparisons that share a segment leads from one to the other
    shared: how many segments are in several comparisons.
    """

    group: Tensor
    shared: int


def segment_groups(comparisons: Comparisons) -> SegmentGroups:
    """Groups of comparisons; segments are the same if all their observations and actions are exactly equal."""
    n, numbers = len(comparisons), dict[tuple[bytes, bytes], int]()
    keys = [key for segments in (comparisons.first, comparisons.second) for key in _contents(segments)]
    found = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)  # (2n,)
    holds = coo_array((np.ones(2 * n), (np.tile(np.arange(n), 2), found)), (n, len(numbers))).tocsr()
    group = connected_components(holds @ holds.T, directed=False)[1]
    return SegmentGroups(torch.as_tensor(group, dtype=torch.int64), int(((holds > 0).sum(0) > 1).sum()))


def _contents(segments: SegmentBatch) -> list[tuple[bytes, bytes]]:
    """Of each segment its observations and actions, without padding."""
    observations, actions = (array.cpu().numpy() for array in (segments.observations, segments.actions))
    return [
        (observations[row, : length + 1].tobytes(), actions[row, :length].tobytes())
        for row, length in enumerate(segments.lengths.tolist())
    ]


def cross_validated_accuracy(
    make_score: Callable[..., Any],
    comparisons: Comparisons,
    *,
    folds: int = 5,
    seed: int,
    fit: Callable[..., Any],
) -> CrossValidation:
    """Train on all folds but one, judge that one by the sign of the mean score difference; each fold in turn.

    Ties (p_first = 0.5) have no side: they are left out of everything. Weights, minibatches *and input statistics*
    come from the training folds only, and true rewards are not passed on. No segment is on both sides of a split: folds
    consist of whole ``segment_groups``. Segments that overlap without being equal are not noticed.

    Args:
        make_score: as ``ReturnEnsemble.for_data``, called with ``observations``, ``actions`` and ``seed``.
        folds: in [2, n], and no more than there are groups (else ``InvalidData``); as equal in size as groups allow, to
            one comparison where no segment is shared. seed: of the folds, the weights and the fits.
        fit: as ``fit_score`` with its hyper-parameters bound, called as ``fit(score, train, seed=, holdout=0.0)``.
    """
    rows = (comparisons.p_first != 0.5).nonzero().squeeze(1).cpu()  # (n,)
    n = len(rows)
    if n < 2:
        raise InvalidData(f"Cross-validation needs at least 2 comparisons that are no ties, but there are {n}.")
    if not 2 <= folds <= n:
        raise ConfigError(f"cross-validation: folds must be in [2, {n}] (decided comparisons), but is {folds}.")
    decided = comparisons[rows].without_true_reward()
    fold = _folds(segment_groups(decided), folds, seed)
    correct = torch.empty(n, dtype=torch.float64)
    for held in range(folds):
        score = _trained(make_score, decided[fold != held], seed=seed, fit=fit)
        correct[fold == held] = _hits(score, decided[fold == held])
    return CrossValidation(correct, correct.mean().item(), fold, rows)


def _folds(groups: SegmentGroups, folds: int, seed: int) -> Tensor:
    """(n,) fold of each comparison. The largest groups first, equal ones shuffled, each to the smallest fold so far."""
    sizes = torch.bincount(groups.group)
    if len(sizes) < folds:
        raise InvalidData(
            f"Cross-validation in {folds} folds needs as many groups of comparisons that share no segment, but there "
            f"are {len(sizes)} ({groups.shared} segments are in several comparisons). "
            + ("Choose fewer folds." if len(sizes) > 1 else "No split is possible; compare other segments.")
        )
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed))
    order = order[sizes[order].argsort(descending=True, stable=True)]
    fold, filled = torch.empty_like(sizes), [0] * folds
    for group in order.tolist():
        fold[group] = filled.index(min(filled))
        filled[int(fold[group])] += int(sizes[group])
    return fold[groups.group]


def _trained(make_score: Callable[..., Any], train: Comparisons, *, seed: int, fit: Callable[..., Any]) -> Any:
    """A fresh score with statistics of the real steps of ``train``, fitted to it."""
    both = train.first, train.second
    observations = torch.cat([segments.observations[:, :-1][segments.mask] for segments in both])
    actions = torch.cat([segments.actions[segments.mask] for segments in both])
    score = make_score(observations=observations, actions=actions, seed=seed)
    fit(score, train, seed=seed, holdout=0.0)
    return score


def _hits(score: Any, comparisons: Comparisons) -> Tensor:
    """(n,) float64: 1 where the mean score is higher on the preferred side, 0.5 where it is equal on both."""
    with torch.no_grad():
        difference = (score(comparisons.first) - score(comparisons.second)).mean(0)
    agrees = torch.sign(difference) * torch.sign(comparisons.p_first - 0.5)
    return (0.5 + 0.5 * agrees).double().cpu()
